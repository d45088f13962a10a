"""A whole pass of a Llama-like model with LoRA: losses of the labelled tokens, and gradients of the adapter.

    engine = Engine(model, shape, checkpointing=True, offload=False)
    engine.begin_step()
    losses = engine.learn(flatten(make_batch(rows), shape, 1 / labelled, seed))      # (labelled,) gradients are added

On CUDA forwards and backwards are captured once, as one graph: at 2048 tokens the host cannot launch the kernels as
fast as the GPU runs them. On the CPU the same functions run one by one (tests).
"""

from __future__ import annotations

import gc
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from mrp.models.loss import Batch
from mrp.train.fast.block import Block, Kept, Places
from mrp.train.fast.host import HostRows
from mrp.train.fast.linear import Adapter, Joint, MakeJoint, Scratch
from mrp.train.fast.pointwise import for_device
from mrp.train.fast.rows import Fields, FlatShape, fields_of, flatten
from mrp.train.fast.second import second_loss

CHUNK, SMALL_CHUNK = 512, 256  # labelled tokens whose logits are there at once
TILE = 512  # tokens of the MLP at once, where memory is short


def decoder_of(model: Any) -> tuple[Any, Any]:
    """(the causal language model, its decoder) inside PEFT's wrapping."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner, inner.model


class Engine:
    """The fast path's state: blocks, adapter, and the tensors a pass reads and writes."""

    def __init__(
        self,
        model: Any,
        shape: FlatShape,
        *,
        checkpointing: bool = False,
        offload: bool = False,
        joint: MakeJoint = Joint,
    ) -> None:
        self.shape, self.checkpointing = shape, checkpointing or offload
        self.model, self.decoder = decoder_of(model)
        self.head = self.model.get_output_embeddings().weight.data
        self.device, self.dtype = self.head.device, self.head.dtype
        self.norm, self.eps = self.decoder.norm.weight.data, self.decoder.norm.variance_epsilon
        # one room for each kind of matrix, or, to save memory, one for gate and up and one for all others
        rooms = {"qkv": "down", "o": "down"} if offload else {}
        self.scratch = Scratch(rooms)
        tile = TILE if offload else 0
        layers = enumerate(self.decoder.layers)
        self.blocks = [Block(layer, number, self.scratch, self.dtype, tile, joint) for number, layer in layers]
        self.adapter = Adapter([block.joints for block in self.blocks], self.dtype)
        self.chunk = SMALL_CHUNK if offload else CHUNK
        self.ops = for_device(self.device)
        self.numbers = torch.zeros(shape.numbers, dtype=torch.long, device=self.device)
        hidden = self.head.shape[1]
        self.embedding = self.decoder.embed_tokens.weight.data
        self.embeds_on_host = self.embedding.device != self.device
        size = (shape.tokens, hidden)
        self.embedded = torch.zeros(size if self.embeds_on_host else (0, 0), dtype=self.dtype, device=self.device)
        on_gpu = self.device.type == "cuda"
        self.host = HostRows(len(self.blocks), size, self.dtype, self.device) if offload and on_gpu else None
        self.graphs: dict[bool, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self.uses_graphs = on_gpu

    # -- what the loop calls --------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Before the first pass of an optimizer step."""
        self.adapter.begin_step()

    def learn(self, numbers: torch.Tensor) -> torch.Tensor:
        """(labelled + replies,) fp32 losses of a pass (unused slots 0), then the terms of its second loss; gradients
        are added to the adapter's."""
        return self._go(numbers, learns=True)

    def measure(self, numbers: torch.Tensor) -> torch.Tensor:
        """(labelled,) fp32 losses without dropout; nothing is learnt."""
        self.adapter.refresh()
        return self._go(numbers, learns=False)

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """(N,) the loss of each labelled token of `batch`, as `mrp.models.loss.token_losses` gives it."""
        on_host = batch.to("cpu")
        return self.measure(flatten(on_host, self.shape, 0.0, 0))[: len(batch.target)]

    def prepare(self) -> None:
        """Run on nothing and capture the graphs, so that what does not work here shows before the first step.

        Gradients are zero afterwards.
        """
        from mrp.models.loss import make_batch
        from mrp.render import Rendered

        nothing = flatten(make_batch([[Rendered([0], [False])]]), self.shape, 0.0, 0)
        self.numbers.copy_(nothing)
        if self.uses_graphs:
            self._capture()
        else:
            self._pass(learns=True)
        self.adapter.grads.zero_()

    # -- a pass ---------------------------------------------------------------------------------------------------

    def _go(self, numbers: torch.Tensor, learns: bool) -> torch.Tensor:
        if self.embeds_on_host:
            rows = F.embedding(fields_of(numbers, self.shape).ids, self.embedding)
            self.embedded.copy_(rows.pin_memory() if self.uses_graphs else rows, non_blocking=True)
        self.numbers.copy_(numbers.pin_memory() if self.uses_graphs else numbers, non_blocking=True)
        if not self.uses_graphs:
            return self._pass(learns)
        if not self.graphs:
            self.prepare()
            return self._go(numbers, learns)
        graph, losses = self.graphs[learns]
        graph.replay()
        return losses.clone()

    def _capture(self) -> None:
        """Run as it is first (kernels are built, libraries take their workspaces), then capture both kinds of pass.

        The second graph lives in the memory of the first; what the first runs took is given back before.
        """
        torch.cuda.empty_cache()  # of the parameters before they moved: 0.3 GiB of a 7B model's
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for learns in (False, True, True):
                self._pass(learns)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()  # 32 MiB for each stream that products ran on
        torch.cuda.empty_cache()
        pool = torch.cuda.graph_pool_handle()
        for learns in (True, False):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                losses = self._pass(learns)
            self.graphs[learns] = graph, losses

    def _pass(self, learns: bool) -> torch.Tensor:
        with torch.no_grad():  # attention alone asks autograd
            return self._forward_and_back(learns)

    def _forward_and_back(self, learns: bool) -> torch.Tensor:
        fields = fields_of(self.numbers, self.shape)
        self.scratch.forget()
        x = self.embedded if self.embeds_on_host else F.embedding(fields.ids, self.embedding)
        places = self._places(fields.positions, fields.ends, fields.seed, learns)
        delta: torch.Tensor | None = None
        all_kept = [Kept() for _ in self.blocks]
        for number, (block, kept) in enumerate(zip(self.blocks, all_kept, strict=True)):
            x, delta = block.forward(x, delta, places, kept, keep_all=learns and not self.checkpointing)
            if not learns:
                kept.x = None
            elif self.host is not None:
                self.host.put(number, kept)
        assert delta is not None
        losses, d = self._head(x, delta, fields, learns)
        del x, delta
        if not learns:
            return losses
        if self.host is not None:
            self.host.turn(all_kept)
        for number in reversed(range(len(self.blocks))):
            if self.host is not None:
                self.host.get(number, all_kept)
            self.adapter.begin_block(number)
            d = self.blocks[number].backward(d, places, all_kept[number])
            self.adapter.end_block(number)
            all_kept[number] = Kept()
        return losses

    def _places(self, positions: torch.Tensor, ends: torch.Tensor, seed: torch.Tensor, learns: bool) -> Places:
        like = torch.empty(0, device=self.device, dtype=torch.float64 if self.dtype == torch.float64 else torch.float32)
        cos, sin = self.decoder.rotary_emb(like, positions[None])
        half = cos.shape[-1] // 2
        cos, sin = (part[0, :, :half].contiguous() for part in (cos, sin))
        return Places(cos, sin, ends.to(torch.int32), self.shape.longest, seed, learns)

    def _head(
        self, x: torch.Tensor, delta: torch.Tensor, fields: Fields, learns: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the labelled tokens, and the gradient of the stream (T, H): norm, head and loss on these only."""
        source = fields.source
        stream, normed, _ = self.ops.norm(x[source], delta[source], self.norm, self.eps, None)
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        # with a second loss weights are known only when all losses are
        weights = torch.ones_like(fields.weight, dtype=wide) if self.shape.replies else fields.weight.to(wide)
        losses, grads = [], []
        for start in range(0, len(source), self.chunk):
            part = slice(start, start + self.chunk)
            logits = normed[part] @ self.head.t()
            losses.append(self.ops.cross_entropy(logits, fields.target[part], weights[part]))
            if learns:
                grads.append(logits @ self.head)
            del logits
        found = torch.cat(losses)
        if not learns:
            return found, found
        d = self.ops.norm_backward(torch.cat(grads), None, stream, self.norm, self.eps, None, None)
        if self.shape.replies:
            weights, terms = second_loss(found, fields, self.shape.replies)
            d.mul_(weights.to(wide)[:, None])
            found = torch.cat([found, terms])
        whole = x.new_zeros(len(x) + 1, x.shape[1])
        whole.index_copy_(0, fields.back, d)
        return found, whole[: len(x)]


class Measuring:
    """The engine where a model is asked for losses (`mrp.models.loss.token_losses`), with dropout off."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.training = engine, False

    def eval(self) -> Measuring:
        return self

    def train(self, mode: bool = True) -> Measuring:
        del mode
        return self

    def token_losses(self, batch: Batch) -> torch.Tensor:
        return self.engine.token_losses(batch)

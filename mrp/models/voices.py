"""Voices: small LoRAs of several characters on one frozen model, each row of a batch with its own.

    bank = new_voices(model, ["wukong", "bajie"], rank=8, alpha=16, seed=0)
    with bank.speaking(["wukong", None, "bajie"]):           # one for each row of the batch; None: no voice
        model(input_ids)                                     # (3, T)
    save_voices(bank, Path("run/voices"), "smollm2-135m-instruct")       # run/voices/wukong/adapter_model.safetensors
    bank = load_voices(model, Path("run/voices"))

The model may be a base, a merged model, or a base with the cast adapter (PEFT): a voice adds to what its linear layers
give, `scale * B @ A @ x` (Hu et al. 2021, arXiv 2106.09685), and the frozen rest is the same for all rows, so it is
computed once for the whole batch. Each voice is kept in PEFT's own format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file

from mrp.errors import InputError
from mrp.files import read_json, replacing_folder
from mrp.models.adapter_options import rank_and_scale
from mrp.models.voice_rows import ReadyVoices, RowsVoices
from mrp.train.checkpoint import disk_errors
from mrp.train.lora import CONFIG, WEIGHTS, check_adapter_folder

PREFIX = "base_model.model."  # of PEFT's names

Stacks = dict[str, tuple[torch.Tensor, torch.Tensor] | None]  # A and B of all rows, by layer


class Voice(torch.nn.Module):  # type: ignore[misc]
    """The small LoRA of one character: A (rank, in) and B (out, rank) of each layer, by the layer's name."""

    def __init__(self, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], scales: dict[str, float]) -> None:
        super().__init__()
        self.scales = scales
        self.a = {layer: torch.nn.Parameter(a) for layer, (a, _) in pairs.items()}
        self.b = {layer: torch.nn.Parameter(b) for layer, (_, b) in pairs.items()}
        for layer in pairs:  # parameters have names without dots
            self.register_parameter(f"{layer}.lora_A".replace(".", "/"), self.a[layer])
            self.register_parameter(f"{layer}.lora_B".replace(".", "/"), self.b[layer])


class VoiceBank:
    """The voices of a model, hung on its linear layers. Outside `speaking` the model is as it was."""

    def __init__(self, model: Any, voices: dict[str, Voice], dropout: float = 0.0) -> None:
        self.voices, self.dropout = voices, dropout
        self.is_training = False  # with gradients, and with dropout where there is any
        self._rows: tuple[str | None, ...] = ()
        self._stacks: Stacks = {}  # of the rows, while they are trained
        self._ready: ReadyVoices | None = None  # of the frozen weights, until they are trained on
        self._speaking: RowsVoices | None = None
        layers = linear_layers(model)
        wanted = {layer for voice in voices.values() for layer in voice.a}
        self._hooks = [layers[name].register_forward_hook(self._hook(name)) for name in sorted(wanted)]

    @property
    def ids(self) -> list[str]:
        return list(self.voices)

    @property
    def rows(self) -> tuple[str | None, ...]:
        """Who speaks the rows of a batch now; empty where none with a voice does."""
        return self._rows

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every weight of every voice, by "CHARACTER/LAYER.lora_A" and the like, in a fixed order."""
        return {
            f"{who}/{layer}.lora_{half}": pairs[layer]
            for who, voice in self.voices.items()
            for half, pairs in (("A", voice.a), ("B", voice.b))
            for layer in sorted(pairs)
        }

    @contextmanager
    def speaking(self, rows: Sequence[str | None]) -> Iterator[None]:
        """Within it, row k of each batch is spoken by the voice of `rows[k]` (None, or one without a voice: by none).

        A batch then has exactly as many rows. One entry stands for all rows of any batch.
        """
        before = self._rows
        self._choose(rows)
        try:
            yield
        finally:
            self._choose(before)

    def room_for(self, rows: int, device: torch.device, kind: torch.dtype | None) -> torch.Tensor:
        """(rows, numbers) of zeros, in which `put` writes voices for `speaking_from`. `kind`: autocast's, if any."""
        self._ready = self._ready or ReadyVoices(self.voices)
        return self._ready.room_for(rows, device, kind)

    def bytes_of_one(self, kind: torch.dtype | None) -> int:
        """Of a row of `room_for`."""
        self._ready = self._ready or ReadyVoices(self.voices)
        return int(self._ready.room_for(1, torch.device("meta"), kind).nbytes)

    def put(self, who: str | None, row: torch.Tensor) -> None:
        """Write the voice of `who` into a row of `room_for`; zeros for none."""
        self._ready = self._ready or ReadyVoices(self.voices)
        self._ready.put(who, row)

    @contextmanager
    def speaking_from(self, whole: torch.Tensor) -> Iterator[None]:
        """Within it the rows of a batch are spoken by what stands in the rows of `whole` at the time."""
        before, self._ready = self._rows, self._ready or ReadyVoices(self.voices)
        self._rows, self._speaking = (next(iter(self.voices)),) * len(whole), self._ready.reading(whole)
        try:
            yield
        finally:
            self._choose(before)

    def remove(self) -> None:
        """Take the voices off the model."""
        for hook in self._hooks:
            hook.remove()

    def _choose(self, rows: Sequence[str | None]) -> None:
        known = tuple(who if who in self.voices else None for who in rows)
        self._rows = known if any(known) else ()
        self._stacks, self._speaking = {}, None
        if self.is_training:
            self._ready = None

    def _hook(self, layer: str) -> Any:
        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            del module
            if not self._rows:
                return output
            if self.is_training:
                return self._trained(layer, inputs[0], output)
            if self._speaking is None:
                self._ready = self._ready or ReadyVoices(self.voices)
                self._speaking = self._ready.of(self._rows, output.device)
            return self._speaking.added(layer, inputs[0], output)

        return add

    def _trained(self, layer: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if layer not in self._stacks:
            self._stacks[layer] = self._stacked(layer, output.device)
        found = self._stacks[layer]
        return output if found is None else output + self._delta(x, *found).to(output.dtype)

    def _stacked(self, layer: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A (R, rank, in) and scaled B (R, out, rank) of the R rows; narrower voices are filled up with zeros."""
        own = [self.voices[who] if who else None for who in self._rows]
        some = next((v.a[layer] for v in own if v and layer in v.a), None)
        if some is None:
            return None
        like = next(v.b[layer] for v in own if v and layer in v.b)
        rank = max(len(v.a[layer]) for v in own if v and layer in v.a)
        a, b = [], []
        for voice in own:
            if voice is None or layer not in voice.a:
                a.append(some.new_zeros(rank, some.shape[1], device=device))
                b.append(like.new_zeros(like.shape[0], rank, device=device))
                continue
            short = rank - len(voice.a[layer])
            a.append(F.pad(voice.a[layer].to(device), (0, 0, 0, short)))
            b.append(F.pad(voice.b[layer].to(device) * voice.scales[layer], (0, short)))
        return torch.stack(a), torch.stack(b)

    def _delta(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(R, T, out) for inputs (R, T, in)."""
        if self.dropout:
            x = F.dropout(x, self.dropout)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(a.dtype)
        if len(a) == 1:
            return F.linear(F.linear(x, a[0]), b[0])
        assert len(a) == len(x), f"{len(a)} speakers for a batch of {len(x)} rows"
        return torch.bmm(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers of the blocks by their name in the base model: all but the head, as PEFT's "all-linear".

    Of a model with a PEFT adapter, the layers that add it (so a hook sees what comes out after it).
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = inner.get_output_embeddings()
    found: dict[str, Any] = {}
    for name, module in inner.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            found.setdefault(name.removesuffix(".base_layer"), module)
        elif hasattr(module, "base_layer") and isinstance(module.base_layer, torch.nn.Linear):
            found[name] = module
    return {name: module for name, module in found.items() if ".lora_" not in name}


def voice_layers(model: Any) -> dict[str, Any]:
    """The layers beside which voices go; `InputError` for a model without any."""
    found = linear_layers(model)
    if not found:
        fix = "set train.voices: false, or take another base model"
        raise InputError("voices find no linear layers in this model", "base", fix)
    return found


def new_voices(
    model: Any, ids: Sequence[str], rank: int, alpha: int, seed: int, dropout: float = 0.0, layers: Sequence[str] = ()
) -> VoiceBank:
    """Voices that add nothing yet (B is zero), with float32 weights where the model's are.

    A voice's start depends on the seed and its own id alone, so it is the same whoever else is trained beside it.
    Raises `InputError` for a model without linear layers.
    """
    targets = voice_layers(model)
    voices = {}
    for who in ids:
        digest = hashlib.blake2b(f"{seed} {who}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        pairs = {}
        for name in layers or targets:
            module = getattr(targets[name], "base_layer", targets[name])
            a = torch.empty(rank, module.in_features)
            torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)  # as PEFT begins
            device = module.weight.device
            pairs[name] = a.to(device), torch.zeros(module.out_features, rank, device=device)
        voices[who] = Voice(pairs, dict.fromkeys(pairs, alpha / rank))
    return VoiceBank(model, voices, dropout)


def save_voices(bank: VoiceBank, folder: Path, base: str) -> None:
    """Write `folder/CHARACTER/` for each voice, in PEFT's format: all of them or none.

    Raises `SetupError` if the disk is full.
    """
    with replacing_folder(folder) as part, disk_errors():
        for who, voice in bank.voices.items():
            (part / who).mkdir()
            tensors = {}
            for layer in sorted(voice.a):
                for half, pairs in (("A", voice.a), ("B", voice.b)):
                    tensors[f"{PREFIX}{layer}.lora_{half}.weight"] = pairs[layer].detach().cpu().contiguous().clone()
            save_file(tensors, str(part / who / WEIGHTS), metadata={"format": "pt"})
            text = json.dumps(_peft_config(voice, base), indent=2) + "\n"
            (part / who / CONFIG).write_text(text, encoding="utf-8", newline="\n")


def _peft_config(voice: Voice, base: str) -> dict[str, Any]:
    layers = sorted(voice.a)
    rank = len(voice.a[layers[0]])
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": voice.scales[layers[0]] * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
        "inference_mode": True,
    }


def voices_in(folder: Path) -> list[str]:
    """The characters that have a voice in `folder`, in order of their ids; none if the folder is not there."""
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))


def load_voices(model: Any, folder: Path, ids: Sequence[str] | None = None) -> VoiceBank:
    """The trained voices in `folder` (those of `ids`, or all), frozen, on the model.

    What lies on the model's device is only what they speak with, in the numbers that the model computes in.

    Raises `InputError` if one is missing or does not fit the model.
    """
    layers = linear_layers(model)
    voices = {}
    for who in voices_in(folder) if ids is None else ids:
        check_adapter_folder(folder / who)
        config = read_json(folder / who / CONFIG)
        halves: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(str(folder / who / WEIGHTS)).items():
            layer, _, half = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
            halves.setdefault(layer, {})[half] = tensor
        pairs, scales = {}, {}
        for layer, pair in halves.items():
            rank, scale = rank_and_scale(config, layer)
            module: Any = layers.get(layer)
            module = getattr(module, "base_layer", module)
            shapes = {half: tuple(tensor.shape) for half, tensor in pair.items()}
            fits = module is not None and shapes == {"A": (rank, module.in_features), "B": (module.out_features, rank)}
            if not fits:
                what = f"the voice of {who!r} does not fit the base model: {layer or 'a weight'} {shapes}"
                fix = "use the base model that the voices were trained on (see run.json)"
                raise InputError(what, str(folder / who / WEIGHTS), fix)
            pairs[layer], scales[layer] = (pair["A"], pair["B"]), scale
        voices[who] = Voice(pairs, scales).requires_grad_(False)
    return VoiceBank(model, voices)

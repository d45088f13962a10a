"""The fast path's pass, written out by hand, gives what autograd gives through transformers and PEFT."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
import peft
import torch
import transformers

from mrp.models.loss import make_batch, token_losses
from mrp.render import Rendered
from mrp.train.fast.engine import Engine
from mrp.train.fast.pointwise import Dropout, multiplier
from mrp.train.fast.rows import FlatShape, flatten, shape_of

Rows = list[list[Rendered]]
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
}


def sample(length: int, seed: int) -> Rendered:
    chosen = random.Random(seed)
    ids = [chosen.randrange(3, 97) for _ in range(length)]
    return Rendered(ids, [i >= length // 2 for i in range(length)])


ROWS: Rows = [[sample(9, 1), sample(14, 2), sample(5, 3)], [sample(20, 4)]]


def lora_model(dropout: float = 0.0, family: str = "Llama", **changes: Any) -> Any:
    """A random model with LoRA whose B is not zero, in fp64."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**SHAPE | changes)
    base = getattr(transformers, f"{family}ForCausalLM")(config).double()
    for parameter in base.parameters():
        if parameter.ndim == 1:  # norms and biases, which start at one and zero
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    base.requires_grad_(False)
    lora = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, lora, autocast_adapter_dtype=False).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model.train()


def shape_for(*batches: Rows, rows: int = 2) -> FlatShape:
    counted = [[[(len(s.input_ids), s.labelled) for s in row] for row in batch] for batch in batches]
    return shape_of(counted, rows)


def reference(model: Any, rows: Rows, labelled: int) -> tuple[Any, dict[str, Any]]:
    """Losses and gradients by autograd."""
    model.zero_grad()
    losses = token_losses(model, make_batch(rows))
    (losses.sum() / labelled).backward()
    return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def by_hand(model: Any, rows: Rows, labelled: int, **how: Any) -> tuple[Any, dict[str, Any]]:
    engine = Engine(model, how.pop("shape", shape_for(rows)), **how)
    engine.begin_step()
    batch = make_batch(rows)
    losses = engine.learn(flatten(batch, engine.shape, 1 / labelled, 5))[: len(batch.target)]
    return losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_equal(found: tuple[Any, dict[str, Any]], expected: tuple[Any, dict[str, Any]], rtol: float) -> None:
    torch.testing.assert_close(found[0].double(), expected[0].double(), rtol=1e-6, atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], grad, rtol=rtol, atol=rtol * float(grad.abs().max()), msg=name)


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"checkpointing": True, "offload": True}], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"family": "Qwen2"},
        {"family": "Mistral", "sliding_window": None},
        {"tie_word_embeddings": True, "head_dim": 16},
    ],
    ids=str,
)
def test_losses_and_gradients_are_autograds(
    how: dict[str, bool], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrp.train.fast.engine.TILE", 24)  # so that the MLP really goes in tiles
    monkeypatch.setattr("mrp.train.fast.engine.SMALL_CHUNK", 16)
    model = lora_model(**changes)
    expected = reference(model, ROWS, labelled=40)
    assert_equal(by_hand(model, ROWS, 40, **how), expected, 1e-5)


def test_bf16_adapters_copy_is_what_the_products_see() -> None:
    model = lora_model()
    inner = model.get_base_model()
    inner.float()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.double()
    expected = reference(copy.deepcopy(model).float(), ROWS, 40)
    engine_losses, grads = by_hand(model, ROWS, 40)
    assert all(grad.dtype == torch.float64 for grad in grads.values())
    assert_equal((engine_losses, grads), (expected[0], {n: g.double() for n, g in expected[1].items()}), 1e-4)


def test_packed_equals_unpacked() -> None:
    model = lora_model()
    shape = shape_for(ROWS, rows=4)
    packed = by_hand(model, ROWS, 40, shape=shape)
    alone = [[s] for row in ROWS for s in row]
    losses, grads = by_hand(model, alone, 40, shape=shape_for(alone, rows=4))
    assert_equal((losses, grads), packed, 1e-9)


def test_what_a_pass_is_filled_up_with_changes_nothing() -> None:
    model = lora_model()
    small = by_hand(model, ROWS, 40)
    wide = shape_for(ROWS, [[sample(90, 8), sample(30, 9)]] * 2, rows=4)
    assert wide.tokens > 4 * shape_for(ROWS).tokens / 2
    assert_equal(by_hand(model, ROWS, 40, shape=wide), small, 1e-9)


def test_passes_of_a_step_add_up() -> None:
    model = lora_model()
    whole = by_hand(model, ROWS, 40)
    engine = Engine(model, shape_for(ROWS))
    engine.begin_step()
    for row in ROWS:
        engine.learn(flatten(make_batch([row]), engine.shape, 1 / 40, 5))
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert_equal((whole[0], grads), whole, 1e-9)
    engine.begin_step()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.requires_grad)


class HashDropout(torch.nn.Module):
    """The fast path's dropout as a layer that autograd goes through (without the LoRA scale)."""

    def __init__(self, place: int, seed: Any, share: float) -> None:
        super().__init__()
        self.drop = Dropout(seed, place, share, 1 / (1 - share))

    def forward(self, x: Any) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        return (flat * multiplier(self.drop, *flat.shape)).view(x.shape).to(x.dtype)


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"checkpointing": True, "offload": True}], ids=str)
def test_dropped_gradients_are_autograds_under_the_same_masks(
    how: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrp.train.fast.engine.TILE", 24)
    share, seed = 0.4, torch.tensor([5])
    ours, theirs = lora_model(share), lora_model(share)
    places = {"q": 0, "k": 0, "v": 0, "o": 1, "gate": 2, "up": 2, "down": 3}
    layers = theirs.get_base_model().model.layers
    for number, layer in enumerate(layers):
        for name, module in layer.named_modules():
            if hasattr(module, "lora_dropout"):
                place = places[name.rpartition(".")[2].removesuffix("_proj")]
                module.lora_dropout["default"] = HashDropout(number * 4 + place, seed, share)
    full = [[sample(64, 6)], [sample(30, 7), sample(34, 8)]]  # no filling: the mask goes by the place in the line
    assert_equal(by_hand(ours, full, 40, **how), reference(theirs, full, 40), 1e-5)


def test_a_pass_repeats_to_the_bit_and_another_seed_drops_other_elements() -> None:
    model = lora_model(0.3)
    engine = Engine(model, shape_for(ROWS), checkpointing=True)
    found = []
    for seed in (5, 5, 6):
        engine.begin_step()
        losses = engine.learn(flatten(make_batch(ROWS), engine.shape, 1 / 40, seed))
        found.append((losses, engine.adapter.grads.clone()))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][1], found[2][1])


def test_measuring_has_no_dropout_and_learns_nothing() -> None:
    model = lora_model(0.5)
    engine = Engine(model, shape_for(ROWS))
    engine.begin_step()
    batch = make_batch(ROWS)
    with torch.no_grad():
        expected = token_losses(copy.deepcopy(model).eval(), batch)
    torch.testing.assert_close(engine.token_losses(batch).double(), expected.double(), rtol=1e-6, atol=1e-6)
    assert float(engine.adapter.grads.abs().max()) == 0


def test_weights_are_held_once() -> None:
    model = lora_model()
    layer = model.get_base_model().model.layers[0].self_attn
    before = layer.k_proj.base_layer.weight.clone()
    engine = Engine(model, shape_for(ROWS))
    matrix = engine.blocks[0].qkv.frozen.matrix
    assert layer.k_proj.base_layer.weight.data_ptr() == matrix[32:].data_ptr()
    assert torch.equal(layer.k_proj.base_layer.weight, before)


def test_a_mask_drops_its_share_and_differs_by_place_token_and_seed() -> None:
    def mask(seed: int = 1, place: int = 0, first: int = 0) -> Any:
        return multiplier(Dropout(torch.tensor([seed]), place, 0.1, 2.0, first), 300, 500)

    one = mask()
    assert set(one.unique().tolist()) == {0.0, 2.0}
    assert abs(float((one == 0).double().mean()) - 0.1) < 0.003
    assert torch.equal(mask(first=100), multiplier(Dropout(torch.tensor([1]), 0, 0.1, 2.0), 400, 500)[100:])
    for other in (mask(seed=2), mask(place=1), mask(place=4), mask(first=300)):  # dropped together by chance alone
        assert abs(float(((one == 0) & (other == 0)).double().mean()) - 0.01) < 0.001


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"checkpointing": True, "offload": True}], ids=str)
def test_a_4_bit_base_gives_what_bitsandbytes_gives(how: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="only on a machine with bitsandbytes")
    monkeypatch.setattr("mrp.train.fast.engine.TILE", 24)
    model = lora_model(hidden_size=64, intermediate_size=128).float()
    for layer in model.get_base_model().model.layers:
        for module in layer.modules():
            if hasattr(module, "base_layer"):
                weight = module.base_layer.weight.data
                new = bnb.nn.Linear4bit(
                    weight.shape[1], weight.shape[0], bias=False, compute_dtype=torch.float32, quant_type="nf4"
                )
                new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
                module.base_layer = new.to("cpu")
    expected = reference(model, ROWS, 40)
    assert_equal(by_hand(model, ROWS, 40, **how), expected, 2e-3)

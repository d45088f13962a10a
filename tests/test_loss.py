"""Packed samples never see each other (law 6), and the packed loss equals the unpacked one, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from shapes import SHAPES

from mrp.data.pack import pack
from mrp.data.view import Message
from mrp.models.loss import Batch, keeps_apart, make_batch, token_losses
from mrp.render import ChatTemplate, Rendered

VOCABULARY = 430  # more than the tiny tokenizers of byte-level shapes have
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
# A window of six tokens is shorter than every sample here, so both kinds of layers must know where a sample begins.
GEMMA3_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=6),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=6, layer_types=GEMMA3_LAYERS, query_pre_attn_scalar=8
    ),
}


def make_model(name: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=attention)
    with torch.no_grad():  # the usual small weights make every loss ln V, and hide what a token sees
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(5)
    return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


def sample_of(length: int, seed: int, unlabelled: int = 3) -> Rendered:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
    return Rendered(ids, [k >= unlabelled and k % 5 != 2 for k in range(length)])


A, B, C, D = sample_of(17, 1), sample_of(23, 2), sample_of(9, 3), sample_of(30, 4)
PACKINGS = {
    "one row": [[A, B, C, D]],
    "two rows, the first padded": [[A, C], [B, D]],
    "two rows, the second padded": [[D, A], [B]],
    "each alone": [[A], [B], [C], [D]],
    "another order": [[D, C, B, A]],
}


def alone(model: Any, sample: Rendered) -> torch.Tensor:
    """What the model itself says of the sample, with nothing of ours but the mask."""
    ids = torch.tensor([sample.input_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return losses[torch.tensor(sample.loss[1:])]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- Packed equals unpacked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", PACKINGS.values(), ids=PACKINGS)
def test_packed_losses_equal_those_of_each_sample_alone(model: Any, rows: list[list[Rendered]]) -> None:
    with torch.no_grad():
        batch = make_batch(rows)
        losses = token_losses(model, batch)
        assert losses.dtype == torch.float32
        for number, sample in enumerate(s for row in rows for s in row):
            torch.testing.assert_close(losses[batch.sample == number], alone(model, sample), rtol=1e-5, atol=2e-5)


def test_packed_gradients_equal_those_of_the_samples_one_by_one(model: Any) -> None:
    one_by_one = gradients(model, torch.stack([alone(model, s).sum() for s in (A, B, C, D)]).sum())
    assert len(one_by_one) > 10
    for rows in ([[A, B, C, D]], [[A, C], [B, D]]):
        packed = gradients(model, token_losses(model, make_batch(rows)).sum())
        assert packed.keys() == one_by_one.keys()
        for name, gradient in packed.items():
            scale = float(one_by_one[name].abs().max())
            torch.testing.assert_close(gradient, one_by_one[name], rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_eager_attention_gives_the_same(name: str) -> None:
    batch = make_batch([[A, B], [C, D]])
    with torch.no_grad():
        sdpa, eager = (token_losses(make_model(name, kind), batch) for kind in ("sdpa", "eager"))
    torch.testing.assert_close(sdpa, eager, rtol=1e-5, atol=2e-5)


def test_an_adapter_does_not_change_how_losses_are_made() -> None:
    model = get_peft_model(make_model("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        losses = token_losses(model, make_batch([[A, B]]))
        torch.testing.assert_close(losses, torch.cat([alone(model, A), alone(model, B)]), rtol=1e-5, atol=2e-5)
    assert keeps_apart(model)


def test_a_model_that_cannot_choose_positions_gives_the_same() -> None:
    """One whose `forward` has no `logits_to_keep`, or hides it (DistributedDataParallel)."""

    class Wrapped(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **given: Any) -> Any:
            assert "logits_to_keep" not in given
            return self.inner(**given)

    model = make_model("llama")
    for rows in ([[A, B]], [[A], [B, C]]):
        with torch.no_grad():
            torch.testing.assert_close(
                token_losses(Wrapped(model), make_batch(rows)), token_losses(model, make_batch(rows))
            )


# --- Isolation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", range(4))
def test_another_neighbour_changes_nothing_at_all(model: Any, changed: int) -> None:
    """Bit for bit: not "hardly"."""
    samples = [A, B, C, D]
    other = list(samples)
    other[changed] = replace(samples[changed], input_ids=sample_of(len(samples[changed].input_ids), 99).input_ids)
    with torch.no_grad():
        before, after = make_batch([samples]), make_batch([other])
        losses, changed_losses = token_losses(model, before), token_losses(model, after)
    for number in range(4):
        same = torch.equal(losses[before.sample == number], changed_losses[after.sample == number])
        assert same == (number != changed)


def test_no_gradient_flows_to_a_neighbour(model: Any) -> None:
    silent = [replace(s, loss=[False] * len(s.loss)) for s in (A, C, D)]
    seen: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda *args: (args[2].retain_grad(), seen.append(args[2]))[0]
    )
    try:
        token_losses(model, make_batch([[silent[0], B, silent[1]], [silent[2]]])).sum().backward()
    finally:
        hook.remove()
    touched = seen[0].grad.abs().sum(-1) > 0  # (B, T)
    begin, end = len(A.input_ids), len(A.input_ids) + len(B.input_ids)
    assert touched[0, begin : end - 2].all(), "its own tokens do get one"
    assert not touched[0, :begin].any()
    assert not touched[0, end:].any()
    assert not touched[1].any()


def test_padding_is_known_by_its_place_though_pad_equals_eos() -> None:
    """Labelled eos tokens stay labelled, the padding is not, and its id does not matter to anybody."""
    template = ChatTemplate(SHAPES["chatml"].tokenizer())
    tokenizer = template.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == template.end_of_turn_id
    said = [Message("system", "You are Wukong."), Message("user", "Who?"), Message("assistant", "I.", True)]
    longer = [*said, Message("user", "Who else?"), Message("assistant", "Nobody <|im_end|> else at all!", True)]
    [short], [long] = template.sample(said), template.sample(longer)
    batch = make_batch([[short], [long]])
    assert (batch.target == template.end_of_turn_id).sum() == 3
    assert len(batch.target) == short.labelled + long.labelled
    assert batch.column.max() < batch.columns.numel()
    model = make_model("llama")
    padded = batch.input_ids.clone()
    padded[0, len(short.input_ids) :] = template.end_of_turn_id
    with torch.no_grad():
        losses = token_losses(model, batch)
        assert torch.equal(losses, token_losses(model, replace(batch, input_ids=padded)))
        torch.testing.assert_close(losses[batch.sample == 0], alone(model, short), rtol=1e-5, atol=2e-5)


LEAKING: dict[str, Callable[[], Any]] = {
    "a recurrent state": lambda: transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "positions of its own": lambda: transformers.OPTConfig(
        **{k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_key_value_heads")},
        ffn_dim=48,
        word_embed_proj_dim=32,
    ),
    "ALiBi": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_head=4, n_layer=2),
}


def test_architectures_that_keep_samples_apart_are_told_from_those_that_do_not(model: Any) -> None:
    assert keeps_apart(model)
    model.train()
    assert keeps_apart(model)
    assert model.training
    model.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", LEAKING.values(), ids=LEAKING)
def test_an_architecture_that_lets_samples_see_each_other_is_found_out(config: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config()).eval()
    assert not keeps_apart(model)
    with torch.no_grad():  # a row for each sample is right even then
        batch = make_batch([[A], [B]])
        losses = token_losses(model, batch)
        torch.testing.assert_close(losses[batch.sample == 0], alone(model, A), rtol=1e-5, atol=2e-5)


# --- Batches --------------------------------------------------------------------------------------------------------


def labels_of(batch: Batch) -> list[tuple[int, int, int, int]]:
    """(row, column of the token that predicts, target, sample) of each labelled token."""
    columns = batch.columns[batch.column]
    return list(zip(*(x.tolist() for x in (batch.row, columns, batch.target, batch.sample)), strict=True))


def test_a_batch_by_hand() -> None:
    first = Rendered([5, 6, 7], [False, True, True])
    second = Rendered([8, 9], [False, True])
    third = Rendered([4, 3, 2, 1], [False, False, False, True])
    batch = make_batch([[first, second], [third]])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 2, 1, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert labels_of(batch) == [(0, 0, 6, 0), (0, 1, 7, 0), (0, 3, 9, 1), (1, 2, 1, 2)]
    assert batch.columns.tolist() == [0, 1, 2, 3]
    assert batch.tokens == 10


def test_the_first_token_of_a_sample_is_never_predicted_from_the_sample_before() -> None:
    with pytest.raises(AssertionError, match="first token"):
        make_batch([[A, Rendered([1, 2], [True, True])]])


def test_a_batch_without_labels_gives_no_losses(model: Any) -> None:
    silent = replace(A, loss=[False] * len(A.loss))
    for rows in ([[silent]], [[silent], [silent, silent]]):
        with torch.no_grad():
            assert token_losses(model, make_batch(rows)).shape == (0,)


LENGTHS = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(LENGTHS)
def test_every_labelled_token_is_predicted_by_the_one_before_it(lengths: list[list[int]]) -> None:
    rows = [[sample_of(n, 10 * r + k, unlabelled=1) for k, n in enumerate(row)] for r, row in enumerate(lengths)]
    batch = make_batch(rows)
    expected = []
    for r, row in enumerate(rows):
        for k, sample in enumerate(row):
            begin = sum(len(s.input_ids) for s in row[:k])
            number = sum(len(x) for x in rows[:r]) + k
            for i, labelled in enumerate(sample.loss):
                if labelled:
                    expected.append((r, begin + i - 1, sample.input_ids[i], number))
                    assert batch.position_ids[r, begin + i] == i
    assert labels_of(batch) == expected


# --- Packing --------------------------------------------------------------------------------------------------------


def test_the_drawing_of_pack() -> None:
    assert pack([3, 2, 4, 1], 6) == [[0, 1], [2, 3]]
    assert pack([], 6) == []
    assert pack([6, 6, 1, 5], 6) == [[0], [1], [2, 3]]


@pytest.mark.parametrize("length", [0, 7])
def test_a_sample_that_fits_no_row_is_our_mistake(length: int) -> None:
    with pytest.raises(AssertionError, match="sample 1 has"):
        pack([3, length], 6)


@given(st.lists(st.integers(1, 20)), st.integers(20, 60))
def test_packing_keeps_the_order_and_the_length_and_fills_greedily(lengths: Sequence[int], max_tokens: int) -> None:
    rows = pack(lengths, max_tokens)
    assert [i for row in rows for i in row] == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < total <= max_tokens for total in sums)
    for total, following in zip(sums, rows[1:], strict=False):
        assert total + lengths[following[0]] > max_tokens


def test_losses_measured_in_parts_are_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a way back the logits stand in float32 for some labelled tokens at a time."""
    rows = [[Rendered(list(range(5, 75)), [False] + [True] * 69), Rendered([9, 8, 7], [False, True, True])]]
    with torch.no_grad():
        whole = token_losses(model, make_batch(rows))
        monkeypatch.setattr("mrp.models.loss.AT_ONCE", 7)
        parts = token_losses(model, make_batch(rows))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    assert len(whole) == 71

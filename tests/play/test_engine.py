"""The engine in this process: as transformers generates, with equal seeds equal replies; and how a token is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as given_any
from hypothesis import settings
from hypothesis import strategies as st

from mrp.config import ChatOptions
from mrp.play.engine import Request, Sampling
from mrp.play.open import load_player
from mrp.play.reply import Player
from mrp.play.sampling import Drawing, choose, choose_tokens

torch = pytest.importorskip("torch")

PROMPT = list(range(40, 70))


@pytest.fixture(scope="module")
def player(tiny_base: Path) -> Player:
    return load_player(tiny_base, None, None, ChatOptions(), "fp32")


def said(player: Player, sampling: Sampling, prompt: Sequence[int] = PROMPT, stop_ids: Sequence[int] = ()) -> list[int]:
    return [token.id for token in player.engine.stream(Request(prompt, sampling, stop_ids)) if token.id is not None]


# -- the engine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 10, 100])
def test_greedy_equals_transformers(player: Player, start: int) -> None:
    prompt = list(range(start, start + 20))
    model: Any = player.engine.model  # type: ignore[attr-defined]
    given = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, 20, dtype=torch.long)}
    whole = model.generate(**given, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    found = said(player, Sampling(temperature=0, max_new_tokens=24), prompt)
    assert found == whole[0, len(prompt) :].tolist()
    assert len(set(found)) > 2


def test_equal_seeds_give_equal_replies_and_others_do_not(player: Player) -> None:
    replies = [said(player, Sampling(1.0, 1.0, 16, seed)) for seed in (1, 1, 2, None, None)]
    assert replies[0] == replies[1]
    assert len({tuple(reply) for reply in replies}) == 4


def test_a_seed_does_not_touch_the_generator_of_others(player: Player) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    said(player, Sampling(1.0, 1.0, 4, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stop_id_ends_the_reply_and_is_not_given_out(player: Player) -> None:
    whole = said(player, Sampling(temperature=0, max_new_tokens=24))
    stop = whole[7]
    assert said(player, Sampling(temperature=0, max_new_tokens=24), stop_ids=[stop]) == whole[: whole.index(stop)]


@pytest.mark.parametrize("longest", [1, 5])
def test_a_reply_is_never_longer_than_asked(player: Player, longest: int) -> None:
    assert len(said(player, Sampling(0.7, 0.9, longest, 0))) == longest


def test_a_closed_stream_computes_no_more(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = player.engine.model  # type: ignore[attr-defined]
    calls: list[int] = []
    forward = model.forward

    def counted(**given: Any) -> Any:
        calls.append(given["input_ids"].shape[1])
        return forward(**given)

    monkeypatch.setattr(model, "forward", counted)
    stream = player.engine.stream(Request(prompt := list(range(200, 230)), Sampling(max_new_tokens=50)))
    next(stream), next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert calls == [len(prompt), 1]  # and each token after the prompt costs one


def test_bf16_plays_too(tiny_base: Path) -> None:
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cuda.is_available()):
        pytest.skip("only on machines with bf16")
    player = load_player(tiny_base, None, None, ChatOptions(), "bf16")
    assert len(said(player, Sampling(0.7, 0.9, 4, 0))) == 4


def test_the_context_is_never_longer_than_the_models_own(tiny_base: Path) -> None:
    wide = load_player(tiny_base, None, None, ChatOptions(context_tokens=50_000), "fp32")
    assert wide.options.context_tokens == 1024
    assert load_player(tiny_base, None, None, ChatOptions(context_tokens=99, max_new_tokens=9)).options == ChatOptions(
        context_tokens=99, max_new_tokens=9
    )


# -- choosing a token ----------------------------------------------------------------------------------------------

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12).map(torch.tensor)
TOP_P = st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0])


def chosen(logits: Any, sampling: Sampling, seed: int = 0) -> int:
    return choose(logits, sampling, torch.Generator().manual_seed(seed))


def nucleus(probabilities: Any, top_p: float) -> set[int]:
    """The fewest likeliest tokens that make up `top_p` (with those that are as likely as the last of them)."""
    ordered = probabilities.sort(descending=True).values
    count = int((ordered.cumsum(0) - ordered < top_p - 1e-6).sum())
    return {k for k, p in enumerate(probabilities.tolist()) if p >= float(ordered[max(count, 1) - 1]) - 1e-7}


@given_any(LOGITS, TOP_P)
def test_temperature_zero_takes_the_likeliest(logits: Any, top_p: float) -> None:
    assert chosen(logits, Sampling(0, top_p)) == int(logits.argmax())


@given_any(LOGITS, TOP_P, st.sampled_from([0.3, 1.0, 3.0]), st.integers(0, 50))
def test_only_tokens_of_the_nucleus_are_chosen(logits: Any, top_p: float, temperature: float, seed: int) -> None:
    allowed = nucleus(torch.softmax(logits / temperature, -1), top_p)
    assert chosen(logits, Sampling(temperature, top_p), seed) in allowed


@given_any(LOGITS, st.integers(0, 20))
def test_a_tiny_top_p_or_temperature_is_greedy(logits: Any, seed: int) -> None:
    likeliest = {k for k, value in enumerate(logits.tolist()) if value >= float(logits.max()) - 1e-6}
    assert chosen(logits, Sampling(1.0, 1e-9), seed) in likeliest
    assert chosen(logits, Sampling(1e-38, 1.0), seed) in likeliest  # nor does anything overflow


@settings(max_examples=5, deadline=None)
@given_any(st.permutations([0.5, 0.3, 0.15, 0.05]))
def test_tokens_come_as_often_as_their_share_of_the_nucleus(shares: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor(shares).log()
    count = Counter(choose(logits, Sampling(1.0, 0.8), generator) for _ in range(2000))
    first, second = shares.index(0.5), shares.index(0.3)
    assert set(count) == {first, second}  # a token more would go beyond 0.8
    assert count[first] / 2000 == pytest.approx(0.5 / 0.8, abs=0.05)


def test_penalties_are_subtracted_from_what_was_said() -> None:
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.0]])
    for sampling, wanted in (
        (Sampling(0, presence_penalty=0.6), [0, 1, 0, 0]),  # 2.0, then 1.4 against 1.5, then both are marked
        (Sampling(0, frequency_penalty=0.6), [0, 1, 0, 2, 1, 0]),
        (Sampling(0), [0, 0, 0, 0]),
    ):
        row = Drawing.begin(sampling)
        assert [choose_tokens(logits, [row])[0].id for _ in wanted] == wanted


def test_log_probabilities_are_of_the_model_itself() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    row = Drawing.begin(Sampling(0.3, 0.5, seed=1, presence_penalty=1.0, top_logprobs=2))
    wanted = torch.log_softmax(logits[0], -1).tolist()
    for _ in range(3):
        token = choose_tokens(logits, [row])[0]
        assert token.id is not None and token.logprob == pytest.approx(wanted[token.id])
        assert [k for k, _ in token.top] == [0, 1]
        assert [p for _, p in token.top] == pytest.approx(wanted[:2])
    assert choose_tokens(logits, [Drawing.begin(Sampling(top_logprobs=0))])[0].top == ()
    assert choose_tokens(logits, [Drawing.begin(Sampling())])[0].logprob is None


@given_any(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.sampled_from([0.3, 0.95, 1.0]))
@settings(deadline=None)
def test_a_row_is_chosen_as_if_alone(seeds: list[int], top_p: float) -> None:
    """Also where the nucleus is wider than the likeliest tokens that are looked at first."""
    logits = torch.randn(len(seeds), 700, generator=torch.Generator().manual_seed(0)) * 0.1
    samplings = [Sampling(0.8 + 0.1 * k, top_p, seed=seed) for k, seed in enumerate(seeds)]
    together = choose_tokens(logits, [Drawing.begin(s) for s in samplings])
    alone = [choose_tokens(logits[k : k + 1], [Drawing.begin(s)])[0] for k, s in enumerate(samplings)]
    assert together == alone


def test_a_higher_temperature_spreads() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    likeliest = [sum(choose(logits, Sampling(t, 1.0), generator) == 0 for _ in range(500)) for t in (0.3, 1.0, 5.0)]
    assert likeliest == sorted(likeliest, reverse=True)
    assert likeliest[0] > 450 and likeliest[2] < 250

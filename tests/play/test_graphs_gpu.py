"""CUDA graphs of steps, on a GPU: the same replies as the ordinary way, whoever joins, leaves or speaks."""

from __future__ import annotations

from typing import Any

import pytest
from test_embedded import MODELS, PROMPTS, all_at_once, made, voices_for

torch = pytest.importorskip("torch")

from mrp.models.load import Hardware  # noqa: E402
from mrp.play.embedded import TransformersEngine  # noqa: E402
from mrp.play.engine import Request, Sampling  # noqa: E402
from mrp.play.sampling import Drawing, choose_tokens  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]
LONG = Sampling(temperature=0, max_new_tokens=300)  # storages grow on the way


def engines(name: str = "llama", voices: bool = False) -> tuple[TransformersEngine, TransformersEngine]:
    """With graphs, and without, over one model in float32, where rounding changes no greedy reply."""
    model = made(MODELS[name]).requires_grad_(False).eval().cuda()
    bank = voices_for(model) if voices else None
    on = Hardware("cuda", torch.float32, None)
    graphed, plain = (TransformersEngine(model, on, bank, cache_bytes=2**28) for _ in range(2))
    plain.steps.why = "the ordinary way is asked for"
    return graphed, plain


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_replies_are_those_of_the_ordinary_way(name: str) -> None:
    graphed, plain = engines(name)
    requests = [Request(ids, LONG) for ids in PROMPTS]
    for some in (requests[:1], requests, requests[1:3]):
        assert all_at_once(graphed, some) == all_at_once(plain, some)
    assert graphed.steps.why is None and graphed.stats.graphed > 300
    assert plain.stats.graphed == 0


def test_without_spare_memory_only_the_first_number_of_rows_has_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    graphed, plain = engines()
    monkeypatch.setattr(graphed, "_spare_bytes", lambda: 0)
    requests = [Request(ids, LONG) for ids in PROMPTS[:3]]
    assert all_at_once(graphed, requests[:1]) == all_at_once(plain, requests[:1])
    before = graphed.stats.graphed
    assert all_at_once(graphed, requests) == all_at_once(plain, requests)
    assert before > 250 and graphed.stats.graphed < before + 250 and graphed.steps.why is None


def test_a_token_is_drawn_on_the_gpu_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(8, 5000)
    kinds = [Sampling(seed=k, top_p=0.9 if k % 2 else 1.0, top_logprobs=3 if k == 3 else None) for k in range(8)]
    found = [choose_tokens(where, [Drawing.begin(one) for one in kinds]) for where in (logits, logits.cuda())]
    assert [token.id for token in found[0]] == [token.id for token in found[1]]


def test_each_row_keeps_its_own_voice() -> None:
    graphed, plain = engines(voices=True)
    who = ["wukong", None, "bajie", "wukong"]
    for turn in range(3):
        order = who[turn:] + who[:turn]
        requests = [Request(ids, LONG, voice=one) for ids, one in zip(PROMPTS, order, strict=False)]
        assert all_at_once(graphed, requests) == all_at_once(plain, requests)
    assert graphed.steps.why is None and graphed.stats.graphed > 300


def test_voices_may_come_one_by_one() -> None:
    """The place of the voices grows with the rows, and the graphs that looked elsewhere are made anew."""
    graphed, plain = engines(voices=True)
    short = Sampling(temperature=0, max_new_tokens=20)
    who = ["wukong", "bajie", None, "wukong"]
    requests = [Request(ids, short, voice=one) for ids, one in zip(PROMPTS, who, strict=False)]
    for count in (1, 2, len(requests), 1, 2):
        before = graphed.stats.graphed
        assert all_at_once(graphed, requests[:count]) == all_at_once(plain, requests[:count])
        assert graphed.steps.why is None and graphed.stats.graphed > before + 10


def test_a_model_that_cannot_be_captured_goes_the_ordinary_way_and_says_why() -> None:
    graphed, plain = engines("gemma2")
    requests = [Request(PROMPTS[0], LONG)]
    found: Any = all_at_once(graphed, requests)
    assert found == all_at_once(plain, requests)
    assert graphed.stats.graphed == 0 and "soft caps" in (graphed.steps.why or "")

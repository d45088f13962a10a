"""A step over the table gives what the ordinary step gives: on the CPU, without capture, under Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
from interpreter import interpreted, run_interpreted
from test_embedded import GREEDY, MODELS, PROMPTS, engine_of, hardware, made, said, voices_for

torch = pytest.importorskip("torch")

from mrp.play.graphs import GraphedSteps, Step, nobody  # noqa: E402
from mrp.play.kv import GROWTH, KeysValues, Row, RowsReader  # noqa: E402


def test_all_of_this_file_under_the_interpreter() -> None:
    run_interpreted(__file__)


def read(reader: RowsReader, prompts: list[list[int]]) -> list[KeysValues]:
    kept = [KeysValues() for _ in prompts]
    for one, ids in zip(kept, prompts, strict=True):
        reader.read([Row(one, ids)])
        one.ids += ids
    return kept


@interpreted
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_step_over_the_table_is_the_ordinary_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps, over a storage that grows on the way, by rows of different lengths and in changing places;
    one more is nobody's."""
    from mrp.play import step_kernels

    monkeypatch.setattr(step_kernels, "PROGRAMS", 24)  # the interpreter runs one after another; 4 for a row and head
    reader = RowsReader(made(MODELS[name]).eval(), hardware())
    long = [7 * k % 400 for k in range(GROWTH - 1)]  # a second token more, and its storage must grow
    prompts = [PROMPTS[0], PROMPTS[1], long]
    mine, theirs = read(reader, prompts), read(reader, prompts)
    filler = nobody(Row(mine[0], [5]))
    step = Step(reader, [*(Row(one, [5]) for one in mine), filler])
    for turn in range(3):
        order = [(turn + k) % 3 for k in range(3)]
        ids = [[11 * turn + k] for k in order]
        wanted = reader.read([Row(theirs[k], i) for k, i in zip(order, ids, strict=True)])[:, -1]
        step.fill([*(Row(mine[k], i) for k, i in zip(order, ids, strict=True)), filler])
        torch.testing.assert_close(step.compute()[:3], wanted, rtol=1e-4, atol=1e-4)
        for k, i in zip(order, ids, strict=True):
            mine[k].ids += i
            theirs[k].ids += i
    assert mine[2].capacity > GROWTH
    for a, b in zip(mine, theirs, strict=True):
        for layer, (keys, values) in a.layers.items():
            torch.testing.assert_close(keys[:, : len(a.ids)], b.layers[layer][0][:, : len(b.ids)])
            torch.testing.assert_close(values[:, : len(a.ids)], b.layers[layer][1][:, : len(b.ids)])


@interpreted
def test_soft_caps_are_refused_so_that_such_models_go_the_ordinary_way() -> None:
    reader = RowsReader(made(MODELS["gemma2"]).eval(), hardware())
    (kept,) = read(reader, [PROMPTS[0]])
    step = Step(reader, [Row(kept, [5])])
    step.fill([Row(kept, [5])])
    with pytest.raises(NotImplementedError, match="soft caps"):
        step.compute()


def test_voices_in_fixed_places_speak_as_those_of_the_rows() -> None:
    model = made(MODELS["llama"]).requires_grad_(False).eval()
    bank = voices_for(model)
    ids = torch.tensor([PROMPTS[0][:9]] * 3)
    whole = bank.room_for(3, torch.device("cpu"), None)

    def spoken(*who: str | None) -> Any:
        for row, one in zip(whole, who, strict=True):
            bank.put(one, row)
        with torch.no_grad(), bank.speaking_from(whole):
            return model(input_ids=ids).logits

    for who in (("wukong", None, "bajie"), ("bajie", "bajie", "bajie"), (None, "wukong", "wukong")):
        with torch.no_grad(), bank.speaking(who):
            wanted = model(input_ids=ids).logits
        torch.testing.assert_close(spoken(*who), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(spoken("wukong", None, None)[0], spoken("bajie", None, None)[0])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert torch.equal(before[0], before[1]), "outside of it nobody speaks"


def test_room_is_made_without_losing_what_is_kept() -> None:
    reader = RowsReader(made(MODELS["llama"]).eval(), hardware())
    (kept,) = read(reader, [PROMPTS[0]])
    before = {layer: keys[:, : len(kept.ids)].clone() for layer, (keys, _) in kept.layers.items()}
    kept.make_room(GROWTH + 1)
    assert kept.capacity == 2 * GROWTH
    assert all(torch.equal(kept.layers[layer][0][:, : len(kept.ids)], keys) for layer, keys in before.items())


def test_without_a_gpu_every_step_goes_the_ordinary_way_and_says_why() -> None:
    engine = engine_of(made(MODELS["llama"]))
    assert len(said(engine, PROMPTS[0])) == GREEDY.max_new_tokens
    assert engine.stats.graphed == 0 and engine.stats.steps == GREEDY.max_new_tokens
    assert engine.steps is not None and engine.steps.why == "CUDA graphs need a GPU"
    assert isinstance(engine.steps, GraphedSteps)

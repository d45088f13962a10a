"""One adapter for each character (`train.epochs: 0` with voices): nothing is shared, the base stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from command import fails, mrp
from projects import change_yaml
from safetensors.torch import load_file
from tiny_runs import PEOPLE, adapter_bytes, read_log, read_record, result, stop_at

from mrp.config import Run, load_run
from mrp.errors import InputError, Stopped
from mrp.models.load import hardware, load_model
from mrp.models.voices import voices_in
from mrp.train.loop import train
from mrp.train.lora import load_adapter

MakeRun = Callable[..., Run]
EACH: dict[str, Any] = {"epochs": 0, "voices": True, "voice_rank": 4, "voice_learning_rate": 5e-3}


def voice_bytes(run: Run) -> dict[str, bytes]:
    return {who: (run.voices / who / "adapter_model.safetensors").read_bytes() for who in voices_in(run.voices)}


def test_only_voices_learn_and_the_shared_adapter_adds_nothing(make_run: MakeRun, tiny_base: Any) -> None:
    run = make_run(**EACH)
    record = train(run)
    assert sorted(voice_bytes(run)) == sorted(PEOPLE)
    assert all(row["voices"] for row in read_log(run))  # no step of an adapter
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert all(not value.any() for name, value in weights.items() if "lora_B" in name)
    ids = torch.tensor([[5, 6, 7, 8]])
    base = load_model(tiny_base, hardware("fp32"))
    with torch.no_grad():
        before = base(ids.to(base.device)).logits
        after = load_adapter(base, run.adapter)(ids.to(base.device)).logits
    assert torch.equal(before, after)
    held = record["measures"]["held_out_loss"]
    assert held and all(one["adapter"] == one["before"] for one in held.values())
    learnt = [one["after"] for who, one in held.items()], [one["before"] for who, one in held.items()]
    assert sum(learnt[0]) < sum(learnt[1])


def test_each_is_what_it_would_be_without_the_others(make_run: MakeRun) -> None:
    together, alone = make_run(**EACH, voice_rows=3), make_run("alone", **EACH, voice_rows=1)
    train(together)
    train(alone)
    for who, one in voice_bytes(together).items():
        other = load_file(alone.voices / who / "adapter_model.safetensors")
        for name, value in load_file(together.voices / who / "adapter_model.safetensors").items():
            assert torch.allclose(value, other[name], atol=1e-5), (who, name, len(one))


def test_stopped_and_resumed_they_are_the_same(make_run: MakeRun) -> None:
    whole, stopped = make_run(**EACH), make_run("stopped", **EACH)
    train(whole)
    done = 0
    for step in (1, len(read_log(whole)) // 2, len(read_log(whole)) - 1):
        with pytest.raises(Stopped):
            train(stopped, resume=done > 0, report=stop_at(step - done))
        done = step
    train(stopped, resume=True)
    assert result(stopped) == result(whole) and voice_bytes(stopped) == voice_bytes(whole)
    assert train(whole) == read_record(whole)  # done already
    assert adapter_bytes(whole)


def test_without_voices_there_would_be_nothing_to_learn(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(InputError, match="leaves nothing to learn"):
        load_run(run.path, {"train.epochs": "0"})
    change_yaml(run.path, train__epochs=0)
    fails(mrp("train", run.path), 2, "train.epochs", "nothing to learn", "train.voices: true")

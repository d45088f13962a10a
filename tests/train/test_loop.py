"""Training for real on a tiny model: what it learns, keeps and records, and how it says what went wrong."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from shapes import SHAPES
from tiny_models import save_base
from tiny_runs import (
    PEOPLE,
    QUESTION,
    Heard,
    adapter_bytes,
    edit_samples,
    measured,
    read_log,
    read_record,
    result,
    stop_at,
    train_samples,
    trained_ids,
)

from mrp.config import Run, load_run
from mrp.data.samples import read_samples
from mrp.data.view import view_for_reply
from mrp.dialogue import Turn
from mrp.errors import InputError, SetupError, Stopped
from mrp.files import folder_lock, sha256_file
from mrp.models.load import hardware, load_model, load_tokenizer
from mrp.play.embedded import TransformersEngine
from mrp.play.engine import Request, Sampling
from mrp.render import ChatTemplate
from mrp.train import checkpoint, loop, passes
from mrp.train.checkpoint import read_state
from mrp.train.loop import RUNNING_LOG, train
from mrp.train.lora import load_adapter
from mrp.train.steps import Step, plan_training

MakeRun = Callable[..., Run]


# -- what it learns -----------------------------------------------------------------------------------------------


def replies(run: Run) -> dict[str, str]:
    """What each character answers to the question that all of them were trained on."""
    base = Path(run.config.base)
    tokenizer = load_tokenizer(base)
    template = ChatTemplate(tokenizer)
    engine = TransformersEngine(load_adapter(load_model(base, hardware("fp32")), run.adapter), hardware("fp32"))
    found = {}
    for who in PEOPLE:
        messages = view_for_reply([Turn("other", QUESTION)], ("other", who), who, run.cast)
        asked = Request(template.prompt(messages), Sampling(0, max_new_tokens=40), template.stop_ids())
        found[who] = tokenizer.decode([token.id for token in engine.stream(asked)])
    return found


def test_each_character_learns_its_own_answer_to_the_same_question(make_run: MakeRun) -> None:
    run = make_run(own=2, shared=0, epochs=40, learning_rate=2e-2, rank=16, alpha=16, dev=0)
    record = train(run)
    first, last = (record["measures"]["epochs"][k]["train_loss"] for k in (0, -1))
    for who in PEOPLE:
        assert last[who] < 1 < 3 < first[who]
    assert replies(run) == {who: reply for who, (_, _, reply) in PEOPLE.items()}


def test_the_losses_told_for_an_epoch_are_those_of_its_steps(make_run: MakeRun) -> None:
    run = make_run(epochs=1)
    record = train(run)
    log = read_log(run)
    (epoch,) = record["measures"]["epochs"]
    by_step = sum(row["loss"] * row["labelled"] for row in log)
    labelled = dict.fromkeys(PEOPLE, 0)
    for step in planned(run):
        for row in step.rows:
            for item in row:
                labelled[item.sample.character] += item.rendered.labelled
    assert sum(epoch["train_loss"][who] * labelled[who] for who in PEOPLE) == pytest.approx(by_step, rel=1e-6)
    assert record["measures"]["labelled_tokens"] == sum(labelled.values()) == sum(row["labelled"] for row in log)


# -- the loss of a step -------------------------------------------------------------------------------------------


def assert_same_training(one: Run, other: Run) -> None:
    assert [row["samples"] for row in read_log(one)] == [row["samples"] for row in read_log(other)]
    for mine, yours in zip(measured(one), measured(other), strict=True):
        assert mine == pytest.approx(yours, rel=2e-4)
    left, right = (load_file(run.adapter / "adapter_model.safetensors") for run in (one, other))
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-4


def test_the_loss_is_the_mean_over_all_labelled_tokens_of_the_step(make_run: MakeRun) -> None:
    by_accumulation = make_run("a", micro_batch=1, accumulation=8, max_tokens=128, learning_rate=1e-3)
    by_rows = make_run("b", micro_batch=8, accumulation=1, max_tokens=128, learning_rate=1e-3)
    uneven = make_run("c", micro_batch=3, accumulation=1, max_tokens=128, learning_rate=1e-3)
    for run in (by_accumulation, by_rows, uneven):
        train(run)
    assert len(read_log(by_rows)) > 4
    assert_same_training(by_accumulation, by_rows)
    assert len(read_log(uneven)) > len(read_log(by_rows))


def test_packed_rows_give_the_losses_and_gradients_of_single_ones(make_run: MakeRun) -> None:
    """Law 6 for whole trainings: each step holds an epoch, in a few long rows or in many short ones."""
    packed = make_run("packed", max_tokens=1024, accumulation=100, epochs=3, learning_rate=1e-3)
    longest = max(len(item.rendered.input_ids) for row in planned(packed)[0].rows for item in row)
    single = make_run("single", max_tokens=longest, accumulation=100, epochs=3, learning_rate=1e-3)
    rows = []
    for run in (packed, single):
        train(run)
        rows.append(len(planned(run)[0].rows))
    assert rows[1] > 4 * rows[0]
    assert_same_training(packed, single)


def planned(run: Run) -> list[Step]:
    template = ChatTemplate(load_tokenizer(Path(run.config.base)))
    return plan_training(run, template).steps


def test_a_base_that_does_not_keep_samples_apart_gets_a_row_for_each(make_run: MakeRun, tmp_path: Path) -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    config = transformers.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        word_embed_proj_dim=32,
        max_position_embeddings=512,
    )
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    run = make_run(base=tmp_path / "opt", epochs=1)
    heard = Heard()
    record = train(run, report=heard)
    assert record["packed"] is False and "each gets its own row" in heard.warnings[0]
    assert all(len(row["samples"]) == 1 for row in read_log(run))


def test_bf16_trains_fp32_weights_and_resumes_to_the_same(make_run: MakeRun) -> None:
    run, whole = make_run(precision="auto", epochs=1), make_run("whole", precision="auto", epochs=1)
    if hardware("auto").autocast is None:
        pytest.skip("only on hardware with bf16")
    record = train(whole)
    with pytest.raises(Stopped):
        train(run, report=stop_at(3))
    train(run, resume=True)
    assert result(run) == result(whole)
    assert record["precision"] == "bfloat16 autocast over float32 LoRA, base in bfloat16"
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


# -- what is kept -------------------------------------------------------------------------------------------------


def test_the_epoch_with_the_best_dev_loss_is_kept(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(epochs=3)
    of_dev = iter([3.0, 1.0, 2.0])
    weights: dict[int, dict[str, Any]] = {}
    say = loop.Training._say_epoch

    def said(self: loop.Training, epoch: int, *given: Any) -> None:
        weights[epoch] = checkpoint.copy_of(self.weights)
        say(self, epoch, *given)

    def losses(self: loop.Training, items: Any, tick: Any = None) -> Any:
        del tick
        value = next(of_dev) if items is self.plan.dev else 5.0
        return {"tang": value}, value

    monkeypatch.setattr(loop.Training, "_say_epoch", said)
    monkeypatch.setattr(loop.Training, "_losses", losses)
    heard = Heard()
    record = train(run, report=heard)
    assert record["measures"]["chosen_epoch"] == 2
    assert [e["dev_loss"] for e in record["measures"]["epochs"]] == [3.0, 1.0, 2.0]
    assert ["(best so far)" in line for line in heard.lines if line.startswith("epoch")] == [True, True, False]
    kept = load_file(run.adapter / "adapter_model.safetensors")
    best = {name.replace(".default", ""): value for name, value in weights[2].items()}
    assert kept.keys() == best.keys() and all(torch.equal(kept[name], best[name]) for name in kept)
    assert any(not torch.equal(weights[2][name], weights[3][name]) for name in weights[2])


def test_without_dev_scenes_the_last_epoch_is_kept(make_run: MakeRun) -> None:
    heard = Heard()
    record = train(make_run(dev=0), report=heard)
    assert record["measures"]["chosen_epoch"] == 2
    assert record["data"]["dev_scenes"] == [] and any("no dev slice" in line for line in heard.lines)


def test_dev_and_held_out_scenes_are_never_trained(make_run: MakeRun) -> None:
    run = make_run(dev=0.2)
    record = train(run)
    scene_of = {s.id: s.scene for s in train_samples(run)}
    trained = {scene_of[i] for i in trained_ids(run)}
    dev = set(record["data"]["dev_scenes"])
    held = {s.scene for s in read_samples(run.data / "held-out.jsonl")}
    assert dev and held and not (dev & trained or dev & held or trained & held)
    assert dev | trained == set(scene_of.values())


def test_a_finished_training_is_not_repeated(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(epochs=1)
    record = train(run)
    before = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*")}
    monkeypatch.setattr(loop, "load_model", None)
    heard = Heard()
    for options in ({}, {"resume": True}):
        assert train(run, report=heard, **options) == record
    assert heard.lines == [f"training: done already ({run.adapter})"] * 2
    assert {p: p.stat().st_mtime_ns for p in run.folder.rglob("*")} == before


@pytest.mark.parametrize("damage", ["weights", "config", "whole"])
def test_a_damaged_or_lost_adapter_is_made_again(make_run: MakeRun, damage: str) -> None:
    run = make_run(epochs=1)
    train(run)
    before = adapter_bytes(run)
    if damage == "weights":
        (run.adapter / "adapter_model.safetensors").write_bytes(before[:-4] + b"\1\1\1\1")
    else:
        for path in run.adapter.glob("*.json" if damage == "config" else "*"):
            path.unlink()
    train(run)
    assert adapter_bytes(run) == before


def test_another_training_in_the_same_folder_replaces_the_first_when_it_is_done(make_run: MakeRun) -> None:
    run = make_run(epochs=1)
    first = train(run)
    kept = result(run)
    changed = load_run(run.path, {"train.rank": "2"})
    with pytest.raises(Stopped):
        train(changed, report=stop_at(2, signal.SIGINT))
    assert result(run) == kept and train(run) == first  # still there, whole, and known to be done
    second = train(changed, resume=True)
    assert second["options"]["train"]["rank"] == 2 and adapter_bytes(run) != kept[0]


def test_a_stopped_restart_leaves_the_first_result_and_is_not_called_done(make_run: MakeRun) -> None:
    run = make_run(epochs=1)
    train(run)
    kept = result(run)
    with pytest.raises(Stopped):
        train(run, restart=True, report=stop_at(2))
    assert result(run) == kept
    with pytest.raises(InputError, match="was stopped after step 2"):
        train(run)
    train(run, resume=True)
    assert result(run) == kept


# -- what is recorded ---------------------------------------------------------------------------------------------


def test_the_record_tells_what_the_adapter_was_made_of(make_run: MakeRun) -> None:
    run = load_run(make_run().path, {"train.clip": "0.5"})
    record = train(run)
    assert record == read_record(run) == json.loads(json.dumps(record))
    assert record["options"] == run.config.model_dump()
    origins = record["origins"]
    assert (origins["train.clip"], origins["train.rank"], origins["train.weight_decay"]) == ("flag", "file", "default")
    for name in ("train.jsonl", "held-out.jsonl"):
        assert record["data"][name] == sha256_file(run.data / name)
    assert record["adapter_sha256"] == sha256_file(run.adapter / "adapter_model.safetensors")
    assert set(record["versions"]) >= {"mrp", "python", "torch", "transformers", "peft"}
    assert record["template"]["end_of_turn"] == "<|im_end|>" and "model.safetensors" in record["base"]
    machine = {name: record[name] for name in ("precision", "device", "threads", "processes", "packed")}
    assert machine == {
        "precision": "float32, base in float32",
        "device": hardware().device,
        "threads": 1,
        "processes": 1,
        "packed": True,
    }
    measures, log = record["measures"], read_log(run)
    assert measures["steps"] == len(log) and measures["tokens"] == sum(row["tokens"] for row in log)
    assert measures["seconds"] > 0 and measures["tokens_per_second"] > 0
    assert set(measures["held_out_loss"]) == set(PEOPLE)
    chosen = measures["epochs"][measures["chosen_epoch"] - 1]
    for who, loss in measures["held_out_loss"].items():
        assert loss["after"] == chosen["held_out_loss"][who] != loss["before"]


def test_the_kept_run_file_is_enough_to_know_that_it_is_done(make_run: MakeRun) -> None:
    run = make_run(epochs=1)
    record = train(run, order="sequential")
    again = load_run(run.folder)
    assert again.config.data.order == "sequential"
    heard = Heard()
    assert train(again, report=heard) == record and "done already" in heard.lines[0]


def test_replies_that_are_too_long_are_told_and_recorded(make_run: MakeRun) -> None:
    turns = [("other", "Tell me all."), ("wukong", "the road is long " * 200), ("other", "And?"), ("wukong", "Ha!")]
    scene = {"id": "long", "turns": [{"speaker": who, "text": text} for who, text in turns]}
    run = make_run(more=[scene], max_tokens=128, epochs=1)
    heard = Heard()
    record = train(run, report=heard)
    (entry,) = record["data"]["left_out"]
    assert {**entry, "source": ""} == {"set": "train", "sample": "long@wukong", "source": "", "replies": 1}
    (warning,) = heard.warnings
    assert "1 reply longer than 128 tokens" in warning and entry["source"] in warning
    assert "train.max_tokens" in warning


def test_only_the_first_of_many_long_replies_are_told_one_by_one(make_run: MakeRun) -> None:
    scenes = [
        {"turns": [{"speaker": "other", "text": f"{k}?"}, {"speaker": "tang", "text": "the road is long " * 50}]}
        for k in range(30)
    ]
    scenes = [s | {"id": f"long-{k}"} for k, s in enumerate(scenes)]
    for k, s in enumerate(scenes):
        s["turns"][1]["text"] += str(k)
    run = make_run(more=scenes, max_tokens=128, epochs=1)
    heard = Heard()
    record = train(run, report=heard)
    assert len(record["data"]["left_out"]) > 22 and len(heard.warnings) == 21
    assert f"{len(record['data']['left_out']) - 20} more samples" in heard.warnings[-1]


# -- what stops it ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_with_step_place_and_advice(make_run: MakeRun, tmp_path: Path) -> None:
    base = save_base(tmp_path / "broken")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    run = make_run(base=base)
    with pytest.raises(InputError, match="step 1 has the loss nan") as caught:
        train(run)
    assert "jsonl:" in caught.value.where and "train.learning_rate" in caught.value.fix
    assert not run.adapter.exists() and not run.record.exists()


def test_a_loss_that_explodes_later_leaves_the_last_checkpoint(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = make_run(), uninterrupted()
    epoch = [row["epoch"] for row in read_log(whole)].count(1)
    calls = 0
    real = passes.token_losses

    def exploding(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*given) * (float("inf") if calls == epoch + 2 else 1.0)

    monkeypatch.setattr(passes, "token_losses", exploding)
    with pytest.raises(InputError, match=f"step {epoch + 2} has the loss inf"):
        train(run)
    state = read_state(run.folder)
    assert state and state.step == epoch
    monkeypatch.undo()
    train(run, resume=True)
    assert result(run) == result(whole)


def test_a_sample_without_loss_stops_with_its_place(make_run: MakeRun) -> None:
    run = make_run()
    edit_samples(run.data / "train.jsonl", lambda row: [t.update(loss=False) for t in row["turns"]])
    with pytest.raises(InputError, match="nothing to learn") as caught:
        train(run)
    assert caught.value.where == train_samples(run)[0].source


def test_data_that_is_not_built_is_told(make_run: MakeRun) -> None:
    run = make_run()
    (run.data / "train.jsonl").unlink()
    with pytest.raises(InputError, match="the data is not built") as caught:
        train(run)
    assert caught.value.fix == f"run `mrp data build {run.path}`"


def test_a_run_folder_in_use_is_refused(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    run = make_run()
    lock = filelock.FileLock(str(run.folder / ".mrp.lock"))
    with lock:
        monkeypatch.setattr(filelock.FileLock, "acquire", acquire_elsewhere)
        with pytest.raises(SetupError, match="another mrp command is working in this folder"):
            train(run)
    assert sorted(p.name for p in run.folder.iterdir()) == [".mrp.lock", "data"]


def acquire_elsewhere(*_: Any, **__: Any) -> None:
    import filelock

    raise filelock.Timeout("the lock of another process")


def test_a_run_may_be_trained_by_a_command_that_holds_its_folder(make_run: MakeRun) -> None:
    run = make_run(epochs=1)
    with folder_lock(run.folder):
        train(run)
    assert run.record.exists()


def test_a_seed_of_any_length_works(make_run: MakeRun) -> None:
    run = make_run(seed=10**18, epochs=1)
    assert train(run)["options"]["seed"] == 10**18


def test_a_full_disk_while_a_step_is_logged_is_told(make_run: MakeRun) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only on systems with /dev/full")
    run = make_run(epochs=1)

    def at(label: str, count: int) -> None:
        if label == "training" and count == 1:
            (run.folder / RUNNING_LOG).unlink()
            (run.folder / RUNNING_LOG).symlink_to("/dev/full")

    with pytest.raises(SetupError, match="no space left on the disk"):
        train(run, report=Heard(at))

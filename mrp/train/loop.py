"""THE training loop: one loop for every way to train.

    record = train(load_run(Path("mrp.yaml")))          # leaves adapter/ and run.json in the run folder

Ours rather than a trainer's: it owns the order, the cursor, the accumulation and the record, and nothing stands
between forward and backward (docs/design.md tells why). The loss of a step is the mean over all its labelled tokens,
however they are spread over rows, passes and processes. With `train.voices` the same loop goes on through further
stages, in which each character's voice learns over the frozen adapter (`stages.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch

from mrp.cast import PLAIN
from mrp.config import Order, Run, keep_run
from mrp.errors import InputError, Stopped, nearest
from mrp.evaluate.held_out import character_losses, overall
from mrp.files import disk_error, folder_lock, need_space, read_json, replacing, settle_folder, write_json
from mrp.models.bases import find_base
from mrp.models.load import Hardware, hardware, load_model, load_tokenizer, set_threads
from mrp.models.loss import keeps_apart
from mrp.models.voices import voice_layers
from mrp.render import ChatTemplate
from mrp.report import SILENT, Reporter
from mrp.train import checkpoint
from mrp.train.checkpoint import State
from mrp.train.curve import curve_steps
from mrp.train.full import save_model, unfreeze
from mrp.train.launch import STARTED_WITH
from mrp.train.lora import adapter_parameters, add_adapter, save_adapter
from mrp.train.memory import gpu_memory, memory_text
from mrp.train.passes import check_machine, choose_passes, pass_seed, too_little_memory
from mrp.train.processes import Processes, joined
from mrp.train.record import differences, finished_record, training_inputs, training_record
from mrp.train.sharded_model import shard_model
from mrp.train.sharding import Gathered
from mrp.train.stages import Stage, adapter_stage, keep_adapter, keep_voices, voice_stage, write_voices
from mrp.train.steps import Item, Step, plan_training
from mrp.train.stopping import signals_caught
from mrp.train.strategy import SHARDS_MODEL, choose_strategy, make_update

LOG = "steps.jsonl"  # of the training that made the adapter
RUNNING_LOG = "steps.part.jsonl"  # of the one that is not done yet


def train(
    run: Run,
    *,
    order: str | None = None,
    resume: bool = False,
    restart: bool = False,
    strategy: str = "auto",
    curve: int = 0,
    report: Reporter = SILENT,
) -> dict[str, Any]:
    """Train the run's adapter and write `adapter/`, `run.json` and `steps.jsonl`; returns the record.

    `order` takes the place of the run's `data.order`; `strategy` is how several processes share the work
    (`strategy.py`). With `curve` held-out loss is measured at so many points of each epoch, its end included; what is
    learnt does not change. A finished training with equal inputs is not repeated. A stopped one goes on with `resume`,
    or begins anew with `restart`; without either it is an `InputError`, so that nothing is lost by mistake. Raises
    `Stopped` on Ctrl-C or SIGTERM, after the step in work is done and saved. Whatever stops it, the earlier adapter
    with its record stays until the new one is done.
    """
    if resume and restart:
        raise InputError("--resume and --restart exclude each other", "--resume, --restart", "give one of them")
    run = run if order is None else _with_order(run, order)
    with joined() as processes, contextlib.ExitStack() as held:
        with processes.together():
            if processes.is_first:
                held.enter_context(folder_lock(run.folder))
                checkpoint.settle(run.folder)
                settle_folder(run.merged if run.config.train.method == "full" else run.adapter)
                settle_folder(run.voices)
        with processes.together():
            training = Training(run, processes, report, strategy, curve)
            finished = None if restart else training.finished()
        if finished:
            training.report.line(f"training: done already ({run.adapter})")
            return finished
        return training.run_all(resume, restart)


def _with_order(run: Run, order: str) -> Run:
    """The run with another order, as if it had been set by a flag."""
    if order not in get_args(Order):
        raise InputError(f"unknown order {order!r}", "--order", nearest(order, get_args(Order)))
    data = run.config.data.model_copy(update={"order": order})
    config = run.config.model_copy(update={"data": data})
    return dataclasses.replace(run, config=config, origins=run.origins | {"data.order": "flag"})


class Training:
    """One training: its plan, its model, and where it stands."""

    def __init__(
        self, run: Run, processes: Processes, report: Reporter, strategy: str = "auto", curve: int = 0
    ) -> None:
        self.run, self.processes, self.curve = run, processes, curve
        self.report = report if processes.is_first else SILENT
        self.folder = run.folder
        self.options = run.config.train
        self.threads = set_threads(self.options.threads)
        self.on: Hardware = hardware(self.options.precision)
        if self.options.method == "full":  # the weights are what is updated, so they are kept in fp32
            self.on = dataclasses.replace(self.on, weights=torch.float32)
        check_machine(self.options, self.on)
        if self.on.device == "cuda" and self.options.precision == "auto" and self.on.autocast is None:
            self.report.warn("this GPU has no bf16, so training runs in fp32: twice the memory, and slower")
        self.base = find_base(run.config.base, run.path.parent)
        self.strategy, why = choose_strategy(strategy, self.options, processes.world, self.on, self.base)
        if processes.world > 1:
            where = "each on a GPU" if self.on.device == "cuda" else "on the CPU, since there is no GPU"
            self.report.line(f"{processes.world} processes, {where}; strategy {self.strategy}: {why}")
        self.template = ChatTemplate(load_tokenizer(self.base), where=str(self.base))
        self.inputs = training_inputs(run, self.base, self.template.record())

    def finished(self) -> dict[str, Any] | None:
        """The record of an equal training that is done already, and not being done again."""
        record = finished_record(self.run, self.inputs)
        stopped = checkpoint.read_state(self.folder) if record else None
        return None if stopped and not differences(stopped.inputs, self.inputs) else record

    def run_all(self, resume: bool, restart: bool) -> dict[str, Any]:
        """All of it. Raises `InputError` where the GPU's memory does not suffice, with what to cut."""
        try:
            return self._run_all(resume, restart)
        except torch.OutOfMemoryError as error:
            raise too_little_memory(self.options) from error

    def _run_all(self, resume: bool, restart: bool) -> dict[str, Any]:
        with self.processes.together():
            self.state = self._starting_state(resume, restart)
            self._plan()
            self._load()
        with signals_caught(self.report.warn) as self.stop:
            self._measure_before()
            self._steps()
            record = self._finish()
            if self.stop.asked:
                raise Stopped("stopped, but the training was done already", str(self.run.adapter), "nothing is lost")
            return record

    # -- before the first step ------------------------------------------------------------------------------------

    def _starting_state(self, resume: bool, restart: bool) -> State:
        new = State(self.inputs, self.processes.world)
        state = None if restart else checkpoint.read_state(self.folder)
        if state is None:
            if resume:
                self.report.line("training: no checkpoint here, so it starts at the beginning")
            return new
        where = str(checkpoint.checkpoint_folder(self.folder))
        if not resume:
            fix = f"`{self._command('--resume')}` goes on, `--restart` begins anew"
            raise InputError(f"this training was stopped after step {state.step}", where, fix)
        changed = differences(
            state.inputs | {"processes": state.processes}, self.inputs | {"processes": self.processes.world}
        )
        if changed:
            what = "something has changed since this training was stopped: " + ", ".join(changed[:5])
            raise InputError(what, where, "put it back as it was, or begin anew with `mrp train RUN --restart`")
        return state

    def _command(self, flag: str) -> str:
        """How to call this training again."""
        command = f"mrp train {shlex.quote(str(self.run.name_again))} {flag}"
        return f"{command} {os.environ.get(STARTED_WITH, '')}".rstrip()

    def _plan(self) -> None:
        self.plan = plan_training(self.run, self.template, self.processes.world)
        left_out = self.plan.left_out
        for entry in left_out[:20]:
            replies = "1 reply" if entry["replies"] == 1 else f"{entry['replies']} replies"
            what = f"{replies} longer than {self.options.max_tokens} tokens left out of sample"
            self.report.warn(f"{what} {entry['sample']} ({entry['source']}); raise train.max_tokens to keep them")
        if len(left_out) > 20:
            self.report.warn(f"... and of {len(left_out) - 20} more samples; run.json will list them all")

    def _load(self) -> None:
        shards = self.strategy in SHARDS_MODEL
        base = load_model(
            self.base, dataclasses.replace(self.on, device="cpu") if shards else self.on, self.options.bits
        )
        self.packed = keeps_apart(base)
        if not self.packed:
            self.report.warn("samples in one row would see each other in this base model, so each gets its own row")
            self.plan = plan_training(self.run, self.template, self.processes.world, packed=False)
        self.steps = self.plan.steps
        is_full = self.options.method == "full"
        self.model = unfreeze(base) if is_full else add_adapter(base, self.options, self.run.config.seed)
        if self.options.voices:
            voice_layers(self.model)  # now, not after the adapter is trained
        if shards:
            shard_model(self.model, self.on.device)
        self.weights = adapter_parameters(self.model)  # of what all characters share
        size = sum(p.numel() * p.element_size() for p in self.weights.values())
        need_space(self.folder, 6 * size, "the adapter with its checkpoint")
        # without a pass of its own the adapter stays what it is: it adds nothing
        untrained = {} if self.options.epochs else checkpoint.copy_of(self.weights)
        self.best = checkpoint.load_best(self.folder) if self.state.step else untrained
        self.kernels: dict[str, str] = self.state.kernels
        self.optimizer_bytes = 0  # of the largest stage, in this process
        self._enter(self.state.stage)
        if self.state.step:
            checkpoint.load(self.folder, self.stage.weights, self.stage.update)
            self.report.line(f"training: goes on after step {self.state.step} of {len(self.steps)}")
        if self.processes.is_first:
            self._cut_log()
            if not self.state.step:
                checkpoint.remove(self.folder)
            keep_run(self.run)
        self.saved_at = time.monotonic()

    def _enter(self, number: int) -> None:
        """Begin a stage: the adapter's, or that of a group of voices over the best adapter, frozen."""
        if number == 0:
            self.stage = self._adapter_stage()
            return
        if self.state.stage != number:
            self._leave()
            del self.stage  # its optimizer and graphs make room
            if self.on.device == "cuda":
                torch.cuda.empty_cache()
        checkpoint.put(self.weights, self.best)
        for weight in self.weights.values():
            weight.requires_grad_(False).grad = None
        ids, seed = self.plan.learners(number), self.run.config.seed
        self.stage = voice_stage(
            self.model, ids, number, self.options, seed, self.on, self.plan, self.processes, self.report
        )
        self.kernels |= {"voice_kernels": self.stage.passes.name, "voice_why": self.stage.passes.why}
        if self.state.stage != number:
            kept = [e["dev_losses"] for e in self.state.epochs if e["epoch"] == self.state.best_epoch]
            for who in ids:  # what a voice must better; nothing where no adapter was trained
                self.state.voices[who] = {"epoch": None, "dev_loss": kept[0].get(who) if kept else None}
            self.report.line(f"voices of {', '.join(ids)}")
        self.state.stage = number

    def _adapter_stage(self) -> Stage:
        shards, world = self.strategy in SHARDS_MODEL, self.processes.world
        plain = shards or not self.options.epochs  # no step, no shape of a step
        options = self.options.model_copy(update={"kernels": "plain"}) if plain else self.options
        passes = choose_passes(self.model, self.weights, options, self.on, self.plan, world, self.report)
        if shards:
            passes.why = f"{self.strategy} cuts the weights that fast kernels want whole"
        elif plain:
            passes.why = "there is no adapter to train, only voices"
        if passes.name == "fast" and self.strategy == "zero2":
            self.strategy = "zero1"
            self.report.warn("zero2 is zero1 here: in a captured graph of fast kernels all gradients keep their place")
        self.kernels |= {"kernels": passes.name, "why": passes.why}
        update = make_update(self.strategy, self.model, self.weights, self.processes, self.options, self.on)
        return adapter_stage(self.weights, passes, update, self.options)

    def _leave(self) -> None:
        """End the stage: its voices go off the model."""
        self.optimizer_bytes = max(self.optimizer_bytes, self.stage.update.state_bytes())
        self.stage.close()

    def _cut_log(self) -> None:
        """Take steps after the checkpoint out of the log: they are done again."""
        log, done = self.folder / RUNNING_LOG, self.state.step
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)[:done] if done and log.is_file() else []
        if len(lines) < done:
            what = f"the log of the {done} steps done so far is lost or cut off"
            raise InputError(what, str(log), "begin anew with `mrp train RUN --restart`")
        with replacing(log) as file:
            file.writelines(lines)

    def _measure_before(self) -> None:
        if self.state.before or not self.plan.held_out:
            return
        total = sum(len(item.rendered.input_ids) for item in self.plan.held_out)
        with self.report.progress("measuring the base", total, "tokens") as update:
            done = [0]

            def tick(tokens: int) -> None:
                done[0] += tokens
                update(done[0])

            # nothing is learnt yet: LoRA adds zero, so a way of measuring that cannot leave it out gives the same
            without = getattr(self.model, "disable_adapter", contextlib.nullcontext)
            with without():
                self.state.before = self._losses(self.plan.held_out, tick)[0]

    # -- steps ----------------------------------------------------------------------------------------------------

    def _steps(self) -> None:
        total = sum(step.tokens for step in self.steps[self.state.step :])
        self.model.train()  # measuring leaves it as it was
        between = curve_steps(self.steps, self.curve) if self.curve else set()
        with self.report.progress("training", total, "tokens") as update:
            done = 0
            for number in range(self.state.step, len(self.steps)):
                self._measure_epoch_if_due()
                if number in between:
                    self._measure_between()
                step = self.steps[number]
                if step.stage != self.stage.number:
                    self._enter(step.stage)
                loss = self._step(number, step)
                done += step.tokens
                shown = memory_text()
                update(done, epoch=f"{step.epoch + 1}/{self.plan.epochs}", loss=f"{loss:.3f}", memory=shown)
                self._save_if_due()
            self._measure_epoch_if_due()

    def _step(self, number: int, step: Step) -> float:
        """One optimizer step; returns its loss (mean over all labelled tokens of the step, in nats)."""
        began = time.monotonic()
        stage = self.stage
        rate = stage.set_rates(step, self.options)
        # for dropout, ours and the base's own: a step draws the same whether or not the training was stopped before it
        torch.manual_seed(((self.run.config.seed * 1_000_003 + number) * 1009 + self.processes.rank) % 2**63)
        stage.passes.begin_step()
        stage.update.begin_step()
        mine = step.rows[self.processes.rank :: self.processes.world]
        names = [*(c.id for c in self.run.cast), PLAIN]
        sums = torch.zeros(len(names) + 1, 2, dtype=torch.float64)  # the last: the contrast
        passed: list[tuple[torch.Tensor, torch.Tensor]] = []  # read after the last pass: a GPU need not wait for it
        most = len(step.rows[:: self.processes.world])  # rows of the first process, which has the most
        for at in range(0, most, stage.rows_at_once):
            rows = mine[at : at + stage.rows_at_once]
            if not rows:
                stage.update.empty_pass()
                continue
            seed = pass_seed(self.run.config.seed, number, self.processes.rank, at)
            losses = stage.passes.learn(rows, step, seed)
            items = [item for row in rows for item in row]
            who = torch.tensor([names.index(item.sample.character) for item in items])[losses.item]
            passed.append((who, losses.values))
            if losses.contrast is not None:
                passed.append((torch.full((len(losses.contrast),), len(names)), losses.contrast))
            stage.update.after_pass()
        norm = stage.reduce(step, self.options.clip)
        for who, values in passed:
            known = values.double().cpu()
            sums.index_add_(0, who, torch.stack([known, torch.ones_like(known)], 1))
        sums = self.processes.sum(sums)
        loss = float(sums[:-1, 0].sum() / step.labelled)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"step {number + 1} has the loss {loss} and the gradient norm {norm}, so the training cannot go on"
            raise InputError(what, self._source(step), "lower train.learning_rate, or set train.precision: fp32")
        stage.update.step()
        self._count(number, step, dict(zip(names, sums[:-1].tolist(), strict=True)))
        shown = {"loss": loss, "gradient_norm": norm, "rate": rate}
        if step.replies:
            shown["contrast"] = float(sums[-1, 0] / step.replies)
        self._log(shown, step, time.monotonic() - began)
        return loss

    def _count(self, number: int, step: Step, sums: dict[str, list[float]]) -> None:
        state = self.state
        for name, (loss, tokens) in sums.items():
            before = state.epoch_losses.get(name, [0.0, 0.0])
            state.epoch_losses[name] = [before[0] + loss, before[1] + tokens]
        state.step = number + 1
        state.tokens += step.tokens
        state.labelled += step.labelled

    def _log(self, shown: dict[str, float], step: Step, seconds: float) -> None:
        self.state.seconds += seconds
        row: dict[str, Any] = {"step": self.state.step, "epoch": step.epoch + 1, **shown, "seconds": round(seconds, 3)}
        row |= {"tokens": step.tokens, "labelled": step.labelled, "samples": step.sample_ids}
        if step.stage:
            row["voices"] = list(step.places)
        if self.options.voice_contrast if step.stage else self.options.contrast:
            row["against"] = [item.twin.identity if item.twin else None for item in step.items]
        path = self.folder / RUNNING_LOG
        with self.processes.together():
            if not self.processes.is_first:
                return
            try:
                with path.open("a", encoding="utf-8", newline="\n") as log:
                    log.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            except OSError as error:
                raise disk_error(error, path) from error

    def _source(self, step: Step) -> str:
        """Where the first and the last sample of a step stand."""
        sources = [item.sample.source for row in step.rows for item in row]
        return sources[0] if len(sources) == 1 else f"{sources[0]} to {sources[-1]}"

    # -- after each epoch -----------------------------------------------------------------------------------------

    def _measure_epoch_if_due(self) -> None:
        """After an epoch: dev and held-out loss; what has the best dev loss so far, adapter or voice, is kept."""
        state, stage = self.state, self.stage
        if state.step == 0:
            return
        done = self.steps[state.step - 1]
        if not done.ends_epoch or state.epochs_measured > done.epoch:
            return
        dev, dev_loss = self._losses(self._own(self.plan.dev))
        held, _ = self._losses(self._own(self.plan.held_out))
        trained = {name: s / n for name, (s, n) in state.epoch_losses.items() if n}
        epoch = done.epoch + 1
        if stage.number == 0:
            better = keep_adapter(state, epoch, dev_loss)
        else:
            own = (done.epoch - self.options.epochs) % self.options.voice_epochs + 1
            tolerance = self.options.voice_tolerance
            better = keep_voices(state, list(stage.learners), own, dev, held, tolerance)
        for who in better:
            self.best |= checkpoint.copy_of(stage.learners[who])
        losses = {"train_loss": trained, "dev_loss": dev_loss, "dev_losses": dev, "held_out_loss": held}
        state.epochs.append({"epoch": epoch, "stage": stage.number, "step": state.step} | losses)
        state.epochs_measured, state.epoch_losses = epoch, {}
        self._say_epoch(epoch, trained, dev_loss, held, better)
        self._save()

    def _measure_between(self) -> None:
        """Within an epoch: held-out loss of each character, once."""
        state = self.state
        if any(point["step"] == state.step for point in state.curve):
            return
        held, _ = self._losses(self._own(self.plan.held_out))
        state.curve.append({"step": state.step, "epoch": self.steps[state.step - 1].epoch + 1, "held_out_loss": held})

    def _own(self, items: list[Item]) -> list[Item]:
        """Those by which the learners of this stage are measured."""
        if self.stage.number == 0:
            return items
        return [item for item in items if item.sample.character in self.stage.learners]

    def _say_epoch(
        self, epoch: int, trained: dict[str, float], dev: float | None, held: dict[str, float], better: list[str]
    ) -> None:
        def row(losses: dict[str, float]) -> str:
            return "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())

        of = f" of {', '.join(better) or 'nobody'}" if self.stage.number else ""
        kept = f" (best so far{of})" if (better or of) and dev is not None else ""
        said = f"dev {dev:.3f}{kept}" if dev is not None else "no dev slice"
        self.report.line(f"epoch {epoch}/{self.plan.epochs}  {said}")
        self.report.line(f"  train     {row(trained)}")
        if held:
            self.report.line(f"  held-out  {row(held)}")

    def _losses(
        self, items: Sequence[Item], tick: Callable[[int], None] | None = None
    ) -> tuple[dict[str, float], float | None]:
        """The loss of each character and the mean of them, None where there are no items; `Stopped` if it was asked."""
        if not items:
            return {}, None
        found = character_losses(
            self.stage.passes.measured,
            items,
            self.options.max_tokens,
            self.on,
            None
            if self.stage.update.in_step
            else self.processes,  # in step: each measures all rows, and stops with all
            tick,
            stop=lambda: self.processes.any(self.stop.asked) if self.stage.update.in_step else self.stop.asked,
            packed=self.packed,
            speaking=self.stage.speaking,
        )
        self._save_if_due()
        return {name: mean.loss for name, mean in found.items()}, overall(found)

    # -- saving and stopping --------------------------------------------------------------------------------------

    def _save(self) -> None:
        weights: Mapping[str, torch.Tensor] = self.stage.weights
        if self.stage.update.in_step:
            weights = checkpoint.copy_of(self.stage.weights)
        optimizer = Gathered(self.stage.update.state_dict())  # parts of it may lie in each process
        with self.processes.together():
            if self.processes.is_first:
                checkpoint.save(self.folder, self.state, weights, optimizer, self.best)
        self.saved_at = time.monotonic()

    def _save_if_due(self) -> None:
        stop = self.processes.any(self.stop.asked)
        due = self.processes.any(time.monotonic() - self.saved_at > 60 * self.options.checkpoint_minutes)
        if stop or due:
            self._save()
        if stop:
            done = f"stopped after step {self.state.step} of {len(self.steps)}; everything is saved"
            raise Stopped(done, str(checkpoint.checkpoint_folder(self.folder)), self._command("--resume"))

    def _finish(self) -> dict[str, Any]:
        """Write the adapter, the voices and the record; the checkpoint goes last, so a kill in between is mended by a
        resume."""
        self._leave()
        checkpoint.put(self.weights, self.best)
        values = {name: self.best[name] for name in self.weights}  # whole, where the weights may be sharded
        running, log = self.folder / RUNNING_LOG, self.folder / LOG
        with self.processes.together():
            if self.processes.is_first:
                if self.options.method == "full":
                    save_model(self.model, self.base, self.run, values)
                else:
                    save_adapter(self.model, self.run.adapter, self.run.config.base, values)
                write_voices(self.run, self.model, self.state.voices, self.best, self.report)
                with replacing(log) as file:
                    file.write(running.read_text(encoding="utf-8"))
                machine = {"precision": self.on.precision, "device": self.on.device, "threads": self.threads}
                machine |= {"processes": self.processes.world, "strategy": self.strategy, "packed": self.packed}
                machine |= {"optimizer_bytes": self.optimizer_bytes} | self.kernels | gpu_memory()
                write_json(self.run.record, training_record(self.run, self.state, self.plan, log, machine))
                checkpoint.remove(self.folder)
                running.unlink()
        return dict(read_json(self.run.record))

"""THE training loop: one loop for every way to train.

    record = train(load_run(Path("mrp.yaml")))          # leaves adapter/ and run.json in the run folder

Ours rather than a trainer's: it owns the order, the cursor, the accumulation and the record, and nothing stands
between forward and backward (docs/design.md tells why). The loss of a step is the mean over all its labelled tokens,
however they are spread over rows, passes and processes.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch

from mrp.config import Run, keep_run
from mrp.data.build import MANIFEST
from mrp.data.samples import Sample, in_order, natural_order, read_samples
from mrp.data.split import held_out_scenes
from mrp.errors import InputError, Stopped
from mrp.evaluate.held_out import character_losses, overall
from mrp.files import folder_lock, need_space, read_json, write_json
from mrp.models.bases import find_base
from mrp.models.load import Hardware, hardware, load_model, load_tokenizer, set_threads
from mrp.models.loss import make_batch, token_losses
from mrp.render import ChatTemplate
from mrp.report import SILENT, Reporter, resident_gib
from mrp.train import checkpoint
from mrp.train.checkpoint import State
from mrp.train.lora import adapter_parameters, add_adapter, check_adapter_folder, save_adapter
from mrp.train.processes import Processes, joined
from mrp.train.record import read_record, realised_order, training_fingerprint, training_inputs, versions
from mrp.train.steps import Item, Step, learning_rate, plan_steps, render_all

LOG = "steps.jsonl"


def train(
    run: Run,
    *,
    order: str | None = None,
    resume: bool = False,
    restart: bool = False,
    report: Reporter = SILENT,
) -> dict[str, Any]:
    """Train the run's adapter and write `adapter/`, `run.json` and `steps.jsonl`; returns the record.

    A finished training with equal inputs is not repeated. A stopped one goes on with `resume`, or begins anew with
    `restart`; without either it is an `InputError`, so that nothing is lost by mistake. Raises `Stopped` on Ctrl-C or
    SIGTERM, after the step in work is done and saved.
    """
    with joined() as processes:
        lock = folder_lock(run.folder) if processes.is_first else contextlib.nullcontext()
        with lock:
            training = Training(run, order or run.config.data.order, processes, report)
            finished = training.finished()
            if finished and not restart:
                report.line(f"training: done already ({training.folder / 'adapter'})")
                return finished
            return training.run_all(resume, restart)


class Training:
    """One training: its plan, its model, and where it stands."""

    def __init__(self, run: Run, order: str, processes: Processes, report: Reporter) -> None:
        self.run, self.order, self.processes = run, order, processes
        self.report = report if processes.is_first else SILENT
        self.folder = run.folder
        self.options = run.config.train
        self.threads = set_threads(self.options.threads)
        self.on: Hardware = hardware(self.options.precision)
        self.base = find_base(run.config.base, run.path.parent)
        self.tokenizer = load_tokenizer(self.base)
        self.template = ChatTemplate(self.tokenizer, where=str(self.base))
        self.inputs = training_inputs(run, self.base, self.template.record(), order)
        self.fingerprint = training_fingerprint(self.inputs)
        self.stop_asked = False

    def finished(self) -> dict[str, Any] | None:
        """The record of an equal training that is done already."""
        record = read_record(self.run)
        if record and record.get("fingerprint") == self.fingerprint:
            with contextlib.suppress(InputError):
                check_adapter_folder(self.run.adapter)
                return record
        return None

    def run_all(self, resume: bool, restart: bool) -> dict[str, Any]:
        self.state = self._starting_state(resume, restart)
        self._plan()
        self._load()
        with self._signals_caught():
            self._measure_before()
            self._steps()
        return self._finish()

    # -- before the first step ------------------------------------------------------------------------------------

    def _starting_state(self, resume: bool, restart: bool) -> State:
        state = checkpoint.read_state(self.folder)
        if state is None:
            if resume and not restart:
                self.report.line("training: no checkpoint here, so it starts at the beginning")
            return State(self.fingerprint)
        if restart:
            if self.processes.is_first:
                checkpoint.remove(self.folder)
            return State(self.fingerprint)
        where = str(checkpoint.checkpoint_folder(self.folder))
        if not resume:
            fix = f"`mrp train {self.run.path} --resume` goes on, `--restart` begins anew"
            raise InputError(f"this training was stopped after step {state.step}", where, fix)
        if state.fingerprint != self.fingerprint:
            fix = "put the options, the data and the base back as they were, or begin anew with `--restart`"
            raise InputError("options, data or base have changed since this training was stopped", where, fix)
        return state

    def _plan(self) -> None:
        train_path, held_path = self.run.data / "train.jsonl", self.run.data / "held-out.jsonl"
        samples = self._in_order_asked(read_samples(train_path))
        held = read_samples(held_path) if held_path.stat().st_size else []
        self.samples, self.dev_samples = self._dev_slice(samples)
        length = self.options.max_tokens
        self.items, self.left_out = render_all(self.samples, self.template, self.run.cast, length)
        dev, _ = render_all(self.dev_samples, self.template, self.run.cast, length)
        held_items, _ = render_all(held, self.template, self.run.cast, length)
        self.dev_items = [item for items in dev.values() for item in items]
        self.held_items = [item for items in held_items.values() for item in items]
        seed = self.run.config.seed
        self.steps = plan_steps(self.samples, self.items, self.options, self.order, seed, self.processes.world)
        if not self.steps or not any(step.labelled for step in self.steps):
            fix = "raise train.max_tokens, or add dialogues"
            raise InputError("there is nothing to train: no sample fits", str(train_path), fix)
        for entry in self.left_out[:20]:
            what = f"{entry['replies']} replies longer than {length} tokens left out of sample {entry['sample']}"
            self.report.warn(f"{what} ({entry['source']}); raise train.max_tokens to train them")

    def _in_order_asked(self, samples: list[Sample]) -> list[Sample]:
        """The samples in the order of epoch 0: as the file has them, unless it was built in another order."""
        path = self.run.data / MANIFEST
        built = read_json(path)["options"]
        asked = self.run.config.data.model_dump() | {"order": self.order}
        changed = {k: v for k, v in asked.items() if k != "order" and built.get(k, v) != v}
        if changed:
            raise InputError(f"the data was built with other options: {changed}", str(path), "run `mrp data build`")
        if built["order"] == self.order:
            return samples
        return in_order(natural_order(samples, self.run.cast), self.order, self.run.config.seed, 0)

    def _dev_slice(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        """The samples to train and those kept aside to choose the best epoch (whole scenes; not the held-out ones)."""
        speakers: dict[str, list[str]] = {}
        for sample in samples:
            speakers.setdefault(sample.scene, []).append(sample.character)
        chosen = held_out_scenes(speakers, self.options.dev, self.run.config.seed, "dev")
        train = [s for s in samples if s.scene not in chosen]
        return train, [s for s in samples if s.scene in chosen]

    def _load(self) -> None:
        base = load_model(self.base, self.on)
        self.model = add_adapter(base, self.options, self.run.config.seed)
        self.weights = adapter_parameters(self.model)
        size = sum(p.numel() * p.element_size() for p in self.weights.values())
        need_space(self.folder, 6 * size, "the adapter with its checkpoint")
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=self.options.learning_rate, weight_decay=self.options.weight_decay, fused=True
        )
        self.best: dict[str, torch.Tensor] | None = None
        if self.state.step:
            self.best = checkpoint.load(self.folder, self.weights, self.optimizer)
            self.report.line(f"training: goes on after step {self.state.step} of {len(self.steps)}")
        if self.processes.is_first:
            keep_run(self.run)
            self._cut_log()
        self.saved_at = time.monotonic()

    def _measure_before(self) -> None:
        if self.state.before or not self.held_items:
            return
        with self.report.progress("measuring the base", _tokens(self.held_items), "tokens") as update:
            done = [0]

            def tick(tokens: int) -> None:
                done[0] += tokens
                update(done[0])

            with self.model.disable_adapter():
                losses = self._losses(self.held_items, tick)
        self.state.before = {name: m.loss for name, m in losses.items()}

    # -- steps ----------------------------------------------------------------------------------------------------

    def _steps(self) -> None:
        total = sum(step.tokens for step in self.steps)
        with self.report.progress("training", total, "tokens") as update:
            done = sum(step.tokens for step in self.steps[: self.state.step])
            for number in range(self.state.step, len(self.steps)):
                self._measure_epoch_if_due()
                step = self.steps[number]
                loss = self._step(number, step)
                done += step.tokens
                shown = f"{resident_gib():.1f} GiB"
                update(done, epoch=f"{step.epoch + 1}/{self.options.epochs}", loss=f"{loss:.3f}", memory=shown)
                self._save_if_due()
            self._measure_epoch_if_due()

    def _step(self, number: int, step: Step) -> float:
        """One optimizer step; returns its loss (mean over all labelled tokens of the step, in nats)."""
        began = time.monotonic()
        rate = learning_rate(number, len(self.steps), self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        if self.options.dropout:
            torch.manual_seed((self.run.config.seed * 1_000_003 + number) * 1009 + self.processes.rank)
        self.optimizer.zero_grad(set_to_none=True)
        mine = step.rows[self.processes.rank :: self.processes.world]
        names = [c.id for c in self.run.cast]
        sums = torch.zeros(len(names), 2, dtype=torch.float64)
        for at in range(0, len(mine), self.options.micro_batch):
            rows = mine[at : at + self.options.micro_batch]
            batch = make_batch([[item.rendered for item in row] for row in rows]).to(self.on.device)
            with self.on.autocast_context():
                losses = token_losses(self.model, batch)
            (losses.sum() / step.labelled).backward()
            items = [item for row in rows for item in row]
            who = torch.tensor([names.index(item.sample.character) for item in items])[batch.sample.cpu()]
            known = losses.detach().double().cpu()
            sums.index_add_(0, who, torch.stack([known, torch.ones_like(known)], 1))
        self.processes.sum_gradients(self.weights.values())
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.options.clip))
        self.optimizer.step()
        sums = self.processes.sum(sums)
        loss = float(sums[:, 0].sum() / step.labelled)
        if not (loss == loss and norm == norm):
            fix = "lower train.learning_rate, or set train.precision: fp32"
            raise InputError(f"the loss is not a number any more at step {number + 1}", self._first_source(step), fix)
        self._count(number, step, names, sums, {"loss": loss, "gradient_norm": norm, "rate": rate}, began)
        return loss

    def _count(
        self, number: int, step: Step, names: list[str], sums: torch.Tensor, shown: dict[str, float], began: float
    ) -> None:
        seconds = time.monotonic() - began
        state = self.state
        for name, (loss, tokens) in zip(names, sums.tolist(), strict=True):
            before = state.epoch_losses.get(name, [0.0, 0.0])
            state.epoch_losses[name] = [before[0] + loss, before[1] + tokens]
        state.step = number + 1
        state.seconds += seconds
        state.tokens += step.tokens
        state.labelled += step.labelled
        if self.processes.is_first:
            row: dict[str, Any] = {"step": number + 1, "epoch": step.epoch + 1, **shown, "seconds": round(seconds, 3)}
            row |= {"tokens": step.tokens, "labelled": step.labelled, "samples": step.sample_ids}
            with (self.folder / LOG).open("a", encoding="utf-8", newline="\n") as log:
                log.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")

    def _measure_epoch_if_due(self) -> None:
        """After an epoch: dev and held-out loss; the adapter is kept if its dev loss is the best so far."""
        state = self.state
        epoch = state.epochs_measured + 1
        last = max((n for n, s in enumerate(self.steps, 1) if s.epoch == epoch - 1), default=0)
        if epoch > self.options.epochs or state.step != last:
            return
        dev = self._losses(self.dev_items) if self.dev_items else {}
        held = self._losses(self.held_items) if self.held_items else {}
        trained = {name: s / n for name, (s, n) in state.epoch_losses.items() if n}
        dev_loss = overall(dev) if dev else None
        better = dev_loss is None or state.best_dev_loss is None or dev_loss < state.best_dev_loss
        if better:
            self.best, state.best_epoch, state.best_dev_loss = checkpoint.copy_of(self.weights), epoch, dev_loss
        state.epochs.append(
            {"epoch": epoch, "train_loss": trained, "dev_loss": dev_loss, "held_out_loss": _losses(held)}
        )
        state.epochs_measured, state.epoch_losses = epoch, {}
        self._say_epoch(epoch, trained, dev_loss, _losses(held), better)
        self._save()

    def _say_epoch(
        self, epoch: int, trained: dict[str, float], dev: float | None, held: dict[str, float], better: bool
    ) -> None:
        def row(losses: dict[str, float]) -> str:
            return "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())

        kept = " (best so far)" if better and dev is not None else ""
        said = f"dev {dev:.3f}{kept}" if dev is not None else "no dev slice"
        self.report.line(f"epoch {epoch}/{self.options.epochs}  {said}")
        self.report.line(f"  train     {row(trained)}")
        if held:
            self.report.line(f"  held-out  {row(held)}")

    def _losses(self, items: Sequence[Item], tick: Callable[[int], None] | None = None) -> dict[str, Any]:
        return character_losses(self.model, items, self.options.max_tokens, self.on, self.processes, tick)

    # -- saving and stopping --------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.processes.is_first:
            checkpoint.save(self.folder, self.state, self.weights, self.optimizer, self.best)
        self.saved_at = time.monotonic()
        self.processes.wait()

    def _save_if_due(self) -> None:
        stop = self.processes.any(self.stop_asked)
        due = self.processes.any(time.monotonic() - self.saved_at > 60 * self.options.checkpoint_minutes)
        if stop or due:
            self._save()
        if stop:
            done = f"stopped after step {self.state.step} of {len(self.steps)}; everything is saved"
            raise Stopped(done, str(checkpoint.checkpoint_folder(self.folder)), f"mrp train {self.run.path} --resume")

    @contextlib.contextmanager
    def _signals_caught(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a stop after the step in work; a second Ctrl-C stops at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            del frame
            if self.stop_asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_asked = True
            self.report.warn("stopping after this step (again Ctrl-C: at once, back to the last checkpoint)")

        try:
            before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever runs us there handles signals
            yield
            return
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def _cut_log(self) -> None:
        """Take steps after the checkpoint out of the log: they are done again."""
        log = self.folder / LOG
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)[: self.state.step] if log.exists() else []
        log.write_text("".join(lines), encoding="utf-8", newline="\n")

    def _first_source(self, step: Step) -> str:
        return step.rows[0][0].sample.source

    def _finish(self) -> dict[str, Any]:
        assert self.best is not None
        checkpoint.put(self.weights, self.best)
        record = self._record()
        if self.processes.is_first:
            save_adapter(self.model, self.run.adapter, self.run.config.base)
            write_json(self.run.record, record)
            checkpoint.remove(self.folder)
        self.processes.wait()
        return record

    def _record(self) -> dict[str, Any]:
        state, run = self.state, self.run
        after: dict[str, float] = next((e["held_out_loss"] for e in state.epochs if e["epoch"] == state.best_epoch), {})
        held = {name: {"before": state.before[name], "after": after[name]} for name in state.before if name in after}
        origins = dict(run.origins)
        if self.order != run.config.data.order:
            origins["data.order"] = "flag"
        options = run.config.model_dump()
        options["data"]["order"] = self.order
        return {
            "fingerprint": self.fingerprint,
            "options": options,
            "origins": origins,
            "data": self.inputs["data"] | {"samples": len(self.samples), "dev_samples": len(self.dev_samples)},
            "dev_scenes": sorted({s.scene for s in self.dev_samples}),
            "base": self.inputs["base"],
            "template": self.inputs["template"],
            "order": {"asked": self.order} | realised_order(self.folder / LOG),
            "left_out": self.left_out,
            "pieces_cut_from_long_samples": sum(i.rendered.dropped_turns > 0 for x in self.items.values() for i in x),
            "precision": self.on.precision,
            "device": self.on.device,
            "threads": self.threads,
            "processes": self.processes.world,
            "versions": versions(),
            "measures": {
                "steps": len(self.steps),
                "tokens": state.tokens,
                "labelled_tokens": state.labelled,
                "seconds": round(state.seconds, 1),
                "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
                "chosen_epoch": state.best_epoch,
                "held_out_loss": held,
                "epochs": state.epochs,
            },
        }


def _losses(means: dict[str, Any]) -> dict[str, float]:
    return {name: mean.loss for name, mean in means.items()}


def _tokens(items: Sequence[Item]) -> int:
    return sum(len(item.rendered.input_ids) for item in items)

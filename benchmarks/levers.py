"""What makes one model play many: every lever on its own and together, on loss, identity and swapped generation.

    python benchmarks/levers.py examples/shakespeare OUT --arms base p2 p2+v2 p1+v2+vc0.5 --seeds 0 1 --generate
    python benchmarks/levers.py examples/pilgrims OUT --arms p1+v1 --set train.max_tokens=512 --first 40     # a CPU

An arm is a "+" of parts: a name of `PARTS`, or a prefix of `NUMBERS` with its number. `p2+v2+vlr1e-3` is two passes of
the shared adapter, then two of a voice each at 1e-3. Each is trained through the product (one that is done is not
repeated), and gives a JSON line: on the dev slice (to choose by) and on held-out lines (to judge by)

- `loss` on the own lines, mean over characters, nats a token;
- `identity`: the share of replies that are likeliest under who said them, of all personas (with their voices);
  `within_play` among the characters of its play only, `play`: the one picked is of the right play;
- with `--generate`, replies in the place of the held-out lines, judged by the product's classifier on ten words:
  `voice` under the own identity, `told` under another (judged to be that other); `real`: the lines themselves.

Intervals are 95 % bootstraps over scenes, each character counts the same. The seed decides the split too, so compare
arms seed by seed. `--scenes` splits by whole scenes only; `--records SEED` holds out the pilot's records
(20261122) or another draw of them (record_split.py); `--deadline` starts no further arm after so many seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import re
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record_split import split_by_records

from mrp.config import Run, load_run
from mrp.data.build import build_data
from mrp.data.manifest import HELD_OUT, TRAIN
from mrp.data.pack import pack
from mrp.data.samples import Sample, read_samples
from mrp.data.view import opening_text
from mrp.errors import InputError
from mrp.evaluate.intervals import equal_shares, estimate
from mrp.evaluate.lines import Line, read_lines, spread
from mrp.evaluate.voice import Voices
from mrp.models.bases import find_base
from mrp.models.load import Hardware, hardware, load_model, load_tokenizer
from mrp.models.loss import make_batch, token_losses
from mrp.models.voices import VoiceBank, load_voices
from mrp.render import ChatTemplate, Rendered, render_sample
from mrp.report import SILENT
from mrp.train.loop import train
from mrp.train.lora import load_adapter
from mrp.train.processes import Processes
from mrp.train.stages import voice_stage
from mrp.train.steps import Step, plan_training

COMMON = {"train.max_tokens": "2048", "train.voice_rows": "12", "train.dev": "0.1", "train.checkpoint_minutes": "60"}
NUMBERS = {
    "p": "train.epochs",
    "r": "train.rank",
    "a": "train.alpha",
    "lr": "train.learning_rate",
    "rows": "train.max_tokens",
    "c": "train.contrast",
    "v": "train.voice_epochs",
    "vr": "train.voice_rank",
    "vlr": "train.voice_learning_rate",
    "vc": "train.voice_contrast",
    "tol": "train.voice_tolerance",
}
PARTS: dict[str, dict[str, str]] = {
    "base": {"train.epochs": "1", "train.learning_rate": "1e-12"},  # nothing learnt: the persona alone
    "each": {"train.epochs": "1", "train.learning_rate": "1e-12", "train.voice_rank": "16"},  # an adapter each
    "const": {"train.decay": "none"},
    "last": {"train.voice_tolerance": "100"},  # voices of the last pass, whatever the dev slice says
    "robin": {"data.order": "round-robin"},
    "sequential": {"data.order": "sequential"},
    "everybody": {},  # the control: a small part over the shared one, as a voice is, but learning from all
    "examples": {},  # the persona with lines of the training set
}
EVERYBODY = "everybody"
EXAMPLES = 4  # lines in a persona
PLAYS = [
    ["coriolanus", "menenius", "sicinius"],
    ["duke_vincentio", "isabella"],
    ["gloucester", "king_edward_iv", "king_richard_iii"],
    ["juliet", "romeo"],
]
WINDOW = 2048  # tokens of what is scored, whatever rows the training had
ROWS = 8  # in a pass that scores
PROMPT, REPLY, AT_ONCE = 448, 60, 320  # tokens, tokens, replies
VIEW = "ten words"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("run", type=Path)
    asked.add_argument("out", type=Path)
    asked.add_argument("--arms", nargs="+", default=["base", "p2", "p2+v2", "p2+v2+vc0.5"])
    asked.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked.add_argument("--scenes", action="store_true", help="split by whole scenes only")
    asked.add_argument("--records", type=int, metavar="SEED", help="hold out records at random (record_split.py)")
    asked.add_argument("--generate", action="store_true")
    asked.add_argument("--deadline", type=float, default=float("inf"), metavar="SECONDS")
    asked.add_argument("--first", type=int, metavar="N", help="score so many held-out samples only (to try it out)")
    given = asked.parse_args()
    flags = COMMON | dict(pair.split("=", 1) for pair in given.set)
    flags |= {"data.split": "scenes"} if given.scenes or given.records is not None else {}
    began = time.monotonic()
    known: dict[tuple[int, str], Material] = {}
    for seed in given.seeds:
        for arm in given.arms:
            if time.monotonic() - began > given.deadline:
                print(json.dumps({"arm": arm, "seed": seed, "not_started": "deadline"}), flush=True)
                continue
            started = time.monotonic()
            dealt = "" if given.records is None else f"-records{given.records}"  # a folder keeps its split
            folder = (given.out / f"{arm}-{seed}{dealt}").resolve()
            run = load_run(given.run, flags | options_of(arm) | {"seed": str(seed), "out": str(folder)})
            split = run.config.data.split if given.records is None else f"records {given.records}"
            shown = {"arm": arm, "seed": seed, "split": split, "base": run.config.base}
            try:
                build_data(run, SILENT)
                if given.records is not None:
                    split_by_records(run, given.records)
                if "examples" in arm.split("+"):
                    run = with_examples(run)
                key = (seed, run.cast.model_dump_json())
                if key not in known:
                    known = {key: Material(run, given.first)}  # of one seed and cast at a time
                found = measure(run, arm, known[key], given.generate)
            except (InputError, RuntimeError) as error:  # such as too little memory: the other arms go on
                found = {"failed": str(error)}
                traceback.print_exc()
            wall = round(time.monotonic() - started, 1)
            print(json.dumps(shown | found | {"wall_seconds": wall}), flush=True)


def options_of(arm: str) -> dict[str, str]:
    """The options that the parts of an arm's name stand for."""
    found: dict[str, str] = {}
    for part in arm.split("+"):
        if part in PARTS:
            found |= PARTS[part]
            continue
        match = re.fullmatch(r"([a-z]+)([0-9][0-9.e+-]*)", part)
        if not match or match[1] not in NUMBERS:
            raise SystemExit(f"unknown part {part!r} of arm {arm!r}; known: {', '.join([*PARTS, *NUMBERS])}")
        found[NUMBERS[match[1]]] = match[2]
        if match[1] == "v":
            found["train.voices"] = "true"
    if "train.voice_contrast" in found:
        found["train.voice_rows"] = "6"  # each with a twin: the memory of twelve; what is learnt is the same
    if EVERYBODY in arm.split("+"):
        found["train.voices"] = "false"
    return found


def with_examples(run: Run) -> Run:
    """The run with lines of its training set (not of the dev slice) in each persona."""
    template = ChatTemplate(load_tokenizer(find_base(run.config.base, run.path.parent)))
    scenes = {sample.scene for sample in plan_training(run, template).samples}
    lines = [line for line in read_lines(run.data / TRAIN, run.cast) if line.scene in scenes]
    fitting = [line for line in lines if 6 <= len(line.text.split()) <= 25]
    characters = []
    for character in run.cast:
        own = [line.text for line in spread([f for f in fitting if f.character == character.id], EXAMPLES, 0)]
        text = "\n".join([f"{character.persona} You say such things as:", *(f"- {line!r}" for line in own)])
        characters.append(character.model_copy(update={"persona": text}))
    return dataclasses.replace(run, cast=run.cast.model_copy(update={"characters": characters}))


# -- what is measured with ----------------------------------------------------------------------------------------


class Scored:
    """Samples rendered under every identity, and whose each of their R replies is."""

    def __init__(self, run: Run, template: ChatTemplate, samples: Sequence[Sample]) -> None:
        self.ids = [c.id for c in run.cast]
        pieces = {
            who: [render_sample(template, run.cast, s, WINDOW, identity=who)[0] for s in samples] for who in self.ids
        }
        # a sample longer than the window may be cut elsewhere under a longer persona: then it is left out
        same = [k for k in range(len(samples)) if len({learnt(pieces[who][k]) for who in self.ids}) == 1]
        self.pieces = {who: [piece for k in same for piece in pieces[who][k]] for who in self.ids}
        own = [(samples[k], piece) for k in same for piece in pieces[self.ids[0]][k]]
        self.character = [s.character for s, piece in own for _ in range(piece.replies)]
        self.scene = [s.scene for s, piece in own for _ in range(piece.replies)]
        self.tokens = [count for _, piece in own for count in reply_lengths(piece)]


class Material:
    """What every arm of a seed is measured with."""

    def __init__(self, run: Run, first: int | None) -> None:
        self.base = find_base(run.config.base, run.path.parent)
        self.template = ChatTemplate(load_tokenizer(self.base))
        known = {c.id for c in run.cast}
        held = [s for s in read_samples(run.data / HELD_OUT) if s.character in known][:first]
        dev = plan_training(run, self.template).dev_samples[:first]
        self.slices = {"dev": Scored(run, self.template, dev), "held_out": Scored(run, self.template, held)}
        self.lines = [
            line for line in read_lines(run.data / HELD_OUT, run.cast) if line.sample.id in {s.id for s in held}
        ]
        self.run = run

    @functools.cached_property
    def voices(self) -> Voices:
        """Who knows the voices; learnt when something was generated."""
        return Voices(read_lines(self.run.data / TRAIN, self.run.cast), self.run.cast, self.run.config.seed)


def learnt(pieces: list[Rendered]) -> str:
    """The labelled tokens of a sample, to be compared."""
    return str([[token for token, is_learnt in zip(p.input_ids, p.loss, strict=True) if is_learnt] for p in pieces])


def reply_lengths(piece: Rendered) -> list[int]:
    """The labelled tokens of each reply."""
    found, before = [], False
    for labelled in piece.loss:
        if labelled:
            found = found if before else [*found, 0]
            found[-1] += 1
        before = labelled
    return found


# -- an arm -------------------------------------------------------------------------------------------------------


def measure(run: Run, arm: str, material: Material, generates: bool) -> dict[str, Any]:
    """Train an arm, and what came of it."""
    record = train(run, resume=(run.folder / "checkpoint").is_dir())
    on = hardware(run.config.train.precision)
    model = load_adapter(load_model(material.base, on), run.adapter)
    log = [json.loads(line) for line in (run.folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    voices = record["measures"]["voices"]
    found: dict[str, Any] = {
        "training_seconds": round(sum(row["seconds"] for row in log), 1),
        "steps": [sum("voices" not in row for row in log), sum("voices" in row for row in log)],
        "kept": {who: voice["epoch"] for who, voice in voices.items()},
        "kernels": record["kernels"],
    }
    bank: VoiceBank | None = load_voices(model, run.voices) if voices else None
    speaker = None
    if "everybody" in arm.split("+"):
        bank, speaker = learn_from_everybody(run, model, material.template, on), EVERYBODY
    began = time.monotonic()
    for name, scored in material.slices.items():
        found[name] = identity_figures(scored, all_losses(model, bank, scored, speaker, on))
    found["scoring_seconds"] = round(time.monotonic() - began, 1)
    if generates:
        began = time.monotonic()
        found["generated"] = generated_figures(run, material, model, bank, speaker, on)
        found["generating_seconds"] = round(time.monotonic() - began, 1)
    del model, bank
    gc.collect()
    if on.device == "cuda":
        torch.cuda.empty_cache()
    return found


def learn_from_everybody(run: Run, model: Any, template: ChatTemplate, on: Hardware) -> VoiceBank:
    """One voice that learns the rows of all, in the steps in which each would learn its own; its last pass."""
    options = run.config.train.model_copy(update={"voices": True, "voice_contrast": 0.0, "kernels": "plain"})
    voiced = dataclasses.replace(run, config=run.config.model_copy(update={"train": options}))
    plan = plan_training(voiced, template)
    steps = [step for step in plan.steps if step.stage]
    stage = voice_stage(model, [EVERYBODY], 1, options, run.config.seed, on, plan, Processes())
    model.train()
    for number, step in enumerate(steps):
        rows = tuple(
            tuple(dataclasses.replace(i, sample=dataclasses.replace(i.sample, character=EVERYBODY)) for i in row)
            for row in step.rows
        )
        shared = Step(step.epoch, rows, step.ends_epoch, 1, {EVERYBODY: (number, len(steps))})
        stage.set_rates(shared, options)
        stage.passes.begin_step()
        stage.update.begin_step()
        stage.passes.learn(rows, shared, 0)
        stage.update.after_pass()
        stage.reduce(shared, options.clip)
        stage.update.step()
    model.eval()
    assert stage.bank is not None
    return stage.bank


# -- who would say it ---------------------------------------------------------------------------------------------


def all_losses(
    model: Any, bank: VoiceBank | None, scored: Scored, speaker: str | None, on: Hardware
) -> NDArray[np.float64]:
    """(R, C) nats of each reply under each identity, with its voice (or that of `speaker`) where there are any."""
    return np.stack([reply_losses(model, bank, speaker or who, scored.pieces[who], on) for who in scored.ids], 1)


def reply_losses(
    model: Any, bank: VoiceBank | None, who: str, pieces: Sequence[Rendered], on: Hardware
) -> NDArray[np.float64]:
    """(R,) nats of each reply of `pieces`, spoken by the voice of `who` (or by none)."""
    rows = pack([len(piece.input_ids) for piece in pieces], WINDOW)
    sums: list[float] = []
    for at in range(0, len(rows), ROWS):
        chosen = [[pieces[k] for k in row] for row in rows[at : at + ROWS]]
        batch = make_batch(chosen).to(on.device)
        with bank.speaking([who]) if bank else nullcontext(), torch.no_grad(), on.autocast_context():
            losses = token_losses(model, batch).double().cpu().numpy()
        lengths = [count for row in chosen for piece in row for count in reply_lengths(piece)]
        ends = np.cumsum(lengths)
        sums += [float(losses[end - count : end].sum()) for count, end in zip(lengths, ends, strict=True)]
    return np.array(sums)


def identity_figures(scored: Scored, nats: NDArray[np.float64]) -> dict[str, Any]:
    """Loss and identity, from (R, C) nats."""
    who = np.array([scored.ids.index(character) for character in scored.character])
    own, tokens = nats[np.arange(len(who)), who], np.array(scored.tokens)
    means = [own[who == k].sum() / tokens[who == k].sum() for k in range(len(scored.ids)) if (who == k).any()]
    picked = nats.argmin(1)
    found = {
        "loss": round(float(np.mean(means)), 4),
        "identity": figure(picked == who, scored.character, scored.scene),
        "of_replies": round(float((picked == who).mean()), 4),
        "replies": len(who),
        "scenes": len(set(scored.scene)),
    }
    groups = [[scored.ids.index(c) for c in play if c in scored.ids] for play in PLAYS]
    groups += [[k] for k in range(len(scored.ids)) if not any(k in group for group in groups)]
    of = {k: group for group in groups for k in group}
    found["play"] = figure([p in of[k] for p, k in zip(picked, who, strict=True)], scored.character, scored.scene)
    among = [k for k in range(len(who)) if len(of[who[k]]) > 1]
    right = [of[who[k]][int(nats[k, of[who[k]]].argmin())] == who[k] for k in among]
    characters, scenes = [scored.character[k] for k in among], [scored.scene[k] for k in among]
    found["within_play"] = figure(right, characters, scenes)
    return found


def figure(hits: Sequence[Any] | NDArray[Any], characters: Sequence[str], scenes: Sequence[str]) -> list[float] | None:
    """[share, low, high] in per cent, each character the same."""
    found = estimate([float(hit) for hit in hits], scenes, 0, equal_shares(characters), is_rate=True)
    if found is None:
        return None
    return [round(100 * value, 1) for value in (found.value, found.low, found.high) if value is not None]


# -- what it says -------------------------------------------------------------------------------------------------


def generated_figures(
    run: Run, material: Material, model: Any, bank: VoiceBank | None, speaker: str | None, on: Hardware
) -> dict[str, Any]:
    """Replies in the place of held-out lines, as oneself and as another, as the classifier hears them."""
    ids = [c.id for c in run.cast]
    asked: list[tuple[Line, str, list[int]]] = []
    for number, line in enumerate(material.lines):
        place = ids.index(line.character)
        for told in (line.character, ids[(place + 1 + number % (len(ids) - 1)) % len(ids)]):
            opening = opening_text(run.cast, line.sample.scenario, line.character)
            try:
                prompt, _ = material.template.prompt_within(line.asked(run.cast, told), PROMPT, opening)
            except InputError:  # one last message that is longer than the window
                continue
            asked.append((line, told, prompt))
    said = generate(run, material, model, bank, speaker, on, [(told, prompt) for _, told, prompt in asked])
    picked = material.voices.judge(said, VIEW).picked
    found: dict[str, Any] = {}
    for name, is_own in (("voice", True), ("told", False)):
        chosen = [k for k, (line, told, _) in enumerate(asked) if (line.character == told) == is_own]
        hits = [picked[k] == asked[k][1] and bool(said[k].strip()) for k in chosen]
        found[name] = figure(hits, [asked[k][1] for k in chosen], [asked[k][0].scene for k in chosen])
        found[f"{name}_replies"] = len(chosen)
        found[f"{name}_words"] = round(float(np.mean([len(said[k].split()) for k in chosen])), 1)
    real = material.voices.judge([line.text for line in material.lines], VIEW).picked
    hits = [p == line.character for p, line in zip(real, material.lines, strict=True)]
    found["real"] = figure(hits, [line.character for line in material.lines], [line.scene for line in material.lines])
    found["samples"] = [[asked[k][0].character, asked[k][1], said[k][:120]] for k in range(0, len(said), 61)]
    return found


def generate(
    run: Run,
    material: Material,
    model: Any,
    bank: VoiceBank | None,
    speaker: str | None,
    on: Hardware,
    asked: Sequence[tuple[str, list[int]]],
) -> list[str]:
    """A reply to each (identity, prompt), sampled at temperature 0.7, many at once, in the order asked."""
    stops = material.template.stop_ids(model.generation_config.eos_token_id)
    said = [""] * len(asked)
    order = sorted(range(len(asked)), key=lambda k: -len(asked[k][1]))
    torch.manual_seed(run.config.seed)
    for at in range(0, len(order), AT_ONCE):
        chosen = order[at : at + AT_ONCE]
        width = max(len(asked[k][1]) for k in chosen)
        rows = [[stops[0]] * (width - len(asked[k][1])) + list(asked[k][1]) for k in chosen]
        mask = [[0] * (width - len(asked[k][1])) + [1] * len(asked[k][1]) for k in chosen]
        given = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
        speaking = bank.speaking([speaker or asked[k][0] for k in chosen]) if bank else nullcontext()
        with speaking, torch.no_grad(), on.autocast_context():
            out = model.generate(
                **{name: tensor.to(on.device) for name, tensor in given.items()},
                do_sample=True,
                temperature=0.7,
                top_k=0,
                top_p=1.0,
                max_new_tokens=REPLY,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
        for k, row in zip(chosen, out[:, width:].tolist(), strict=True):
            end = next((n for n, token in enumerate(row) if token in stops), len(row))
            said[k] = str(material.template.tokenizer.decode(row[:end], skip_special_tokens=True)).strip()
    return said


if __name__ == "__main__":
    main()

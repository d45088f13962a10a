"""The run file: every option of a run, typed, with its default and its meaning.

    run = load_run(Path("mrp.yaml"), {"train.epochs": "3"})
    run.config.train.epochs, run.origins["train.epochs"]      # (3, "flag")

A run is a run file, or the folder that it made (which keeps the resolved run file and cast as `run.yaml` and
`cast.yaml`). Options come from the defaults, then the file, then flags; `origins` says which.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
from pydantic import Field

from mrp.cast import Cast, load_cast
from mrp.errors import InputError, nearest
from mrp.files import LOCK_NAME, replacing
from mrp.yamlfile import StrictModel, check_value, dump_yaml, key_lines, parse_yaml, place_of, read_yaml

RUN_FILE = "mrp.yaml"  # what `mrp init` writes
KEPT_RUN_FILE, KEPT_CAST_FILE = "run.yaml", "cast.yaml"  # the same, resolved, inside the run folder

Order = Literal["shuffled", "sequential", "round-robin", "blocked"]
DEFAULT_QUESTION = {"en": "Who are you, and what do you want most?", "zh": "你是谁？你最想要什么？"}


class DataOptions(StrictModel):
    """How dialogues become samples."""

    order: Order = "shuffled"
    """shuffled: mixed anew in each epoch. sequential: character after character, as cast and files are written.
    round-robin: a sample of each character in turn. blocked: character after character, mixed inside, with `replay`."""
    replay: float = Field(0.0, ge=0, le=1)
    """Of `order: blocked`: samples of earlier characters seen again in a block, as a share of its own."""
    held_out: float = Field(0.1, ge=0, le=0.5)
    """Share of each character's scenes that training never sees, for measuring."""
    split: Literal["strict", "scenes"] = "strict"
    """strict: scenes that are alike (0.7 of all character n-grams), begin with the same question or share a long line
    stay on one side. scenes: only whole scenes do."""
    dedupe: Literal["exact", "adjacent", "normalised", "near", "none"] = "exact"
    """Which repeats of a scene are left out: equal ones; those that follow one another; those equal but for case,
    punctuation, width and space; those (of the same characters) at least `similarity` alike; none."""
    similarity: float = Field(0.85, ge=0.5, le=1)
    """Share of character n-grams in common (Jaccard) from which `dedupe: near` drops a scene."""
    take: Literal["all", "head-tail", "random", "stratified"] = "all"
    """Which scenes are used: all; the first `head` and last `tail` of each file; `sample` of all; `sample`, shared out
    over the files by their size."""
    head: int = Field(0, ge=0)
    """Scenes from the beginning of each file (`take: head-tail`)."""
    tail: int = Field(0, ge=0)
    """Scenes from the end of each file; what head and tail have in common is taken once."""
    sample: int = Field(0, ge=0)
    """Scenes drawn, by the seed (`take: random` and `stratified`)."""
    cap_samples: int = Field(0, ge=0)
    """Most samples of a character; 0: no limit. Which ones stay is decided by the seed."""
    cap_turns: int = Field(0, ge=0)
    """The same counted in lines that its samples show."""
    cap_tokens: int = Field(0, ge=0)
    """The same counted in tokens (estimated)."""
    upsample: float = Field(1.0, ge=1, le=100)
    """Most times that samples of a character with few are trained, to come nearer to the one with most."""
    identity: float = Field(0.0, ge=0, le=1)
    """Questions about who a character is, with answers made of its persona, for each of its own samples to train."""
    mix: float = Field(0.0, ge=0, le=10)
    """Samples of general chat data beside the cast, for each of the cast's samples, against forgetting."""
    mix_files: list[str] = []
    """Files with general chat data, seen from the run file."""
    mix_base: bool = False
    """Also what the base itself answers to the plain prompts that come with mrp (100 English or 50 Chinese ones)."""
    reject: list[str] = []
    """Findings of `mrp data check` (such as mojibake) for which a scene is left out; else they are only counted."""
    columns: list[str] = []
    """Which columns of a table are what, where their names do not tell: `prompt=q`, `reply=a`, `character=who`."""

    @pydantic.model_validator(mode="after")
    def _says_how_many(self) -> Self:
        if self.take == "head-tail" and not (self.head or self.tail):
            raise ValueError("take: head-tail takes nothing without head and tail|set data.head, or data.tail")
        if self.take in ("random", "stratified") and not self.sample:
            raise ValueError(f"take: {self.take} takes nothing without sample|set data.sample: how many scenes")
        if self.mix and not (self.mix_files or self.mix_base):
            raise ValueError("nothing is there to mix in|name files in data.mix_files, or set data.mix_base: true")
        return self

    @pydantic.field_validator("reject")
    @classmethod
    def _findings_are_known(cls, value: list[str]) -> list[str]:
        from mrp.data.lint import FINDINGS

        for reason in value:
            if reason not in FINDINGS:
                raise ValueError(f"nothing is found as {reason!r}|{nearest(reason, FINDINGS)}")
        return value


class TrainOptions(StrictModel):
    """How the adapter is trained."""

    method: Literal["lora", "full"] = "lora"
    """lora: a small adapter beside the frozen base. full: all weights of the base (16 bytes of memory for each)."""
    bits: Literal[16, 4] = 16
    """The frozen base in 16 bit, or in 4 (NF4 with double quantisation; needs a GPU; head and embedding stay in 16)."""
    adapter_bits: Literal[32, 16] = 32
    """Numbers that the adapter is kept and updated in. 16 saves memory (1 GiB of a 7B model at rank 64) and ends a
    little worse (0.009 nats, docs/experiments.md)."""
    epochs: int = Field(3, ge=0, le=1000)
    """Passes over the training samples; the best one (by the dev slice) is kept. 0, with `voices`: nothing is shared,
    and each character has an adapter of its own alone."""
    learning_rate: float = Field(2e-4, gt=0, lt=1)
    """Peak rate of AdamW; `decay` says how it falls over all epochs."""
    decay: Literal["cosine", "none"] = "cosine"
    """How a rate goes on after its warm-up, the adapter's and each voice's: in a cosine to zero, or not down at all."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises from zero; at least two steps."""
    rank: int = Field(16, ge=1, le=512)
    """Rank of the LoRA matrices."""
    alpha: int = Field(16, ge=1)
    """LoRA scale: the adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the LoRA input that is dropped in training."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw-8bit keeps AdamW's running means in 8 bit: a quarter of the memory, slower."""
    weight_decay: float = Field(0.0, ge=0, lt=1)
    """Decoupled weight decay of AdamW."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient of a step."""
    max_tokens: int = Field(512, ge=32)
    """Tokens of a packed row, and so of the longest sample."""
    micro_batch: int = Field(1, ge=1)
    """Packed rows in one forward pass."""
    accumulation: int = Field(1, ge=1)
    """Forward passes (of every process) in one optimizer step."""
    checkpointing: bool = False
    """Keep only what goes into each block and compute the rest again: less memory, a third more time."""
    offload: bool = False
    """For small cards: what goes into each block and the embedding in host memory, the MLP in tiles (fast kernels)."""
    kernels: Literal["auto", "plain", "fast"] = "auto"
    """fast: static shapes, fused kernels, a CUDA graph. plain: transformers and PEFT. auto: fast where it can be."""
    dev: float = Field(0.05, ge=0, le=0.5)
    """Share of the training scenes kept aside to choose the best epoch; 0: the last epoch is kept."""
    voices: bool = False
    """After the adapter, which all characters share, a small one for each character on its own lines: its voice."""
    voice_rank: int = Field(8, ge=1, le=512)
    """Rank of a voice; its scale is 16 / rank."""
    voice_epochs: int = Field(2, ge=1, le=1000)
    """Passes of each voice over its character's samples; the best one is kept, or none where the dev slice tells so."""
    voice_learning_rate: float = Field(5e-4, gt=0, lt=1)
    """Peak rate of a voice, with a warm-up and a decay of its own."""
    voice_rows: int = Field(4, ge=1)
    """Voices trained at once, each with a packed row in the pass; more characters follow in further groups."""
    voice_contrast: float = Field(0.0, ge=0, le=10)
    """Weight of a second loss of the voices: a reply must be likelier under its own persona and voice than under those
    of another character, drawn for each row. All voices then learn in one group, from one another."""
    voice_tolerance: float = Field(0.0, ge=0, le=100)
    """How much worse than the best on the dev slice (nats a token) a later pass of a voice may be and is still kept."""
    contrast: float = Field(0.0, ge=0, le=10)
    """Weight of a second loss of the adapter: a reply must be likelier under its own persona than under another
    character's. Good at 0.5; twice the tokens."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast over fp32 LoRA weights where the hardware has bf16, else fp32."""
    threads: int = Field(0, ge=0)
    """CPU threads; 0: torch's default."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """Longest time between two checkpoints; one is also written after each epoch."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.method == "full" and self.bits == 4:
            raise ValueError("4-bit weights cannot be trained themselves|set train.bits: 16, or train.method: lora")
        if self.method == "full" and self.kernels == "fast":
            raise ValueError("the fast kernels train LoRA only|set train.kernels: auto, or train.method: lora")
        if self.method == "full" and self.voices:
            raise ValueError("voices go with an adapter, not with full fine-tuning|set train.method: lora")
        if not self.epochs and not self.voices:
            what = "train.epochs: 0 leaves nothing to learn where no voices are trained"
            raise ValueError(f"{what}|set train.epochs: 1 or more, or train.voices: true for an adapter each")
        if self.offload and self.voices:
            raise ValueError("voices are trained without offloading|set train.offload: false, or train.voices: false")
        if self.voice_contrast and not self.voices:
            what = "train.voice_contrast sets voices against each other, and none are trained"
            raise ValueError(f"{what}|set train.voices: true, or train.voice_contrast: 0")
        if self.offload and not self.checkpointing:
            raise ValueError("train.offload keeps what checkpointing keeps|set train.checkpointing: true")
        if self.offload and self.kernels == "plain":
            raise ValueError("train.offload is a part of the fast kernels|set train.kernels: auto")
        return self


class MergeOptions(StrictModel):
    """How the adapter is folded into the base."""

    max_shard_size: str = Field("2GB", pattern=r"^[0-9.]+\s*[kKMGT]?i?B$")
    """Largest safetensors file of the merged model."""


class ChatOptions(StrictModel):
    """How replies are sampled."""

    temperature: float = Field(0.7, ge=0, le=5)
    """0: always the likeliest token."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Only the likeliest tokens that make up this share of the probability are sampled."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest reply."""
    context_tokens: int = Field(2048, ge=64)
    """Tokens of persona, history and reply; old turns are dropped whole to stay under it."""

    @pydantic.model_validator(mode="after")
    def _a_prompt_fits(self) -> Self:
        if self.max_new_tokens >= self.context_tokens:
            what = f"a reply of {self.max_new_tokens} tokens leaves no room for a prompt in {self.context_tokens}"
            raise ValueError(f"{what}|raise chat.context_tokens, or lower chat.max_new_tokens")
        return self


class RunConfig(StrictModel):
    """A run file."""

    base: str = "smollm2-135m-instruct"
    """A known base model (`mrp pull`), or a folder in Hugging Face format."""
    cast: str = "cast.yaml"
    """The cast file, seen from the run file."""
    out: str = "run"
    """The run folder: data, adapter, merged model, measures."""
    seed: int = Field(0, ge=0)
    """Decides the split, the shuffling, the adapter's start and the sampled replies of `mrp run`."""
    question: str = ""
    """What `mrp run` asks every character, before and after training; empty: "Who are you, ...?"."""
    data: DataOptions = DataOptions()
    train: TrainOptions = TrainOptions()
    merge: MergeOptions = MergeOptions()
    chat: ChatOptions = ChatOptions()


SECTIONS: dict[str, type[StrictModel]] = {
    "data": DataOptions,
    "train": TrainOptions,
    "merge": MergeOptions,
    "chat": ChatOptions,
}


@dataclass(frozen=True)
class Run:
    """A run file that was read, its cast, and where everything of the run lies."""

    config: RunConfig
    origins: dict[str, str]  # "train.epochs" -> "default", "file" or "flag"
    cast: Cast
    path: Path  # the run file
    cast_path: Path
    folder: Path  # the run folder

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def voices(self) -> Path:
        """A folder for each character that has a voice; not there where none was trained."""
        return self.folder / "voices"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    @property
    def name_again(self) -> Path:
        """What names this run, options and all, in a command: its folder (which keeps them) if there were flags."""
        return self.folder if "flag" in self.origins.values() else self.path

    @property
    def question(self) -> str:
        return self.config.question or DEFAULT_QUESTION[self.cast.language]

    def dialogue_path(self, name: str) -> Path:
        """A file named in the cast."""
        return self.cast_path.parent / self.cast.home / name


def load_run(path: Path, flags: dict[str, str] | None = None) -> Run:
    """Read a run file (or a run folder) and its cast; `flags` maps dotted keys to YAML values.

    Raises `InputError` naming every fault with file, line and key.
    """
    if path.is_dir():
        if not (path / KEPT_RUN_FILE).exists() and (path / RUN_FILE).exists():
            path = path / RUN_FILE  # the folder of `mrp init`
        else:
            path = path / KEPT_RUN_FILE
        if not path.exists():
            fix = "name a run file (`mrp init DIR` writes one) or a folder that `mrp run` made"
            raise InputError("this folder holds no run", str(path.parent), fix)
    lines = key_lines(path)
    value = read_yaml(path)
    if not isinstance(value, dict) or not path.read_bytes().strip():
        what = "a run file holds `key: value` lines" if value else "the run file is empty"
        raise InputError(what, str(path), "`mrp init DIR` writes one to start from")
    value = {key: {} if item is None and key in SECTIONS else item for key, item in value.items()}
    given = _leaves(value)
    for key, text in (flags or {}).items():
        _set(value, key, text)
    config = check_value(value, RunConfig, path, lines, flags or ())
    origins = dict.fromkeys(_leaves(config.model_dump()), "default")
    origins.update({key: "file" for key in given if key in origins})
    origins.update(dict.fromkeys(flags or {}, "flag"))
    cast_path, folder = path.parent / config.cast, path.parent / config.out
    if path.name != KEPT_RUN_FILE and folder.resolve() in (path.parent.resolve(), cast_path.parent.resolve()):
        what = "the run folder cannot be the folder of your run file or cast: mrp would write over what is in it"
        raise InputError(what, place_of(path, lines, ("out",)), "choose a folder for it alone, such as `out: run`")
    if taken := _taken(folder):
        what = f"the run folder has a folder {taken!r} that is not from mrp, and that would be replaced"
        raise InputError(what, place_of(path, lines, ("out",)), "choose a folder for it alone, such as `out: run`")
    return Run(config, origins, load_cast(cast_path), path, cast_path, _tidy(folder))


def _taken(folder: Path) -> str:
    """The name of a folder in the run folder which is somebody else's, where it is in the way; "" if there is none."""
    if any((folder / name).exists() for name in (KEPT_RUN_FILE, LOCK_NAME)):
        return ""  # mrp has worked here before
    for name, mark in (("data", "manifest.json"), ("adapter", "adapter_config.json"), ("checkpoint", "state.json")):
        if (folder / name).is_dir() and any((folder / name).iterdir()) and not (folder / name / mark).is_file():
            return name
    return ""


def chat_options(flags: dict[str, str]) -> ChatOptions:
    """The chat options of a model that comes without a run: defaults, then `flags`."""
    value: dict[str, Any] = {}
    for key, text in flags.items():
        _set(value, key, text)
        if not key.startswith("chat."):
            raise InputError("a model folder has chat options only", f"--set {key}", "name a run to change others")
    return check_value(value, RunConfig, Path(), {}, flags).chat


def _tidy(path: Path) -> Path:
    """The same place without "..": seen from the working directory if it lies below it, else absolute."""
    place = path.resolve()
    try:
        return place.relative_to(Path.cwd().resolve())
    except ValueError:
        return place


def keep_run(run: Run) -> None:
    """Write the resolved run file and the cast into the run folder, so that the folder is enough by itself."""
    is_kept_file = run.path.parent.resolve() == run.folder.resolve() and run.path.name == KEPT_RUN_FILE
    if is_kept_file and "flag" not in run.origins.values():
        return
    config = run.config.model_dump()
    config |= {"base": moved_path(run.config.base, run.path.parent, run.folder), "cast": KEPT_CAST_FILE, "out": "."}
    names = run.config.data.mix_files
    general = [n if n.startswith("hf:") else _relative(run.path.parent / n, run.folder) for n in names]
    config["data"]["mix_files"] = general
    text = dump_yaml(config, width=120)
    for name, content in ((KEPT_RUN_FILE, text), (KEPT_CAST_FILE, cast_text(run, run.folder))):
        with replacing(run.folder / name) as file:
            file.write(content)


def cast_text(run: Run, folder: Path) -> str:
    """The run's cast as YAML to be kept in `folder`: its paths start where they started."""
    cast = {"language": run.cast.language, "home": _relative(run.cast_path.parent / run.cast.home, folder)}
    cast |= run.cast.model_dump(exclude_defaults=True, exclude={"home", "language"})
    return dump_yaml(cast, width=120)


def moved_path(base: str, old_home: Path, new_home: Path) -> str:
    """A base given as a relative path (see `find_base`), now relative to `new_home`; known names stay as they are."""
    if Path(base).is_absolute():
        return base
    for home in (old_home, Path()):
        if (home / base).is_dir():
            return _relative(home / base, new_home)
    return _relative(old_home / base, new_home) if base.startswith(".") else base  # not there yet


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive, on Windows
        return str(path.resolve())


def _leaves(value: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        keys += _leaves(item, f"{name}.") if isinstance(item, dict) else [name]
    return keys


def _set(value: dict[str, Any], key: str, text: str) -> None:
    known = _leaves(RunConfig().model_dump())
    if key not in known:
        raise InputError(f"unknown option {key!r}", f"--set {key}", nearest(key, known))
    model: Any = RunConfig
    *parents, last = key.split(".")
    for part in parents:
        value, model = value.setdefault(part, {}), SECTIONS[part]
        if not isinstance(value, dict):
            raise InputError(f"{part!r} holds no options", "the run file", f"write `{part}:` with its options below")
    is_text = model.model_fields[last].annotation is str  # such as a question with a colon in it
    value[last] = text if is_text else parse_yaml(text, f"--set {key}")

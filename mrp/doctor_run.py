"""The second half of `mrp doctor`: a run, or a model folder.

look_at_run(Path("mrp.yaml"))        # base, tokenizer, chat template, data, adapter, merged model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrp.config import KEPT_RUN_FILE, RUN_FILE, Run, load_run
from mrp.doctor import Finding, disk_finding, told
from mrp.errors import MrpError, SetupError
from mrp.files import read_json, size_text

ROUND_TRIP = (
    "Old Monkey fears nothing!",
    "俺老孙乃齐天大圣，何方妖怪？……",
    "def f(x):\n\treturn x  # 12345\n\n1.",
    "😀 naïve café",
)


@dataclass
class _Looked:
    """What earlier looks found out, for the later ones."""

    run: Run | None
    folder: Path | None = None  # of the base, or the model folder itself
    tokenizer: Any = None
    template: Any = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def again(self) -> Path | None:
        return self.run.name_again if self.run else None


def look_at_run(path: Path) -> list[Finding]:
    """Every finding about a run file, run folder or model folder. A look that needs a failed one is left out."""
    is_run = path.is_file() or any((path / name).exists() for name in (KEPT_RUN_FILE, RUN_FILE))
    run = None
    found: list[Finding] = []
    if is_run:
        try:
            run = load_run(path)
        except MrpError as error:
            return told("run", "run file", error)
        who = ", ".join(c.id for c in run.cast.characters[:8])
        found.append(Finding("run", "run file", "ok", f"{run.path}: {len(run.cast.characters)} characters ({who})"))
        found.append(disk_finding("run", "run folder", run.folder, "choose another `out:` folder"))
    looked = _Looked(run, None if run else path)
    for name, look in LOOKS:
        try:
            found += list(look(looked))
        except Exception as error:  # a doctor that crashes finds nothing
            if missing := _missing(error):
                found.append(Finding("run", name, "warning", f"could not be looked at: {missing}", NEEDED))
            elif isinstance(error, MrpError):
                found += told("run", name, error)
            else:
                fix = "this is a fault of mrp or of a library; please report it"
                found.append(Finding("run", name, "error", f"{type(error).__name__}: {error}", fix))
    return found


def _base(looked: _Looked) -> Iterator[Finding]:
    """The base (or model) folder: complete, and its weights as long as their heads say."""
    from mrp.models.bases import check_base_folder, find_base

    if looked.run:
        folder = find_base(looked.run.config.base, looked.run.path.parent)
    else:
        assert looked.folder is not None
        folder, looked.folder = looked.folder, None
        check_base_folder(folder)
    looked.folder = folder
    looked.config = read_json(folder / "config.json")
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    yield Finding("run", "base model", "ok", f"{folder}: {looked.config.get('model_type')}, {size_text(size)}")
    yield from _fits_in_memory(size)
    yield from _lengths(looked)


def _fits_in_memory(weight_bytes: int) -> Iterator[Finding]:
    import psutil

    available = psutil.virtual_memory().available
    if weight_bytes > available:
        what = f"its weights have {weight_bytes / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB of memory are free"
        yield Finding("run", "base model", "warning", what, "close other programs, or take a smaller base")


def _lengths(looked: _Looked) -> Iterator[Finding]:
    """Options of the run that ask for more tokens than the model was made for."""
    longest = looked.config.get("max_position_embeddings")
    if not looked.run or not isinstance(longest, int):
        return
    options = looked.run.config
    if options.train.max_tokens > longest:
        what = f"train.max_tokens is {options.train.max_tokens}, and the base's context ends at {longest}"
        yield Finding("run", "lengths", "warning", what, f"set train.max_tokens: {longest} or less")
    if options.chat.context_tokens > longest:
        what = f"chat.context_tokens is {options.chat.context_tokens}; chats use the base's {longest}"
        yield Finding("run", "lengths", "ok", what)


def _tokenizer(looked: _Looked) -> Iterator[Finding]:
    """Loads, fits the embedding, and gives texts back."""
    if looked.folder is None:
        return
    from mrp.models.load import load_tokenizer

    tokenizer = looked.tokenizer = load_tokenizer(looked.folder)
    rows = looked.config.get("vocab_size")
    if isinstance(rows, int) and len(tokenizer) > rows:
        what = f"{len(tokenizer)} tokens, and the embedding has {rows} rows"
        yield Finding("run", "tokenizer", "error", what, "copy the tokenizer files of this very model into its folder")
    changed = [text for text in ROUND_TRIP if _again(tokenizer, text) != text]
    if changed:
        what = f"{len(tokenizer):,} tokens; texts do not come back as they were, such as {changed[0]!r}"
        fix = "check with `mrp data show` that your lines stay whole; else take another base"
        yield Finding("run", "tokenizer", "warning", what, fix)
    else:
        yield Finding("run", "tokenizer", "ok", f"{len(tokenizer):,} tokens, gives every text back")


def _again(tokenizer: Any, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _chat_template(looked: _Looked) -> Iterator[Finding]:
    """What the template allows, whether masks cover the replies, and whether other servers know the stop token."""
    if looked.tokenizer is None or looked.folder is None:
        return
    from mrp.render import ChatTemplate

    template = looked.template = ChatTemplate(looked.tokenizer, where=str(looked.folder))
    traits = template.traits
    said = [
        "takes a system prompt" if traits.own_system else "has no system role: personas go before the first message"
    ]
    said.append("a character may open" if traits.opens_with_reply else "an opening character answers the scenario")
    if not traits.append_only:
        said.append("rewrites history, so each reply is a sample of its own")
    said += [f"{name} is set to {value}" for name, value in traits.options.items()]
    yield Finding("run", "chat template", "ok", "; ".join(said))
    yield from _mask(template)
    yield from _stop_token(looked)


def _mask(template: Any) -> Iterator[Finding]:
    from mrp.data.view import ASSISTANT, USER, Message

    reply = "A room? 有一间。"
    messages = [Message(USER, "Is there a room?"), Message(ASSISTANT, reply, loss=True)]
    (rendered,) = template.sample(messages)
    learnt = [i for i, loss in zip(rendered.input_ids, rendered.loss, strict=True) if loss]
    prompt = template.prompt(messages[:1])
    text = str(template.tokenizer.decode(learnt, clean_up_tokenization_spaces=False)).strip()
    if rendered.input_ids[: len(prompt)] == prompt and text == f"{reply}{template.traits.end_of_turn}":
        what = f"the reply and {template.traits.end_of_turn}, after the very prompt that play sends"
        yield Finding("run", "loss mask", "ok", what)
    else:
        fix = "look at samples with `mrp data show`; please report it, with the base's name"
        yield Finding("run", "loss mask", "warning", f"learns {text!r} of the reply {reply!r}", fix)


def _stop_token(looked: _Looked) -> Iterator[Finding]:
    path = looked.folder / "generation_config.json" if looked.folder else None
    given = read_json(path) if path and path.is_file() else looked.config
    eos = given.get("eos_token_id")
    known = {eos} if isinstance(eos, int) else set(eos or ())
    end, number = looked.template.traits.end_of_turn, looked.template.end_of_turn_id
    if number in known:
        yield Finding("run", "stop token", "ok", f"{end} ({number}), which generation_config.json knows too")
    else:
        what = f"{end} ({number}) ends a turn, but generation_config.json stops at {sorted(known) or 'nothing'}"
        fix = "mrp stops there by itself; for other servers `mrp export --to hf` writes it in"
        yield Finding("run", "stop token", "warning", what, fix)


def _data(looked: _Looked) -> Iterator[Finding]:
    if looked.run is None:
        return
    from mrp.data.build import is_built

    if not (looked.run.data / "manifest.json").is_file():
        yield Finding("run", "data", "warning", "not built yet", f"mrp data build {looked.again}")
    elif not is_built(looked.run):
        what = "dialogues, cast or options changed since the data was built"
        yield Finding("run", "data", "warning", what, f"mrp data build {looked.again}")
    else:
        yield Finding("run", "data", "ok", f"built, and current ({looked.run.data})")


def _adapter(looked: _Looked) -> Iterator[Finding]:
    """The adapter: there, fit for the base, and made of the data and options as they are."""
    run = looked.run
    if run is None or run.config.train.method == "full" or looked.folder is None:
        return
    if not run.adapter.is_dir():
        yield Finding("run", "adapter", "warning", "nothing is trained yet", f"mrp run {looked.again}")
        return
    from mrp.models.adapter_file import read_whole_adapter
    from mrp.models.shards import read_weights

    pairs = read_whole_adapter(run.adapter, looked.folder, read_weights(looked.folder)).pairs
    if looked.template is None:
        return
    from mrp.train.record import finished_record, training_inputs

    record = finished_record(run, training_inputs(run, looked.folder, looked.template.record()))
    if record is None:
        what = f"{len(pairs)} layers, fits the base, but was trained with other data, options or base"
        yield Finding("run", "adapter", "warning", what, f"mrp train {looked.again} --restart")
    else:
        yield Finding(
            "run", "adapter", "ok", f"{len(pairs)} layers, fits the base, trained with these data and options"
        )


def _merged(looked: _Looked) -> Iterator[Finding]:
    run = looked.run
    if run is None:
        return
    from mrp.models.merge import is_merged

    if not (run.merged / "config.json").is_file():
        yield Finding("run", "merged model", "warning", "not merged yet", f"mrp merge {looked.again}")
    elif is_merged(run):
        yield Finding("run", "merged model", "ok", f"current ({run.merged})")
    else:
        what = "made of another adapter, base or cast than the run has now"
        yield Finding("run", "merged model", "warning", what, f"mrp merge {looked.again}")


def _missing(error: Exception) -> str:
    """The package that `error` misses, if that is what it is about; "" otherwise (a module of mrp is our own fault)."""
    if isinstance(error, SetupError) and "which is not installed" in error.what:
        return error.what
    name = error.name or "" if isinstance(error, ImportError) else ""
    return "" if name.startswith("mrp") else name


NEEDED = "pip install 'mrp-llm[train]'"
LOOKS: tuple[tuple[str, Callable[[_Looked], Iterator[Finding]]], ...] = (
    ("base model", _base),
    ("tokenizer", _tokenizer),
    ("chat template", _chat_template),
    ("data", _data),
    ("adapter", _adapter),
    ("merged model", _merged),
)

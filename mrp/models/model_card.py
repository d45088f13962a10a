"""README.md of an exported model: what it is made of, under which licences, how good it is, and how to use it.

    text = model_card(facts, usage_lines)

What nobody told mrp is written as unknown, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mrp
from mrp.cast import Cast
from mrp.config import Run
from mrp.errors import MrpError
from mrp.files import read_json, replacing
from mrp.models.bases import RECORD_NAME, find_base

CARD = "README.md"
UNKNOWN = "unknown"
SIMPLE_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
FICTION = (
    "The characters are fiction, played by a language model: what they say is made up, is nobody's opinion, and may be "
    "false. Tell people who talk with them that they talk with a model."
)


@dataclass(frozen=True)
class Facts:
    """What is known about a model. `data`: a manifest's inputs; `losses`: of each character, before and after."""

    name: str
    cast: Cast | None
    base: str = UNKNOWN
    upstream: str = ""
    revision: str = ""
    licence: str = ""
    data: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)  # what `mrp eval` says


def facts_of(name: str, folder: Path, cast: Cast | None, run: Run | None) -> Facts:
    """Everything that the run's records (or the card in a model folder) say."""
    if run is None:
        head = card_head(folder)
        return Facts(name, cast, head.get("base_model", UNKNOWN), licence=head.get("license", ""))
    base = _base_record(run)
    return Facts(
        name,
        cast,
        base=Path(run.config.base).name,  # of a folder, not where it lay
        upstream=str(base.get("upstream") or base.get("repo") or ""),
        revision=str(base.get("revision") or ""),
        licence=str(base.get("license") or ""),
        data=list(_json(run.data / "manifest.json").get("inputs", [])),
        losses=dict(_json(run.record).get("measures", {}).get("held_out_loss", {})),
        found=_found(run),
    )


def card_head(folder: Path) -> dict[str, str]:
    """The plain `key: value` lines in the head of a folder's README.md; {} without one."""
    path = folder / CARD
    found = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8"), re.S) if path.is_file() else None
    lines = found[1].splitlines() if found else []
    pairs = [line.partition(":") for line in lines if not line.startswith((" ", "-"))]
    return {key.strip(): value.strip().strip("'\"") for key, _, value in pairs if value.strip()}


def _base_record(run: Run) -> dict[str, Any]:
    with suppress(MrpError):
        return _json(find_base(run.config.base, run.path.parent) / RECORD_NAME)
    return {}


def _found(run: Run) -> list[str]:
    """The findings of the run's evaluation; none where it was not evaluated, or trained anew since."""
    from mrp.evaluate.findings import findings_of

    return findings_of(run)


def _json(path: Path) -> dict[str, Any]:
    with suppress(MrpError, OSError):
        value = read_json(path)
        return value if isinstance(value, dict) else {}
    return {}


def model_card(facts: Facts, usage: Sequence[str]) -> str:
    """The card as Markdown; `usage` are its lines on how to use the files beside it."""
    lines = [*_head(facts), f"# {facts.name}", ""]
    if facts.cast:
        who = ", ".join(_cell(c.name) for c in facts.cast)
        lines += [f"One language model that plays {len(facts.cast.characters)} characters: {who}.", ""]
    lines += [FICTION, "", "## How to use it", "", *usage, "", "## What it is made of", "", *_base_lines(facts), ""]
    lines += _data_lines(facts)
    if facts.losses:
        lines += ["## Scores", "", "Loss on lines that training never saw (nats a token; less is better):", ""]
        lines += ["| character | base model | this model |", "| --- | --- | --- |"]
        # the model by itself, without voices, is base and adapter
        after = {who: x.get("adapter", x["after"]) for who, x in facts.losses.items()}
        lines += [f"| {_cell(who)} | {x['before']:.3f} | {after[who]:.3f} |" for who, x in facts.losses.items()]
        lines.append("")
    if facts.found:
        lines += ["What `mrp eval` found:", "", *(f"- {_cell(text)}" for text in facts.found), ""]
    return "\n".join([*lines, f"Made with mRP-LLM {mrp.__version__}."]) + "\n"


def _head(facts: Facts) -> list[str]:
    """What model hubs read."""
    lines = ["---"]
    if facts.licence and SIMPLE_LICENCE.fullmatch(facts.licence):
        lines.append(f"license: {facts.licence.lower()}")
    elif facts.licence:
        lines += ["license: other", f"license_name: {_cell(facts.licence)!r}"]
    if facts.upstream or facts.base != UNKNOWN:
        lines.append(f"base_model: {facts.upstream or facts.base}")
    if facts.cast:
        lines.append(f"language: {facts.cast.language}")
    return [*lines, "tags: [role-play]", "---", ""]


def _base_lines(facts: Facts) -> list[str]:
    name = f"{facts.base} ({facts.upstream})" if facts.upstream else facts.base
    lines = [f"- Base model: {name}{f', revision {facts.revision}' if facts.revision else ''}"]
    lines.append(f"- Licence of the base model: {facts.licence or UNKNOWN}")
    licence = facts.licence.casefold()
    if "llama" in licence:
        lines.append(
            '- Duties of that licence: give a copy of it along, show "Built with Llama", and begin the name of a model '
            'that you publish with "Llama".'
        )
    elif licence:
        lines.append("- Who passes the model on also passes on the licence, and the notices where there are any.")
    else:
        lines.append("- Find out the licence of the base model before you pass this model on.")
    return lines


def _data_lines(facts: Facts) -> list[str]:
    if not facts.data:
        return [f"- Training data: {UNKNOWN}", ""]
    lines = ["| training data | lines | kept | licence |", "| --- | --- | --- | --- |"]
    for item in facts.data:
        licence = _cell(str(item.get("licence") or UNKNOWN))
        name = _cell(Path(str(item.get("file") or item.get("path") or UNKNOWN)).name)
        lines.append(f"| {name} | {item.get('lines', UNKNOWN)} | {item.get('kept', UNKNOWN)} | {licence} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    """`text` on one line of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def hf_usage(cast: Cast | None, vllm_more: str = "", voices: Sequence[str] = ()) -> list[str]:
    """How to use a safetensors folder; `vllm_more`: further options, `voices`: lines about the voices."""
    lines = ["```", f"vllm serve . --served-model-name cast{vllm_more}"]
    if cast:
        lines += [f"mrp chat . --as {cast.characters[0].id}"]
    return [
        *lines,
        "```",
        "",
        "or `AutoModelForCausalLM.from_pretrained` of transformers 4.45 and later.",
        *voices,
        *_personas(cast),
    ]


def gguf_usage(file: str, cast: Cast | None, context_tokens: int, voices: Sequence[str] = ()) -> list[str]:
    """How to use one GGUF file; `voices`: lines about the voices."""
    return ["```", f"llama-server -m {file} -c {context_tokens} --jinja", "```", *voices, *_personas(cast)]


def merged_usage(cast: Cast | None) -> list[str]:
    """How to use the folder that a merge wrote."""
    who = f" --as {cast.characters[0].id}" if cast else ""
    lines = ["```", f"mrp chat .{who}", "mrp export . OUT --to hf        # for vLLM and others; or gguf, ollama", "```"]
    return [*lines, *_personas(cast)]


def write_card(folder: Path, name: str, run: Run) -> None:
    """Write README.md of a model that a merge of `run` wrote, unless it stands there already."""
    text = model_card(facts_of(name, folder, run.cast, run), merged_usage(run.cast))
    path = folder / CARD
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with replacing(path) as file:
            file.write(text)


def _personas(cast: Cast | None) -> list[str]:
    """The system prompts that training saw, byte for byte."""
    from mrp.data.view import system_text

    if cast is None:
        return []
    lines = ["", "The system prompt chooses who answers. These are the very texts that training saw:", ""]
    for character in cast:
        text = system_text(cast, character.id)
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
        lines += [f"**{_cell(character.name)}**", "", f"{fence}text", text, fence, ""]
    return lines[:-1]

"""The results of an evaluation as a page and as Markdown: the same blocks, written twice.

    write_reports(run.folder / "eval", results)        # report.html, report.md

Last in the flow of `mrp eval`; the sentences come from `findings.py`, the blocks from `blocks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mrp.evaluate.blocks import Block, Compared, List, Matrices, Quotes, Table, Text, Tiles, Title, html, markdown
from mrp.evaluate.findings import SIDE_NAMES, findings, number, percent
from mrp.evaluate.voice import VIEWS
from mrp.files import replacing
from mrp.page import Section, page

SHOWN_WRONG = 12  # answers that failed
Part = tuple[str, list[Block]]
VIEW_NAMES = {
    "as is": "Judged as they are",
    "masked": "Judged with names, titles and signature words masked",
    "ten words": "Judged by their first ten words",
}


def write_reports(folder: Path, results: dict[str, Any]) -> None:
    """Write report.html and report.md into `folder`, each whole or not at all."""
    said = findings(results)
    parts = [part for part in (_found(results, said), *_parts(results), _judge(folder), _made(results)) if part[1]]
    title = f"Evaluation of {results['run']}"
    lead = " ".join(said[:2])
    sections = [Section(name, [html(block) for block in blocks]) for name, blocks in parts]
    with replacing(folder / "report.html") as file:
        file.write(page(title, lead, sections))
    lines = [f"# {title}", ""]
    for name, blocks in parts:
        lines += [f"## {name}", "", *(line for block in blocks for line in markdown(block))]
    with replacing(folder / "report.md") as file:
        file.write("\n".join(lines).rstrip() + "\n")


# -- what it says ----------------------------------------------------------------------------------------------------


def _found(results: dict[str, Any], said: Sequence[str]) -> Part:
    return "What was found", [
        Tiles(_tiles(results)),
        List(list(said)),
        Text("Brackets hold 95 % intervals, by a bootstrap over scenes or questions. Each character counts the same."),
    ]


def _tiles(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The few figures by which a model is judged together; each alone can fool."""
    found: list[tuple[str, str]] = []
    identity, voice = _side(results, "tuned", "identity", "all"), _side(results, "tuned", "voice", "as is", "all")
    if identity:
        loss = results["difference"]["identity"]["loss"]["value"]
        found.append(("loss against the base", f"{loss:+.2f}"))
        found.append(("follows its identity", f"{100 * identity['accuracy']['value']:.0f} %"))
    if voice:
        told = _side(results, "tuned", "swapped", "as is", "as_told")
        found.append(("sounds like itself", f"{100 * voice['consistency']['value']:.0f} %"))
        found.append(("told another: as told", "-" if told is None else f"{100 * told['value']:.0f} %"))
    if asked := _side(results, "tuned", "questions", "all", "passed"):
        found.append(("knows who it is", f"{100 * asked['value']:.0f} %"))
    if forgot := _side(results, "tuned", "retention", "forgot"):
        found.append(("forgot, nats a token", f"{forgot['value']:+.2f}"))
    return found


def _parts(results: dict[str, Any]) -> Iterator[Part]:
    yield "Who would say it", _identity(results)
    yield "Voice", _voice(results)
    yield "Asked who they are", _questions(results)
    yield "How the replies are", _generation(results)
    yield "Lore, drift, and what was forgotten", _rest(results)
    yield "Scenes of several", _scenes(results)
    yield "Who should answer", _router(results)
    yield "The same question, side by side", _samples(results)


def _names(results: dict[str, Any]) -> dict[str, str]:
    return {c["id"]: c["name"] for c in results["characters"]}


def _side(results: dict[str, Any], side: str, *keys: str) -> Any:
    value: Any = results["sides"].get(side)
    for key in keys:
        value = (value or {}).get(key)
    return value


def _identity(results: dict[str, Any]) -> list[Block]:
    tuned, base = (_side(results, side, "identity") for side in ("tuned", "base"))
    if not tuned:
        return []
    names = _names(results)
    rows = []
    for who in [*names, "all"]:
        pair = [one["all"] if who == "all" else one["characters"].get(who) for one in (base, tuned)]
        if all(pair):
            before, after = pair
            rows.append(
                [names.get(who, "all"), f"{after['accuracy']['n']}"]
                + [number(x["loss"]) for x in (before, after)]
                + [number(x["gap"], 2, sign=True) for x in (before, after)]
                + [percent(x["accuracy"]) for x in (before, after)]
            )
    head = ["character", "lines", "loss, base", "loss, tuned", "gap, base", "gap, tuned", "right, base", "right, tuned"]
    caption = (
        "Row: who really said the line. Column: the identity under which the model finds it likeliest. Per cent of the"
        " row; a model that plays everybody apart has 100 on the diagonal."
    )
    several = [(SIDE_NAMES[side], one["confusion"]) for side, one in (("base", base), ("tuned", tuned))]
    return [
        Text(
            "Every held-out line was scored in its own context under the identity of each character. Loss: nats a token"
            " under the own identity. Gap: how much higher it is under the others'. Right: the own identity was the"
            " likeliest."
        ),
        Matrices(list(names.values()), several, "likeliest under", caption),
        Table(head, rows),
    ]


def _voice(results: dict[str, Any]) -> list[Block]:
    tuned, base = (_side(results, side, "voice") for side in ("tuned", "base"))
    if not tuned:
        return []
    names, top = _names(results), results["ceiling"]["voice"]
    blocks: list[Block] = [
        Text(
            "A classifier that learnt the training lines judges whom generated replies sound like. Real held-out lines"
            " are the ceiling. Another's voice: somebody else has more than half of the probability. Told another:"
            " told to be somebody else in a scene, how often the reply sounds like the one it is told to be, and how"
            " often yet like the scene's own character. Base: the base model with the persona prompt."
        )
    ]
    caption = "Row: who was asked. Column: whom the reply sounds like. Per cent of the row."
    several = [("real lines", top["as is"]["confusion"])]
    several += [(SIDE_NAMES[side], one["as is"]["confusion"]) for side, one in (("base", base), ("tuned", tuned))]
    blocks.append(Matrices(list(names.values()), several, "sounds like", caption))
    for view in VIEWS:
        rows = []
        for name, one in (("real lines", top), ("base", base), ("tuned", tuned)):
            own, told = one[view]["all"], (_side(results, name, "swapped") or {}).get(view) or {}
            share = own.get("of_ceiling")
            rows.append(
                [
                    *(name, percent(own["consistency"]), "-" if share is None else f"{100 * share:.0f} %"),
                    *(percent(own["leak"]), percent(told.get("as_told")), percent(told.get("as_owner"))),
                ]
            )
        head = [
            "replies",
            "sound like themselves",
            "of the ceiling",
            "another's voice",
            "told another",
            "yet as the scene's",
        ]
        blocks += [Title(VIEW_NAMES[view]), Table(head, rows)]
    rows = []
    rates = {side: _side(results, side, "signature_rates") for side in ("base", "tuned")}
    for who, name in names.items():
        entries = [one["as is"]["characters"].get(who) for one in (top, base, tuned)]
        used = [one.get(who) for one in (results["ceiling"]["signature_rates"], rates["base"], rates["tuned"])]
        rows.append(
            [
                name,
                *(percent(e["consistency"] if e else None) for e in entries),
                ", ".join(results["ceiling"]["signature"].get(who, [])[:6]) or "-",
                " / ".join("-" if x is None else f"{100 * x:.0f}" for x in used),
            ]
        )
    head = ["character", "real lines", "base", "tuned", "signature words", "used in % (real / base / tuned)"]
    blocks += [Title("Each character"), Table(head, rows)]
    copied = [("real lines", top["copied"]), ("base", base["copied"]), ("tuned", tuned["copied"])]
    said = "; ".join(f"{SIDE_NAMES.get(name, name)} {percent(value)}" for name, value in copied)
    blocks.append(Text(f"Copied from training (eight words in a row): {said}."))
    return blocks


def _questions(results: dict[str, Any]) -> list[Block]:
    tuned, base = (_side(results, side, "questions") for side in ("tuned", "base"))
    if not tuned:
        return []
    names = _names(results)
    meaning = {
        "who": "Who are you?",
        "name": "What is your name?",
        "introduce": "Introduce yourself.",
        "self": "Are you (itself)?",
        "other": "Are you (somebody else)?",
        "greeted": "Greeted as somebody else",
        "ai": "Are you an AI?",
        "master": "Who is your master?",
    }
    rows = [
        [meaning[kind], percent(base["kinds"].get(kind)), percent(figure)] for kind, figure in tuned["kinds"].items()
    ]
    rows.append(["all", percent(base["all"]["passed"]), percent(tuned["all"]["passed"])])
    who_rows = [
        [
            names[who],
            *(percent(one["characters"][who][key]) for key in ("passed", "claims_another") for one in (base, tuned)),
        ]
        for who in tuned["characters"]
    ]
    failed = {who: [a for a in tuned["answers"] if a["character"] == who and not a["passed"]] for who in names}
    wrong = [a for own in failed.values() for a in own[:2]][:SHOWN_WRONG]
    blocks: list[Block] = [
        Table(["question", "as the character would, base", "tuned"], rows),
        Table(["character", "right, base", "right, tuned", "claims another, base", "claims another, tuned"], who_rows),
    ]
    if wrong:
        blocks.append(Title("Some answers of the tuned model that failed"))
        blocks.append(Quotes([(names[a["character"]], a["question"], a["answer"] or "(nothing)") for a in wrong]))
    return blocks


def _generation(results: dict[str, Any]) -> list[Block]:
    tuned, base = (_side(results, side, "generation") for side in ("tuned", "base"))
    if not tuned:
        return []
    words = {
        "stops": "end by themselves",
        "empty": "empty",
        "repeats": "repeat themselves",
        "speaks_for_others": "begin another's line",
        "disclaims": "speak as an AI assistant",
    }
    rows = [[text, percent(base["all"][key]), percent(tuned["all"][key])] for key, text in words.items()]
    rows.append(["length against real lines", number(base["all"]["length"], 2), number(tuned["all"]["length"], 2)])
    for n in (1, 2):
        rows.append([f"distinct-{n}", *(_plain(one["all"][f"distinct_{n}"]) for one in (base, tuned))])
    names = _names(results)
    who_rows = [
        [names[who], *(number(one["characters"][who]["length"], 2) for one in (base, tuned))]
        + [percent(one["characters"][who]["stops"]) for one in (base, tuned)]
        for who in tuned["characters"]
    ]
    return [
        Table(["replies", "base + persona prompt", "tuned"], rows),
        Table(["character", "length, base", "length, tuned", "end, base", "end, tuned"], who_rows),
    ]


def _rest(results: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    lore = {side: _side(results, side, "lore") for side in ("base", "tuned")}
    if lore["tuned"]:
        rows = [
            [
                SIDE_NAMES[side],
                str(one["questions"]),
                percent(one["recall"]),
                percent(one["others"]),
                percent(one["gain"]),
            ]
            for side, one in lore.items()
        ]
        head = ["lore", "questions", "words of the entry", "of other characters' entries", "gain"]
        blocks.append(Table(head, rows))
    drift = {side: _side(results, side, "drift") for side in ("base", "tuned")}
    if drift["tuned"]:
        rows = [
            [
                SIDE_NAMES[side],
                str(one["turns"]),
                *(percent(one[k]) for k in ("early", "late", "change", "still_knows")),
            ]
            for side, one in drift.items()
        ]
        head = ["drift", "turns", "own voice, first five", "last five", "change", "say who they are at the end"]
        blocks.append(Table(head, rows))
    forgot = _side(results, "tuned", "retention")
    if forgot:
        row = [str(forgot["replies"]), *(number(forgot[k]) for k in ("base", "tuned", "forgot", "kl"))]
        blocks.append(Table(["everyday replies", "loss, base", "loss, tuned", "difference", "KL"], [row]))
    return blocks


def _scenes(results: dict[str, Any]) -> list[Block]:
    both = [(SIDE_NAMES[side], _side(results, side, "scenes")) for side in ("base", "tuned")]
    if not all(one for _, one in both):
        return []
    names = _names(results)
    keys = ("guard", "passed", "silent", "own_voice", "uneven")
    rows = []
    for name, one in both:
        rates, chance = [percent(one["all"][key]) for key in keys], f"{100 * one['all']['uneven_by_chance']:.0f} %"
        rows.append([name, str(one["scenes"]), str(one["turns"]), *rates, chance])
    head = ["model", "scenes", "turns", "cut by the guard", "another's name and colon"]
    head += ["silent", "own voice", "uneven", "by chance"]
    (_, base), (_, tuned) = both
    who_rows = [
        [names[who], str(one["turns"]), number(base["characters"][who]["share"], 2), number(one["share"], 2)]
        + [percent(one[key]) for key in ("guard", "own_voice")]
        for who, one in tuned["characters"].items()
    ]
    who_head = ["character", "turns, tuned", "of an even share, base", "tuned", "cut by the guard", "own voice"]
    note = (
        "Played as mrp scene does, who speaks chosen by the natural director. Cut by the guard: the reply began"
        " somebody else's line and ended there. Past the guard: such a line was let through. Uneven: the share of a"
        " scene's turns that would have to go to others for all to have the same. Of an even share: 1 is even."
    )
    return [Text(note), Table(head, rows), Table(who_head, who_rows)]


def _router(results: dict[str, Any]) -> list[Block]:
    found = results.get("router")
    if not found:
        return []
    names = _names(results)
    words = {
        "auto": "the router as chat uses it",
        "each for itself": "the router, each prompt for itself",
        "keep": "whoever answers now",
        "majority": "the most frequent character",
    }
    how = "names, then its classifier" if found["classifier"] else "names alone: there is no classifier"
    note = (
        f"{found['prompts']} prompts of held-out dialogues ({how}); {found['fit_anybody']} more were put to several"
        " characters word for word and fit anybody. Right: it is who really answered."
    )
    caption = "Row: who really answered. Column: whom the router chooses. Per cent of the row."
    rows = [[words[way], percent(figure)] for way, figure in found["ways"].items()]
    who_rows = [[names[who], percent(figure)] for who, figure in found["characters"].items()]
    return [
        Text(note),
        Table(["who answers", "right"], rows),
        Matrices(list(names.values()), [("router", found["confusion"])], "chosen", caption),
        Table(["character", "right"], who_rows),
    ]


def _samples(results: dict[str, Any]) -> list[Block]:
    names = _names(results)
    blocks: list[Block] = []
    for who, name in names.items():
        own = [s for s in results["samples"] if s["character"] == who]
        if own:
            blocks.append(Title(name))
            for s in own:
                said = [("real line", s["real"]), (SIDE_NAMES["base"], s["base"]), (SIDE_NAMES["tuned"], s["tuned"])]
                blocks.append(Compared(s["question"], [(label, text or "(nothing)") for label, text in said]))
    return blocks


def _judge(folder: Path) -> Part:
    """What a judge said of the same replies, where one was asked (`mrp judge`)."""
    from mrp.judge.report import judge_blocks, kept_judgement

    found = kept_judgement(folder)
    return "What a judge says", judge_blocks(found) if found else []


def _made(results: dict[str, Any]) -> Part:
    counts, versions = results["counts"], results["versions"]
    rows = [
        ["command", results.get("command") or "-"],
        ["base model", results["base"]],
        ["seed", str(results["seed"])],
        ["data fingerprint", results["data"]["fingerprint"]],
        ["models", ", ".join(f"{side} {name[:16]}" for side, name in results["models"].items())],
        ["lines", f"{counts['train_lines']:,} to train, {counts['held_out_lines']:,} held out"
                  f" (in {counts['held_out_scenes']:,} scenes)"],
        ["generated", f"{counts['replies']} replies a character, {counts['swapped']} told to be another"],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
    ]  # fmt: skip
    return "How it was made", [Table(["what", "value"], rows)]


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

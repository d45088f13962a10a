"""The numbers of an evaluation in plain words: each sentence is chosen by its figures and says them.

for text in findings(results): print("-", text)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mrp.config import Run
from mrp.errors import MrpError
from mrp.evaluate.counts import PUBLISHED
from mrp.files import read_json

Figure = dict[str, Any] | None
SIDE_NAMES = {"base": "base + persona prompt", "tuned": "tuned"}
SMALL = 0.02  # nats a token: a change of the plain loss that nobody would notice


def percent(figure: Figure) -> str:
    """A rate with its interval: "62 % [55, 70]"; "-" where there is none."""
    if figure is None:
        return "-"
    text = f"{100 * figure['value']:.0f} %"
    if figure["low"] is None:
        return text
    return f"{text} [{100 * figure['low']:.0f}, {100 * figure['high']:.0f}]"


def number(figure: Figure, digits: int = 3, sign: bool = False) -> str:
    """A figure with its interval: "3.826 [3.749, 3.874]"."""
    if figure is None:
        return "-"
    how = f"{'+' if sign else ''}.{digits}f"
    text = f"{figure['value']:{how}}"
    return text if figure["low"] is None else f"{text} [{figure['low']:{how}}, {figure['high']:{how}}]"


def surely(figure: Figure) -> int:
    """1 if the whole interval is above zero, -1 if below, else 0: nothing is sure."""
    if figure is None or figure["low"] is None:
        return 0
    return 1 if figure["low"] > 0 else -1 if figure["high"] < 0 else 0


def findings(results: dict[str, Any]) -> list[str]:
    """What the figures say, the most important first."""
    return [
        text
        for part in (
            _identity,
            _weakest,
            _voice,
            _swapped,
            _questions,
            _generation,
            _lore,
            _drift,
            _scenes,
            _retention,
            _router,
            _counts,
        )
        for text in part(results)
    ]


def findings_of(run: Run) -> list[str]:
    """What the evaluation of a run found; nothing where there is none, or where the run was trained anew since."""
    try:
        results, record = read_json(run.folder / "eval" / "results.json"), read_json(run.record)
        if results["trained"] != record["fingerprint"]:
            return []
        return findings(results)
    except (MrpError, OSError, KeyError, TypeError):
        return []


def _sides(results: dict[str, Any], *keys: str) -> tuple[Any, Any]:
    """The same figure of both sides; None where it was not measured."""
    found = []
    for side in ("base", "tuned"):
        value: Any = results["sides"].get(side) or {}
        for key in keys:
            value = (value or {}).get(key)
        found.append(value)
    return found[0], found[1]


def _identity(results: dict[str, Any]) -> Iterator[str]:
    base, tuned = _sides(results, "identity", "all")
    if not tuned:
        return
    changed = results["difference"]["identity"]
    how = {1: "worse than", -1: "better than"}.get(surely(changed["loss"]), "not surely better or worse than")
    yield (
        f"The tuned model predicts its characters' unseen lines {how} the base with the persona prompt:"
        f" {number(tuned['loss'])} nats a token"
        f" against {number(base['loss'])}, difference {number(changed['loss'], sign=True)}."
    )
    chance = results["sides"]["tuned"]["identity"]["chance"]
    low = tuned["accuracy"]["low"]
    how = "does not surely follow" if low is None or low <= chance else "follows"
    how = "follows weakly" if how == "follows" and tuned["accuracy"]["value"] < 0.5 else how
    yield (
        f"It {how} who it is told to be: the right one of {len(results['characters'])} identities is the likeliest for"
        f" {percent(tuned['accuracy'])} of the unseen lines (chance {100 * chance:.0f} %; base + persona prompt"
        f" {percent(base['accuracy'])})."
    )


def _weakest(results: dict[str, Any]) -> Iterator[str]:
    identity = (results["sides"].get("tuned") or {}).get("identity")
    if not identity:
        return
    names = {c["id"]: c["name"] for c in results["characters"]}
    ids = list(names)
    pairs = [(identity["confusion"][a][b], ids[a], ids[b]) for a in range(len(ids)) for b in range(len(ids)) if a != b]
    share, a, b = max(pairs)
    if share > 0:
        yield (
            f"Most often mixed up: {100 * share:.0f} % of the unseen lines of {names[a]} are likeliest under the"
            f" identity of {names[b]}."
        )


def _voice(results: dict[str, Any]) -> Iterator[str]:
    base, tuned = _sides(results, "voice")
    if not tuned:
        return
    top = results["ceiling"]["voice"]
    for view, words in (("as is", "as they are"), ("masked", "with names, titles and signature words masked")):
        own, before = tuned[view]["all"], base[view]["all"]
        share = own["of_ceiling"]
        reached = f", {100 * share:.0f} % of what real lines reach" if share is not None else ""
        yield (
            f"Generated replies {words} sound like their character in {percent(own['consistency'])}{reached}"
            f" (real lines {percent(top[view]['all']['consistency'])}, base + persona prompt"
            f" {percent(before['consistency'])}); another's voice is plain in {percent(own['leak'])}."
        )
    copied, real = tuned["copied"], top["copied"]
    if copied and real:
        yield (
            f"{percent(copied)} of the generated replies hold a stretch copied from a training line"
            f" (real unseen lines {percent(real)})."
        )
    topic = results["ceiling"]["topic"]
    if topic:
        yield f"The question alone gives the character away in {percent(topic)} of the unseen scenes."


def _swapped(results: dict[str, Any]) -> Iterator[str]:
    base, tuned = _sides(results, "swapped", "as is")
    if tuned:
        yield (
            f"Told to be somebody else in another character's scene, the tuned model sounds like the one it is told to"
            f" be in {percent(tuned['as_told'])} (base + persona prompt {percent(base['as_told'])}) and like the"
            f" scene's own character in {percent(tuned['as_owner'])}."
        )


def _questions(results: dict[str, Any]) -> Iterator[str]:
    base, tuned = _sides(results, "questions", "all")
    if tuned:
        yield (
            f"Asked who it is, it answers as the character would in {percent(tuned['passed'])} (base + persona prompt"
            f" {percent(base['passed'])}), and claims to be another member in {percent(tuned['claims_another'])}."
        )


def _generation(results: dict[str, Any]) -> Iterator[str]:
    base, tuned = _sides(results, "generation", "all")
    if tuned:
        yield (
            f"Of its replies {percent(tuned['empty'])} are empty, {percent(tuned['repeats'])} repeat themselves,"
            f" {percent(tuned['stops'])} end by themselves (base {percent(base['stops'])}); they are"
            f" {number(tuned['length'], 2)} times as long as the characters' real lines (base"
            f" {number(base['length'], 2)})."
        )


def _lore(results: dict[str, Any]) -> Iterator[str]:
    base, tuned = _sides(results, "lore")
    if tuned:
        knows = "more" if surely(tuned["gain"]) > 0 else "not surely more"
        yield (
            f"Asked for its lore, a reply holds {percent(tuned['recall'])} of the entry's own words, {knows} than of"
            f" other characters' entries ({percent(tuned['others'])}); base + persona prompt {percent(base['recall'])}."
        )


def _drift(results: dict[str, Any]) -> Iterator[str]:
    _, tuned = _sides(results, "drift")
    if tuned:
        how = {1: "grows", -1: "fades"}.get(surely(tuned["change"]), "does not surely change")
        yield (
            f"Over {tuned['turns']} turns the voice {how}: {percent(tuned['early'])} in the first turns,"
            f" {percent(tuned['late'])} in the last; at the end {percent(tuned['still_knows'])} still say who they are."
        )


def _scenes(results: dict[str, Any]) -> Iterator[str]:
    base, tuned = _sides(results, "scenes")
    if not (base and tuned):
        return
    names = {c["id"]: c["name"] for c in results["characters"]}
    own = tuned["all"]
    yield (
        f"In {tuned['scenes']} scenes of several the guard ended {percent(own['guard'])} of the turns where somebody"
        f" else's line began (base + persona prompt {percent(base['all']['guard'])}); another's name and a colon"
        f" stand in {percent(own['passed'])} of what was kept; lines sound like their character in"
        f" {percent(own['own_voice'])}."
    )
    shares = {who: one["share"] for who, one in tuned["characters"].items() if one["share"]}
    most, least = (pick(shares, key=lambda who: shares[who]["value"]) for pick in (max, min))
    if shares[most]["value"] > shares[least]["value"]:
        yield (
            f"Who speaks is {percent(own['uneven'])} away from even (a blind draw:"
            f" {100 * own['uneven_by_chance']:.0f} %); {names[most]} has the most turns"
            f" ({number(shares[most], 2)} of an even share), {names[least]} the fewest ({number(shares[least], 2)})."
        )
    else:
        yield f"Everybody has the same share of the turns ({number(shares[most], 2)} of an even one)."


def _router(results: dict[str, Any]) -> Iterator[str]:
    found = results.get("router")
    if not found:
        return
    how = {1: "surely more often", -1: "surely less often"}.get(surely(found["over_best"]), "not surely more often")
    plain = {"keep": "keeping whoever answers", "majority": "always the most frequent character"}[found["best_plain"]]
    yield (
        f"The router finds who should answer {percent(found['ways']['auto'])} of {found['prompts']} unseen prompts,"
        f" {how} than {plain} ({percent(found['ways'][found['best_plain']])})."
    )


def _retention(results: dict[str, Any]) -> Iterator[str]:
    _, tuned = _sides(results, "retention")
    if not tuned:
        return
    change = tuned["forgot"]
    if surely(change) > 0:
        how = "slightly worse" if change["value"] < SMALL else "worse"
    else:
        how = "better" if surely(change) < 0 else "no surely better or worse"
    yield (
        f"On everyday replies of the base itself the tuned model is {how} than the base: {number(tuned['tuned'])}"
        f" nats a token against {number(tuned['base'])}, difference {number(change, sign=True)};"
        f" KL {number(tuned['kl'])}."
    )


def _counts(results: dict[str, Any]) -> Iterator[str]:
    counts = results["counts"]
    if "voice" in results["parts"] and counts["replies"] < PUBLISHED:
        yield (
            f"These are {counts['replies']} generated replies a character: enough to look at, too few to publish"
            f" (--full makes {PUBLISHED})."
        )
    if counts["without_held_out"]:
        yield f"Without held-out lines, and so not measured by them: {', '.join(counts['without_held_out'])}."

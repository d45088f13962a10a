"""The router: which character answers a person's message.

    router = open_router(run)
    router.route("Pigsy, any buns left?", current="wukong")    # Route("bajie", 1.0, "'pigsy' is called at ...", {...})

First who is named (`route_names.py`); else how likely each is (`route_classifier.py`, or the model itself,
`route_model.py`). Whoever answers now stays unless another is clearly likelier. The classifier lies in the run
folder as `router.safetensors`; it is made by `mrp run`, or at the first use, and made anew when the data has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mrp.cast import Cast
from mrp.config import Run
from mrp.data.samples import read_samples
from mrp.errors import InputError, MrpError
from mrp.files import fingerprint, sha256_file
from mrp.play.reply import Player
from mrp.play.route_classifier import (
    FORMAT,
    Classifier,
    load_classifier,
    prompts_of,
    save_classifier,
    told_of,
    train_classifier,
)
from mrp.play.route_model import NameScorer
from mrp.play.route_names import addressed

By = Literal["auto", "names", "classifier", "model"]
WAYS = ("auto", "names", "classifier", "model")
CLASSIFIER = "router.safetensors"
# To take over, another must be twice as likely as who answers now, and its odds three times the usual (docs/route.md).
TIMES_LIKELIER = 2.0
TIMES_USUAL_ODDS = 3.0


@dataclass(frozen=True)
class Route:
    """Who answers, how sure that is (a share, 1.0 where somebody was named), why, and the share of each candidate."""

    character: str
    confidence: float
    reason: str
    scores: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        scores = {name: round(score, 4) for name, score in self.scores.items()}
        confidence = round(self.confidence, 4)
        return {"character": self.character, "confidence": confidence, "reason": self.reason, "scores": scores}


class Router:
    """Chooses among the characters of `cast`: by names, and by `classifier` where there is one.

    `player`'s model is asked only with `by="model"`: on the default base it is little better than chance and takes a
    pass through the model (docs/route.md).
    """

    def __init__(self, cast: Cast, classifier: Classifier | None = None, player: Player | None = None) -> None:
        self.cast, self.classifier = cast, classifier
        self.scorer = NameScorer(player) if player else None

    def route(
        self, text: str, current: str | None = None, candidates: Iterable[str] | None = None, by: By = "auto"
    ) -> Route:
        """Who of `candidates` (ids; None: the whole cast) answers `text`; `current` answered last.

        Raises `InputError` if nobody may answer, or `by` is a way that this router lacks.
        """
        allowed = list(dict.fromkeys(c.id for c in self.cast) if candidates is None else candidates)
        if not allowed:
            raise InputError("nobody is there to answer", "the router", "let a character of the cast come in")
        if named := addressed(text, self.cast, allowed):
            reason = f"{named.name!r} is {named.how}"
            return Route(named.character, 1.0, reason, {c: float(c == named.character) for c in allowed})
        if current not in allowed:
            current = None
        if len(allowed) == 1:
            return Route(allowed[0], 1.0, "nobody else is there", {allowed[0]: 1.0})
        if not text.strip():
            by = "names"
        scores, usual, way = self._scores(text, allowed, by)
        best = max(allowed, key=scores.__getitem__)
        if current is not None and best != current and not _takes_over(scores[best], scores[current], usual[best]):
            best = current
        if current is not None and best == current:
            why = f"nobody else is clearly likelier ({way})" if way else "nobody is named"
            return Route(current, scores[current], f"{self._name(current)} answers on: {why}", scores)
        if not way:
            return Route(allowed[0], scores[allowed[0]], "nobody is named, and this one comes first", scores)
        return Route(best, scores[best], self._reason(text, best, way), scores)

    def _scores(self, text: str, allowed: Sequence[str], by: By) -> tuple[dict[str, float], dict[str, float], str]:
        """The share of each, the usual shares, and the way that told them ("" for none)."""
        even = dict.fromkeys(allowed, 1 / len(allowed))
        if by == "classifier" and self.classifier is None:
            raise InputError("this run has no classifier for the router", "--by", "`--by model`, or `mrp run` with it")
        if by == "model" and self.scorer is None:
            raise InputError("the model is not loaded for the router", "--by", "`--by classifier`")
        if self.classifier is not None and by in ("auto", "classifier"):
            known = self.classifier.usual_shares()
            if any(c in known for c in allowed):
                found = self.classifier.probabilities(text)
                return _among(found, allowed), _among(known, allowed), "classifier"
        if self.scorer is not None and by == "model":
            return self.scorer.probabilities(text, allowed), even, "model"
        return even, even, ""

    def _reason(self, text: str, best: str, way: str) -> str:
        if way == "model":
            return f"the model finds {self._name(best)} likeliest as the one who answers"
        assert self.classifier is not None
        words = ", ".join(repr(word) for word in self.classifier.evidence(text, best))
        return f"{self._name(best)} is asked such things" + (f": {words}" if words else "")

    def _name(self, character: str) -> str:
        return self.cast.display_name(character)


def _among(shares: dict[str, float], allowed: Sequence[str]) -> dict[str, float]:
    """The shares of `allowed` alone; they sum to 1."""
    total = sum(shares.get(c, 0.0) for c in allowed)
    return {c: shares.get(c, 0.0) / total for c in allowed}


def _takes_over(best: float, current: float, usual: float) -> bool:
    odds = best / max(1 - best, 1e-9)
    return best >= TIMES_LIKELIER * current and odds >= TIMES_USUAL_ODDS * usual / max(1 - usual, 1e-9)


def open_router(run: Run | None, cast: Cast, player: Player | None = None) -> Router:
    """The router of a run (None: of a model without one), with its classifier if there is one or it can be made."""
    classifier = None
    if run is not None:
        try:
            classifier = ensure_classifier(run)
        except (MrpError, OSError):  # no scikit-learn, no data kept, a folder that is read-only: names choose
            classifier = _kept(run.folder / CLASSIFIER)
    return Router(cast, classifier, player)


def ensure_classifier(run: Run) -> Classifier:
    """The run's classifier, made if it is not there or was made of other data.

    Raises `InputError` without built data or with one character, `SetupError` without scikit-learn.
    """
    path, data = run.folder / CLASSIFIER, run.data / "train.jsonl"
    kept = _kept(path)
    if not data.is_file():
        if kept is not None:
            return kept
        raise InputError("the data is not built", str(data), f"run `mrp data build {run.path}`")
    told = told_of(run.cast)
    mark = fingerprint([FORMAT, sha256_file(data), told])
    if kept is None or kept.made_from != mark:
        kept = train_classifier([*prompts_of(read_samples(data)), *told], mark)
        save_classifier(kept, path)
    return kept


def _kept(path: Path) -> Classifier | None:
    try:
        return load_classifier(path)
    except InputError:
        return None


def route_command(
    path: Path, text: str, current: str | None, by: str, flags: dict[str, str], bits: str = "auto"
) -> dict[str, Any]:
    """`mrp route`: the model is loaded only where it must choose itself."""
    from mrp.config import load_run

    if by not in WAYS:
        raise InputError(f"no way to choose is called {by!r}", "--by", f"one of: {', '.join(WAYS)}")
    run = load_run(path, flags)
    now = run.cast.find(current, "--current").id if current is not None else None
    router = open_router(run, run.cast)
    named = addressed(text, run.cast, [c.id for c in run.cast])
    if by == "model" and not named:
        from mrp.play.open import open_player

        router.scorer = NameScorer(open_player(path, flags=flags, bits=bits))
    return router.route(text, now, by=by).as_json()  # type: ignore[arg-type]

"""Who would say it, from the model itself: every held-out reply of A scored under the identity of each B.

    scores = score_identities(judge, lines, cast, kept, update)
    table = identity_figures(scores, cast, seed=0)         # own-identity gap, accuracy, confusion, per character

The context stays the same; only the identity block in the system message changes (and the voice, where the model has
voices). A model that follows who it is told to be finds a character's line likeliest under that character's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrp.cast import Cast
from mrp.data.pack import pack
from mrp.data.view import opening_text
from mrp.evaluate.intervals import difference, equal_shares, estimate
from mrp.evaluate.kept import Kept
from mrp.evaluate.lines import Line
from mrp.files import fingerprint
from mrp.render import ChatTemplate, Rendered

if TYPE_CHECKING:
    from mrp.models.load import Hardware
    from mrp.models.voices import VoiceBank

ROW_TOKENS = 1024  # of a packed row, where the model keeps samples apart


@dataclass(frozen=True)
class Judge:
    """A model that tells how likely texts are. `name` tells it from every other one, in these numbers on this kind of
    machine; `max_tokens` is its longest context."""

    model: Any
    on: Hardware
    name: str
    max_tokens: int
    voices: VoiceBank | None = None

    @property
    def packs(self) -> bool:
        """Whether several texts may stand in one row."""
        from mrp.models.loss import keeps_apart

        with self.on.autocast_context():  # the adapter's numbers may be finer than the base's
            return keeps_apart(self.model)


@dataclass(frozen=True)
class Score:
    """A held-out reply under each identity: the sum of its loss in nats by character, over so many tokens."""

    line: Line
    nats: dict[str, float]
    tokens: int

    def picked(self) -> list[str]:
        """The identities under which the reply is likeliest: one, or several that tie."""
        best = min(self.nats.values())
        return [who for who, nats in self.nats.items() if nats == best]


@dataclass(frozen=True)
class _Task:
    key: str
    told: str
    rendered: Rendered


def score_identities(
    judge: Judge,
    template: ChatTemplate,
    lines: Sequence[Line],
    cast: Cast,
    kept: Kept,
    update: Callable[[int], None] = lambda _: None,
) -> list[Score]:
    """The scores of `lines`, in their order; `update` is told how many new tokens are done. What is kept stays.

    A reply that does not fit into the model's context even alone has no score and is left out.
    """
    tasks = [_tasks(judge, template, line, cast) for line in lines]
    flat = [task for group in tasks for task in group]
    packs = judge.packs if any(task.key not in kept for task in flat) else False
    done = 0
    for who in dict.fromkeys(task.told for task in flat):  # a voice speaks whole rows
        own = [task for task in flat if task.told == who]
        lengths = [len(task.rendered.input_ids) for task in own]
        rows = pack(lengths, max(ROW_TOKENS, *lengths)) if packs else [[k] for k in range(len(own))]
        for row in rows:  # made of all, whatever is kept, so that going on gives the same numbers
            if any(own[k].key not in kept for k in row):
                _score_row(judge, [own[k] for k in row], kept)
                done += sum(lengths[k] for k in row)
                update(done)
    scores = []
    for line, group in zip(lines, tasks, strict=True):
        if group:
            nats = {task.told: float(kept[task.key][0]) for task in group}
            scores.append(Score(line, nats, int(kept[group[0].key][1])))
    return scores


def tokens_to_score(
    judge: Judge, template: ChatTemplate, lines: Sequence[Line], cast: Cast, kept: Kept | None = None
) -> int:
    """How many tokens `score_identities` sends through the model, less those of what is kept already."""
    tasks = (task for line in lines for task in _tasks(judge, template, line, cast))
    return sum(len(task.rendered.input_ids) for task in tasks if not (kept and task.key in kept))


def _tasks(judge: Judge, template: ChatTemplate, line: Line, cast: Cast) -> list[_Task]:
    """The reply under each identity, rendered with the same turns before it; none if it is too long."""
    opening = opening_text(cast, line.sample.scenario, line.character)
    dropped = 0
    while True:
        rendered = []
        for character in cast:
            messages = line.messages(cast, character.id)
            rendered += template.sample([messages[0], *messages[1 + dropped :]], judge.max_tokens, opening)
        if len(rendered) < len(cast.characters):
            return []
        more = max(r.dropped_turns for r in rendered)
        if not more:
            break
        dropped += more  # a longer persona leaves less room: then all do with what it leaves
    voices = judge.voices.ids if judge.voices else []
    tasks = []
    for character, one in zip(cast, rendered, strict=True):
        voice = character.id if character.id in voices else None
        made_of = {"model": judge.name, "voice": voice, "ids": one.input_ids, "labelled": one.labelled}
        tasks.append(_Task(fingerprint(made_of), character.id, one))
    return tasks


def _score_row(judge: Judge, row: Sequence[_Task], kept: Kept) -> None:
    import torch

    from mrp.models.loss import make_batch, token_losses

    batch = make_batch([[task.rendered for task in row]]).to(judge.on.device)
    speaking = judge.voices.speaking([row[0].told]) if judge.voices else nullcontext()
    with torch.no_grad(), judge.on.autocast_context(), speaking:
        losses = token_losses(judge.model, batch).double().cpu()
    sums = torch.zeros(len(row), dtype=torch.float64).index_add_(0, batch.sample.cpu(), losses)
    for task, nats in zip(row, sums.tolist(), strict=True):
        kept.add(task.key, [round(nats, 6), task.rendered.labelled])


def identity_figures(scores: Sequence[Score], cast: Cast, seed: int) -> dict[str, Any]:
    """What the scores say, for each character and in all (where each character counts the same).

    `loss`: under the own identity, nats a token. `gap`: how much higher the loss is under the others' identities, on
    average. `accuracy`: how often the own identity is the likeliest of all (a tie counts in parts). `confusion[A][B]`:
    the share of A's replies that are likeliest under B.
    """
    ids = [c.id for c in cast]
    found: dict[str, Any] = {"chance": 1 / len(ids), "characters": {}, "confusion": confusion(scores, ids)}
    for who in ids:
        own = [s for s in scores if s.line.character == who]
        if own:
            found["characters"][who] = _figures(own, seed)
    found["all"] = _figures(scores, seed)
    return found


def identity_difference(one: Sequence[Score], other: Sequence[Score], seed: int) -> dict[str, Any]:
    """`one` minus `other` on the same replies, paired: loss and accuracy, in all."""
    units, shares = [s.line.scene for s in one], equal_shares([s.line.character for s in one])
    found = {}
    for name, value in (("loss", _own), ("gap", _gap), ("accuracy", _right)):
        pairs = difference([value(s) for s in one], [value(s) for s in other])
        weights = _token_weights(one) if name == "loss" else shares
        figure = estimate(pairs, units, seed, weights)
        found[name] = figure.as_json() if figure else None
    return found


def rows_of(scores: Sequence[Score]) -> list[list[Any]]:
    """What the figures are made of, for whoever reckons further: for each line its id, scene, character, tokens, the
    sum of its loss under the own identity, the gap, and whether the own identity was the likeliest."""
    return [
        [s.line.id, s.line.scene, s.line.character, s.tokens, s.nats[s.line.character], round(_gap(s), 6), _right(s)]
        for s in scores
    ]


def confusion(scores: Sequence[Score], ids: Sequence[str]) -> list[list[float]]:
    """Row A, column B: the share of A's replies that are likeliest under B's identity; a row of zeros for no reply."""
    rows = []
    for who in ids:
        own = [s.picked() for s in scores if s.line.character == who]
        rows.append([round(sum((b in p) / len(p) for p in own) / len(own), 6) if own else 0.0 for b in ids])
    return rows


def _figures(scores: Sequence[Score], seed: int) -> dict[str, Any]:
    units = [s.line.scene for s in scores]
    shares = equal_shares([s.line.character for s in scores])
    figures = {
        "loss": estimate([_own(s) for s in scores], units, seed, _token_weights(scores)),
        "gap": estimate([_gap(s) for s in scores], units, seed, shares),
        "accuracy": estimate([_right(s) for s in scores], units, seed, shares, is_rate=True),
    }
    return {name: figure.as_json() if figure else None for name, figure in figures.items()}


def _token_weights(scores: Sequence[Score]) -> list[float]:
    """Each token of a character counts the same, and each character."""
    tokens: dict[str, int] = {}
    for s in scores:
        tokens[s.line.character] = tokens.get(s.line.character, 0) + s.tokens
    return [s.tokens / tokens[s.line.character] for s in scores]


def _own(score: Score) -> float:
    return score.nats[score.line.character] / score.tokens


def _gap(score: Score) -> float:
    others = [nats for who, nats in score.nats.items() if who != score.line.character]
    return (sum(others) / len(others) - score.nats[score.line.character]) / score.tokens


def _right(score: Score) -> float:
    picked = score.picked()
    return (score.line.character in picked) / len(picked)

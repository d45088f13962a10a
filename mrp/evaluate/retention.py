"""What the tuned model forgot: its loss on the base's own replies to everyday prompts, beside the base's, and KL.

    figures = retention(samples, base_logits, tuned_logits, seed=0)

The prompts are the held-out half of `data/plain.py` (training may mix in the other half); nobody is played there, so
there is no persona and no voice. KL is from the base to the tuned model, over the whole vocabulary, at each position
of the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.data.view import ASSISTANT, USER, Message
from mrp.dialogue import Scene
from mrp.evaluate.identity import Judge
from mrp.evaluate.intervals import difference, estimate
from mrp.evaluate.kept import Kept
from mrp.files import fingerprint
from mrp.render import ChatTemplate, Rendered

if TYPE_CHECKING:
    import torch


def render_replies(template: ChatTemplate, scenes: Sequence[Scene], max_tokens: int) -> list[Rendered]:
    """Each prompt and reply as play sends them to the plain model, the reply learnt; too long ones are left out."""
    found = []
    for scene in scenes:
        prompt, reply = scene.turns
        found += template.sample([Message(USER, prompt.text), Message(ASSISTANT, reply.text, True)], max_tokens)
    return found


def compare_on_replies(
    base: Judge | Path | None,
    tuned: Judge,
    base_name: str,
    replies: Sequence[Rendered],
    kept: Kept,
    told: Callable[[], None] = lambda: None,
) -> list[tuple[float, float, float, int]]:
    """For each reply the sums of base loss, tuned loss and KL (nats), and its tokens.

    `base`: the folder of `keep_base`, where memory does not hold two models; None: the tuned model is one with an
    adapter (PEFT), and the base is what it is without that.
    """
    from safetensors.torch import load_file

    found = []
    for one in replies:
        key = _key(base_name, tuned.name, one)
        if key not in kept:
            before = load_file(base / f"{key}.safetensors")["before"] if isinstance(base, Path) else base
            kept.add(key, _compare(before, tuned, one))
        told()
        base_sum, tuned_sum, kl, tokens = kept[key]
        found.append((float(base_sum), float(tuned_sum), float(kl), int(tokens)))
    return found


def keep_base(base: Judge, tuned_name: str, replies: Sequence[Rendered], kept: Kept, folder: Path) -> None:
    """Write what the base says to each reply that is not compared yet into `folder` (4 bytes a token and entry of the
    vocabulary), for `compare_on_replies` when the tuned model has its place in memory."""
    import torch
    from safetensors.torch import save_file

    for one in replies:
        if (key := _key(base.name, tuned_name, one)) not in kept:
            with torch.no_grad():
                before = _log_probabilities(base, one, _places(one)).cpu().contiguous()
            save_file({"before": before}, folder / f"{key}.safetensors")


def _key(base_name: str, tuned_name: str, one: Rendered) -> str:
    return fingerprint({"base": base_name, "tuned": tuned_name, "ids": one.input_ids, "labelled": one.labelled})


def _places(one: Rendered) -> torch.Tensor:
    import torch

    return torch.tensor([k for k, learnt in enumerate(one.loss) if learnt])


def retention_figures(sums: Sequence[tuple[float, float, float, int]], seed: int) -> dict[str, Any] | None:
    """Mean loss of base and tuned model, the paired difference, and KL, nats a token, and the `lines` behind them (sums
    of base and tuned loss, tokens); None for no replies."""
    if not sums:
        return None
    tokens = [float(n) for *_, n in sums]
    base, tuned, kl = ([row[k] / row[3] for row in sums] for k in range(3))
    found: dict[str, Any] = {"replies": len(sums)}
    for name, values in (("base", base), ("tuned", tuned), ("forgot", difference(tuned, base)), ("kl", kl)):
        figure = estimate(values, range(len(sums)), seed, tokens)
        found[name] = figure.as_json() if figure else None
    return found | {"lines": [[before, after, count] for before, after, _, count in sums]}


def _compare(base: Judge | torch.Tensor | None, tuned: Judge, one: Rendered) -> list[float]:
    import torch
    import torch.nn.functional as F  # noqa: N812

    places = _places(one)
    with torch.no_grad():
        after = _log_probabilities(tuned, one, places)
        if isinstance(base, torch.Tensor):
            before = base.to(after.device)
        else:
            with nullcontext() if base else tuned.model.disable_adapter():
                before = _log_probabilities(base or tuned, one, places)
        targets = torch.tensor(one.input_ids, device=after.device)[places.to(after.device)]
        losses = [F.nll_loss(x, targets, reduction="sum").item() for x in (before, after)]
        kl = F.kl_div(after, before, reduction="sum", log_target=True).item()
    return [*(round(x, 6) for x in losses), round(max(kl, 0.0), 6), len(places)]


def _log_probabilities(judge: Judge, one: Rendered, places: torch.Tensor) -> torch.Tensor:
    """(N, V) float32 log-probabilities of what stands at `places`."""
    import torch

    ids = torch.tensor([one.input_ids], device=judge.on.device)
    with judge.on.autocast_context():
        logits = judge.model(input_ids=ids, use_cache=False).logits[0]  # (T, V)
    return torch.log_softmax(logits[places.to(logits.device) - 1].float(), -1)

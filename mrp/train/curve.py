"""When a training measures held-out loss between the ends of its epochs, for curves of what is learnt and forgotten.

    curve_steps(plan.steps, points=4)      # {25, 50, 75, 125, ...}: numbers of steps done, from 1

The points of an epoch lie evenly over its steps; its end is measured anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from mrp.train.steps import Step


def curve_steps(steps: Sequence[Step], points: int) -> set[int]:
    """The numbers of steps after which to measure, `points - 1` of each epoch (fewer if it has fewer steps)."""
    found: set[int] = set()
    of_epoch: dict[int, list[int]] = {}
    for number, step in enumerate(steps, 1):
        of_epoch.setdefault(step.epoch, []).append(number)
    for numbers in of_epoch.values():
        found |= {numbers[len(numbers) * point // points - 1] for point in range(1, points)} - {numbers[-1]}
    return found

"""Which scenes training never sees: whole scenes, chosen so that each character gives its share.

held_out_scenes({"s1": ["tang"], "s2": ["tang", "wukong"], ...}, share=0.1, seed=0)     # {"s2", ...}
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping

MIN_SCENES = 5  # a character with as many scenes has at least one held out


def held_out_scenes(
    characters_of: Mapping[str, Collection[str]], share: float, seed: int, purpose: str = "held-out"
) -> set[str]:
    """The ids of the scenes to hold out, of all scenes and the characters who speak in them.

    Scenes are asked in the order of a hash of (purpose, seed, id), so the choice depends on nothing else. About
    `share` of each character's scenes is taken, at least one of `MIN_SCENES`; every character keeps one for training,
    and that goes first where both cannot be had.
    """
    if share <= 0:
        return set()
    total = Counter(c for characters in characters_of.values() for c in set(characters))
    goal = {c: min(n - 1, max(int(share * n + 0.5), int(n >= MIN_SCENES))) for c, n in total.items()}
    queue = sorted(characters_of, key=lambda s: hashlib.sha256(f"{purpose}:{seed}:{s}".encode()).digest())
    chosen: set[str] = set()
    held: Counter[str] = Counter()

    def take(scene: str) -> None:
        chosen.add(scene)
        held.update(set(characters_of[scene]))

    def over(scene: str) -> int:
        """How many of the scene's characters have their share already."""
        return sum(held[c] >= goal[c] for c in set(characters_of[scene]))

    def possible(scene: str) -> bool:
        return scene not in chosen and all(held[c] < total[c] - 1 for c in characters_of[scene])

    for scene in queue:  # first nobody gets more than the share
        if characters_of[scene] and over(scene) == 0:
            take(scene)
    for scene in queue:  # then scenes that bring more characters nearer to it than they take beyond
        if possible(scene) and over(scene) * 2 < len(set(characters_of[scene])):
            take(scene)
    for character in sorted(total):  # at last those who have none: all their scenes are shared with others
        scenes = [s for s in queue if character in characters_of[s] and possible(s)]
        if total[character] >= MIN_SCENES and not held[character] and scenes:
            take(min(scenes, key=over))
    return chosen

"""mRP-LLM: one language model that plays a whole cast.

    mrp.load("runs/pilgrims").reply("Pigsy, any buns left?")

Imports nothing heavy: `import mrp` and `mrp --help` stay under a second. The rooms are listed in docs/design.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrp.play.troupe import Answer as Answer
    from mrp.play.troupe import Troupe as Troupe
    from mrp.play.troupe import load as load

__version__ = "0.1.0"
_OF_TROUPE = ("Answer", "Troupe", "load")  # imported when they are asked for


def __getattr__(name: str) -> Any:
    if name in _OF_TROUPE:
        from mrp.play import troupe

        return getattr(troupe, name)
    raise AttributeError(f"module 'mrp' has no attribute {name!r}")

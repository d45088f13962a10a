"""General chat data beside the cast, against forgetting: what may be one of its scenes, and the base's own as a file.

    for line in read_lines(path, None, PLAIN, name):        # its replies are the model's own
        fault = general_fault(line.result)
    write_base_replies(base, "en", cache, path, report)     # a file of such scenes, made by the base itself

General data is listed under `cast.PLAIN` and read without a cast, by the same readers as any dialogue (`formats.py`): a
system text becomes the scene's scenario; in our own format the model's lines have the speaker "plain".
"""

from __future__ import annotations

from pathlib import Path

from mrp.cast import PLAIN
from mrp.data.fix import scene_row
from mrp.data.own_replies import MAX_NEW_TOKENS, own_replies
from mrp.data.plain import Language, plain_prompts
from mrp.dialogue import Scene
from mrp.files import write_jsonl
from mrp.report import SILENT, Reporter


def general_fault(scene: Scene) -> str:
    """Why a scene cannot be general data (for a `Rejected` with the reason "no-reply"); "" if it can."""
    speakers = scene.speakers()
    if PLAIN not in speakers:
        return f"nobody here is the model itself ({PLAIN!r})"
    if speakers[0] == PLAIN:  # without a system message most templates have no place for a reply before any prompt
        return "the model speaks first; in general data somebody asks before it answers"
    return ""


def write_base_replies(
    base: Path,
    language: Language,
    cache: Path,
    path: Path,
    report: Reporter = SILENT,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> int:
    """Write what the base itself answers to the plain prompts for training, as scenes of our own format.

    Returns how many. The replies are kept in the folder `cache`, so it costs time once for each base (some minutes on a
    CPU), and the same base gives the same file.
    """
    scenes = own_replies(base, plain_prompts(language, "for_training"), cache, report, max_new_tokens)
    return write_jsonl(path, map(scene_row, scenes))

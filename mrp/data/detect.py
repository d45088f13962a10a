"""What kind of file holds dialogues, told by how it begins (and, for text and tables, by its name).

    detect(Path("aiwei.json"))                      # "array"

`read.py` asks before it reads; the formats of single lines are told apart there, line by line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from mrp.data.chat import is_chat
from mrp.data.haruhi import is_haruhi
from mrp.data.script import is_script
from mrp.data.stream import BLOCK_BYTES, BOM, PARQUET, read_beginning
from mrp.data.textlines import first_lines

Kind = Literal["lines", "array", "object", "chat", "script", "haruhi", "csv", "parquet"]
PACKED = (".gz", ".zst", ".zstd")
TABLES = (".csv", ".tsv")
LINES = (".jsonl", ".ndjson")
FIRST_LINES = 1000  # of a text, in which speeches are looked for


def detect(path: Path) -> Kind:
    """The kind of a file. Raises `InputError` for one that cannot be opened or holds no text."""
    head = read_beginning(path)
    if head.startswith(PARQUET):
        return "parquet"
    suffix = ending(path)
    if suffix in TABLES:
        return "csv"
    head = head.removeprefix(BOM)
    is_whole = len(head) < BLOCK_BYTES - len(BOM)
    first, _, rest = head.lstrip().partition(b"\n")
    first = first.strip()
    if suffix == ".txt":
        lines = first_lines(head, is_whole, FIRST_LINES)
        if is_haruhi(lines):
            return "haruhi"
        if is_script(lines):
            return "script"
    if first.startswith(b"["):
        return "lines" if rest.strip() and _is_json(first) else "array"
    if first.startswith(b"{"):
        if is_chat(first):
            return "chat"
        return "object" if suffix not in LINES and _goes_on(first, rest) else "lines"
    return "lines"


def ending(path: Path) -> str:
    """The suffix of a name in small letters, without that of its packing: ".csv" of "a.CSV.gz"."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _goes_on(first: bytes, rest: bytes) -> bool:
    """True if the object that `first` begins goes on in the next lines: it is no line of JSON Lines that is cut off,
    as the next would then begin an object of its own."""
    following = rest.lstrip()
    if not following or following.startswith(b"{"):
        return False
    try:
        msgspec.json.decode(first)
    except msgspec.DecodeError as error:
        return "truncated" in str(error)
    except (UnicodeDecodeError, RecursionError):
        pass
    return False

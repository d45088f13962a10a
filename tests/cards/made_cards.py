"""Cards of all versions, made by the test that needs them, and PNG files around them."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

from mrp.cards.png import blank_png, chunk_bytes

V1 = {
    "name": "Ada",
    "description": "{{char}} builds clocks. <BOT> trusts what ticks.",
    "personality": "Dry with {{user}}.",
    "scenario": "A workshop; {{User}} enters.",
    "first_mes": "You are late, <USER>.",
    "mes_example": "<START>\n{{user}}: How late?\n{{char}}: Four minutes.\nSit.\n<START>\nAda: Tick.\nYou: Tock?",
    "metadata": {"tool": {"name": "an editor", "version": 0.5}},
}
V2_DATA = {key: value for key, value in V1.items() if key != "metadata"} | {
    "alternate_greetings": ["Again?", "{{char}} nods."],
    "character_book": {
        "name": "Clocks",
        "extensions": {"depth": 3},
        "entries": [
            {"keys": ["tower", "bell"], "content": "The tower clock is {{char}}'s.", "enabled": True, "priority": 7},
            {"keys": ["secret"], "content": "Nobody knows.", "enabled": False, "insertion_order": 2},
            {"keys": [], "content": "The year is 1820.", "enabled": True, "constant": True, "id": 9},
            {"keys": [], "content": "Never comes up.", "enabled": True},
        ],
    },
    "extensions": {"chub": {"id": 5, "list": [None, True, 1.5]}},
    "tags": ["clocks"],
    "unknown_field": {"deep": ["kept"]},
}
V2 = {"spec": "chara_card_v2", "spec_version": "2.0", "data": V2_DATA}
V3 = {
    "spec": "chara_card_v3",
    "spec_version": "3.0",
    "data": V2_DATA | {"nickname": "Addie", "group_only_greetings": ["All here?"], "assets": [{"type": "icon"}]},
    "top_field": 1,
}


def base64_of(card: Any) -> bytes:
    return base64.b64encode(json.dumps(card).encode())


def png_with(*chunks: bytes) -> bytes:
    """A small picture with these chunks before its IEND."""
    return blank_png()[:-12] + b"".join(chunks) + chunk_bytes(b"IEND", b"")


def text_chunk(keyword: str, text: bytes, kind: str = "tEXt") -> bytes:
    head = keyword.encode("latin-1") + b"\0"
    body = {
        "tEXt": head + text,
        "zTXt": head + b"\0" + zlib.compress(text),
        "iTXt": head + b"\0\0en\0" + keyword.encode() + b"\0" + text,
        "iTXt deflated": head + b"\1\0\0\0" + zlib.compress(text),
    }[kind]
    return chunk_bytes(kind[:4].encode(), body)


def raw_chunk(kind: bytes, length: int, data: bytes) -> bytes:
    """A chunk whose length field says what it likes."""
    return struct.pack(">I", length) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path: Path, card: Any, keyword: str = "chara") -> Path:
    path.write_bytes(png_with(text_chunk(keyword, base64_of(card))))
    return path


def write_json_card(path: Path, card: Any) -> Path:
    path.write_text(json.dumps(card, ensure_ascii=False, indent=1), encoding="utf-8")
    return path

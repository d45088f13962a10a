"""Small files in the formats of benchmarks, with lines of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from projects import write_rows

PROFILES = {"孙悟空": {"性别": "男", "身份": ["齐天大圣", "大师兄"]}, "石匠": "一个爱唱歌的石匠。"}


def charactereval(folder: Path) -> Path:
    """A folder as the repository has it: a JSON array in a file called .jsonl."""
    rows: list[dict[str, Any]] = [
        {
            "id": 7,
            "role": "孙悟空",
            "novel_name": "甲",
            "context": "师父：前面是什么山？\n孙悟空：我去看看。\n师父：小心些：山高。",
        },
        {"id": 8, "role": "石匠", "novel_name": "乙", "context": "客人：你会唱歌吗？\n再大声些。"},
        {"id": 9, "role": "石匠", "novel_name": "乙", "context": "客人：石头从哪里来？"},
    ]
    write(folder / "data" / "test_data.jsonl", rows)
    write(folder / "data" / "character_profiles.json", PROFILES)
    return folder


def rolebench(folder: Path) -> Path:
    """The whole data set's folder; returns the one of its English set."""
    home = folder / "rolebench-eng" / "instruction-generalization"
    for part in ("general", "role_specific"):
        (home / part).mkdir(parents=True)
        rows = [
            {"role": role, "question": f"A {part} question {k}?", "generated": [f"{role} knows {part} {k}.", "Nobody."]}
            for role in ("Sun Wukong", "Old Mason")
            for k in range(2)
        ]
        write_rows(home / part / "test.jsonl", rows)
    write(folder / "profiles-eng" / "desc.json", {"Sun Wukong": "A monkey king.", "Old Mason": "A mason who sings."})
    return home


def coser(folder: Path) -> Path:
    """A test set with one scene of two characters and the environment."""
    lines = [
        ("Old Mason", "[He is late.] (looks up) You are late, friend."),
        ("Sun Wukong", "[How dull.] Late? I flew!"),
        ("Environment", "The wind rises."),
        ("Old Mason", "[only a thought]"),
        ("Old Mason", "Then fly again. [Go.]"),
        ("Sun Wukong", "Ha! Watch me."),
    ]
    scene = {
        "book": "The Wall",
        "i_p": 3,
        "i_c": 1,
        "scenario": "A wall at dusk.",
        "plot": {"summary": "A wall is built.", "key_characters": [{"name": "Old Mason", "description": "Tired."}]},
        "key_characters": [{"name": "Old Mason", "motivation": "He wants to go home."}, {"name": "Sun Wukong"}],
        "character_profiles": {"Old Mason": "A mason who sings.", "Sun Wukong": "A monkey king."},
        "dialogues": [{"character": who, "message": text} for who, text in lines],
        "speaking_characters_w_env": ["Old Mason", "Sun Wukong", "Environment"],
        "major_characters": ["Old Mason", "Sun Wukong"],
    }
    write(folder / "test_set.json", [scene])
    return folder / "test_set.json"


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

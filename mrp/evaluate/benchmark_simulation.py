"""Whole scenes of CoSER's test set played by one model, in the format that CoSER's own judge reads.

    scenes = simulate(player, "MODEL", players, benchmark, scenes, kept, threads=8, seed=0)
    write_simulation(folder, benchmark, scenes)       # exp/simulation/test_set_MODEL.json there

The characters' lines are all the model's own, one after another, each seeing those before. Who speaks when, and what
the environment does, are the real scene's: CoSER lets two further models decide these, and we have none. Said so in
docs/judge.md; figures made of it are not those of CoSER's table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mrp.data.coser import ENVIRONMENT, without_thoughts
from mrp.dialogue import Turn
from mrp.evaluate.asking import answer_all, seed_of
from mrp.evaluate.benchmark_cast import Players, ask_role
from mrp.evaluate.benchmark_coser import present_of, profile_of, scenario_of
from mrp.evaluate.benchmark_files import Benchmark
from mrp.evaluate.kept import Kept
from mrp.files import write_json
from mrp.play.reply import Player

WRITTEN = "simulation.json"


def simulate(
    player: Player,
    model: str,
    players: Players,
    benchmark: Benchmark,
    scenes: Sequence[str],
    kept: Kept,
    threads: int,
    seed: int,
    told: Callable[[], None] = lambda: None,
) -> dict[str, list[Turn]]:
    """What was said in each of `scenes` (ids), the environment's lines among it. All scenes go on turn by turn."""
    said: dict[str, list[Turn]] = {scene: [] for scene in scenes}
    lines = {scene: _heard(benchmark.rows[scene]) for scene in scenes}
    for k in range(max(map(len, lines.values()), default=0)):
        going = [scene for scene in scenes if k < len(lines[scene])]
        speaking = [scene for scene in going if lines[scene][k].speaker != ENVIRONMENT]
        asks = []
        for scene in speaking:
            row, name = benchmark.rows[scene], lines[scene][k].speaker
            person, scenario = f"{row['book'].strip()}/{name}", scenario_of(row, name)
            own_seed = seed_of(seed, scene, k)
            asks.append(ask_role(players, person, said[scene], present_of(row), scenario, scene, own_seed))
        answers = answer_all(player, model, asks, kept, threads, told)
        replies = {scene: answer.text for scene, answer in zip(speaking, answers, strict=True)}
        for scene in going:
            line = lines[scene][k]
            said[scene].append(Turn(line.speaker, replies.get(scene, line.text)))
    return said


def turns_to_play(benchmark: Benchmark, scenes: Sequence[str]) -> int:
    """How many replies `simulate` asks for."""
    return sum(turn.speaker != ENVIRONMENT for scene in scenes for turn in _heard(benchmark.rows[scene]))


def write_simulation(folder: Path, benchmark: Benchmark, said: dict[str, list[Turn]]) -> Path:
    """The scenes as CoSER's `gca_judging` reads them: copy it to `exp/simulation/test_set_MODEL.json` there."""
    rows = []
    for scene, turns in said.items():
        row = benchmark.rows[scene]
        names = dict.fromkeys(turn.speaker for turn in turns if turn.speaker != ENVIRONMENT)
        profiles = {name: text for name in names if (text := profile_of(row, name))}
        simulation = [{"role": turn.speaker, "content": f"{turn.speaker}: {turn.text}"} for turn in turns]
        made: dict[str, Any] = {"book_title": row["book"], "i_p": row.get("i_p"), "i_c": row.get("i_c")}
        rows.append(made | {"circumstance": row, "simulation": simulation, "involved_character_profiles": profiles})
    write_json(folder / WRITTEN, rows)
    return folder / WRITTEN


def _heard(row: dict[str, Any]) -> list[Turn]:
    lines = [(line["character"], without_thoughts(line["message"])[0].strip()) for line in row["dialogues"]]
    return [Turn(name, text) for name, text in lines if text]

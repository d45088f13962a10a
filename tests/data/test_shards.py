"""Files cut into chunks, read side by side or as shards: always the same bytes as read in one go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import fails, mrp
from dialogue_rows import pair, scene

from mrp.config import Run
from mrp.data import build, gather, sources
from mrp.data.build import build_data, build_shard, merge_shards, shard_folder
from mrp.data.sources import DialogueFile, scan
from mrp.errors import InputError, ManyFaults

MakeRun = Callable[..., Run]


def talk(name: str, count: int) -> list[Any]:
    said = ((f"{name} asks about {i * 31} stones", f"{name} counts {i * 17} birds") for i in range(count))
    lines: list[Any] = [pair(*both) for both in said]
    return [*lines, lines[0], "{broken", "", pair("nobody answers", "")]


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    both = [scene(("wukong", f"stone {i}"), ("tang", f"bird {i}"), id=f"s{i}") for i in range(20)]
    options = {"identity": 0.1, "dedupe": "near", "upsample": 2.0}
    return make_run({"tang": talk("tang", 40), "wukong": talk("wukong", 25)}, both, data=options)


def data_bytes(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.data.iterdir())}


def small_chunks(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int = 700) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(build, "scan", lambda files, *_: scan(files, chunk_bytes=chunk_bytes))
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)


def test_chunks_end_at_line_ends_and_know_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b'{"n": %d}\n' % n * (n % 3 + 1) for n in range(90)) + b'{"last": 1}')
    whole = path.read_bytes()
    chunks = scan([DialogueFile("a", path)], chunk_bytes=100).chunks
    spans = [chunk.span for chunk in chunks if chunk.span]
    assert len(spans) == len(chunks) > 10
    assert b"".join(whole[s.start : s.end] for s in spans) == whole
    for span in spans:
        assert span.first_line == whole.count(b"\n", 0, span.start) + 1
        assert whole[span.end - 1 : span.end] in (b"\n", b"}")


def test_chunks_of_any_size_give_the_same_bytes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    build_data(run)
    whole = data_bytes(run)
    for chunk_bytes in (100, 700, 5000):
        (run.data / "manifest.json").unlink()
        small_chunks(monkeypatch, chunk_bytes)
        build_data(run)
        assert data_bytes(run) == whole


def test_processes_give_the_same_bytes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    build_data(run)
    whole = data_bytes(run)
    (run.data / "manifest.json").unlink()
    small_chunks(monkeypatch, 3000)
    monkeypatch.setattr(gather, "POOL_FROM_BYTES", 0)
    monkeypatch.setattr(gather.os, "cpu_count", lambda: 2)
    build_data(run)
    assert data_bytes(run) == whole


def test_buckets_give_the_same_bytes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    build_data(run)
    whole = data_bytes(run)
    (run.data / "manifest.json").unlink()
    monkeypatch.setattr("mrp.data.assemble.BUCKET_BYTES", 1000)
    build_data(run)
    assert data_bytes(run) == whole


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_merged_give_the_bytes_of_one_build(run: Run, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    build_data(run)
    whole = data_bytes(run)
    small_chunks(monkeypatch)
    for number in range(count, 0, -1):
        build_shard(run, number, count)
    manifest = merge_shards(run)
    assert data_bytes(run) == whole
    assert manifest == json.loads(whole["manifest.json"])
    assert not (run.folder / "shards").exists()


def test_shards_that_are_missing_or_of_other_data_are_all_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no shard was built yet"):
        merge_shards(run)
    small_chunks(monkeypatch)
    for number in (1, 2, 4):
        build_shard(run, number, 4)
    about = shard_folder(run, 2, 4) / "shard.json"
    about.write_text(about.read_text(encoding="utf-8").replace('"fingerprint": "', '"fingerprint": "0'), "utf-8")
    with pytest.raises(ManyFaults) as caught:
        merge_shards(run)
    assert "shard 2 of 4 was made of other files" in str(caught.value)
    assert "shard 3 of 4 is missing" in str(caught.value)
    build_shard(run, 1, 3)
    with pytest.raises(InputError, match="shards of 3 and of 4 lie here"):
        merge_shards(run)
    assert not run.data.exists()


@pytest.mark.parametrize("shard", ["3/2", "0/2", "x", "1/", "-1/2"])
def test_a_shard_that_cannot_be_is_refused(run: Run, shard: str) -> None:
    fails(mrp("data", "build", run.path, "--shard", shard), 2, "shard")


def test_shards_by_the_command_line(run: Run) -> None:
    for shard in ("1/2", "2/2"):
        assert mrp("data", "build", run.path, "--shard", shard, "--json").json["of"] == 2
    assert mrp("data", "merge", run.path, "--json").json == build_data(run)  # which finds nothing left to do

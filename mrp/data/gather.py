"""All chunks read, by as many processes as there are cores: the parts of a build, or of a shard of it.

    folders = gather(maker, scanned, range(len(scanned.chunks)), folder, report)

A shard reads every n-th chunk into the same folders that a whole build would; so the parts of all shards together are
the parts of one build, and the same bytes come of them.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from mrp.data.part import PartMaker
from mrp.data.sources import Chunk, Scanned
from mrp.report import Reporter, resident_gib

POOL_FROM_BYTES = 2**24  # less is read before other processes have started
AHEAD = 2  # chunks waiting for each process


def gather(maker: PartMaker, scanned: Scanned, chosen: Sequence[int], folder: Path, report: Reporter) -> list[Path]:
    """Write the part of each chunk number in `chosen` under `folder`; gives back the folders in their order."""
    sizes = [_size(maker, chunk) for chunk in scanned.chunks]
    jobs = [(folder / part_name(number), scanned.chunks[number]) for number in chosen]
    total = sum(sizes[number] for number in chosen)
    done = 0
    with report.progress("reading", total, "B") as update:
        for written in _write_all(maker, jobs, total):
            done += written
            update(done, memory=f"{resident_gib():.2f} GiB")
    return [place for place, _ in jobs]


def part_name(number: int) -> str:
    """The name of a part's folder: its chunk's place among all."""
    return f"{number:06d}"


def _write_all(maker: PartMaker, jobs: Sequence[tuple[Path, Chunk]], total: int) -> Iterator[int]:
    workers = min(os.cpu_count() or 1, len(jobs))
    if workers < 2 or total < POOL_FROM_BYTES:
        for place, chunk in jobs:
            yield maker.write(place, chunk)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(maker,)) as pool:
        waiting: set[Future[int]] = set()
        try:
            for place, chunk in jobs:
                if len(waiting) >= workers * AHEAD:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
                waiting.add(pool.submit(_write, place, chunk))
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_maker: PartMaker | None = None  # of a process of the pool


def _begin(maker: PartMaker) -> None:
    global _maker
    _maker = maker
    gc.disable()  # reading makes no cycles, and looking for some takes a twentieth of its time


def _write(place: Path, chunk: Chunk) -> int:
    assert _maker is not None
    return _maker.write(place, chunk)


def _size(maker: PartMaker, chunk: Chunk) -> int:
    return chunk.span.end - chunk.span.start if chunk.span else maker.files[chunk.file].path.stat().st_size

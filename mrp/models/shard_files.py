"""The files of a model written in any order, from several threads, each tensor to its place.

    with ShardFiles(folder, shards) as files:
        files.put("lm_head.weight", 0, piece)           # bytes of a tensor, from its byte 0 on
        files.write("model.norm.weight", pieces)        # a whole tensor, piece after piece

The same files as `shards.write_shards` makes, which goes through the tensors in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import TracebackType

from mrp.models.page_cache import let_go
from mrp.models.shards import Piece, Shard, header_bytes, to_disk, write_index

FLUSH_BYTES = 256 * 2**20


class ShardFiles:
    """Files that are there at their full length, and on the disk when the block ends well.

    `tick` is told the bytes written so far. A thread beside hands them to the disk, `FLUSH_BYTES` at a time, so that
    it works from the beginning; without `keep` they then leave the memory.
    """

    def __init__(
        self, folder: Path, shards: list[Shard], tick: Callable[[int], None] = lambda _: None, keep: bool = True
    ) -> None:
        self.folder, self.shards, self.tick, self.keep = folder, shards, tick, keep
        self.places: dict[str, tuple[Path, int]] = {}  # of each tensor: its file, where it begins
        self.missing: dict[Path, int] = {}  # bytes
        self.unflushed: dict[Path, int] = {}
        self.writing: dict[Path, Lock] = {}  # the system lets one in at a time, and the others burn its time waiting
        self.written, self.lock = 0, Lock()
        self.disk, self.waiting = ThreadPoolExecutor(1), list[Future[None]]()
        for shard in shards:
            path, header = folder / shard.name, header_bytes(shard)
            at = len(header)
            for tensor in shard.tensors:
                self.places[tensor.name] = path, at
                at += tensor.nbytes
            self.missing[path], self.unflushed[path] = shard.data_bytes, 0
            self.writing[path] = Lock()
            with path.open("wb") as file:
                file.write(header)
                file.truncate(at)

    def put(self, name: str, at: int, piece: Piece) -> None:
        """Write bytes of a tensor, from its byte `at` on. May be called from several threads at once."""
        path, start = self.places[name]
        with self.writing[path], path.open("rb+", buffering=0) as file:
            file.seek(start + at)
            left = memoryview(piece)
            while left:
                left = left[file.write(left) :]
        with self.lock:
            self.written += len(piece)
            self.missing[path] -= len(piece)
            self.tick(self.written)
            self.unflushed[path] += len(piece)
            if not self.missing[path] or self.unflushed[path] >= FLUSH_BYTES:
                self.unflushed[path] = 0
                self.waiting.append(self.disk.submit(self._flush, path))

    def write(self, name: str, pieces: Iterable[Piece]) -> None:
        """Write a whole tensor."""
        at = 0
        for piece in pieces:
            self.put(name, at, piece)
            at += len(piece)

    def _flush(self, path: Path) -> None:
        to_disk(path)
        if not self.keep:
            let_go(path)

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.disk.shutdown(wait=True)
        if kind is None:
            assert not any(self.missing.values()), f"bytes that nobody wrote: {self.missing}"
            for one in self.waiting:
                one.result()
            write_index(self.folder, self.shards)

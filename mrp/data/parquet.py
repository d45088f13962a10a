"""Parquet files as rows, each with its number (from 1), a batch in memory at a time.

    names = column_names(path)
    for row in read_parquet(path, ["prompt", "response"]): ...

Called by `read.py`, together with `columns.py`; `convert.py` writes such files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mrp.data.columns import Row
from mrp.data.record import SHOWN_TEXT
from mrp.errors import InputError, need_extra

BATCH_ROWS = 1024
BUFFER_BYTES = 2**20


def column_names(path: Path) -> list[str]:
    """The columns of a Parquet file. Raises `InputError` if it is damaged, `SetupError` without pyarrow."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Every row, with these columns. Raises `InputError` where the file is damaged."""
    encode = msgspec.json.Encoder(enc_hook=str).encode
    number = 0
    with _opened(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
            for cells, fault in _cells(batch):
                number += 1
                if fault:
                    yield Row(number, {}, "", ("bad-text", fault))
                    continue
                yield Row(number, cells, encode(cells).decode()[:SHOWN_TEXT])


def _cells(batch: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a batch as dicts, each with what is wrong with it (a text that is no UTF-8)."""
    try:
        for cells in batch.to_pylist():
            yield cells, ""
        return
    except (UnicodeDecodeError, ValueError, OverflowError):
        pass
    for k in range(batch.num_rows):
        try:
            cells = batch.slice(k, 1).to_pylist()[0]
        except (UnicodeDecodeError, ValueError, OverflowError) as error:
            yield {}, f"a value cannot be read: {error}"
        else:
            yield cells, ""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise need_extra("data", "pyarrow") from None
    fix = "copy or download it again"
    try:
        # Buffered reading keeps one page of a column in memory, where the default takes whole row groups.
        with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        said = str(error).partition("\n")[0][:300]
        raise InputError(f"{path.name} is a damaged Parquet file: {said}", str(path), fix) from None

"""Files of torch.save read without trusting them: tensors and plain containers, and nothing is ever run.

    with open_pickled(Path("iter_500.pth")) as file:
        file.value["state_dict"]                # plain containers; a tensor is a `StoredPart` until it is asked for
        file.tensor(file.value["state_dict"][key])

A pickle is a small program whose instructions may name any function of any package and call it. Here the names are
looked up in a short list instead: containers, the parts of a tensor, and empty stand-ins for what XTuner, mmengine,
numpy and DeepSpeed put beside the weights. Any other name is noted, stood in for, and refused at the end of the pickle
with all names of its kind, before anything was imported or called.

The container is a zip file with stored entries: `NAME/data.pkl`, and `NAME/data/KEY` with the numbers of one storage
each (pytorch/torch/serialization.py).
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrp.errors import InputError

COPY = "copy the checkpoint anew from where it was trained"
MAX_PICKLE_BYTES = 512 * 2**20
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle of its own, before 1.6
# What reading a damaged zip file raises.
BROKEN = (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, struct.error)
STORAGES = {
    **{"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16},
    **{"DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
    "UntypedStorage": torch.uint8,
}
DTYPES = {
    *("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"),
}
# Objects beside the weights: none of them is made, whatever the pickle says they should do.
STOOD_IN = {
    *("builtins.getattr", "__builtin__.getattr", "_codecs.encode", "copyreg._reconstructor", "copy_reg._reconstructor"),
    *("builtins.object", "__builtin__.object", "builtins.bytearray", "builtins.complex", "builtins.slice"),
    *("numpy.dtype", "numpy.ndarray", "torch.device", "argparse.Namespace", "datetime.datetime"),
    *("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "torch.Generator"),
    *("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter"),
}
STOOD_IN_PATTERN = re.compile(
    r"numpy\.(_?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)|dtypes\.\w+DType|(u?int|float)(8|16|32|64))"
    r"|mmengine\.(logging|config)\.\w+\.[A-Z]\w+"
    r"|deepspeed\.runtime\.(\w+\.)*[A-Z]\w+|deepspeed\.utils\.tensor_fragment\.\w+"
)


class StandIn:
    """What stands where an object of a package was: it takes every instruction of a pickle and does nothing.

    `args` are what the object was made of, such as the number of an enum.
    """

    args: tuple[Any, ...] = ()

    def __new__(cls, *args: Any, **_: Any) -> StandIn:
        made = super().__new__(cls)
        made.args = args
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """An instruction of a pickle."""

    def extend(self, _: Any) -> None:
        """An instruction of a pickle."""


@dataclass(frozen=True)
class Storage:
    """Numbers in the file: `count` items of `dtype` under the key `key`."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class StoredPart:
    """A tensor as a view of a storage: offset and strides in items."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def is_whole(self) -> bool:
        """True if this is the whole storage, row after row."""
        steps = tuple(math.prod(self.shape[k + 1 :]) for k in range(len(self.shape)))
        is_all = not self.offset and math.prod(self.shape) == self.storage.count
        return is_all and self.strides == steps and min(self.shape, default=0) >= 0


class PickledFile:
    """An open file of torch.save: its value, and its tensors one by one."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str, value: Any) -> None:
        self.path, self.value = path, value
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, torch.Tensor] = {}

    def tensor(self, part: StoredPart, name: str) -> torch.Tensor:
        """The numbers of a tensor, as stored, in memory of their own. `InputError` where they do not fit the file."""
        where = f"{self.path}: {name}"
        if part.is_whole and part.storage.key not in self._storages:
            return self._read(part.storage, where).view(part.shape)  # no other tensor gets this memory
        storage = self._storages.get(part.storage.key)
        if storage is None:
            storage = self._storages[part.storage.key] = self._read(part.storage, where)
        storage = storage.view(part.dtype)
        last = part.offset + sum((n - 1) * step for n, step in zip(part.shape, part.strides, strict=True))
        is_empty = 0 in part.shape
        if min((part.offset, *part.shape, *part.strides)) < 0 or (not is_empty and last >= len(storage)):
            raise InputError("the tensor lies outside of its numbers", where, COPY)
        return storage.as_strided(part.shape, part.strides, part.offset).clone()

    def _read(self, storage: Storage, where: str) -> torch.Tensor:
        name = f"{self._prefix}data/{storage.key}"
        wanted = storage.count * storage.dtype.itemsize
        try:
            info = self._archive.getinfo(name)
            if info.file_size != wanted:
                what = f"{info.file_size:,} bytes are stored where {wanted:,} belong"
                raise InputError(what, where, COPY)
            data = bytearray(self._archive.read(name))
        except KeyError:
            raise InputError(f"the file lacks its numbers ({name})", where, COPY) from None
        except BROKEN as error:
            raise InputError(f"the numbers are damaged: {error}", where, COPY) from None
        return torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)


@contextmanager
def open_pickled(path: Path) -> Iterator[PickledFile]:
    """Open a file of torch.save; its value holds plain containers, numbers, texts, `StoredPart` and `StandIn`.

    Raises `InputError` for a file that is cut off, in the format of torch before 1.6, or no such file at all, and for
    a pickle that wants to run anything, with the names of what it wanted.
    """
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InputError(f"no such file: {path.name}", str(path), "check the path") from None
    except BROKEN as error:
        raise _not_a_zip(path, error) from None
    with archive:
        prefix, data = _pickle_of(archive, path)
        yield PickledFile(path, archive, prefix, _load(io.BytesIO(data), path))


def tensors_in(state: Any) -> dict[str, StoredPart]:
    """The tensors of a state dict; what else it may hold is left out."""
    if not isinstance(state, dict):
        return {}
    return {str(name): part for name, part in state.items() if isinstance(part, StoredPart)}


def _pickle_of(archive: zipfile.ZipFile, path: Path) -> tuple[str, bytes]:
    """What the names of the entries begin with, and the pickle."""
    pickles = [info for info in archive.infolist() if info.filename.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise InputError("the zip file is no file of torch.save: it has no data.pkl", str(path), COPY)
    packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1]
    if packed or pickles[0].file_size > MAX_PICKLE_BYTES:
        what = "the zip file is no file of torch.save: it is compressed, encrypted or its pickle is too large"
        raise InputError(what, str(path), COPY)
    prefix = pickles[0].filename.removesuffix("data.pkl")
    try:
        if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
            fix = "save it anew on an ordinary (little-endian) machine"
            raise InputError("the numbers are stored big-endian", str(path), fix)
        return prefix, archive.read(pickles[0])
    except BROKEN as error:
        raise InputError(f"the file is damaged: {error}", str(path), COPY) from None


def _not_a_zip(path: Path, error: Exception) -> InputError:
    """Why a file is no zip file; a bare pickle is gone through first, so that a malicious one is named as such."""
    if path.is_dir():
        return InputError("a folder stands where a file is wanted", str(path), "name the file in it")
    with path.open("rb") as file:
        start = file.read(len(LEGACY))
        if start.startswith(b"PK"):
            return InputError(f"the file is cut off: {error}", str(path), COPY)
        try:
            file.seek(0)
            for _ in range(8):  # the old format is a few pickles one after another
                if file.peek(1):
                    _load(file, path)
        except InputError as found:
            if isinstance(found, Malicious):
                return found
    if start == LEGACY:
        fix = "where you trust it, save it anew: torch.save(torch.load(FILE), NEW_FILE) with torch 1.6 or later"
        return InputError("the file has the format of torch before 1.6, which is not read", str(path), fix)
    return InputError("this is no file of torch.save", str(path), "name the .pth that XTuner wrote")


# -- the pickle --------------------------------------------------------------------------------------------------------


class Malicious(InputError):
    """A pickle that names things which no checkpoint needs."""

    def __init__(self, path: Path, names: list[str]) -> None:
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        what = f"the pickle in the file wants {shown}, as a malicious one does that runs code when it is loaded"
        fix = "nothing of it was run; do not load it with torch.load, and get the checkpoint from its source"
        super().__init__(what, str(path), fix)


def _load(file: Any, path: Path) -> Any:
    unpickler = _Unpickler(file)
    try:
        value = unpickler.load()
    except Exception as error:  # whatever bytes make an unpickler do; nothing but our own stand-ins can be called
        if unpickler.refused:
            raise Malicious(path, unpickler.refused) from None
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"the pickle in it cannot be read: {first}", str(path), COPY) from None
    if unpickler.refused:
        raise Malicious(path, unpickler.refused)
    return value


class _Unpickler(pickle.Unpickler):
    """Names are looked up in our lists alone: no import, no attribute of anything."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")
        self.refused: list[str] = []
        # Made anew for each file: a pickle may write into the classes that it is given.
        self._stand_in = type("StandIn", (StandIn,), {})
        self._known: dict[str, Any] = {
            **{f"{m}.{n}": kind for m in ("builtins", "__builtin__") for n, kind in CONTAINERS.items()},
            "collections.OrderedDict": collections.OrderedDict,
            "collections.defaultdict": lambda *_: {},
            "collections.deque": lambda *_: [],
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor_v2": lambda *given: _rebuild_tensor(*given),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._tensor._rebuild_from_type_v2": lambda rebuild, _kind, given, *_: rebuild(*given),
            "torch.serialization._get_layout": lambda *_: None,
            **{f"torch.{name}": _StorageKind(dtype) for name, dtype in STORAGES.items()},
            "torch.storage.UntypedStorage": _StorageKind(torch.uint8),
        }

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._known:
            return self._known[full]
        if module == "torch" and name in DTYPES:
            return self._stand_in(name)
        if full not in STOOD_IN and not STOOD_IN_PATTERN.fullmatch(full) and full not in self.refused:
            self.refused.append(full)
        return self._stand_in

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, count = pid
        is_known = isinstance(storage, _StorageKind) and isinstance(storage.dtype, torch.dtype)
        if kind != "storage" or not is_known or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("a tensor's numbers are told in an unknown way")
        return Storage(str(key), storage.dtype, count)


CONTAINERS: dict[str, Any] = {"set": set, "frozenset": frozenset, "dict": dict, "list": list, "tuple": tuple}


@dataclass(frozen=True)
class _StorageKind:
    dtype: torch.dtype


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredPart:
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, Storage) or len(shape) != len(strides) or not all(type(n) is int for n in numbers):
        raise pickle.UnpicklingError("a tensor is told in an unknown way")
    return StoredPart(storage, offset, tuple(shape), tuple(strides))

"""The last step of a pull: files as they came into a base folder that can be used at once, with a record.

    assemble(listing, chosen, places, folder, downloads, wanted, report)

InternLM2 is laid out as a Llama, torch's `.bin` files become safetensors (no pickle runs), a GGUF is dequantised; all
else stays byte for byte what the hub has. The record, mrp-base.json, says where everything came from.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from mrp import __version__
from mrp.files import replacing_folder, sha256_file, write_json
from mrp.models.bases import RECORD_FORMAT, RECORD_NAME, check_base_folder, is_internlm2, whole_record
from mrp.models.hub_bases import Wanted
from mrp.models.hub_files import BIN, BIN_INDEX, Chosen, Listing
from mrp.report import Reporter

SHARD_BYTES = 2_000_000_000  # of files made here


def assemble(
    listing: Listing,
    chosen: Chosen,
    places: dict[str, Path],
    folder: Path,
    downloads: Path,
    wanted: Wanted,
    report: Reporter,
) -> None:
    """Make `folder` of the downloaded files (name to place), whole or not at all.

    Raises `InputError` with every fault of a model that cannot serve as base; the downloads stay then.
    """
    raw = downloads / "model"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir()
    for name, place in places.items():
        _give(place, raw / name)
    with replacing_folder(folder) as out:
        conversion = _convert(raw, out, chosen, report)
        check_base_folder(out)
        write_json(out / RECORD_NAME, _record(listing, chosen, out, conversion, wanted))
    shutil.rmtree(raw, ignore_errors=True)


def _convert(raw: Path, out: Path, chosen: Chosen, report: Reporter) -> str | None:
    """Fill `out` from `raw`; returns the name of the conversion, if there was one."""
    if is_internlm2(raw):
        from mrp.models.internlm2 import TO_LLAMA, to_llama

        to_llama(raw, out, report=report)
        _give_all(raw, out, {"README.md", "USE_POLICY.md"})
        return TO_LLAMA
    if chosen.kind == "gguf":
        from mrp.models.gguf import convert_gguf

        report.line("converting to safetensors in bf16 (once)")
        convert_gguf(raw / chosen.weights[0].path, out)
        _give_all(raw, out, {file.path for file in chosen.small})
        return "gguf-to-safetensors"
    if chosen.kind == "bin":
        bin_to_safetensors(raw, out, report)
        _give_all(raw, out, {file.path for file in chosen.small} - {BIN, BIN_INDEX})
        return "bin-to-safetensors"
    _give_all(raw, out, {file.path for file in chosen.files})
    return None


def _give_all(raw: Path, out: Path, names: set[str]) -> None:
    for name in sorted(names):
        if (raw / name).is_file() and not (out / name).exists():
            _give(raw / name, out / name)


def _give(place: Path, target: Path) -> None:
    """The same file under another name: nothing is copied where the file system knows links."""
    try:
        os.link(place, target)
    except OSError:
        shutil.copyfile(place, target)


def bin_to_safetensors(src: Path, out: Path, report: Reporter) -> None:
    """Write the weights of `src`, in torch's `.bin` files, as safetensors to `out`, byte for byte.

    Raises `InputError` for a pickle that holds more than tensors (nothing of it runs) and for broken files.
    """
    from mrp.models.bin_files import read_bin_weights
    from mrp.models.shards import plan_shards, raw_pieces, write_shards

    weights = read_bin_weights(src)
    shards = plan_shards(weights.values(), SHARD_BYTES)
    with report.progress("converting to safetensors", sum(shard.data_bytes for shard in shards), "B") as update:
        write_shards(out, shards, raw_pieces, update)


def convert_local_gguf(gguf: Path, folder: Path, report: Reporter) -> None:
    """Make `folder` of a GGUF file of the person's own, unless it was made of this very file already."""
    from mrp.models.gguf import convert_gguf

    sha256 = sha256_file(gguf)
    if (whole_record(folder) or {}).get("hashes") == {gguf.name: sha256}:
        return
    report.line(f"converting {gguf.name} to safetensors in bf16 (once)")
    with replacing_folder(folder) as out:
        convert_gguf(gguf, out)
        check_base_folder(out)
        record = {"name": folder.name, "source": "file", "license": None, "conversion": "gguf-to-safetensors"}
        write_json(out / RECORD_NAME, _finished({**record, "hashes": {gguf.name: sha256}}, out))


def _record(listing: Listing, chosen: Chosen, out: Path, conversion: str | None, wanted: Wanted) -> dict[str, Any]:
    record = {
        "name": wanted.folder_name,
        "source": listing.source,
        "repo": listing.repo,
        "revision": listing.revision,
        "commit": listing.commit,
        "license": wanted.base.license if wanted.base else listing.license,
        "conversion": conversion,
        "hashes": {file.path: file.sha256 or f"git-sha1:{file.git_sha1}" for file in chosen.files},
    }
    return _finished(record, out)


def _finished(record: dict[str, Any], out: Path) -> dict[str, Any]:
    """`record` with what lets the next call see that the folder is whole."""
    return {
        "format": RECORD_FORMAT,
        **record,
        "made_with": {"mrp-llm": __version__},
        "files": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
    }

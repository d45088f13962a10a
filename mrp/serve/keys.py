"""API keys: a file with their hashes, compared in constant time.

    key = add_key(Path("keys.txt"), "phone")     # shown once; the file gets `phone SHA256`
    keys = load_keys(Path("keys.txt"))
    keys.owner("mrp-...")                        # "phone", or None

A key holds 256 random bits, so a plain SHA-256 of it cannot be searched for.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from mrp.errors import InputError, MrpError, raise_all
from mrp.files import is_safe_id, replacing

SHORTEST_KEY = 16  # characters, of one that a person brings (MRP_API_KEY)


class Keys:
    """Names and SHA-256 (hex) of the keys that open the server."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, key: str) -> str | None:
        """The name of a key. All are compared, so that the time tells nothing."""
        given, found = _hash(key), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(given, known):
                found = name
        return found


def load_keys(path: Path | None, from_environment: str | None = None) -> Keys:
    """The keys of a file, and the one of MRP_API_KEY; `InputError` naming each line that is none."""
    hashes: dict[str, str] = {}
    faults: list[MrpError] = []
    if path is not None:
        for number, line in enumerate(_lines(path), 1):
            name, _, value = line.partition(" ")
            if not re.fullmatch(r"[0-9a-f]{64}", value.strip()) or name in hashes:
                what = f"the name {name!r} is used twice" if name in hashes else "this is no `NAME SHA256`"
                faults.append(InputError(what, f"{path}:{number}", f"mrp new-key {path} --name NAME writes such lines"))
            hashes[name] = value.strip()
        if not hashes:
            faults.append(InputError("there is no key in this file", str(path), f"mrp new-key {path} --name NAME"))
    raise_all("keys", faults)
    if from_environment is not None:
        if len(from_environment) < SHORTEST_KEY:
            fix = f"take {SHORTEST_KEY} random characters or more"
            raise InputError("the key is too short to be safe", "MRP_API_KEY", fix)
        hashes["MRP_API_KEY"] = _hash(from_environment)
    return Keys(hashes)


def add_key(path: Path, name: str) -> str:
    """Make a key, add its hash to the file, and return the key itself, which is kept nowhere."""
    if not is_safe_id(name):
        raise InputError(f"{name!r} cannot be the name of a key", "--name", "use ASCII letters, digits, '_' and '-'")
    lines = [line for line in _lines(path) if line] if path.exists() else []
    if any(line.partition(" ")[0] == name for line in lines):
        fix = "choose another name, or delete its line first"
        raise InputError(f"there is a key named {name!r} already", str(path), fix)
    key = f"mrp-{secrets.token_urlsafe(32)}"
    with replacing(path) as file:
        file.writelines(f"{line}\n" for line in [*lines, f"{name} {_hash(key)}"])
    return key


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        fix = f"mrp new-key {path} --name NAME makes one"
        raise InputError(f"the file of keys cannot be read: {error}", str(path), fix) from None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

"""A player whose model runs in a server: the tokenizer and the cast are here, the weights are not loaded.

player = remote_player(Path("mrp.yaml"), OpenAIEngine("http://127.0.0.1:8000/v1"))
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mrp.cast import Cast, load_cast
from mrp.config import KEPT_CAST_FILE, KEPT_RUN_FILE, RUN_FILE, ChatOptions, chat_options, load_run
from mrp.errors import InputError
from mrp.files import read_json
from mrp.models.bases import find_base
from mrp.models.load import load_tokenizer, template_text
from mrp.play.engine import Engine
from mrp.play.reply import Player
from mrp.render import ChatTemplate


def open_anywhere(
    path: Path,
    *,
    url: str | None = None,
    model: str | None = None,
    base: str | None = None,
    cast: Path | None = None,
    template: Path | None = None,
    flags: dict[str, str] | None = None,
    bits: str = "auto",
    chats: int | None = 1,
    engine: str = "transformers",
    warn: Callable[[str], None] = lambda _: None,
) -> Player:
    """The player of what RUN names: its weights loaded here, or (`url`) those of a server, which may want a key.

    Raises `InputError` for flags that go with the other of the two.
    """
    if url is None:
        if model is not None:
            raise InputError("--model names one of a server's models", "--model", "add --base-url URL")
        from mrp.play.open import open_player

        return open_player(
            path, base=base, cast=cast, template=template, flags=flags, bits=bits, chats=chats, engine=engine
        )
    here = {"--base": base, "--bits": bits != "auto", "--engine": engine != "transformers"}
    for flag, is_given in here.items():
        if is_given:
            raise InputError(f"{flag} goes with weights that are loaded here", flag, f"leave {flag} or --base-url out")
    from mrp.play.remote import OpenAIEngine

    server = OpenAIEngine(url, model, api_key=os.environ.get("MRP_UPSTREAM_KEY"), warn=warn)
    return remote_player(path, server, cast=cast, flags=flags, template=template)


def remote_player(
    path: Path,
    engine: Engine,
    *,
    cast: Path | None = None,
    template: Path | None = None,
    flags: dict[str, str] | None = None,
) -> Player:
    """`path`: a run (trained here or not; its base's tokenizer renders), or a folder with a tokenizer."""
    characters: Cast | None = None
    options: ChatOptions
    if path.is_file() or (path / KEPT_RUN_FILE).exists() or (path / RUN_FILE).exists():
        run = load_run(path, flags)
        is_merged = (run.merged / "config.json").is_file()
        folder = run.merged if is_merged else find_base(run.config.base, run.path.parent)
        characters, options = run.cast, run.config.chat
    else:
        if not (path / "tokenizer_config.json").is_file():
            fix = "name a run, or a folder with the tokenizer of the model that the server has"
            raise InputError("here is neither a run nor a tokenizer", str(path), fix)
        folder, options = path, chat_options(flags or {})
        if (path / KEPT_CAST_FILE).is_file() and cast is None:
            characters = load_cast(path / KEPT_CAST_FILE)
    if cast is not None:
        characters = load_cast(cast)
    text = template_text(template) if template else None
    renderer = ChatTemplate(load_tokenizer(folder), text, str(template or folder))
    return Player(engine, renderer, characters, renderer.stop_ids(_eos(folder)), options)


def _eos(folder: Path) -> int | list[int] | None:
    path = folder / "generation_config.json"
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    return found if isinstance(found, int | list) else None

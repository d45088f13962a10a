"""`mrp serve RUN`: open the player, bind, serve, and drain when asked to stop.

mrp serve run/ --port 8000
mrp serve run/ --engine openai --base-url http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.errors import InputError, need_extra
from mrp.play.reply import Player
from mrp.report import Reporter

ENGINES = ("transformers", "openai")
MOST_CONNECTIONS = 1000


@dataclass(frozen=True)
class ServeFlags:
    """The flags of `mrp serve`."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    insecure: bool = False
    allow_system: bool = False
    allow_host: tuple[str, ...] = ()
    engine: str = "transformers"
    base_urls: tuple[str, ...] = ()
    model: str | None = None
    max_running: int = 8
    max_waiting: int = 64
    requests_per_minute: int = 600
    timeout_s: float = 600.0
    drain_s: int = 30
    bits: str = "auto"


def serve_command(
    run: Path,
    flags: ServeFlags,
    base: str | None,
    cast: Path | None,
    template: Path | None,
    settings: dict[str, str],
    report: Reporter,
) -> dict[str, Any]:
    """Serve until SIGTERM or Ctrl-C; what runs then is finished first, for `drain_s` seconds at most."""
    try:
        import uvicorn

        from mrp.play.room import room_of
        from mrp.serve.app import build_app
        from mrp.serve.gate import GateOptions
        from mrp.serve.keys import load_keys
        from mrp.serve.service import ServeOptions
    except ImportError as error:
        raise need_extra("serve", str(error.name)) from None
    keys = load_keys(flags.keys, os.environ.get("MRP_API_KEY"))
    check_exposure(flags.host, bool(keys), flags.insecure)
    listening = bind(flags.host, flags.port)
    try:
        with report.waiting("loading the model" if flags.engine == "transformers" else "loading the tokenizer"):
            player = open_engine(run, flags, base, cast, template, settings, report)
            router = room_of(run, player).router
        own_names = {name.lower() for name in (*flags.allow_host, flags.host)}
        gate = GateOptions(tuple(sorted(own_names)), requests_per_minute=flags.requests_per_minute)
        limits = (flags.max_running, flags.max_waiting)
        options = ServeOptions(gate, flags.allow_system, *limits, timeout_s=flags.timeout_s)
        config = uvicorn.Config(
            build_app(player, options, keys, router),
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=flags.drain_s,
        )
        log_to_stderr()
        address = f"http://{url_host(flags.host)}:{listening.getsockname()[1]}"
        names = ", ".join(c.id for c in player.cast or ()) or "the plain model"
        report.line(f"serving {names} on {address}/v1 {'with' if keys else 'without'} API keys; Ctrl-C ends it")
        run_until_stopped(uvicorn.Server(config), listening)
    finally:
        listening.close()
    return {"address": address}


def run_until_stopped(server: Any, listening: socket.socket) -> None:
    """Run the server. The signal that stops it is its reason to drain, not to end with an error."""

    def heard(*_: object) -> None:  # uvicorn hands a signal on when it has drained
        pass

    before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_engine(
    run: Path,
    flags: ServeFlags,
    base: str | None,
    cast: Path | None,
    template: Path | None,
    settings: dict[str, str],
    report: Reporter,
) -> Player:
    """The player of a run with the chosen engine."""
    if flags.engine not in ENGINES:
        raise InputError(f"no engine {flags.engine!r}", "--engine", f"one of: {', '.join(ENGINES)}")
    if flags.engine == "transformers":
        if flags.base_urls or flags.model is not None:
            raise InputError("--base-url and --model go with another engine", "--engine", "add --engine openai")
        from mrp.play.open import open_player

        return open_player(
            run,
            base=base,
            cast=cast,
            template=template,
            flags=settings,
            bits=flags.bits,
            chats=flags.max_running,
        )
    if not flags.base_urls:
        fix = "for example --base-url http://127.0.0.1:8000/v1"
        raise InputError("the engine openai needs the address of a server", "--base-url", fix)
    if base is not None:
        raise InputError("--base goes with the engine transformers", "--base", "leave it out")
    if flags.bits != "auto":
        raise InputError("--bits goes with the engine transformers", "--bits", "leave it out")
    from mrp.play.failover import FailoverEngine
    from mrp.play.remote import OpenAIEngine
    from mrp.play.remote_player import remote_player

    key = os.environ.get("MRP_UPSTREAM_KEY")
    engines = [OpenAIEngine(url, flags.model, api_key=key, warn=report.warn) for url in flags.base_urls]
    return remote_player(run, FailoverEngine(engines), cast=cast, template=template, flags=settings)


def check_exposure(host: str, has_keys: bool, insecure: bool) -> None:
    """`InputError` where others could reach a server without a key."""
    if has_keys or insecure or is_loopback(host):
        return
    fix = "add --keys FILE (mrp new-key FILE makes one) or set MRP_API_KEY; --insecure serves anybody who can reach it"
    raise InputError(f"everybody who can reach {host} could use this server without a key", "--host", fix)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; `InputError` where the address is taken or not ours."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        fix = "choose another --port or --host"
        raise InputError(f"cannot listen on {host}:{port}: {error}", "--host --port", fix) from None


def url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class JsonLines(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        told: dict[str, Any] = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname}
        told |= json.loads(message) if message.startswith("{") else {"message": message}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("mrp.serve", "mrp.play", "uvicorn.error"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO if name.startswith("mrp.") else logging.WARNING)

"""A server of ours on the loopback, in a thread, and engines to put behind it.

with serving(scripted(CAST, "Ha!")) as url:
    httpx.get(f"{url}/v1/models")
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
import uvicorn
from scripted import CAST, TEMPLATE

from mrp.cast import Cast
from mrp.config import ChatOptions
from mrp.play.engine import Request, Token
from mrp.play.reply import Player
from mrp.play.route import Router
from mrp.serve.app import build_app
from mrp.serve.keys import Keys
from mrp.serve.service import ServeOptions, Service


class Running:
    """A server that runs: its address and what is behind it."""

    def __init__(self, url: str, service: Service) -> None:
        self.url, self.service = url, service

    def wait_for(self, what: Any, seconds: float = 10.0) -> None:
        """Until `what()` is true; fails after `seconds`."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.01)

    def wait_until_idle(self) -> None:
        self.wait_for(lambda: self.service.slots.running == 0 and self.service.slots.waiting == 0)


@contextmanager
def serving(
    player: Player, options: ServeOptions = ServeOptions(), keys: Keys = Keys({}), router: Router | None = None
) -> Iterator[Running]:
    app = build_app(player, options, keys, router)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.service)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


class EchoEngine:
    """Says the last user's line back, token by token; records its prompts. `gate`: waits before each token for it."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.gate: threading.Semaphore | None = None
        self.logprob: float | None = None
        self.fails_at: int | None = None  # tokens after which it dies
        self.prompts: list[list[int]] = []
        self.running = 0
        self.most_running = 0
        self.closed = False
        self.lock = threading.Lock()

    def stream(self, request: Request) -> Iterator[Token]:
        with self.lock:
            self.prompts.append(list(request.ids))
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        try:
            text = str(TEMPLATE.tokenizer.decode(list(request.ids)))
            last = text.rsplit("<|im_start|>user\n", 1)[-1].split("<|im_end|>")[0]
            for count, token in enumerate(TEMPLATE.plain.ids(last, "")[: request.sampling.max_new_tokens]):
                if self.gate is not None:
                    self.gate.acquire()
                if count == self.fails_at:
                    raise OSError("the machine is on fire: secret detail")
                time.sleep(self.pause_s)
                top = ((token, -0.5), (1, -2.0)) if request.sampling.top_logprobs else ()
                yield Token(token, None, self.logprob if request.sampling.top_logprobs is not None else None, top)
        finally:
            with self.lock:
                self.running -= 1

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None = None
    ) -> list[list[float]]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


class EchoPlayer(Player):
    engine: EchoEngine


def echoing(cast: Cast | None = CAST, pause_s: float = 0.0, **options: Any) -> EchoPlayer:
    """A player whose engine says the last line back."""
    return EchoPlayer(EchoEngine(pause_s), TEMPLATE, cast, TEMPLATE.stop_ids(), ChatOptions(**options))


def with_gate(player: EchoPlayer) -> EchoPlayer:
    """`player` with an engine that gives a token for each `player.engine.gate.release()`."""
    player = replace(player)
    player.engine.gate = threading.Semaphore(0)
    return player

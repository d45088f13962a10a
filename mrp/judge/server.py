"""The judge behind an OpenAI-compatible endpoint: one question, one answer, with what it cost.

    server = JudgeServer("https://HOST/v1", "MODEL", api_key)
    server.ask(messages)                 # Answered(text, tokens_in, tokens_out)

Requests go through `play/wire.py`, which tries again at 429 and where no connection is made. Some models refuse
`temperature`, `seed` or `max_tokens`: what a server names as the fault is left out (or called
`max_completion_tokens`) from then on, and the report says so.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from mrp.errors import InputError
from mrp.judge.questions import Message
from mrp.play.reply import NOT_TEXT
from mrp.play.wire import RemoteError, Wire

OPTIONAL = ("seed", "temperature", "max_tokens")
REFUSED = (400, 422)
NEVER = (401, 402, 403, 404, 405)  # the next question would end in the same way


class Answered(NamedTuple):
    """A judge's answer as it came. Tokens are None where the server does not tell them."""

    text: str
    tokens_in: int | None
    tokens_out: int | None


class JudgeServer:
    """One model of one server. Several threads may ask at once; nothing is sent before.

    `max_tokens`: of an answer, the thoughts of a thinking model included.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        seed: int = 0,
        max_tokens: int = 1024,
        timeout_s: float = 120.0,
        retries: int = 4,
        first_wait_s: float = 0.5,
    ) -> None:
        if not model.strip():
            raise InputError("the judge has no name", "--model", "name a model that the server has")
        if not base_url.startswith(("http://", "https://")):
            fix = "for example --base-url https://HOST/v1"
            raise InputError(f"{base_url!r} is no address of a server", "--base-url", fix)
        if "@" in base_url or "?" in base_url:
            what = "the address of the judge holds a key or a query, and it would be written into the report"
            raise InputError(what, "--base-url", "give the key in an environment variable (--key-env)")
        self.wire = Wire(base_url, api_key, timeout_s=timeout_s, retries=retries, first_wait_s=first_wait_s)
        # Most endpoints end in /v1 (`Wire` takes that off); one with another path is meant as it is written.
        plain = self.wire.http.base_url.path.strip("/") == "" or base_url.rstrip("/").endswith("/v1")
        self.path = "/v1/chat/completions" if plain else "/chat/completions"
        self.model, self.seed, self.max_tokens = model, seed, max_tokens
        self.left_out: set[str] = set()
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        return f"{self.wire.url}{self.path}"

    def identity(self) -> dict[str, Any]:
        """What an answer depends on besides the question. The key is no part of it."""
        return {"url": self.where, "model": self.model, "seed": self.seed, "max_tokens": self.max_tokens}

    def ask(self, messages: Sequence[Message]) -> Answered:
        """The answer of the judge. Raises `RemoteError` where there is none."""
        for _ in range(len(OPTIONAL) + 1):
            body = self._body(messages)
            try:
                return _answered(self.wire.ask("POST", self.path, body), self.where)
            except RemoteError as error:
                if error.status not in REFUSED or not self._leave_out(error.what, body):
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        self.wire.close()

    def _body(self, messages: Sequence[Message]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        wanted: dict[str, Any] = {"temperature": 0, "seed": self.seed, "max_tokens": self.max_tokens}
        body |= {name: value for name, value in wanted.items() if name not in self.left_out}
        if "max_tokens" in self.left_out:
            body["max_completion_tokens"] = self.max_tokens
        return body

    def _leave_out(self, what: str, body: dict[str, Any]) -> bool:
        """Whether the fault that the server tells names an option that this request had, which then goes."""
        with self._lock:
            named = next((name for name in OPTIONAL if name in body and name in what), None)
            if named:
                self.left_out.add(named)
            return named is not None


def _answered(value: Any, where: str) -> Answered:
    try:
        text = value["choices"][0]["message"]["content"]
        usage = value.get("usage") or {}
        counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError):
        fix = "check that --base-url is an OpenAI-compatible server"
        raise RemoteError("the server's answer has no message", where, fix) from None
    known = [count if isinstance(count, int) else None for count in counts]
    # halves of surrogate pairs, which JSON can spell, could not even be kept
    return Answered(NOT_TEXT.sub("", text) if isinstance(text, str) else "", known[0], known[1])

"""What every request passes before anything is done for it: host, key, rate, form and length of the body; and what is
logged of it.

    app = Gate(app, options, keys, metrics)

Plain ASGI, so that a client's leaving reaches the endpoint. Of a request's text nothing is logged.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrp.serve.errors import ApiError
from mrp.serve.keys import Keys
from mrp.serve.limits import Rates
from mrp.serve.metrics import Metrics
from mrp.serve.page_files import OPEN as PAGE

LOG = logging.getLogger("mrp.serve")
OPEN = ("/health", "/ready", "/openapi.json", *PAGE)  # need no key
BODY_S = 30.0  # to send a request's body


@dataclass(frozen=True)
class GateOptions:
    """`hosts`: names under which the server may be called, besides addresses and localhost."""

    hosts: tuple[str, ...] = ()
    max_body_bytes: int = 2**20
    requests_per_minute: int = 600


class Gate:
    def __init__(self, app: ASGIApp, options: GateOptions, keys: Keys, metrics: Metrics, paths: set[str]) -> None:
        self.app, self.options, self.keys, self.metrics = app, options, keys, metrics
        self.rates = Rates(options.requests_per_minute)
        self.paths = [(path, re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path))) for path in sorted(paths)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        notes: dict[str, Any] = {"id": uuid.uuid4().hex, "method": scope["method"], "path": self._path(scope["path"])}
        scope.setdefault("state", {})["notes"] = notes
        notes["status"] = 499  # the client was gone before an answer began

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes["status"] = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", notes["id"].encode()), *SAFE]
            await send(message)

        try:
            try:
                body = self._check(scope, Headers(scope=scope), notes)
                inner = _Body(receive, body) if body else receive
            except ApiError as error:
                await error.response()(scope, receive, noted)
                return
            await self.app(scope, inner, noted)
        finally:
            self.metrics.requests.labels(notes["path"], str(notes["status"])).inc()
            notes["seconds"] = round(time.monotonic() - begun, 4)
            LOG.info(json.dumps(notes, ensure_ascii=False))

    def _path(self, path: str) -> str:
        return next((known for known, pattern in self.paths if pattern.fullmatch(path)), "other")

    def _check(self, scope: Scope, headers: Headers, notes: dict[str, Any]) -> int:
        """Raise `ApiError` for a request that may not pass; returns how long its body may be, 0 for none."""
        self._check_host(headers.get("host", ""))
        client = (scope.get("client") or ("?",))[0]
        if self.keys and scope["path"] not in OPEN:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            owner = self.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
            if owner is None:
                self.rates.take(client)  # guessing has its rate too
                raise ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
            client = notes["key"] = owner
        if scope["path"] not in OPEN:
            self.rates.take(client)
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return 0
        length = headers.get("content-length", "")
        if length and (not length.isdecimal() or int(length) > self.options.max_body_bytes):
            raise too_large(self.options.max_body_bytes)
        has_body = bool(length and int(length)) or "transfer-encoding" in headers
        if has_body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A page elsewhere can send other types without asking; this one needs leave, which it does not get.
            raise ApiError(415, "the body should be JSON: Content-Type: application/json", code="unsupported_type")
        return self.options.max_body_bytes

    def _check_host(self, host: str) -> None:
        """Names that are not ours are refused: a page may point its own name at this machine (DNS rebinding)."""
        name = re.sub(r":\d*$", "", host).strip("[]").lower()
        if name in ("localhost", *self.options.hosts):
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            what = f"this server is not called {name!r}; `mrp serve --allow-host {name}` lets it be"
            raise ApiError(421, what, code="unknown_host") from None


SAFE = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer"))


def too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is longer than {most:,} bytes", code="body_too_large")


class _Body:
    """`receive` that counts the body's bytes and does not wait for ever for them."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most = receive, most
        self._over = False
        self._until = time.monotonic() + BODY_S

    async def __call__(self) -> Message:
        if self._over:
            return await self._receive()
        try:
            async with asyncio.timeout(max(self._until - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_S:g} s", code="body_timeout") from None
        self._most -= len(message.get("body", b""))
        if self._most < 0:
            raise ApiError(413, "the body is too long", code="body_too_large")
        self._over = message["type"] != "http.request" or not message.get("more_body")
        return message

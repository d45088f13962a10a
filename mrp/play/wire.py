"""The way to an OpenAI-compatible server: requests with retries, and streams of server-sent events.

    wire = Wire("http://127.0.0.1:8000/v1", api_key=None)
    wire.ask("GET", "/v1/models")
    for event in wire.events("/v1/completions", {"stream": True, ...}): ...

Used by `remote.py`. A request is tried again as long as nothing of its answer has come: where no connection is made,
and at 429, 502, 503 and 504 (after Retry-After, where the server says it). A stream is never tried again in its middle.
"""

from __future__ import annotations

import email.utils
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

import httpx

from mrp.errors import InputError, MrpError

RETRIED = (429, 502, 503, 504)
NO_ANSWER = (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
LONGEST_WAIT_S = 30.0  # a server that asks to wait longer is as good as gone
LARGEST_ANSWER_BYTES = 64 * 2**20
DONE = "[DONE]"
Trace = Callable[[str, dict[str, Any]], None]  # httpcore's: the name of what happened, and what it gave


class RemoteError(MrpError):
    """The server behind failed, or ended in the middle. `status`: its HTTP status, 0 where it gave none."""

    def __init__(self, what: str, where: str = "", fix: str = "", status: int = 0) -> None:
        super().__init__(what, where, fix)
        self.status = status


class Wire:
    """Connections to one server; several threads may use it at once."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 4,
        first_wait_s: float = 0.5,
    ) -> None:
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self.retries, self.first_wait_s, self.timeout_s = retries, first_wait_s, timeout_s
        self.closed = threading.Event()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(timeout_s, connect=min(10.0, timeout_s), pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        try:
            if not httpx.URL(self.url).host:
                raise httpx.InvalidURL("it names no host")
            self.http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, limits=limits)
            # Each stream has a connection of its own, so that it can be dropped whatever it waits for.
            alone = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            self.streams = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, limits=alone)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
            fix = "for example --base-url http://127.0.0.1:8000/v1"
            raise InputError(f"{base_url!r} is no address of a server: {error}", "--base-url", fix) from None

    def ask(self, method: str, path: str, body: Any = None, retries: int | None = None) -> Any:
        """The JSON that the server answers; raises `RemoteError` with its status otherwise."""
        response = self._open(self.http.build_request(method, path, json=body), self.http, self.closed, retries)
        try:
            return json.loads(self._whole(response))
        except ValueError:
            raise RemoteError("the server's answer is not JSON", self._place(path), self._not_one()) from None
        except httpx.HTTPError as error:
            raise self.broken(error, path) from error
        finally:
            response.close()

    def events(self, path: str, body: Any) -> Events:
        """The JSON objects of a stream of server-sent events, as they come. The request is sent at the first."""
        return Events(self, path, body)

    def close(self) -> None:
        self.closed.set()
        self.http.close()
        self.streams.close()

    def open_stream(self, path: str, body: Any, stop: threading.Event, trace: Trace) -> httpx.Response:
        """The response to a request for a stream, its status 200, nothing of its body read."""
        request = self.streams.build_request("POST", path, json=body, extensions={"trace": trace})
        return self._open(request, self.streams, stop)

    # -- one request --------------------------------------------------------------------------------------------------

    def _open(
        self, request: httpx.Request, client: httpx.Client, stop: threading.Event, retries: int | None = None
    ) -> httpx.Response:
        path, retries = request.url.path, self.retries if retries is None else retries
        for attempt in range(retries + 1):
            last = attempt == retries
            try:
                response = client.send(request, stream=True)
            except NO_ANSWER as error:
                if last or stop.is_set():
                    raise self.broken(error, path) from error
                self._wait(self._pause(attempt), stop)
                continue
            except httpx.HTTPError as error:
                raise self.broken(error, path) from error
            except RuntimeError:  # httpx's word for a client that was closed
                raise RemoteError("the engine was closed", self._place(path)) from None
            if response.status_code == 200:
                return response
            try:
                wait_s = asked_wait_s(response.headers.get("Retry-After", ""))
                may_wait = wait_s is None or wait_s <= LONGEST_WAIT_S
                if response.status_code not in RETRIED or last or not may_wait:
                    raise self._refused(response, path)
            finally:
                response.close()
            self._wait(self._pause(attempt) if wait_s is None else wait_s, stop)
        raise AssertionError("unreachable")

    def _pause(self, attempt: int) -> float:
        """Twice as long each time, and not in step with others who wait for the same server."""
        wait_s: float = min(self.first_wait_s * 2**attempt, LONGEST_WAIT_S)
        return wait_s * random.uniform(0.75, 1.25)

    def _wait(self, seconds: float, stop: threading.Event) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if stop.wait(min(left, 0.2)) or self.closed.is_set():
                raise RemoteError("the request was given up while it waited for the server", self.url)

    def _whole(self, response: httpx.Response) -> bytes:
        """The body; a timeout a read is not enough against a server that drips."""
        parts, total, end = [], 0, time.monotonic() + self.timeout_s
        for part in response.iter_bytes():
            parts.append(part)
            total += len(part)
            if total > LARGEST_ANSWER_BYTES or time.monotonic() > end:
                raise httpx.ReadTimeout("the answer has no end")
        return b"".join(parts)

    # -- errors -------------------------------------------------------------------------------------------------------

    def _place(self, path: str) -> str:
        return f"{self.url}{path}"

    def broken(self, error: Exception, path: str) -> RemoteError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return RemoteError(
                f"no connection to the server: {error or type(error).__name__}",
                self._place(path),
                "start the server, or check --base-url",
            )
        what = f"the server's answer broke off: {error or type(error).__name__}"
        if isinstance(error, httpx.TimeoutException):
            what = f"the server said nothing for {self.timeout_s:g} s"
        return RemoteError(what, self._place(path), "look at the server's own log, then ask again")

    def _refused(self, response: httpx.Response, path: str) -> RemoteError:
        try:
            text = said(json.loads(self._whole(response)))
        except (ValueError, httpx.HTTPError):
            text = ""
        status = response.status_code
        what = f"the server answers {status} {response.reason_phrase}{': ' + text if text else ''}"
        fix = "give the key that the server wants" if status in (401, 403) else "look at the server's own log"
        return RemoteError(what, self._place(path), fix, status)

    def _not_one(self) -> str:
        return "check that --base-url is an OpenAI-compatible server, and ends before /chat/completions"


class Events:
    """The events of one stream. `cancel` may be called from any thread: it drops the connection at once.

    `done`: whether the server said [DONE].
    """

    def __init__(self, wire: Wire, path: str, body: Any) -> None:
        self.wire, self.path, self.done = wire, path, False
        self._cancelled = threading.Event()
        self._socket: socket.socket | None = None
        self._events = self._read(body)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._events

    def close(self) -> None:
        self._events.close()

    def cancel(self) -> None:
        self._cancelled.set()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for its next byte

    def _keep_socket(self, name: str, info: dict[str, Any]) -> None:
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._cancelled.is_set():
                self.cancel()

    def _read(self, body: Any) -> Generator[dict[str, Any], None, None]:
        response: httpx.Response | None = None
        try:
            response = self.wire.open_stream(self.path, body, self._cancelled, self._keep_socket)
            for data in self._data(response):
                if data == DONE:
                    self.done = True
                    return
                yield self._object(data)
        except (httpx.HTTPError, httpx.StreamError, RemoteError, OSError) as error:
            if self._cancelled.is_set():
                raise RemoteError("the request was given up", self.wire.url) from None
            raise (self.wire.broken(error, self.path) if isinstance(error, httpx.HTTPError) else error) from None
        finally:
            self._socket = None
            if response is not None:
                response.close()

    def _object(self, data: str) -> dict[str, Any]:
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            what = f"the server sent what is no JSON object: {data[:80]!r}"
            raise RemoteError(what, f"{self.wire.url}{self.path}", "look at the server's own log")
        return event

    def _data(self, response: httpx.Response) -> Iterator[str]:
        """The text of each `data:`. Lines end with LF or CRLF only: texts may hold what `splitlines` would cut at."""
        held, heard = b"", time.monotonic()
        for part in response.iter_bytes():
            *lines, held = (held + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode("utf-8", "replace")
                    heard = time.monotonic()
            if time.monotonic() - heard > self.wire.timeout_s:  # comments keep a connection open, and say nothing
                raise httpx.ReadTimeout("nothing but comments")


def asked_wait_s(header: str) -> float | None:
    """The seconds of a Retry-After (a number, or a date), or None."""
    with suppress(ValueError):
        return max(float(header), 0.0)
    with suppress(ValueError, TypeError):
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    return None


def said(value: Any) -> str:
    """What an error object of a server says, in one line."""
    if isinstance(value, dict):
        error = value.get("error", value)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        return " ".join(str(text or "").split())[:500]
    return ""

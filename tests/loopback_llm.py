"""An OpenAI-compatible server on the loopback that says what the test gave it, with the faults that servers have.

    with llm() as server:
        server.replies = ["Ha! Who calls?"]
        OpenAIEngine(server.url + "/v1")

It speaks as vLLM does (`kind`), or as a server that takes no token ids (`takes_ids = False`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What befalls the next stream: after so many pieces it is cut, or hangs, or something else is sent."""

    after: int
    send: bytes = b""
    hang_s: float = 0.0
    mute: bool = False  # it sends nothing at all while it hangs; else comments
    quietly: bool = False  # the body ends as a whole one does


@dataclass
class LLM:
    kind: str = "vllm"
    names: list[str] = field(default_factory=lambda: ["cast"])
    lists: bool = True  # whether it can list them
    replies: list[str] = field(default_factory=list)  # the last one is said again and again
    takes_ids: bool = True
    counts: int = 0  # tokens that it adds to a prompt of ids
    prompt_tokens: int | None = None  # what it counts of a prompt of messages; None: it does not tell
    template_ids: list[int] | None = None  # what it says its template makes of messages; None: it cannot tell
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # of the next answers to POST
    faults: list[Fault] = field(default_factory=list)  # of the next streams
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    per_piece: int = 1  # characters
    end: str = "stop"
    scores: dict[int, float] = field(default_factory=dict)
    gone: threading.Event = field(default_factory=threading.Event)  # a client went away in the middle
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def asked(self, path: str) -> list[dict[str, Any]]:
        """The bodies that came to `path` for a stream."""
        return [body for at, body in self.bodies if at == path and body.get("stream")]

    def next_reply(self, body: dict[str, Any]) -> str:
        del body
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def next_fault(self) -> Fault | None:
        return self.faults.pop(0) if self.faults else None

    # -- answers -----------------------------------------------------------------------------------------------------

    def get(self, to: BaseHTTPRequestHandler) -> None:
        if not self.lists:
            return answer(to, 500, {})
        rows = [{"id": name, "object": "model", "owned_by": self.kind} for name in self.names]
        return answer(to, 200, {"object": "list", "data": rows} if to.path == "/v1/models" else {})

    def post(self, to: BaseHTTPRequestHandler) -> None:
        body = json.loads(to.rfile.read(int(to.headers["Content-Length"])))
        with self.lock:
            self.bodies.append((to.path, body))
            self.keys.append(to.headers.get("Authorization"))
            status = self.statuses.pop(0) if self.statuses else None
        if status:
            return answer(to, status[0], {"error": {"message": "not now"}}, status[1])
        if to.path == "/tokenize" and self.template_ids is not None:
            return answer(to, 200, {"tokens": self.template_ids})
        if to.path == "/apply-template" and self.template_ids is not None:
            return answer(to, 200, {"prompt": "rendered"})
        if to.path == "/v1/completions":
            if not self.takes_ids and not isinstance(body["prompt"], str):
                return answer(to, 400, {"error": {"message": "prompt must be a string"}})
            return self.stream(to, body) if body.get("stream") else self.at_once(to, body)
        if to.path == "/v1/chat/completions":
            return self.stream(to, body)
        return answer(to, 404, {"detail": "Not Found"})

    def at_once(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        choices = []
        for k, ids in enumerate(prompts):
            choice: dict[str, Any] = {"index": k, "text": "x", "finish_reason": "length", "logprobs": None}
            known = [None, *(self.scores.get(i, -1.0) for i in ids[1:])]
            if "prompt_logprobs" in body:
                places = [value and {str(i): {"logprob": value}} for i, value in zip(ids, known, strict=True)]
                choice["prompt_logprobs"] = places
            if body.get("echo") and self.kind == "sglang":
                choice["logprobs"] = {"tokens": ["?"] * len(ids), "token_logprobs": known}
            choices.append(choice)
        usage = {"prompt_tokens": sum(map(len, prompts)) + self.counts, "completion_tokens": len(prompts)}
        answer(to, 200, {"choices": choices[::-1], "usage": usage})

    def stream(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:
            reply, fault = self.next_reply(body), self.next_fault()
        to.send_response(200)
        to.send_header("Content-Type", "text/event-stream")
        to.send_header("Transfer-Encoding", "chunked")
        to.end_headers()
        most = body["max_tokens"]  # each character is a token
        shown, end = reply[:most], "length" if len(reply) >= most else self.end
        texts = [shown[k : k + self.per_piece] for k in range(0, len(shown), self.per_piece)]
        try:
            if "messages" in body:
                send(to, event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None}))
            for count, text in enumerate(texts):
                if fault and count == fault.after:
                    break
                send(to, event(self.piece(text, body)))
            if fault:
                return befall(to, fault)
            send(to, event({"text": "", "delta": {}, "finish_reason": end, "index": 0}))
            tokens = len(shown) + (end == "stop")
            usage = {"completion_tokens": tokens, "prompt_tokens": self.prompt_tokens}
            send(to, b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
            send(to, b"data: [DONE]\n\n")
            to.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.gone.set()

    def piece(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None, "logprobs": None}
        choice |= {"delta": {"content": text}} if "messages" in body else {"text": text}
        if body.get("logprobs"):
            tops = {text: -0.5, "#": -1.5, "%": -2.5}
            choice["logprobs"] = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [tops]}
            if "messages" in body:
                rows = [{"token": key, "logprob": value} for key, value in tops.items()]
                choice["logprobs"] = {"content": [{"token": text, "logprob": -0.5, "top_logprobs": rows}]}
        return choice


def befall(to: BaseHTTPRequestHandler, fault: Fault) -> None:
    if fault.hang_s:
        for _ in range(int(fault.hang_s / 0.01)):
            time.sleep(0.01)
            if not fault.mute:
                send(to, b": nothing\n\n")  # tells whether the client is still there
    if fault.send:
        send(to, fault.send)
    if fault.quietly:
        to.wfile.write(b"0\r\n\r\n")
    else:
        to.close_connection = True


def event(choice: dict[str, Any]) -> bytes:
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()


def send(to: BaseHTTPRequestHandler, data: bytes) -> None:
    to.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def answer(to: BaseHTTPRequestHandler, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    to.send_response(status)
    for key, text in (headers or {}).items():
        to.send_header(key, text)
    to.send_header("Content-Length", str(len(data)))
    to.end_headers()
    to.wfile.write(data)


@contextmanager
def llm(of: type[LLM] = LLM, **traits: Any) -> Iterator[LLM]:
    """A server for the length of the block."""
    server = of(**traits)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            server.get(self)

        def do_POST(self) -> None:
            with suppress(OSError):
                server.post(self)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()

"""The engine `openai`: any OpenAI-compatible server plays (vLLM, SGLang, LMDeploy, llama.cpp, Ollama).

    engine = OpenAIEngine("http://127.0.0.1:8000/v1", model="cast")
    for token in engine.stream(Request(ids, Sampling(), stop_ids, voice="wukong")): print(token.text, end="")

Where the server takes token ids as the prompt (`/v1/completions`), it gets those of our renderer, so it is asked what
training showed. Otherwise it gets the messages and renders them itself; then its ids are compared with ours, and a
difference is said. A voice is the LoRA module of that name, where the server lists one (vLLM's --lora-modules).

A reply is whole only when the server says why it ended. One that is cut raises `RemoteError`.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from mrp.data.view import ASSISTANT
from mrp.errors import InputError
from mrp.play.engine import Request, Token
from mrp.play.wire import Events, RemoteError, Wire, said

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROBE_IDS = 4
NO_LIST = (404, 405, 500, 501)  # transformers serve answers 500 where it cannot ask the hub
TAKES_NO_IDS = (400, 404, 405, 415, 422, 500, 501)
ENDS = ("stop", "length")
# By what /v1/models says in `owned_by`. Servers sample by defaults of their own (top-k 40, a model's generation
# config); here only what we ask for counts, as it does in our own engine.
PLAIN_SAMPLING: dict[str, dict[str, Any]] = {
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
    "lmdeploy": {"top_k": 0, "repetition_penalty": 1.0},
}
STOPS_BY_ID = ("vllm", "sglang", "lmdeploy")


class OpenAIEngine:
    """A server as an engine. Nothing is sent before it is first asked.

    `model`: None is the first that the server lists. `warn` hears once where the server renders or counts otherwise.
    Further arguments are those of `Wire`.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        warn: Callable[[str], None] = lambda _: None,
        **wire: float,
    ) -> None:
        self.wire = Wire(base_url, api_key, **wire)  # type: ignore[arg-type]
        self.warn = warn
        self._wanted = model
        self._lock = threading.Lock()
        self._models: list[str] | None = None
        self._kind = ""
        self._ids: bool | None = None
        self._compared = self._counted = False
        self._streams: weakref.WeakSet[RemoteStream] = weakref.WeakSet()

    def stream(self, request: Request) -> RemoteStream:
        """The tokens of a reply. Its `cancel` may be called from any thread. Raises `RemoteError`."""
        stream = RemoteStream(self, request)
        self._streams.add(stream)
        return stream

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None = None
    ) -> list[list[float]]:
        """As `Engine.score`, in one request. vLLM tells by `prompt_logprobs`, SGLang by `echo` with `logprobs`."""
        if not continuations:
            return []
        if not self.takes_ids(ids):
            raise self._cannot_score("it takes no token ids")
        prompts = [[*ids, *tail] for tail in continuations]
        body = {"model": self.model_of(voice), "prompt": prompts, "max_tokens": 1, "temperature": 0}
        body |= {"prompt_logprobs": 0} if self._kind == "vllm" else {"echo": True, "logprobs": 1}
        try:
            answer = self.wire.ask("POST", COMPLETIONS, body)
        except RemoteError as error:
            raise (self._cannot_score(error.what) if error.status in TAKES_NO_IDS else error) from None
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            pairs = zip(choices, continuations, strict=True)
            return [self._own(choice, len(ids), tail) for choice, tail in pairs]
        except (KeyError, TypeError, ValueError, IndexError):
            raise self._cannot_score("it does not tell those of the prompt") from None

    def close(self) -> None:
        """Streams that still run raise `RemoteError` in their threads."""
        self.wire.closed.set()
        for stream in list(self._streams):
            stream.cancel()
        self.wire.close()

    def check(self) -> None:
        """Raise `RemoteError` unless the server answers now; it is asked once."""
        self.wire.ask("GET", "/v1/models", retries=0)

    # -- what the server is and can ---------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """The names of the models that the server lists."""
        with self._lock:
            if self._models is None:
                rows = self._rows()
                self._models = [row["id"] for row in rows]
                self._kind = str(rows[0].get("owned_by", "")).lower() if rows else ""
            return self._models

    def _rows(self) -> list[dict[str, Any]]:
        try:
            answer = self.wire.ask("GET", "/v1/models")
        except RemoteError as error:
            if self._wanted is not None and error.status in NO_LIST:  # then its list is not needed
                return []
            raise
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise RemoteError("the server lists no models", f"{self.wire.url}/v1/models", "check --base-url")
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    def model_of(self, voice: str | None) -> str:
        """The model to name in a request: the voice's own, where the server has one, else the base."""
        models = self.models()
        if voice in models:
            return str(voice)
        if self._wanted is None and not models:
            raise InputError("the server lists no model", self.wire.url, "name it with --model")
        return self._wanted or models[0]

    def takes_ids(self, ids: Sequence[int]) -> bool:
        """Whether the server takes token ids and counts as many: found by asking for one token, once."""
        model = self.model_of(None)
        with self._lock:
            if self._ids is None:
                self._ids = self._try_ids(model, list(ids[:PROBE_IDS]))
            return self._ids

    def _try_ids(self, model: str, few: list[int]) -> bool:
        body = {"model": model, "prompt": few, "max_tokens": 1, "temperature": 0}
        try:
            answer = self.wire.ask("POST", COMPLETIONS, body)
        except RemoteError as error:
            if error.status in TAKES_NO_IDS:
                return False
            raise
        count = (answer.get("usage") or {}).get("prompt_tokens") if isinstance(answer, dict) else None
        if count != len(few):
            self.warn(f"{self.wire.url} counts {count} tokens where it got {len(few)} ids: it gets messages instead")
        return bool(count == len(few))

    # -- one request -------------------------------------------------------------------------------------------------

    def body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path and body of a request for a stream."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model_of(request.voice),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "stream": True,
            "stream_options": {"include_usage": True},
            **PLAIN_SAMPLING.get(self._kind, {}),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if self._kind in STOPS_BY_ID:
            body["stop_token_ids"] = list(request.stop_ids)
        wanted = sampling.top_logprobs
        if self.takes_ids(request.ids):
            if wanted is not None:
                body["logprobs"] = max(wanted, 1)  # llama.cpp takes 0 for none at all
            return COMPLETIONS, body | {"prompt": list(request.ids)}
        if wanted is not None:
            body |= {"logprobs": True, "top_logprobs": wanted}
        body["messages"] = self._messages(request)
        self._compare(request, body["messages"])
        return CHAT, body

    def _messages(self, request: Request) -> list[dict[str, str]]:
        if not request.messages:
            fix = "take a server that takes token ids (vLLM, SGLang, llama.cpp)"
            raise InputError("this server takes no token ids, and no messages were given", self.wire.url, fix)
        if request.messages[-1].role == ASSISTANT:
            fix = "let somebody else speak first, or take a server that takes token ids (vLLM, SGLang, llama.cpp)"
            raise InputError("this server cannot let a speaker go on in the same turn", self.wire.url, fix)
        return [{"role": m.role, "content": m.text} for m in request.messages]

    def _compare(self, request: Request, messages: list[dict[str, str]]) -> None:
        """Once: do the server's ids of these messages equal ours? Said where they do not, or nobody can tell."""
        with self._lock:
            if self._compared:
                return
            self._compared = True
        try:
            if self._kind == "llamacpp":
                prompt = self.wire.ask("POST", "/apply-template", {"messages": messages})["prompt"]
                body = {"content": prompt, "add_special": True, "parse_special": True}
                theirs = self.wire.ask("POST", "/tokenize", body)["tokens"]
            else:
                body = {"model": self.model_of(None), "messages": messages, "add_generation_prompt": True}
                theirs = self.wire.ask("POST", "/tokenize", body)["tokens"]
        except (RemoteError, KeyError, TypeError):
            self.warn(f"{self.wire.url} renders messages itself and does not tell how: its chat template may differ")
            return
        if theirs != list(request.ids):
            same = next((k for k, (a, b) in enumerate(zip(theirs, request.ids, strict=False)) if a != b), None)
            at = min(len(theirs), len(request.ids)) if same is None else same
            what = f"from token {at} on ({len(theirs)} tokens, ours are {len(request.ids)})"
            self.warn(f"the chat template of {self.wire.url} differs from the one of training {what}")

    def compare_count(self, request: Request, usage: dict[str, Any]) -> None:
        """Once: does the server count as many tokens of its rendered messages as we do of ours?"""
        theirs, ours = usage.get("prompt_tokens"), len(request.ids)
        if isinstance(theirs, int) and theirs != ours and not self._counted:
            self._counted = True
            self.warn(f"{self.wire.url} reads {theirs} tokens where ours are {ours}: its chat template differs")

    # -- scores --------------------------------------------------------------------------------------------------------

    def _own(self, choice: dict[str, Any], start: int, tail: Sequence[int]) -> list[float]:
        if choice.get("prompt_logprobs"):
            places = choice["prompt_logprobs"][start : start + len(tail)]
            values = [place[str(token)]["logprob"] for place, token in zip(places, tail, strict=True)]
        else:
            values = choice["logprobs"]["token_logprobs"][start : start + len(tail)]
        found = [float(value) for value in values]
        if len(found) != len(tail) or not all(math.isfinite(value) for value in found):
            raise ValueError
        return found

    def _cannot_score(self, why: str) -> InputError:
        fix = "take the embedded engine, or vLLM, for what compares continuations"
        return InputError(f"this server cannot tell log-probabilities of continuations: {why}", self.wire.url, fix)


class RemoteStream:
    """The tokens of one reply, as they come."""

    def __init__(self, engine: OpenAIEngine, request: Request) -> None:
        self._engine, self._request = engine, request
        self._events: Events | None = None
        self._cancelled = False
        self._tokens = self._read()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def close(self) -> None:
        """End it, from the thread that reads it; the connection is dropped."""
        self._tokens.close()

    def cancel(self) -> None:
        """End it, from any thread, even while it waits for the server: the reader gets a `RemoteError`."""
        self._cancelled = True
        if self._events:
            self._events.cancel()

    def _read(self) -> Generator[Token, None, None]:
        path, body = self._engine.body(self._request)
        self._events = events = self._engine.wire.events(path, body)
        if self._cancelled:
            events.cancel()
        most, given, end = self._request.sampling.max_new_tokens, 0, None
        usage: dict[str, Any] = {}
        try:
            for event in events:
                usage = event.get("usage") or usage
                for token, why in pieces(event, self._request.sampling.top_logprobs, self._place(path)):
                    end = why or end
                    if token is not None and given < most:
                        given += 1
                        yield token
        finally:
            events.close()
        if end is None:
            raise RemoteError("the server broke off in the middle of a reply", self._place(path), "ask again")
        if path == CHAT:
            self._engine.compare_count(self._request, usage)
        # A piece of text may be several tokens: so that they can be counted, empty ones make up for the difference.
        counted = most if end == "length" else min(int(usage.get("completion_tokens") or 0) - 1, most - 1)
        for _ in range(given, counted):
            yield Token(None, "")

    def _place(self, path: str) -> str:
        return f"{self._engine.wire.url}{path}"


def pieces(event: dict[str, Any], top: int | None, where: str) -> Iterator[tuple[Token | None, str | None]]:
    """The tokens of an event, and why the reply ended if it did. Raises `RemoteError` at an error event."""
    if event.get("error"):
        raise RemoteError(f"the server broke off: {said(event) or event['error']}", where, "ask again")
    choices = event.get("choices")
    if not choices:
        return
    try:
        choice = choices[0]
        text = choice["text"] if "text" in choice else (choice.get("delta") or {}).get("content")
        end = choice.get("finish_reason")
        logged = _logged(choice.get("logprobs"), top) if top is not None else []
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise RemoteError("the server sent an event of an unknown form", where, "look at the server's log") from None
    if end is not None and end not in ENDS:
        raise RemoteError(f"the server ended the reply because of {end!r}", where, "look at the server's log")
    if logged:
        whole = "".join(piece for piece, _, _ in logged) == text
        for k, (piece, logprob, likeliest) in enumerate(logged):
            own = piece if whole else (text or "") if k == 0 else ""
            yield Token(None, own, logprob, likeliest), end
    elif text or (text == "" and "text" in choice and end is None):  # half of a character: a token without text yet
        yield Token(None, text), end
    else:
        yield None, end


Logged = tuple[str, float, tuple[tuple[int | str, float], ...]]


def _logged(logprobs: Any, top: int) -> list[Logged]:
    """The tokens of a `logprobs` object, in the form of chats (llama.cpp: of completions too) or of completions."""
    if not logprobs:
        return []
    if "content" in logprobs:
        return [
            (t["token"], float(t["logprob"]), tuple((o["token"], o["logprob"]) for o in t["top_logprobs"][:top]))
            for t in logprobs["content"] or []
        ]
    tops = logprobs.get("top_logprobs") or [{}] * len(logprobs["tokens"])
    return [
        (token, float(logprob), tuple(sorted((likeliest or {}).items(), key=lambda pair: -pair[1])[:top]))
        for token, logprob, likeliest in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    ]

"""The embedded engine: a model of transformers in this process, for many streams at once.

    engine = TransformersEngine(model, on, voices=load_voices(model, folder))
    engine.stats.reused          # prompt tokens that were not read again

Whoever waits for a token makes the next step, for all streams: there is no thread of the engine's own that could die,
outlive the program or run ahead of a reader who left. A step reads pieces of the new prompts and one token of each
stream that has few waiting, in one pass (Orca and Sarathi batch so: OSDI 2022, arXiv 2308.16369), or in one for each
voice. Streams join and leave between steps; each row has its own character's voice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mrp.errors import MrpError
from mrp.heap import give_back
from mrp.models.load import Hardware
from mrp.plan.chat import PIECE
from mrp.play.engine import Request, Token
from mrp.play.graphs import GraphedSteps
from mrp.play.kv import GROWTH, KeysValues, Row, RowsReader
from mrp.play.parked import Parked
from mrp.play.sampling import Drawing, choose_tokens
from mrp.play.scoring import logprobs, score_after
from mrp.play.streams import Stats, Stream, begins_as, count_drop, free_bytes, known_errors

if TYPE_CHECKING:
    from mrp.models.voices import VoiceBank

OFTEN = 32  # streams that end, after which free memory is given back to the system
ROOM = 512  # tokens of a reply for which room is made at once


class TransformersEngine:
    """A model with its adapter and voices, if it has any. `cache_bytes`: for keys and values, in use and parked."""

    def __init__(
        self,
        model: Any,
        on: Hardware,
        voices: VoiceBank | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.model, self.on, self.voices = model.eval(), on, voices
        self.stats = Stats()
        reader = RowsReader(model, on)
        self._reader = reader if reader.fits() else None  # None: one stream after another, nothing reused
        self.steps = GraphedSteps(reader, voices)  # of one token a row, on a GPU
        limit = free_bytes(on) if cache_bytes is None else cache_bytes
        self._parked = Parked(limit, partial(count_drop, self.stats))  # not a method: no cycle keeps a model
        self._bytes_each = 0.0  # of a token; known when one was read
        self._streams: list[Stream] = []
        self._turn = threading.Condition()
        self._busy = self._closed = False
        self._ended = 0  # streams since free memory was given back

    @property
    def shares_steps(self) -> bool:
        """Whether streams are computed together and beginnings are reused: not for models with layers of their own."""
        return self._reader is not None

    # -- what everybody calls --------------------------------------------------------------------------------------

    def stream(self, request: Request) -> Iterator[Token]:
        if not request.ids:
            raise MrpError("an empty prompt has no reply", "Request.ids", "give at least one token")
        drawing = Drawing.begin(request.sampling)
        stream = Stream(request, set(request.stop_ids), drawing, left=request.sampling.max_new_tokens)
        stream.over = stream.left < 1
        self._join(stream)
        try:
            while (token := self._next(stream)) is not None:
                yield token
        finally:
            stream.over = True
            with self._turn:
                if not self._busy:
                    self._sweep()

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None = None
    ) -> list[list[float]]:
        if not ids:
            raise MrpError("nothing can follow an empty prompt", "ids", "give at least one token")
        voice = self._known(voice)
        with self._alone(), known_errors():
            if self._reader is None:
                return [self._score_whole(ids, tail, voice) for tail in continuations]
            found: list[list[float]] = self._retry(lambda: self._score(ids, continuations, voice))
            return found

    def close(self) -> None:
        with self._turn:
            self._closed = True
            for stream in self._streams:
                stream.over = True
            if not self._busy:
                self._sweep()
            self._turn.notify_all()

    # -- whose turn it is ------------------------------------------------------------------------------------------

    def _join(self, stream: Stream) -> None:
        with self._turn:
            if self._closed:
                raise MrpError("the engine is closed", "", "open the model again")
            self._streams.append(stream)

    def _next(self, stream: Stream) -> Token | None:
        """The next token of a stream, made by this thread or by another that is at it; None at the end."""
        while True:
            with self._turn:
                while True:
                    if stream.waiting and not self._closed:
                        return stream.waiting.popleft()
                    if stream.error is not None:
                        raise stream.error
                    if stream.over:
                        return None
                    if not self._busy:
                        break
                    self._turn.wait()
                self._busy = True
            try:
                self._step()
            finally:
                self._free()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._turn:
            while self._busy:
                self._turn.wait()
            if self._closed:
                raise MrpError("the engine is closed", "", "open the model again")
            self._busy = True
        try:
            yield
        finally:
            self._free()

    def _free(self) -> None:
        with self._turn:
            self._busy = False
            self._sweep()
            self._turn.notify_all()

    def _sweep(self) -> None:
        """Take leave of streams that are over: what they read is parked. Only for whoever has the turn."""
        for one in (stream.kept for stream in self._streams if stream.kept is not None):
            self._bytes_each = one.bytes / one.capacity if one.capacity else self._bytes_each
        over = [stream for stream in self._streams if stream.over]
        self._streams = [stream for stream in self._streams if not stream.over]
        for stream in over:
            if stream.kept is not None and stream.error is None and not self._closed:
                self._parked.park(stream.kept, self._bytes_in_use())
            stream.kept = stream.cache = None
        if self._closed:
            self._parked.kept = []
        self._ended += len(over)
        if self._ended >= OFTEN and self.on.device == "cpu":
            self._ended = 0
            give_back()
        self.stats.cache_bytes = self._parked.bytes + self._bytes_in_use()

    # -- a step ----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Read what prompts there are, at most `PIECE` tokens of them, and let all that can speak say one token: in one
        pass where they have one voice. Errors end the streams in which they came up."""
        streams = list(self._streams)  # one that joins meanwhile takes part in the next step
        speaking = [stream for stream in streams if stream.can_speak and stream.kept is not None]
        reading = self._begun([stream for stream in streams if stream not in speaking], bool(speaking))
        if len(reading) + bool(speaking) > 1 and self._have_one_voice([*reading, *speaking]):
            with suppress(MrpError), known_errors():
                self._retry(partial(self._read, reading, speaking))
                return
        for stream in reading:  # whoever fails, fails alone
            self._guarded([stream], partial(self._read, {stream: reading[stream]}, []))
        if speaking:
            self._guarded(speaking, partial(self._read, {}, speaking))

    def _begun(self, streams: Sequence[Stream], others_speak: bool) -> dict[Stream, list[int]]:
        """The pieces of prompts for this step. One that begins as another does whom nobody has read yet waits for it;
        one for which memory has no room waits until somebody ends."""
        found: dict[Stream, list[int]] = {}
        left = PIECE
        for stream in streams:
            if stream.over or (stream.kept is not None and len(stream.unread) == 1) or left < 1:
                continue
            if self._reader is None and found:
                break
            if stream.kept is None:
                if (found or others_speak) and not self._has_room(stream):
                    break
                if any(begins_as(stream, other) for other in found):
                    continue
                self._guarded([stream], partial(self._begin, stream))
            if not stream.over:
                found[stream] = stream.unread if self._reader is None else stream.unread[:left]
                left -= len(found[stream])
        return found

    def _have_one_voice(self, streams: Sequence[Stream]) -> bool:
        return self._reader is not None and len({stream.kept.voice for stream in streams if stream.kept}) == 1

    def _guarded(self, streams: list[Stream], work: Callable[[], None]) -> None:
        try:
            with known_errors():
                self._retry(work)
        except MrpError as error:
            for stream in streams:
                stream.error, stream.over = error, True

    def _retry(self, work: Callable[[], Any]) -> Any:
        """Do it; if memory is short, once more without what is parked (nothing that was read is lost in between)."""
        try:
            return work()
        except torch.OutOfMemoryError:
            if not self._parked.kept:
                raise
        self._parked.drop_all()
        torch.cuda.empty_cache()
        return work()

    def _read(self, pieces: Mapping[Stream, list[int]], speaking: Sequence[Stream]) -> None:
        """Read a piece of each prompt, and what the speaking streams said last; who has read all says a token."""
        streams = [*pieces, *speaking]
        logits = self._logits(streams, [*pieces.values(), *(stream.unread for stream in speaking)])
        ready = [k for k, one in enumerate(streams) if one not in pieces or len(pieces[one]) == len(one.unread)]
        tokens = choose_tokens(logits[ready], [streams[k].drawing for k in ready]) if ready else []
        for stream, piece in pieces.items():
            assert stream.kept is not None
            self.stats.computed += len(piece)
            if len(piece) < len(stream.unread):
                stream.kept.ids += piece
                stream.unread = stream.unread[len(piece) :]
        for k, token in zip(ready, tokens, strict=True):
            self._say(streams[k], token)

    def _begin(self, stream: Stream) -> None:
        ids, voice = list(stream.request.ids), self._known(stream.request.voice)
        if self._reader is None:
            from transformers import DynamicCache

            stream.kept, stream.cache = KeysValues(voice), DynamicCache(config=self.model.config)
        else:
            stream.kept = self._take(ids, voice, len(ids) + min(stream.left, ROOM))
        stream.unread = ids[len(stream.kept.ids) :]

    def _say(self, stream: Stream, token: Token) -> None:
        """Give a stream the token that follows what it had unread, which now counts as read: not before, so that a step
        broken off by Ctrl-C is made again by whoever waits for it."""
        assert token.id is not None and stream.kept is not None
        stream.kept.ids += stream.unread
        stream.unread, stream.left = [token.id], stream.left - 1
        if token.id in stream.stops:
            stream.over = True
            return
        stream.waiting.append(token)
        self.stats.generated += 1
        stream.over = stream.over or stream.left < 1

    # -- the model -------------------------------------------------------------------------------------------------

    def _logits(self, streams: list[Stream], pieces: Sequence[Sequence[int]]) -> torch.Tensor:
        """(R, V) after the pieces; of rows with different voices they are equally long."""
        kept = [stream.kept for stream in streams if stream.kept is not None]
        self.stats.steps += 1
        if self._reader is not None:
            rows = [Row(one, ids) for one, ids in zip(kept, pieces, strict=True)]
            if all(len(ids) == 1 for ids in pieces):
                logits = self.steps.read(rows, self._spare_bytes)
                if logits is not None:
                    self.stats.graphed += 1
                    return logits
            voices = [one.voice for one in kept]
            with self._voices(voices if len(set(voices)) > 1 else voices[:1]):
                return self._reader.read_ends(rows)
        found = []
        for stream, one, ids in zip(streams, kept, pieces, strict=True):
            with torch.no_grad(), self.on.autocast_context(), self._voices([one.voice]):
                given = torch.tensor([list(ids)], device=self.on.device)
                out = self.model(input_ids=given, past_key_values=stream.cache, use_cache=True, logits_to_keep=1)
            found.append(out.logits[0, -1])
        return torch.stack(found)

    def _score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None
    ) -> list[list[float]]:
        """All continuations after one reading of the prompt: rows that share what they keep."""
        assert self._reader is not None
        longest = max(map(len, continuations), default=0)
        kept = self._take(list(ids), voice, len(ids) + longest)
        for at in range(len(kept.ids), len(ids) - 1, PIECE):
            piece = list(ids[at : min(at + PIECE, len(ids) - 1)])
            with self._voices([voice]):
                self._reader.read([Row(kept, piece)])
            kept.ids += piece
            self.stats.computed += len(piece)
        found = score_after(self._reader, kept, ids[-1], continuations, lambda: self._voices([voice]))
        self.stats.computed += 1
        self._parked.park(kept, self._bytes_in_use())
        return found

    def _score_whole(self, ids: Sequence[int], tail: Sequence[int], voice: str | None) -> list[float]:
        if not tail:
            return []
        whole = torch.tensor([[*ids, *tail]], device=self.on.device)
        with torch.no_grad(), self.on.autocast_context(), self._voices([voice]):
            logits = self.model(input_ids=whole, use_cache=False, logits_to_keep=len(tail) + 1).logits[0, :-1]
        self.stats.computed += len(ids)
        return logprobs(logits, tail)

    # -- voices and memory -----------------------------------------------------------------------------------------

    def _known(self, voice: str | None) -> str | None:
        return voice if self.voices is not None and voice in self.voices.voices else None

    def _voices(self, rows: list[str | None]) -> AbstractContextManager[None]:
        return nullcontext() if self.voices is None else self.voices.speaking(rows)

    def _take(self, ids: list[int], voice: str | None, tokens: int) -> KeysValues:
        """Storage for `tokens` in all, with what is known of `ids`; what is parked makes room for it."""
        in_use = [stream.kept for stream in self._streams if stream.kept is not None]
        kept = self._parked.take(ids, voice, in_use)
        kept.reserve = tokens
        self.stats.reused += len(kept.ids)
        self._parked.make_room(self._bytes_in_use() + int(max(kept.bytes, tokens * self._bytes_each)))
        return kept

    def _has_room(self, stream: Stream) -> bool:
        """Whether a prompt can be kept beside those that are at work; if not, it waits until one of them ends. Before
        anything was read nobody knows, and where rows do not work nobody counts."""
        if not self._bytes_each:
            return self._reader is None
        tokens = max(len(stream.request.ids) + min(stream.left, ROOM), GROWTH)
        return self._bytes_in_use() + int(tokens * self._bytes_each) <= self._parked.limit

    def _spare_bytes(self) -> int:
        """Of the GPU: what is free beside the keys and values that are still to come."""
        to_come = self._parked.limit - self._parked.bytes - self._bytes_in_use()
        return int(torch.cuda.mem_get_info()[0]) - max(0, to_come)

    def _bytes_in_use(self) -> int:
        """Of those at work, with what they will take for sure."""
        at_work = [stream.kept for stream in self._streams if stream.kept is not None]
        return sum(max(one.bytes, int(one.reserve * self._bytes_each)) for one in at_work)

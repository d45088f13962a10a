"""The engine of onnxruntime-genai, on the CPU: one reply faster than in torch, several no faster together.

    engine = OnnxEngine(onnx_folder(merged), context_tokens=2048)
    engine.stream(Request(ids, Sampling(0)))

Chosen by `mrp chat RUN --engine onnx`. The model is the merged one in float32, converted by onnxruntime-genai's own
builder and kept in the cache; 4 bits lost the persona and are not offered. It has no voices of characters. Each reply
is a sequence of its own; what was read stays for the next prompt that begins alike. Tokens are chosen by sampling.py,
so equal seeds and logits give equal replies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrp.errors import MrpError, SetupError, need_extra
from mrp.files import fingerprint, folder_lock, replacing_folder
from mrp.models.bases import cache_folder, model_identity
from mrp.play.engine import Request, Token

PARKED = 4  # sequences that stay in memory for the next prompt
REST = 64  # tokens that a sequence may lose when it is taken up for another prompt
CONFIG = "genai_config.json"


def onnx_folder(model: Path) -> Path:
    """The ONNX form of a model folder: made at the first call (about a minute and 4 bytes a weight for each billion).

    Raises `SetupError` if the packages are missing, or if the builder knows no such model.
    """
    _package()
    folder = cache_folder() / "onnx" / fingerprint(model_identity(model))
    if not (folder / CONFIG).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder.parent), replacing_folder(folder) as part:
            given = ["-i", str(model), "-o", str(part), "-p", "fp32", "-e", "cpu", "-c", str(part / "cache")]
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *given]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
            if done.returncode != 0 or not (part / CONFIG).is_file():
                last = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2][:200]
                fix = "leave --engine out, or take a model that its builder knows (Llama, Qwen, Gemma, Mistral, ...)"
                raise SetupError(f"onnxruntime-genai cannot convert this model: {last}", str(model), fix)
    return folder


def _package() -> Any:
    try:
        import onnx_ir  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401
        import onnxruntime_genai  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise need_extra("onnx", "onnxruntime-genai") from error
    return onnxruntime_genai


@dataclass(eq=False)
class _Sequence:
    """What the model has read, with its keys and values."""

    generator: Any
    ids: list[int] = field(default_factory=list)

    def read(self, ids: Sequence[int]) -> Any:
        """Read on; (V,) logits of what follows."""
        import torch

        self.generator.append_tokens(list(ids))
        self.ids += ids
        return torch.from_numpy(self.generator.get_logits()[0, -1].copy())  # the next step writes over its own

    def go_back(self, count: int) -> None:
        """Forget all but the first `count` tokens."""
        if count < len(self.ids):
            self.generator.rewind_to(count)
            del self.ids[count:]


class OnnxEngine:
    """A model in ONNX form. `context_tokens`: of prompt and reply together, for which room is made."""

    def __init__(self, folder: Path, context_tokens: int, threads: int = 0) -> None:
        self._genai = _package()
        self.context_tokens = context_tokens
        # threads that spin while they wait would take the cores from whoever else computes
        options: dict[str, Any] = {"session.intra_op.allow_spinning": "0"}
        options |= {"intra_op_num_threads": threads} if threads else {}
        config = self._genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = self._genai.Model(config)
        self._parked: list[_Sequence] = []  # the least recently used first
        self._turn = threading.Lock()
        self._closed = False

    def stream(self, request: Request) -> Iterator[Token]:
        from mrp.play.sampling import Drawing, choose_tokens

        if not request.ids:
            raise MrpError("an empty prompt has no reply", "Request.ids", "give at least one token")
        drawing, stops = Drawing.begin(request.sampling), set(request.stop_ids)
        with self._step():
            sequence = self._take(request.ids)
        try:
            unread = list(request.ids[len(sequence.ids) :])
            for _ in range(request.sampling.max_new_tokens):
                with self._step():
                    token = choose_tokens(sequence.read(unread)[None], [drawing])[0]
                assert token.id is not None
                if token.id in stops:
                    return
                unread = [token.id]
                yield token
        finally:
            self._park(sequence)

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None = None
    ) -> list[list[float]]:
        import torch

        del voice
        if not ids:
            raise MrpError("nothing can follow an empty prompt", "ids", "give at least one token")
        found = []
        with self._step():
            sequence = self._take(ids)
            first = sequence.read(ids[len(sequence.ids) :])
            for tail in continuations:
                logits, own = first, []
                for at, token in enumerate(tail):
                    own.append(float(torch.log_softmax(logits, -1)[token]))
                    if at + 1 < len(tail):
                        logits = sequence.read([token])
                sequence.go_back(len(ids))
                found.append(own)
        self._park(sequence)
        return found

    def close(self) -> None:
        with self._turn:
            self._closed, self._parked = True, []

    @contextmanager
    def _step(self) -> Iterator[None]:
        """One reader at a time; whatever goes wrong is an `MrpError`."""
        with self._turn:
            if self._closed:
                raise MrpError("the engine is closed", "", "open the model again")
            try:
                yield
            except Exception as error:
                what = f"onnxruntime-genai failed in the middle of its work: {type(error).__name__}: {error}"
                raise MrpError(what, "", "ask again, or leave --engine out") from error

    def _take(self, ids: Sequence[int]) -> _Sequence:
        """A sequence that holds the longest known beginning of `ids`; never all of it, or nothing would follow."""
        best, length = None, 0
        for one in self._parked:
            shared = _shared(one.ids, ids[:-1])
            if shared >= max(length, 1) and len(one.ids) - shared <= REST:
                best, length = one, shared
        if best is not None:
            self._parked.remove(best)
            best.go_back(length)
            return best
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=self.context_tokens)
        return _Sequence(self._genai.Generator(self._model, params))

    def _park(self, sequence: _Sequence) -> None:
        with self._turn:
            known = sequence.generator.token_count() == len(sequence.ids)  # not if a step broke off
            if known and sequence.ids and not self._closed:
                self._parked = [*self._parked, sequence][-PARKED:]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

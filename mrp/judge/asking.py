"""All questions to a judge: many at once, each asked once ever, nonsense asked again once, failures counted.

    rulings = ask_all(server, questions, kept, budget, threads=4)      # a Ruling for each, in their order

Answers are kept line by line under a hash of all they depend on (`evaluate/kept.py`), nonsense too: a repeated command
asks nothing. What got no answer (a timeout, a server that is overloaded) is not kept, and is asked the next time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mrp.evaluate.kept import Kept
from mrp.files import fingerprint
from mrp.judge.budget import Budget, estimated_tokens
from mrp.judge.questions import Message, Question
from mrp.judge.server import NEVER, JudgeServer
from mrp.judge.verdicts import NoVerdict
from mrp.play.reply import NOT_TEXT
from mrp.play.wire import RemoteError

FAILED_IN_A_ROW = 5  # so many questions without an answer, and the server is given up


@dataclass(frozen=True)
class Ruling:
    """What became of a question: a verdict, nonsense (`verdict` None), or no answer at all (`failure` says why)."""

    verdict: Any
    answers: tuple[str, ...] = ()  # as they came: one, or two where the first was no verdict
    tokens: tuple[int, int] = (0, 0)  # to the judge and back, of all answers
    why: str = ""  # the last answer is no verdict
    failure: str = ""


def key_of(server: JudgeServer, question: Question) -> str:
    return fingerprint({"server": server.identity(), "messages": question.messages})


def due(server: JudgeServer, questions: Iterable[Question], kept: Kept) -> list[Question]:
    """Those that were never answered, each once."""
    found = {key: question for question in questions if (key := key_of(server, question)) not in kept}
    return list(found.values())


def estimate_of(questions: Sequence[Question]) -> tuple[int, int]:
    """About how many tokens go to the judge and come back for `questions`, if none is asked again."""
    return sum(estimated_tokens(q.messages) for q in questions), sum(q.answer_tokens for q in questions)


def ask_all(
    server: JudgeServer,
    questions: Sequence[Question],
    kept: Kept,
    budget: Budget,
    threads: int = 4,
    told: Callable[[], None] = lambda: None,
) -> list[Ruling]:
    """A ruling for each question; `told` hears of each that was asked now.

    Raises `InputError` where the budget is spent, and `RemoteError` for a server that refuses (a wrong key, an unknown
    model) or gives no answer several times in a row. What was answered until then is kept.
    """
    asked = due(server, questions, kept)
    failures = _Failures()
    made: dict[str, Ruling] = {}

    def work(question: Question) -> None:
        key = key_of(server, question)
        try:
            ruling = _ask(server, question, budget)
            failures.answered()
        except RemoteError as error:
            if error.status in NEVER:
                raise
            failures.failed(error)
            ruling = Ruling(None, failure=NOT_TEXT.sub("", error.what))
        made[key] = ruling
        if not ruling.failure:
            kept.add(key, {"answers": ruling.answers, "tokens": ruling.tokens})
        told()

    _in_threads(work, asked, threads)
    return [
        made.get(key) or _from_kept(question, kept[key]) for question in questions if (key := key_of(server, question))
    ]


def _ask(server: JudgeServer, question: Question, budget: Budget) -> Ruling:
    first, tokens = _once(server, question.messages, question, budget)
    found = _read(question, (first,), tokens)
    if not found.why:
        return found
    second, more = _once(server, question.again(first, found.why), question, budget)
    return _read(question, (first, second), (tokens[0] + more[0], tokens[1] + more[1]))


def _once(
    server: JudgeServer, messages: Sequence[Message], question: Question, budget: Budget
) -> tuple[str, tuple[int, int]]:
    expected = (estimated_tokens(messages), question.answer_tokens)
    budget.take(*expected)
    answered = server.ask(messages)
    return answered.text, budget.settle(expected, answered)


def _read(question: Question, answers: tuple[str, ...], tokens: tuple[int, int]) -> Ruling:
    """What answers say by the rules of today: rules may change, answers stay."""
    try:
        return Ruling(question.read(answers[-1]), answers, tokens)
    except NoVerdict as error:
        return Ruling(None, answers, tokens, why=str(error))


def _from_kept(question: Question, value: Any) -> Ruling:
    tokens_in, tokens_out = value["tokens"]
    return _read(question, tuple(value["answers"]), (tokens_in, tokens_out))


class _Failures:
    """Counts questions without an answer, until one is answered."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    def answered(self) -> None:
        with self._lock:
            self._count = 0

    def failed(self, error: RemoteError) -> None:
        with self._lock:
            self._count += 1
            if self._count >= FAILED_IN_A_ROW:
                what = f"the judge gave no answer {self._count} times in a row; the last time: {error.what}"
                raise RemoteError(what, error.where, "look at the server, then repeat the command: answers are kept")


def _in_threads(work: Callable[[Question], None], items: Sequence[Question], threads: int) -> None:
    """Do `work` for each item; the first exception ends all. Threads are daemons: one that waits for a slow server
    shall not hold up a command that was stopped."""
    todo: queue.SimpleQueue[Question] = queue.SimpleQueue()
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    for item in items:
        todo.put(item)

    def loop() -> None:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                work(item)
                done.put(None)
            except BaseException as error:
                stop.set()
                done.put(error)

    started = [threading.Thread(target=loop, daemon=True) for _ in range(min(max(1, threads), len(items)))]
    for thread in started:
        thread.start()
    try:
        for _ in items:
            if error := done.get():
                raise error
    except Exception:  # what is on its way is paid for, and kept; an impatient Ctrl-C waits for nobody
        stop.set()
        for thread in started:
            thread.join()
        raise
    finally:
        stop.set()

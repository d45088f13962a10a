"""Several servers as one engine: a reply goes where there is room, and to the next where one fails before it began."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from loopback_llm import LLM, Fault, llm
from test_remote import request, text

from mrp.play.engine import Request, Sampling
from mrp.play.failover import FailoverEngine
from mrp.play.remote import OpenAIEngine
from mrp.play.wire import RemoteError

NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture
def two() -> Iterator[tuple[LLM, LLM]]:
    with llm(replies=["from a"]) as a, llm(replies=["from b"]) as b:
        yield a, b


def both(*urls: str, aside_s: float = 60) -> FailoverEngine:
    return FailoverEngine([OpenAIEngine(url, retries=0) for url in urls], aside_s)


def test_replies_at_the_same_time_go_to_different_servers(two: tuple[LLM, LLM]) -> None:
    a, b = two
    engine = both(a.url, b.url)
    first, second = engine.stream(request()), engine.stream(request())
    assert (next(first).text, next(second).text) == ("f", "f")
    assert {text(first), text(second)} == {"rom a", "rom b"}
    assert text(engine.stream(request())) == "from a"  # nothing is under way: the first again


def test_a_server_that_is_away_is_left_aside_until_it_answers_again(two: tuple[LLM, LLM]) -> None:
    a, b = two
    engine = both(a.url, b.url)
    text(engine.stream(request()))
    a.statuses = [(503, {})] * 2
    assert text(engine.stream(request())) == "from b"
    assert len(a.statuses) == 1
    assert text(engine.stream(request())) == "from b"
    assert len(a.statuses) == 1  # it was not asked
    a.statuses = []
    engine.check()
    assert text(engine.stream(request())) == "from a"


def test_a_server_that_was_away_is_tried_again_after_a_while(two: tuple[LLM, LLM]) -> None:
    a, b = two
    engine = both(a.url, b.url, aside_s=0.05)
    text(engine.stream(request()))
    a.statuses = [(503, {})]
    assert text(engine.stream(request())) == "from b"
    time.sleep(0.1)
    assert text(engine.stream(request())) == "from a"


def test_where_all_fail_the_last_failure_is_told(two: tuple[LLM, LLM]) -> None:
    engine = both(NOBODY, NOBODY)
    for _ in range(2):  # servers that are aside are tried where there is no other
        with pytest.raises(RemoteError, match="no connection"):
            text(engine.stream(request()))
    with pytest.raises(RemoteError):
        engine.check()
    both(NOBODY, two[0].url).check()


def test_a_reply_that_broke_off_in_its_middle_is_not_begun_elsewhere(two: tuple[LLM, LLM]) -> None:
    a, b = two
    engine = both(a.url, b.url)
    a.faults = [Fault(2)]
    with pytest.raises(RemoteError):
        text(engine.stream(request()))
    assert not b.asked("/v1/completions")
    assert text(engine.stream(request())) == "from b"


def test_what_any_server_would_refuse_is_told_at_once(two: tuple[LLM, LLM]) -> None:
    a, b = two
    engine = both(a.url, b.url)
    text(engine.stream(request()))
    a.statuses = [(400, {})]
    with pytest.raises(RemoteError, match="400"):
        text(engine.stream(request()))
    assert not b.bodies


def test_scores_come_from_a_server_that_answers(two: tuple[LLM, LLM]) -> None:
    two[1].scores = {40: -0.25}
    engine = both(NOBODY, two[1].url)
    assert engine.score(request().ids, [[40]]) == [[-0.25]]


def test_a_reply_can_be_cancelled_while_it_waits(two: tuple[LLM, LLM]) -> None:
    a, b = two
    a.faults = [Fault(0, hang_s=30)]
    engine = both(a.url, b.url)
    stream = engine.stream(Request(request().ids, Sampling()))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(list, stream)
        while not a.asked("/v1/completions"):
            time.sleep(0.01)
        time.sleep(0.05)
        stream.cancel()
        with pytest.raises(RemoteError, match="given up"):
            waiting.result(timeout=10)
    assert not b.asked("/v1/completions")
    engine.close()

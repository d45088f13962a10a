"""Asking a judge: what is kept, what is counted, and what ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from judged import place, said
from loopback_judge import NONSENSE, JudgeLLM, choice, longer
from loopback_llm import llm

from mrp.errors import InputError
from mrp.evaluate.kept import Kept
from mrp.judge.asking import FAILED_IN_A_ROW, Ruling, ask_all, due, estimate_of
from mrp.judge.budget import Budget, Prices
from mrp.judge.questions import Question, pair_question
from mrp.judge.server import JudgeServer
from mrp.play.wire import RemoteError


def questions(count: int) -> list[Question]:
    some = [place(k, f"A longer reply {k}", f"Oof {k}") for k in range(count)]
    return [pair_question(said(*some), one, one.said["tuned"], one.said["base"]) for one in some]


@contextmanager
def asking(server: JudgeLLM, folder: Path, **wire: Any) -> Iterator[tuple[JudgeServer, Kept]]:
    judge = JudgeServer(server.url + "/v1", "judge", **({"timeout_s": 60.0, "first_wait_s": 0.01} | wire))
    with Kept(folder / "judge.jsonl") as kept:
        yield judge, kept
    judge.close()


def ask(
    server: JudgeLLM, folder: Path, asked: list[Question], budget: Budget | None = None, **wire: Any
) -> list[Ruling]:
    threads = wire.pop("threads", 4)
    with asking(server, folder, **wire) as (judge, kept):
        return ask_all(judge, asked, kept, budget or Budget(), threads)


def test_each_question_is_asked_once_and_never_again(tmp_path: Path) -> None:
    with llm(JudgeLLM) as server:
        first = ask(server, tmp_path, questions(6) + questions(6))
        assert [ruling.verdict for ruling in first] == ["A"] * 12 and len(server.bodies) == 6
        assert ask(server, tmp_path, questions(6) + questions(6)) == first and len(server.bodies) == 6
        with asking(server, tmp_path) as (judge, kept):
            assert due(judge, questions(7), kept) == questions(7)[6:]


def test_another_model_seed_or_server_is_asked_anew(tmp_path: Path) -> None:
    with llm(JudgeLLM) as server, Kept(tmp_path / "judge.jsonl") as kept:
        for model, seed in (("a", 0), ("b", 0), ("a", 1), ("a", 0)):
            ask_all(JudgeServer(server.url, model, seed=seed), questions(1), kept, Budget())
        assert len(server.bodies) == 3
        assert {(body["model"], body["seed"], body["temperature"]) for _, body in server.bodies} == {
            ("a", 0, 0), ("b", 0, 0), ("a", 1, 0)
        }  # fmt: skip


def test_nonsense_is_asked_again_once_then_counted_and_kept(tmp_path: Path) -> None:
    with llm(JudgeLLM, decide=lambda _: NONSENSE) as server:
        (ruling,) = ask(server, tmp_path, questions(1))
        assert ruling.verdict is None and ruling.answers == (NONSENSE, NONSENSE) and "JSON" in ruling.why
        assert len(server.bodies) == 2
        *_, again = server.bodies[1][1]["messages"]
        assert again["role"] == "user" and "not one JSON object" in again["content"]
        ask(server, tmp_path, questions(1))
        assert len(server.bodies) == 2


def test_an_answer_that_comes_right_the_second_time_counts(tmp_path: Path) -> None:
    said_so = iter([NONSENSE, choice("B")])
    with llm(JudgeLLM, decide=lambda _: next(said_so)) as server:
        (ruling,) = ask(server, tmp_path, questions(1))
    assert ruling.verdict == "B" and len(ruling.answers) == 2


def test_a_judge_that_times_out_is_not_kept_and_is_given_up_in_the_end(tmp_path: Path) -> None:
    with llm(JudgeLLM, wait_s=1.5) as server:
        few = ask(server, tmp_path, questions(2), timeout_s=0.5)
        assert all(ruling.verdict is None and "said nothing" in ruling.failure for ruling in few)
        with pytest.raises(RemoteError, match=f"{FAILED_IN_A_ROW} times in a row"):
            ask(server, tmp_path, questions(9), timeout_s=0.5)
        server.wait_s = 0.0
        assert all(ruling.verdict == "A" for ruling in ask(server, tmp_path, questions(2)))


def test_too_many_requests_are_asked_again_later(tmp_path: Path) -> None:
    with llm(JudgeLLM, statuses=[(429, {"Retry-After": "0"}), (503, {})]) as server:
        assert [ruling.verdict for ruling in ask(server, tmp_path, questions(2), threads=1)] == ["A", "A"]
        assert len(server.bodies) == 4


def test_a_wrong_key_ends_it_at_once_and_is_written_nowhere(tmp_path: Path) -> None:
    with llm(JudgeLLM, statuses=[(401, {})]) as server:
        with pytest.raises(RemoteError, match="401") as caught:
            ask(server, tmp_path, questions(20), api_key="sk-secret", threads=1)
        assert len(server.bodies) == 1 and server.keys == ["Bearer sk-secret"]
        assert "secret" not in str(caught.value)
        ask(server, tmp_path, questions(20), api_key="sk-secret")
    assert b"secret" not in (tmp_path / "judge.jsonl").read_bytes()


def test_options_that_a_model_refuses_are_left_out(tmp_path: Path) -> None:
    with llm(JudgeLLM, refuses=("temperature", "max_tokens")) as server, asking(server, tmp_path) as (judge, kept):
        rulings = ask_all(judge, questions(3), kept, Budget(), 1)
        assert [ruling.verdict for ruling in rulings] == ["A"] * 3
        assert judge.left_out == {"temperature", "max_tokens"} and len(server.bodies) == 5
        last = server.bodies[-1][1]
        assert "max_completion_tokens" in last and not {"temperature", "max_tokens"} & set(last)


@pytest.mark.parametrize(("base", "path"), [("", "/v1/chat/completions"), ("/v1", "/v1/chat/completions"),
                                            ("/v1/", "/v1/chat/completions"), ("/api/v4", "/api/v4/chat/completions"),
                                            ("/compatible/v1", "/compatible/v1/chat/completions")])  # fmt: skip
def test_an_endpoint_may_lie_anywhere(base: str, path: str) -> None:
    with llm(JudgeLLM) as server:
        judge = JudgeServer(server.url + base, "judge")
        judge.ask(questions(1)[0].messages)
        assert server.bodies[0][0] == path and judge.where == server.url + path


@pytest.mark.parametrize("url", ["https://me:sk-secret@host/v1", "https://host/v1?key=sk-secret", "nowhere", "ftp://x"])
def test_an_address_that_is_none_or_holds_a_key_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        JudgeServer(url, "judge")
    assert caught.value.where == "--base-url" and "secret" not in str(caught.value)


def test_more_than_the_limits_allow_is_refused_before_and_stopped_during(tmp_path: Path) -> None:
    prices = Prices(10.0, 30.0)
    with pytest.raises(InputError, match="5 requests are more than 4"):
        Budget(max_requests=4).check(5, 0, 0)
    with pytest.raises(InputError, match="is more than 0"):
        Budget(prices, max_cost=0.01).check(1, 1000, 100)
    with pytest.raises(InputError, match="needs the prices"):
        Budget(max_cost=1.0)
    with pytest.raises(InputError, match="one price"):
        Budget(Prices(1.0, None))
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(InputError, match="no amount of money"):
            Budget(prices, max_cost=value)
    with llm(JudgeLLM, decide=lambda _: NONSENSE) as server:
        with pytest.raises(InputError, match="all 3 requests are spent"):
            ask(server, tmp_path, questions(3), Budget(max_requests=3), threads=1)
        assert len(server.bodies) == 3
        kept = (tmp_path / "judge.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(kept) == 1
    with llm(JudgeLLM) as server:
        one = questions(1)
        needed = prices.cost(*estimate_of(one))
        assert needed is not None
        with pytest.raises(InputError, match="would pass"):
            ask(server, tmp_path / "more", questions(9), Budget(prices, max_cost=2.5 * needed), threads=1)
        assert 1 < len(server.bodies) < 9


def test_what_the_server_counts_takes_the_place_of_the_estimate(tmp_path: Path) -> None:
    for tells, spent in ((True, (300, 30)), (False, None)):
        budget = Budget(Prices(1.0, 2.0))
        with llm(JudgeLLM, tells_usage=tells) as server:
            ask(server, tmp_path / str(tells), questions(3), budget)
        assert budget.spent.requests == 3 and budget.spent.estimated == (0 if tells else 3)
        expected = spent or estimate_of(questions(3))
        assert (budget.spent.tokens_in, budget.spent.tokens_out) == expected
        assert budget.cost == pytest.approx((expected[0] + 2 * expected[1]) / 1e6)


def test_a_killed_judging_goes_on(tmp_path: Path) -> None:
    with llm(JudgeLLM) as server:
        whole = ask(server, tmp_path, questions(6))
        file = tmp_path / "judge.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[:3]) + lines[3][:20], encoding="utf-8")
        assert ask(server, tmp_path, questions(6)) == whole and len(server.bodies) == 9


def test_rules_are_applied_to_kept_answers_anew(tmp_path: Path) -> None:
    with llm(JudgeLLM, decide=longer) as server:
        ask(server, tmp_path, questions(1))
    row = json.loads((tmp_path / "judge.jsonl").read_text(encoding="utf-8"))
    assert row["value"]["tokens"] == [100, 10] and json.loads(row["value"]["answers"][0])["better"] == "A"

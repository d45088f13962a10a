"""The engine that is a server: what it is asked, what comes of its answers, and that a cut reply is never taken for
a whole one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from loopback_llm import LLM, Fault, llm
from scripted import CAST, TEMPLATE

from mrp.data.view import Message
from mrp.errors import InputError
from mrp.play.engine import Request, Sampling
from mrp.play.remote import OpenAIEngine
from mrp.play.reply import Player, Reply
from mrp.play.wire import RemoteError, asked_wait_s

MESSAGES = [Message("system", "You are Sun Wukong."), Message("user", "Who are you?")]
IDS = TEMPLATE.prompt(MESSAGES)
STOPS = TEMPLATE.stop_ids()


@pytest.fixture
def server() -> Iterator[LLM]:
    with llm(replies=["Ha! 俺老孙！"]) as running:
        yield running


def engine(server: LLM, **given: object) -> OpenAIEngine:
    return OpenAIEngine(f"{server.url}/v1", first_wait_s=0.01, **given)  # type: ignore[arg-type]


def request(sampling: Sampling = Sampling(), voice: str | None = None) -> Request:
    return Request(IDS, sampling, STOPS, voice, MESSAGES)


def text(stream: Iterator[object]) -> str:
    return "".join(token.text for token in stream)  # type: ignore[attr-defined]


def completions(server: LLM) -> list[dict[str, object]]:
    return server.asked("/v1/completions")


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_a_server_that_takes_ids_gets_the_ids_of_our_renderer_and_all_of_the_sampling(server: LLM) -> None:
    sampling = Sampling(0.5, 0.8, 40, 7, presence_penalty=0.25, frequency_penalty=-0.5)
    assert text(engine(server).stream(request(sampling))) == "Ha! 俺老孙！"
    (body,) = completions(server)
    assert body["prompt"] == IDS
    asked = {key: body[key] for key in ("temperature", "top_p", "max_tokens", "seed", "stop_token_ids")}
    assert asked == {"temperature": 0.5, "top_p": 0.8, "max_tokens": 40, "seed": 7, "stop_token_ids": STOPS}
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.25, -0.5)
    assert body["top_k"] == -1  # not the server's own default
    assert not server.asked("/v1/chat/completions")


def test_a_server_that_takes_no_ids_gets_the_messages(server: LLM) -> None:
    server.takes_ids, server.template_ids, heard = False, IDS, []
    assert text(engine(server, warn=heard.append).stream(request())) == "Ha! 俺老孙！"
    (body,) = server.asked("/v1/chat/completions")
    assert body["messages"] == [{"role": m.role, "content": m.text} for m in MESSAGES]
    assert not heard


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_a_server_whose_template_differs_is_told_of_with_the_place(server: LLM, kind: str) -> None:
    server.kind, server.takes_ids, server.template_ids = kind, False, [*IDS[:3], 99999, *IDS[4:]]
    heard: list[str] = []
    play = engine(server, warn=heard.append)
    assert text(play.stream(request())) == text(play.stream(request())) == "Ha! 俺老孙！"
    assert len(heard) == 1
    assert "differs" in heard[0]
    assert "token 3" in heard[0]


def test_a_server_that_does_not_tell_how_it_renders_is_told_of(server: LLM) -> None:
    server.kind, server.takes_ids, heard = "library", False, []
    assert text(engine(server, warn=heard.append).stream(request()))
    assert len(heard) == 1
    assert "may differ" in heard[0]


@pytest.mark.parametrize("more", [0, 5])
def test_a_server_that_reads_another_number_of_tokens_is_told_of(server: LLM, more: int) -> None:
    server.kind, server.takes_ids, server.prompt_tokens, heard = "library", False, len(IDS) + more, []
    play = engine(server, warn=heard.append)
    assert text(play.stream(request())) == text(play.stream(request()))
    assert [word for word in heard if "differs" in word] == heard[1:]
    assert len(heard) == (2 if more else 1)


def test_a_server_that_adds_tokens_to_the_ids_gets_messages_instead(server: LLM) -> None:
    server.counts, server.template_ids, heard = 1, IDS, []
    assert text(engine(server, warn=heard.append).stream(request()))
    assert server.asked("/v1/chat/completions")
    assert "counts 5 tokens" in heard[0]


def test_a_server_that_takes_no_ids_cannot_go_on_in_the_same_turn(server: LLM) -> None:
    server.takes_ids = False
    begun = Request(IDS, messages=[*MESSAGES, Message("assistant", "Ha!")])
    with pytest.raises(InputError, match="same turn"):
        text(engine(server).stream(begun))
    with pytest.raises(InputError, match="no messages were given"):
        text(engine(server).stream(Request(IDS)))


def test_a_voice_is_the_model_of_its_name_where_the_server_lists_one(server: LLM) -> None:
    server.names = ["cast", "wukong"]
    play = engine(server)
    for voice in ("wukong", "bajie", None):
        text(play.stream(request(voice=voice)))
    assert [body["model"] for body in completions(server)] == ["wukong", "cast", "cast"]


def test_a_server_that_cannot_list_its_models_is_asked_for_the_one_that_is_named(server: LLM) -> None:
    server.lists = False
    assert text(engine(server, model="cast").stream(request())) == "Ha! 俺老孙！"
    with pytest.raises(RemoteError, match="500"):
        text(engine(server).stream(request()))


def test_the_key_goes_with_each_request(server: LLM) -> None:
    text(engine(server, api_key="sesame").stream(request()))
    assert set(server.keys) == {"Bearer sesame"}


# -- what comes of it --------------------------------------------------------------------------------------------------


def test_characters_that_other_readers_cut_lines_at_stay_in_the_text(server: LLM) -> None:
    server.replies = ["a\u2028b\u0085c\x0cd\x1ee\r\nf"]
    assert text(engine(server).stream(request())) == server.replies[0]


@pytest.mark.parametrize("takes_ids", [True, False])
def test_log_probabilities_come_with_their_tokens(server: LLM, takes_ids: bool) -> None:
    server.replies, server.takes_ids = ["Ha"], takes_ids
    tokens = list(engine(server).stream(request(Sampling(top_logprobs=2))))
    assert [(t.text, t.logprob, t.top) for t in tokens] == [
        ("H", -0.5, (("H", -0.5), ("#", -1.5))),
        ("a", -0.5, (("a", -0.5), ("#", -1.5))),
    ]


def player(server: LLM) -> Player:
    return Player(engine(server), TEMPLATE, CAST, STOPS)


@pytest.mark.parametrize(("length", "cut"), [(5, False), (6, True), (7, True)])
@pytest.mark.parametrize("per_piece", [1, 2])
def test_a_reply_that_was_too_long_is_known_as_such_and_its_tokens_are_counted(
    server: LLM, length: int, cut: bool, per_piece: int
) -> None:
    server.replies, server.per_piece = ["x" * length], per_piece
    reply = Reply(player(server), "wukong", IDS, Sampling(max_new_tokens=6), messages=MESSAGES)
    assert "".join(reply) == "x" * min(length, 6)
    assert len(reply.tokens) == min(length, 6)
    assert reply.cut is cut


def test_scores_are_those_of_the_continuations(server: LLM) -> None:
    server.scores = {40: -0.25, 41: -0.5, 42: -3.0}
    found = [[-0.25, -0.5], [-3.0]]
    for kind in ("vllm", "sglang"):
        server.kind = kind
        assert engine(server).score(IDS, [[40, 41], [42]]) == found
    assert engine(server).score(IDS, []) == []


@pytest.mark.parametrize(("kind", "takes_ids"), [("llamacpp", True), ("library", False)])
def test_a_server_that_cannot_score_says_so(server: LLM, kind: str, takes_ids: bool) -> None:
    server.kind, server.takes_ids = kind, takes_ids
    with pytest.raises(InputError, match="cannot tell log-probabilities"):
        engine(server).score(IDS, [[40]])


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(2),
        Fault(2, quietly=True),
        Fault(2, b"data: [DONE]\n\n", quietly=True),
        Fault(2, b'data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n', quietly=True),
        Fault(2, b"data: {not json\n\n", quietly=True),
        Fault(2, b"data: 7\n\n", quietly=True),
        Fault(2, b'data: {"choices": [{"text": 7, "logprobs": 1, "finish_reason": "abort"}]}\n\n', quietly=True),
        Fault(2, b'data: {"choices": ["x"]}\n\n', quietly=True),
    ],
    ids=["connection", "body", "done-alone", "error-event", "no-json", "no-object", "aborted", "no-choice"],
)
def test_a_reply_that_is_cut_raises_and_is_not_asked_for_again(server: LLM, fault: Fault) -> None:
    server.faults = [fault]
    seen = []
    with pytest.raises(RemoteError) as raised:
        for token in engine(server).stream(request()):
            seen.append(token.text)
    assert seen == ["H", "a"]
    assert len(completions(server)) == 1
    assert server.url in raised.value.where


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: LLM, status: int) -> None:
    play = engine(server)
    text(play.stream(request()))
    server.statuses = [(status, {}), (status, {"Retry-After": "0"})]
    assert text(play.stream(request())) == "Ha! 俺老孙！"
    assert len(completions(server)) == 4


def test_a_busy_server_is_waited_for_as_long_as_it_asks_and_given_up_in_the_end(server: LLM) -> None:
    play = engine(server, retries=1)
    text(play.stream(request()))
    server.statuses = [(429, {"Retry-After": "0.3"})]
    begun = time.monotonic()
    text(play.stream(request()))
    assert time.monotonic() - begun >= 0.3
    server.statuses = [(503, {})] * 2
    with pytest.raises(RemoteError, match=r"503 .*not now"):
        text(play.stream(request()))
    server.statuses = [(429, {"Retry-After": "3600"})]
    with pytest.raises(RemoteError, match="429"):
        text(play.stream(request()))


def test_another_refusal_is_told_at_once_in_the_servers_words(server: LLM) -> None:
    play = engine(server)
    text(play.stream(request()))
    server.statuses = [(401, {})]
    with pytest.raises(RemoteError, match=r"401 .*not now") as raised:
        text(play.stream(request()))
    assert raised.value.status == 401
    assert "key" in raised.value.fix


def test_no_server_at_all_is_told_with_the_address() -> None:
    with pytest.raises(RemoteError, match="no connection") as raised:
        text(OpenAIEngine("http://127.0.0.1:9/v1", retries=1, first_wait_s=0.01).stream(request()))
    assert "127.0.0.1:9" in raised.value.where
    with pytest.raises(InputError, match="no address"):
        OpenAIEngine("localhost:8000")


@pytest.mark.parametrize("mute", [True, False])
def test_a_silent_server_is_given_up_after_the_timeout(server: LLM, mute: bool) -> None:
    server.faults = [Fault(1, hang_s=3, mute=mute)]
    stream = engine(server, timeout_s=0.3).stream(request())
    assert next(stream).text == "H"
    with pytest.raises(RemoteError, match=r"nothing for 0\.3 s"):
        next(stream)


# -- ending it ---------------------------------------------------------------------------------------------------------


def test_a_closed_stream_drops_its_connection_at_once(server: LLM) -> None:
    server.faults = [Fault(1, hang_s=20)]
    stream = engine(server).stream(request())
    assert next(stream).text == "H"
    stream.close()
    assert server.gone.wait(5)


@pytest.mark.parametrize("after", [0, 1])
def test_a_stream_that_waits_for_its_server_can_be_cancelled_from_another_thread(server: LLM, after: int) -> None:
    server.faults = [Fault(after, hang_s=30)]
    stream = engine(server).stream(request())
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(list, stream)
        while not completions(server):
            time.sleep(0.01)
        time.sleep(0.05)
        stream.cancel()
        with pytest.raises(RemoteError, match="given up"):
            waiting.result(timeout=10)
    assert server.gone.wait(5)


def test_a_closed_engine_ends_its_streams_and_begins_none(server: LLM) -> None:
    server.faults = [Fault(1, hang_s=30)]
    play = engine(server)
    stream = play.stream(request())
    assert next(stream).text == "H"
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(list, stream)
        time.sleep(0.05)
        play.close()
        with pytest.raises(RemoteError):
            waiting.result(timeout=10)
    with pytest.raises(RemoteError, match="closed"):
        text(play.stream(request()))


def test_replies_asked_for_at_the_same_time_are_not_mixed(server: LLM) -> None:
    server.replies = [f"{k}:" + "abcdefgh"[k] * 50 for k in range(8)] + ["?"]
    play, start = engine(server), threading.Barrier(8)

    def one() -> str:
        start.wait()
        return text(play.stream(request()))

    with ThreadPoolExecutor(8) as pool:
        found = [f.result() for f in [pool.submit(one) for _ in range(8)]]
    assert sorted(found) == [f"{k}:" + "abcdefgh"[k] * 50 for k in range(8)]


def test_a_time_to_wait_is_a_number_or_a_date() -> None:
    assert asked_wait_s("2.5") == 2.5
    assert asked_wait_s("-1") == 0
    assert asked_wait_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert asked_wait_s("soon") is None
    assert asked_wait_s("") is None

"""Who may ask, how much, and what happens to those who leave: keys, hosts, bodies, rates, the queue, disconnects."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from scripted import CAST, scripted
from serving import Running, echoing, serving, with_gate

from mrp.errors import InputError, ManyFaults
from mrp.serve.bridge import bridged
from mrp.serve.command import bind, check_exposure
from mrp.serve.gate import GateOptions
from mrp.serve.keys import Keys, add_key, load_keys
from mrp.serve.limits import Slots
from mrp.serve.metrics import Metrics
from mrp.serve.service import ServeOptions

BODY = {"model": "wukong", "messages": [{"role": "user", "content": "Who are you, and where do you come from?"}]}


def post(server: Running, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=BODY | more, headers=headers, timeout=20)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_with_keys_nothing_is_answered_without_one(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    key, other = add_key(path, "phone"), add_key(path, "laptop")
    assert key not in path.read_text(encoding="utf-8")
    keys = load_keys(path)
    assert [keys.owner(k) for k in (key, other, key[:-1], "")] == ["phone", "laptop", None, None]
    with serving(scripted(CAST, "Ha!", "Ha!"), keys=keys) as server:
        for headers in ({}, {"Authorization": key}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eA=="}):
            answer = post(server, headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 401
            assert httpx.get(f"{server.url}/metrics", headers=headers).status_code == 401
            assert httpx.get(f"{server.url}/nothing", headers=headers).status_code == 401
        for good in (key, other):
            assert post(server, {"Authorization": f"Bearer {good}"}).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_file_of_keys_with_faults_names_each(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    key = add_key(path, "a")
    good = path.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="named 'a' already"):
        add_key(path, "a")
    path.write_text(f"{good}{good}b {key}\n", encoding="utf-8")
    with pytest.raises(ManyFaults) as raised:
        load_keys(path)
    assert [fault.where for fault in raised.value.faults] == [f"{path}:2", f"{path}:3"]
    with pytest.raises(InputError, match="cannot be read"):
        load_keys(tmp_path / "absent")
    with pytest.raises(InputError, match="too short"):
        load_keys(None, "short")
    assert load_keys(None, "long enough for a key").owner("long enough for a key") == "MRP_API_KEY"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_server_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(InputError, match="without a key"):
        check_exposure(host, has_keys=False, insecure=False)
    check_exposure(host, has_keys=True, insecure=False)
    check_exposure(host, has_keys=False, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_loopback_needs_none(host: str) -> None:
    check_exposure(host, has_keys=False, insecure=False)


def test_an_address_that_is_taken_is_told() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(InputError, match="cannot listen"):
        bind("127.0.0.1", taken.getsockname()[1])


# -- where a request comes from, and its form --------------------------------------------------------------------------


def test_a_name_that_is_not_ours_is_refused() -> None:
    options = ServeOptions(GateOptions(hosts=("mrp.local",)))
    with serving(scripted(CAST), options) as server:
        for host, status in (
            ("evil.example", 421),
            ("127.0.0.1.evil.example:80", 421),
            ("", 421),
            ("localhost:1", 200),
            ("mrp.local", 200),
            ("[::1]:80", 200),
            ("10.0.0.7", 200),  # a page can give its own name an address, and no address another one
        ):
            assert httpx.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == status, host


def test_no_other_site_may_read_or_send() -> None:
    with serving(scripted(CAST)) as server:
        origin = {"Origin": "https://evil.example"}
        answer = httpx.get(f"{server.url}/v1/models", headers=origin)
        assert not any(name.startswith("access-control") for name in answer.headers)
        asked = httpx.options(
            f"{server.url}/v1/chat/completions", headers={**origin, "Access-Control-Request-Method": "POST"}
        )
        assert asked.status_code == 405
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            sent = httpx.post(
                f"{server.url}/v1/chat/completions", content=json.dumps(BODY), headers={**origin, "Content-Type": kind}
            )
            assert (sent.status_code, sent.json()["error"]["code"]) == (415, "unsupported_type")


def test_a_long_body_is_refused_said_or_not() -> None:
    player = scripted(CAST)
    with serving(player, ServeOptions(GateOptions(max_body_bytes=5000))) as server:
        long = json.dumps(BODY).encode() + b" " * 5000
        headers = {"Content-Type": "application/json"}
        url = f"{server.url}/v1/chat/completions"
        assert httpx.post(url, content=long, headers=headers).status_code == 413
        pieces = (long[k : k + 500] for k in range(0, len(long), 500))
        answer = httpx.post(url, content=pieces, headers=headers)  # chunked, without its length
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert not player.engine.prompts


def test_too_many_requests_of_one_client_are_told_when_to_come_again() -> None:
    with serving(scripted(CAST), ServeOptions(GateOptions(requests_per_minute=3))) as server:
        answers = [httpx.get(f"{server.url}/v1/models") for _ in range(5)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
        assert 1 <= int(answers[3].headers["Retry-After"]) <= 20
        assert httpx.get(f"{server.url}/health").status_code == 200


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_as_many_run_as_may_the_next_wait_and_more_are_refused() -> None:
    player = with_gate(echoing())
    with serving(player, ServeOptions(max_running=2, max_waiting=1)) as server, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(post, server) for _ in range(3)]
        server.wait_for(lambda: server.service.slots.waiting == 1 and player.engine.running == 2)
        refused = post(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
        assert httpx.get(f"{server.url}/ready").status_code == 503
        player.engine.gate.release(10_000)  # type: ignore[union-attr]
        assert [f.result().status_code for f in asked] == [200] * 3
        assert player.engine.most_running == 2
        assert httpx.get(f"{server.url}/ready").status_code == 200


def test_who_waits_too_long_is_told_so() -> None:
    player = with_gate(echoing())
    options = ServeOptions(max_running=1, max_waiting=5, wait_s=0.2)
    with serving(player, options) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, server)
        server.wait_for(lambda: player.engine.running == 1)
        late = post(server)
        assert (late.status_code, late.json()["error"]["code"]) == (429, "queue_timeout")
        player.engine.gate.release(10_000)  # type: ignore[union-attr]
        assert first.result().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_takes_too_long_is_ended_and_its_place_is_free(stream: bool) -> None:
    player = with_gate(echoing())
    player.engine.gate.release(2)  # type: ignore[union-attr]
    with serving(player, ServeOptions(max_running=1, timeout_s=0.5)) as server:
        answer = post(server, stream=stream)
        if stream:
            assert '"code":"timeout"' in answer.text
            assert "[DONE]" not in answer.text
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        player.engine.gate.release(10_000)  # type: ignore[union-attr]
        server.wait_until_idle()
        assert player.engine.running == 0


# -- those who leave ---------------------------------------------------------------------------------------------------


def begin(server: Running, stream: bool) -> socket.socket:
    """A client that asks and reads nothing."""
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    body = json.dumps(BODY | {"stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place_at_the_next_token(stream: bool) -> None:
    player = with_gate(echoing())
    with serving(player, ServeOptions(max_running=1)) as server:
        client = begin(server, stream)
        server.wait_for(lambda: player.engine.running == 1)
        player.engine.gate.release(3)  # type: ignore[union-attr]
        time.sleep(0.1)
        client.close()
        time.sleep(0.2)
        player.engine.gate.release(1)  # type: ignore[union-attr]  # the engine's next token: there it notices
        server.wait_until_idle()
        assert player.engine.running == 0
        player.engine.gate.release(10_000)  # type: ignore[union-attr]
        assert post(server).status_code == 200


def test_a_client_that_leaves_the_queue_is_not_served() -> None:
    player = with_gate(echoing())
    with serving(player, ServeOptions(max_running=1)) as server:
        first = begin(server, False)
        server.wait_for(lambda: player.engine.running == 1)
        waiting = begin(server, True)
        server.wait_for(lambda: server.service.slots.waiting == 1)
        waiting.close()
        server.wait_for(lambda: server.service.slots.waiting == 0)
        player.engine.gate.release(10_000)  # type: ignore[union-attr]
        server.wait_until_idle()
        first.close()
    assert len(player.engine.prompts) == 1


def test_a_client_that_reads_nothing_holds_no_place() -> None:
    player = echoing(max_new_tokens=400)
    with serving(player, ServeOptions(max_running=1)) as server:
        idle = begin(server, True)
        server.wait_for(lambda: len(player.engine.prompts) == 1)
        server.wait_until_idle()
        idle.close()


# -- what is told of requests ------------------------------------------------------------------------------------------


def test_the_log_holds_facts_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mrp.serve"), serving(echoing()) as server:
        post(server, user="alice@example.org")
        post(server, model="nobody")
    rows = [json.loads(r.getMessage()) for r in caplog.records if r.getMessage().startswith("{")]
    good, bad = rows
    assert (good["path"], good["status"], good["character"]) == ("/v1/chat/completions", 200, "wukong")
    assert good["reply_tokens"] > 0
    assert good["prompt_tokens"] > 0
    assert bad["status"] == 404
    assert "where do you come" not in caplog.text
    assert "alice" not in caplog.text
    assert len(good["user"]) == 12


def test_metrics_count_requests_tokens_and_times_by_character() -> None:
    with serving(echoing()) as server:
        answer = post(server).json()
        httpx.get(f"{server.url}/some/where/else")
        page = httpx.get(f"{server.url}/metrics").text
    usage = answer["usage"]
    assert f'mrp_tokens_total{{character="wukong",kind="prompt"}} {float(usage["prompt_tokens"])}' in page
    assert f'mrp_tokens_total{{character="wukong",kind="reply"}} {float(usage["completion_tokens"])}' in page
    assert 'mrp_requests_total{path="/v1/chat/completions",status="200"} 1.0' in page
    assert 'mrp_requests_total{path="other",status="404"} 1.0' in page
    assert 'mrp_first_token_seconds_count{character="wukong"} 1.0' in page
    assert "mrp_waiting 0.0" in page


def test_metrics_tell_how_the_embedded_engine_makes_its_steps() -> None:
    stats = SimpleNamespace(steps=12, graphed=9, cache_bytes=2048, dropped=1)
    page = Metrics(Slots(1, 1, 1.0), SimpleNamespace(stats=stats)).page().decode()
    assert 'mrp_engine_steps{how="graph"} 9.0' in page and 'mrp_engine_steps{how="ordinary"} 3.0' in page
    assert "mrp_engine_cache_bytes 2048.0" in page and "mrp_engine_dropped 1.0" in page
    assert "mrp_engine" not in Metrics(Slots(1, 1, 1.0), object()).page().decode()


def test_the_engine_is_closed_with_the_server() -> None:
    player = echoing()
    with serving(player, keys=Keys({})):
        pass
    assert player.engine.closed


def test_who_leaves_in_the_moment_in_which_a_piece_comes_is_gone() -> None:
    """`asyncio.wait_for` lost this cancellation, and the reply went on for nobody."""
    told, over = threading.Semaphore(0), threading.Event()

    class Pieces:
        def __iter__(self) -> Iterator[int]:
            for number in range(3):
                told.acquire()
                yield number

        def cancel(self) -> None:
            over.set()
            told.release(3)

    async def leave() -> bool:
        pool = ThreadPoolExecutor(1)

        async def listen() -> None:
            async with aclosing(bridged(pool, Pieces(), lambda: None, timeout_s=60)) as pieces:
                async for _ in pieces:
                    pass

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.05)
        told.release()
        time.sleep(0.1)  # the loop stands still: the piece and the leaving come in one of its rounds
        asyncio.get_running_loop().call_soon(listening.cancel)
        await asyncio.wait({listening}, timeout=5)
        return listening.cancelled()

    assert asyncio.run(leave())
    assert over.is_set()


def test_a_reply_whose_pieces_never_stop_coming_ends_in_time() -> None:
    class Pieces:
        def __iter__(self) -> Iterator[int]:
            return itertools.takewhile(lambda _: not self.over, itertools.count())

        over = False

        def cancel(self) -> None:
            self.over = True

    async def count() -> None:
        with ThreadPoolExecutor(1) as pool:
            async with aclosing(bridged(pool, Pieces(), lambda: None, timeout_s=0.1)) as pieces:
                async for _ in pieces:
                    pass

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(count(), 20))


def test_what_there_is_not_is_named() -> None:
    with serving(scripted(CAST)) as server:
        for method, path, status in (("GET", "/v1/nothing", 404), ("PUT", "/v1/models", 405)):
            answer = httpx.request(method, server.url + path)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, "unknown_endpoint")
            assert f"{method} {path}" in error["message"]

"""Many clients at once, some of whom leave: each gets its own reply whole, or an error, and nothing is left running.

Counted in requests, not in seconds."""

from __future__ import annotations

import json
import random
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
from loopback_llm import LLM, Fault, llm
from scripted import CAST, TEMPLATE
from serving import Running, echoing, serving

from mrp.config import ChatOptions
from mrp.play.remote import OpenAIEngine
from mrp.play.reply import Player
from mrp.serve.gate import GateOptions
from mrp.serve.service import ServeOptions

OPTIONS = ServeOptions(GateOptions(requests_per_minute=0), max_running=6, max_waiting=100)
CLIENTS, EACH = 12, 12


def one_client(server: Running, seed: int) -> dict[str, int]:
    """Ask with a nonce each time; leave some streams in the middle. What happened, counted."""
    chance, counts = random.Random(seed), {"whole": 0, "left": 0, "failed": 0}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in range(EACH):
            nonce = uuid.UUID(int=chance.getrandbits(128)).hex
            character = chance.choice(["wukong", "bajie", "tang"])
            body = {"model": character, "messages": [{"role": "user", "content": nonce}], "max_tokens": 200}
            if chance.random() < 0.3:
                answer = http.post("/v1/chat/completions", json=body)
                if answer.status_code == 200:
                    told = answer.json()
                    assert told["choices"][0]["message"]["content"] == nonce
                    assert told["mrp"]["character"] == character
                    counts["whole"] += 1
                else:
                    assert answer.json()["error"]["message"]
                    counts["failed"] += 1
                continue
            counts[one_stream(http, body, nonce, leaves=chance.random() < 0.4)] += 1
    return counts


def one_stream(http: httpx.Client, body: dict[str, object], nonce: str, leaves: bool) -> str:
    text, finish, last = "", None, ""
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            assert json.loads(answer.read())["error"]["message"]
            return "failed"
        for line in answer.iter_lines():
            last = line or last
            if not line or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                assert finish is None
                assert nonce.startswith(text)
                return "failed"
            (choice,) = event["choices"]
            text += choice["delta"].get("content", "")
            finish = choice["finish_reason"] or finish
            assert nonce.startswith(text)
            if leaves and len(text) > 3:
                return "left"
    assert (text, finish, last) == (nonce, "stop", "data: [DONE]")
    return "whole"


def soak(server: Running) -> dict[str, int]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        counts = list(pool.map(lambda seed: one_client(server, seed), range(CLIENTS)))
    server.wait_until_idle()
    total = {key: sum(count[key] for count in counts) for key in counts[0]}
    assert sum(total.values()) == CLIENTS * EACH
    return total


def test_replies_are_not_mixed_and_those_who_leave_leave_nothing_behind() -> None:
    player = echoing(pause_s=0.001)
    with serving(player, OPTIONS) as server:
        total = soak(server)
    assert total["failed"] == 0
    assert total["left"] > 10
    assert total["whole"] > 40
    assert player.engine.running == 0
    assert player.engine.most_running <= OPTIONS.max_running


class EchoLLM(LLM):
    """Says the last user's line back; every fifth stream is cut in the middle."""

    def next_reply(self, body: dict[str, object]) -> str:
        prompt = str(TEMPLATE.tokenizer.decode(body["prompt"]))  # type: ignore[arg-type]
        return prompt.rsplit("<|im_start|>user\n", 1)[-1].split("<|im_end|>")[0]

    def next_fault(self) -> Fault | None:
        self.streams = getattr(self, "streams", 0) + 1
        return Fault(5) if self.streams % 5 == 0 else None


def test_a_server_behind_that_breaks_off_is_told_of_and_never_a_plausible_end() -> None:
    with llm(EchoLLM) as behind:
        engine = OpenAIEngine(f"{behind.url}/v1", first_wait_s=0.01)
        player = Player(engine, TEMPLATE, CAST, TEMPLATE.stop_ids(), ChatOptions())
        with serving(player, OPTIONS) as server:
            total = soak(server)
    assert total["failed"] > 10
    assert total["whole"] > 30

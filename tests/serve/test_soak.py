"""Many clients at once, some of whom leave: each gets its own reply whole, or an error, and nothing is left running.

The short form of `benchmarks/serve_soak.py`, with its clients' eyes; counted in requests, not in seconds."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
from loopback_llm import LLM, Fault, llm
from scripted import CAST, TEMPLATE
from serving import Running, echoing, serving

from benchmarks.serve_soak import stream, whole
from mrp.config import ChatOptions
from mrp.play.remote import OpenAIEngine
from mrp.play.reply import Player
from mrp.serve.gate import GateOptions
from mrp.serve.service import ServeOptions

OPTIONS = ServeOptions(GateOptions(requests_per_minute=0), max_running=6, max_waiting=100)
CLIENTS, EACH = 12, 12


def one_client(server: Running, seed: int) -> Counter[str]:
    """Ask with a nonce each time; leave some streams in the middle. What happened, counted."""
    chance, counts = random.Random(seed), Counter[str]()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in range(EACH):
            nonce = uuid.UUID(int=chance.getrandbits(128)).hex
            character = chance.choice(["wukong", "bajie", "tang"])
            body = {"model": character, "messages": [{"role": "user", "content": nonce}], "max_tokens": 200}
            streams, leaves = chance.random() >= 0.3, chance.random() < 0.4
            kind, _, text = stream(http, body, leaves) if streams else whole(http, body)
            assert kind in ("whole", "left", "told"), kind
            assert text == nonce if kind == "whole" else nonce.startswith(text)
            counts[kind] += 1
    return counts


def soak(server: Running) -> Counter[str]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        counts = list(pool.map(lambda seed: one_client(server, seed), range(CLIENTS)))
    server.wait_until_idle()
    total = sum(counts, Counter[str]())
    assert total.total() == CLIENTS * EACH
    return total


def test_replies_are_not_mixed_and_those_who_leave_leave_nothing_behind() -> None:
    player = echoing(pause_s=0.001)
    with serving(player, OPTIONS) as server:
        total = soak(server)
    assert total["told"] == 0
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
    assert total["told"] > 10
    assert total["whole"] > 30

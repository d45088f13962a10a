"""A judge on the loopback: it reads the material that it is sent, and decides as the test says.

with llm(JudgeLLM) as server:
    server.decide = lambda material: '{"why": "", "better": "A"}'
    JudgeServer(server.url + "/v1", "judge").ask(messages)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback_llm import LLM, answer

from mrp.judge.rubric import IDS

NONSENSE = "Both are lovely. I would say A, or maybe B?"


def choice(better: str) -> str:
    return json.dumps({"why": "so it is", "better": better})


def marks(mark: int, **other: int) -> str:
    return json.dumps({"why": "so it is", "scores": dict.fromkeys(IDS, mark) | other})


def longer(material: dict[str, Any]) -> str:
    """A judge without any bias of place: the longer reply wins; a reply alone gets marks by its length."""
    if "reply" in material:
        return marks(min(5, 1 + len(material["reply"]) // 10))
    a, b = len(material["reply_A"]), len(material["reply_B"])
    return choice("tie" if a == b else "A" if a > b else "B")


def always_first(material: dict[str, Any]) -> str:
    return marks(3) if "reply" in material else choice("A")


@dataclass
class JudgeLLM(LLM):
    decide: Callable[[dict[str, Any]], str] = longer
    wait_s: float = 0.0
    tells_usage: bool = True
    refuses: tuple[str, ...] = ()  # options that it answers 400 to

    @property
    def asked_for(self) -> list[dict[str, Any]]:
        """The material of each question that came."""
        return [json.loads(body["messages"][1]["content"]) for _, body in self.bodies if "messages" in body]

    def post(self, to: BaseHTTPRequestHandler) -> None:
        body = json.loads(to.rfile.read(int(to.headers["Content-Length"])))
        with self.lock:
            self.bodies.append((to.path, body))
            self.keys.append(to.headers.get("Authorization"))
            status = self.statuses.pop(0) if self.statuses else None
        if status:
            return answer(to, status[0], {"error": {"message": "not now"}}, status[1])
        for name in self.refuses:
            if name in body:
                return answer(to, 400, {"error": {"message": f"Unsupported parameter: '{name}'"}})
        time.sleep(self.wait_s)
        text = self.decide(json.loads(body["messages"][1]["content"]))
        value: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        if self.tells_usage:
            value["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
        return answer(to, 200, value)

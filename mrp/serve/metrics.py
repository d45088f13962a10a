"""What Prometheus reads at /metrics: requests, tokens, queue, time to first token, speed; by character.

metrics = Metrics(slots, player.engine)
metrics.reply("wukong", prompt_tokens=40, reply_tokens=12, first_s=0.3, seconds=2.0)
metrics.page()
"""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mrp.serve.limits import Slots

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """The counters of one server. Labels hold ids of the cast and paths of our own only: nobody can grow them."""

    def __init__(self, slots: Slots, engine: object = None) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("mrp_requests", "Requests by path and status", ["path", "status"], registry=registry)
        self.tokens = Counter("mrp_tokens", "Tokens read and written", ["kind", "character"], registry=registry)
        self.failures = Counter(
            "mrp_reply_failures", "Replies that broke off", ["character", "reason"], registry=registry
        )
        self.first = Histogram(
            "mrp_first_token_seconds",
            "Time to first text, the wait included",
            ["character"],
            buckets=SECONDS,
            registry=registry,
        )
        self.speed = Histogram(
            "mrp_tokens_per_second", "Speed of a reply", ["character"], buckets=SPEEDS, registry=registry
        )
        Gauge("mrp_running", "Replies that run", registry=registry).set_function(lambda: slots.running)
        Gauge("mrp_waiting", "Replies that wait for a place", registry=registry).set_function(lambda: slots.waiting)
        stats: Any = getattr(engine, "stats", None)
        if stats is not None:  # the embedded engine
            steps = Gauge("mrp_engine_steps", "Passes through the model so far", ["how"], registry=registry)
            steps.labels("graph").set_function(lambda: stats.graphed)
            steps.labels("ordinary").set_function(lambda: stats.steps - stats.graphed)
            for name, what in (
                ("cache_bytes", "Keys and values kept"),
                ("dropped", "Caches dropped, memory being short"),
            ):
                gauge = Gauge(f"mrp_engine_{name}", what, registry=registry)
                gauge.set_function(partial(getattr, stats, name))

    def reply(
        self, character: str, prompt_tokens: int, reply_tokens: int, first_s: float | None, seconds: float
    ) -> None:
        """Count a reply, a broken one too."""
        self.tokens.labels("prompt", character).inc(prompt_tokens)
        self.tokens.labels("reply", character).inc(reply_tokens)
        if first_s is not None:
            self.first.labels(character).observe(first_s)
        if reply_tokens and seconds > 0:
            self.speed.labels(character).observe(reply_tokens / seconds)

    def page(self) -> bytes:
        return generate_latest(self.registry)

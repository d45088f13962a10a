"""What judging costs: an estimate before, a limit that no request passes, and the count after.

    budget = Budget(Prices(0.15, 0.60), max_requests=1000, max_cost=2.0)
    budget.take(700, 60); answered = server.ask(messages); budget.settle((700, 60), answered)

Tokens of a judge that is not here are estimated: one for each Chinese character, one for four others. What the server
counts itself takes the place of the estimate as soon as it answers.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from mrp.errors import InputError
from mrp.judge.questions import Message
from mrp.judge.server import Answered

_WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
PER_MESSAGE = 4  # tokens of a chat template around a message


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency; None: not known."""

    tokens_in: float | None = None
    tokens_out: float | None = None

    def cost(self, tokens_in: float, tokens_out: float) -> float | None:
        if self.tokens_in is None or self.tokens_out is None:
            return None
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclass
class Spent:
    """What was asked: requests (those asked again too), and their tokens; `estimated`: of so many requests the server
    told no tokens."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: int = 0


@dataclass
class Budget:
    """Limits over all requests of one command. 0 and None: no limit.

    Raises `InputError` for a limit of cost without prices.
    """

    prices: Prices = field(default_factory=Prices)
    max_requests: int = 0
    max_cost: float | None = None
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        for value in (self.prices.tokens_in, self.prices.tokens_out, self.max_cost):
            if value is not None and not (math.isfinite(value) and value >= 0):
                where = "--price-in, --price-out, --max-cost"
                raise InputError(f"{value} is no amount of money", where, "give a number from 0 on")
        if (self.prices.tokens_in is None) != (self.prices.tokens_out is None):
            raise InputError("one price is given and the other is not", "--price-in, --price-out", "give both")
        if self.max_cost is not None and self.prices.tokens_in is None:
            what = "a limit of the cost needs the prices of the judge's tokens"
            raise InputError(what, "--max-cost", "add --price-in and --price-out (of a million tokens)")

    def check(self, requests: int, tokens_in: int, tokens_out: int) -> None:
        """Raise `InputError` where all that is to be asked is more than the limits allow; nothing was sent then."""
        fix = "raise it, or judge fewer replies (--replies N a character)"
        if self.max_requests and requests > self.max_requests:
            raise InputError(f"{requests:,} requests are more than {self.max_requests:,}", "--max-requests", fix)
        cost = self.prices.cost(tokens_in, tokens_out)
        if cost is not None and self.max_cost is not None and cost > self.max_cost:
            raise InputError(f"about {cost:.4g} is more than {self.max_cost:g}", "--max-cost", fix)

    def take(self, tokens_in: int, tokens_out: int) -> None:
        """Take a request of about so many tokens out of the budget, before it is sent. Raises `InputError`."""
        with self._lock:
            one = self.spent
            after = self.prices.cost(one.tokens_in + tokens_in, one.tokens_out + tokens_out)
            fix = "the answers so far are kept; raise it, and the same command goes on from there"
            if self.max_requests and one.requests >= self.max_requests:
                raise InputError(f"all {self.max_requests:,} requests are spent", "--max-requests", fix)
            if after is not None and self.max_cost is not None and after > self.max_cost:
                raise InputError(f"the next request would pass {self.max_cost:g}", "--max-cost", fix)
            one.requests += 1
            one.tokens_in += tokens_in
            one.tokens_out += tokens_out
            one.estimated += 1

    def settle(self, expected: tuple[int, int], answered: Answered) -> tuple[int, int]:
        """Put what the server counted in the place of what `take` expected; the tokens that count now."""
        if answered.tokens_in is None or answered.tokens_out is None:
            return expected
        with self._lock:
            self.spent.tokens_in += answered.tokens_in - expected[0]
            self.spent.tokens_out += answered.tokens_out - expected[1]
            self.spent.estimated -= 1
        return answered.tokens_in, answered.tokens_out

    @property
    def cost(self) -> float | None:
        return self.prices.cost(self.spent.tokens_in, self.spent.tokens_out)


def estimated_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens these messages are for a judge whose tokenizer is not here."""
    total = 0
    for message in messages:
        text = message["content"]
        wide = len(_WIDE.findall(text))
        total += wide + (len(text) - wide + 3) // 4 + PER_MESSAGE
    return total

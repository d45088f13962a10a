"""Fields that clients send by themselves: a value that asks for nothing passes, one that asks for something is refused.

The fields are those that SillyTavern, Open WebUI, LangChain and litellm have a setting or a default for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mrp.serve.schemas import ChatRequest

ASKED: dict[str, Any] = {"model": "wukong", "messages": [{"role": "user", "content": "Who are you?"}]}
TABLE: dict[str, tuple[list[Any], list[Any]]] = {  # field: values that ask for nothing, values that ask for something
    "logit_bias": ([None, {}], [{"50256": -100}]),
    "top_k": ([None, 0, -1], [40]),
    "min_p": ([None, 0, 0.0], [0.05]),
    "top_a": ([None, 0], [0.2]),
    "repetition_penalty": ([None, 1, 1.0], [1.1]),
    "include_reasoning": ([None, False], [True]),
    "reasoning_effort": ([None, "none"], ["low", "high"]),
    "parallel_tool_calls": ([None, True, False], []),
    "tools": ([None, []], [[{"type": "function", "function": {"name": "roll"}}]]),
    "tool_choice": ([None, "none", "auto"], ["required"]),
    "response_format": ([None, {"type": "text"}], [{"type": "json_object"}]),
    "store": ([None, False], [True]),
    "metadata": ([None, {}], [{"chat_id": "1"}]),
    "service_tier": ([None, "auto", "default"], ["flex"]),
    "modalities": ([None, ["text"]], [["text", "audio"]]),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, (nothing, _) in TABLE.items() for value in nothing]
)
def test_a_value_that_asks_for_nothing_changes_nothing(field: str, value: Any) -> None:
    assert ChatRequest.model_validate(ASKED | {field: value}) == ChatRequest.model_validate(ASKED)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, (_, something) in TABLE.items() for value in something]
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=f"`{field}` is not supported: "):
        ChatRequest.model_validate(ASKED | {field: value})


def test_what_is_honoured_is_read() -> None:
    parts = [{"role": "user", "name": "Alice", "content": [{"type": "text", "text": "Who are you?"}]}]
    more = {"messages": parts, "max_completion_tokens": 9, "stream": True, "stream_options": {"include_usage": True}}
    read = ChatRequest.model_validate(ASKED | more)
    assert (read.messages[0].text, read.messages[0].name) == ("Who are you?", "Alice")
    assert read.max_completion_tokens == 9
    assert read.stream_options is not None
    assert read.stream_options.include_usage

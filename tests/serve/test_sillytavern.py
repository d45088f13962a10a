"""What SillyTavern sends for "Chat Completion, Custom (OpenAI-compatible)" gets a good reply or a clear refusal.

The shapes are those of its server (src/endpoints/backends/chat-completions.js, `/generate`): the fields that it always
sends, those that its settings add, and the messages that its prompt manager and post-processing make.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from scripted import CAST, ScriptedPlayer, scripted
from serving import echoing, serving

PROMPTS = [
    {"role": "system", "content": "Write Sun Wukong's next reply in a fictional chat."},
    {"role": "system", "name": "example_user", "content": "Who goes there?"},
    {"role": "system", "name": "example_assistant", "content": "Old Monkey!"},
    {"role": "system", "content": "[Start a new Chat]"},
]
TALK = [{"role": "assistant", "content": "Ha! Who calls?"}, {"role": "user", "content": "It is me."}]
DEFAULTS = {
    "messages": [*PROMPTS, *TALK],
    "model": "wukong",
    "temperature": 1,
    "max_tokens": 300,
    "stream": True,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_p": 1,
}


def prompt_of(player: ScriptedPlayer, **more: Any) -> str:
    """The prompt that a request of SillyTavern becomes; its stream is whole."""
    with serving(player) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=DEFAULTS | more, timeout=20)
        assert answer.status_code == 200, answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
    text = str(player.tokenizer.decode(player.engine.prompts[-1]))
    return text.replace("<|im_start|>", "[").replace("<|im_end|>\n", "]")


def test_its_system_prompts_and_examples_become_the_scenario() -> None:
    assert prompt_of(scripted(CAST, "Well?", context_tokens=512)) == (
        "[system\nYou are Sun Wukong, proud and quick.\n\nWrite Sun Wukong's next reply in a fictional chat."
        "\n\nexample_user: Who goes there?\n\nexample_assistant: Old Monkey!\n\n[Start a new Chat]]"
        "[assistant\nHa! Who calls?][user\nIt is me.][assistant\n"
    )


@pytest.mark.parametrize(
    ("messages", "end"),
    [
        # "Character Names Behavior: Completion Object": names with "_" for what OpenAI's `name` may not hold
        ([{"role": "user", "name": "Alice", "content": "It is me."}], "[user\nIt is me.][assistant\n"),
        (
            [
                {"role": "assistant", "name": "Zhu_Bajie", "content": "Buns!"},
                {"role": "user", "name": "Alice", "content": "It is me."},
            ],
            "[user\nZhu Bajie: Buns!\nAlice: It is me.][assistant\n",
        ),
        # post-processing "strict": one system message, and a user's first
        (
            [{"role": "user", "content": "Let's get started."}, *TALK],
            "[user\nLet's get started.][assistant\nHa! Who calls?][user\nIt is me.][assistant\n",
        ),
        # "Continue" with its nudge, which is a system message at the end; and as a prefill
        ([*TALK, {"role": "assistant", "content": "Then"}], "[user\nIt is me.][assistant\nThen\n"),
        # nobody has said anything yet
        ([], "[Start a new Chat]][assistant\n"),
        # an empty line of the character's ("Squash", or a prefill that is empty)
        ([*TALK, {"role": "assistant", "content": ""}], "[user\nIt is me.][assistant\n"),
    ],
    ids=["name", "group", "strict", "prefill", "opening", "empty"],
)
def test_its_messages_are_understood(messages: list[Any], end: str) -> None:
    assert prompt_of(scripted(CAST, "Well?", context_tokens=512), messages=[*PROMPTS, *messages]).endswith(end)


@pytest.mark.parametrize(
    "more",
    [
        {"stop": ["\nUser:", "***"], "seed": 7, "max_completion_tokens": 300},
        {"logit_bias": {}, "top_k": 0, "reasoning_effort": None, "include_reasoning": False, "tools": []},
        {"min_p": 0, "top_a": 0, "repetition_penalty": 1, "user": "8a9c1f"},
    ],
    ids=["set", "nothing-asked-for", "sliders-at-rest"],
)
def test_its_settings_are_honoured_or_ask_for_nothing(more: dict[str, Any]) -> None:
    player = scripted(CAST, "Well?", context_tokens=512)
    prompt_of(player, **more)
    assert player.engine.samplings[0].seed == more.get("seed")
    assert player.engine.samplings[0].max_new_tokens == 300


def test_several_swipes_and_token_probabilities() -> None:
    player = echoing()
    player.engine.logprob = -0.5
    with serving(player) as server:
        body = DEFAULTS | {"stream": False, "n": 2, "logprobs": True, "top_logprobs": 5}
        choices = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20).json()["choices"]
    assert [c["message"]["content"] for c in choices] == ["It is me."] * 2
    assert all(c["logprobs"]["content"][0]["top_logprobs"] for c in choices)


LOOK = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
REFUSALS = {
    "tools": ({"tools": [{"type": "function", "function": {"name": "roll"}}], "tool_choice": "auto"}, "call no tools"),
    "json": ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "no grammar"),
    "bias": ({"logit_bias": {"50256": -100}}, "logit_bias"),
    "top-k": ({"top_k": 40}, "use top_p"),
    "effort": ({"reasoning_effort": "medium"}, "without a reasoning phase"),
    "hot": ({"temperature": 2.5}, "less than or equal to 2"),
    "picture": ({"messages": [{"role": "user", "content": LOOK}]}, "'image_url' is not supported"),
    "body": ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
}


@pytest.mark.parametrize(("more", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_it_may_ask_and_cannot_have_is_refused_with_the_reason(more: dict[str, Any], reason: str) -> None:
    with serving(scripted(CAST)) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=DEFAULTS | more, timeout=20)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]


def test_its_status_check_lists_the_characters() -> None:
    with serving(scripted(CAST)) as server:
        answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer null"}).json()
    assert {"wukong", "bajie", "tang", "auto"} <= {row["id"] for row in answer["data"]}

"""The official client against a real server: sync, async, streaming. litellm: `benchmarks/client_litellm.py`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scripted import CAST, scripted
from serving import Running, echoing, serving

openai = pytest.importorskip("openai", reason="needs the package openai")
SAY: list[Any] = [{"role": "user", "content": "Who are you?"}]


def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_official_client_lists_the_characters_and_gets_replies() -> None:
    with serving(scripted(CAST, "Ha! Who calls?")) as server:
        talk = client(server)
        assert [m.id for m in talk.models.list()][:2] == ["wukong", "bajie"]
        answer = talk.chat.completions.create(model="wukong", messages=SAY, temperature=0.5, seed=1, max_tokens=20)
        assert answer.choices[0].message.content == "Ha! Who calls?"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.mrp["name"] == "Sun Wukong"


def test_its_messages_can_be_sent_back_as_they_came() -> None:
    player = scripted(CAST, "Ha!", "Here.")
    with serving(player) as server:
        talk = client(server)
        first = talk.chat.completions.create(model="wukong", messages=SAY)
        history = [*SAY, first.choices[0].message, {"role": "user", "content": "Where?"}]
        talk.chat.completions.create(model="wukong", messages=history)
    sent = str(player.tokenizer.decode(player.engine.prompts[1]))
    assert "<|im_start|>assistant\nHa!<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>" in sent


def test_the_official_client_streams() -> None:
    with serving(scripted(CAST, "Ha! 俺老孙来也！")) as server:
        options = {"include_usage": True}
        chunks = list(
            client(server).chat.completions.create(model="wukong", messages=SAY, stream=True, stream_options=options)
        )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Ha! 俺老孙来也！"
    assert chunks[-1].usage.completion_tokens > 0


def test_the_official_asynchronous_client_gets_many_at_once() -> None:
    async def many(server: Running) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as talk:

            async def one(k: int) -> str:
                said: list[Any] = [{"role": "user", "content": f"line {k}"}]
                stream = await talk.chat.completions.create(model="bajie", messages=said, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return list(await asyncio.gather(*(one(k) for k in range(12))))

    with serving(echoing()) as server:
        assert asyncio.run(many(server)) == [f"line {k}" for k in range(12)]


def test_its_errors_are_its_own_classes() -> None:
    player = echoing()
    with serving(player) as server:
        talk = client(server)
        with pytest.raises(openai.NotFoundError, match="did you mean 'wukong'"):
            talk.chat.completions.create(model="wukon", messages=SAY)
        with pytest.raises(openai.BadRequestError, match="no grammar"):
            talk.chat.completions.create(model="wukong", messages=SAY, response_format={"type": "json_object"})
        player.engine.fails_at = 2
        stream = talk.chat.completions.create(model="wukong", messages=SAY, stream=True)
        with pytest.raises(openai.APIError):
            list(stream)


def test_the_official_client_uses_the_responses_endpoint() -> None:
    player = scripted(CAST, "Ha!", "Ha! 俺老孙！")
    with serving(player) as server:
        talk = client(server)
        answer = talk.responses.create(model="wukong", input="Who are you?", instructions="At the inn.")
        assert answer.output_text == "Ha!"
        assert answer.status == "completed"
        assert answer.usage.input_tokens == len(player.engine.prompts[0])
        events = list(talk.responses.create(model="wukong", input=SAY, stream=True))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "Ha! 俺老孙！"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Ha! 俺老孙！"
    assert [e.sequence_number for e in events] == list(range(len(events)))

"""What clients send and get at `/v1/chat/completions`: OpenAI's fields, honoured or refused by name.

    ChatRequest.model_validate({"model": "wukong", "messages": [{"role": "user", "content": "Who are you?"}]})

A field that this server cannot honour is refused with the reason, unless its value asks for nothing (null, an empty
list, OpenAI's default): many clients send such values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mrp.errors import nearest

MAX_MESSAGES = 10_000
MAX_CHOICES = 8
MAX_STOPS = 16
NO_TOOLS = "characters talk and call no tools"
TEXT_ONLY = "characters answer with text alone"
NOTHING: tuple[Any, ...] = (None, [], {}, "")
Refusals = dict[str, tuple[tuple[Any, ...], str]]
SERVICE_ONLY: Refusals = {  # what OpenAI's own service does around a model
    "safety_identifier": ((), "use `user`"),
    "moderation": ((), "replies are not moderated here"),
    "prompt_cache_key": ((), "prompts that begin alike share their cache by themselves"),
    "prompt_cache_retention": ((), "how long prompts are cached is not up to a request"),
    "prompt_cache_options": ((), "how prompts are cached is not up to a request"),
}
# Of a field that is refused: the values that ask for nothing, and the reason for the others.
REFUSED: Refusals = {
    "tools": ((), NO_TOOLS),
    "tool_choice": (("none", "auto"), NO_TOOLS),
    "parallel_tool_calls": ((True, False), NO_TOOLS),
    "functions": ((), NO_TOOLS),
    "function_call": (("none", "auto"), NO_TOOLS),
    "response_format": (({"type": "text"},), "replies are free text, no grammar constrains them"),
    "modalities": ((["text"],), TEXT_ONLY),
    "audio": ((), TEXT_ONLY),
    "web_search_options": ((), NO_TOOLS),
    "logit_bias": ((), "this server does not bias single tokens"),
    "prediction": ((), "predicted outputs are not supported"),
    "reasoning_effort": (("none",), "characters answer without a reasoning phase"),
    "include_reasoning": ((False,), "characters answer without a reasoning phase"),
    "verbosity": (("medium",), "use max_tokens for the length of a reply"),
    "store": ((False,), "this server keeps no conversations"),
    "metadata": ((), "this server keeps no conversations"),
    "service_tier": (("auto", "default"), "there is one tier"),
    **SERVICE_ONLY,
    "top_k": ((0, -1), "use top_p"),
    "min_p": ((0,), "use top_p"),
    "top_a": ((0,), "use top_p"),
    "repetition_penalty": ((1,), "use frequency_penalty"),
    "best_of": ((1,), "use n"),
    "echo": ((False,), "the prompt is not given back"),
    "suffix": ((), "text is not filled in"),
}
MESSAGE_REFUSED: Refusals = {
    "tool_calls": ((), NO_TOOLS),
    "tool_call_id": ((), NO_TOOLS),
    "function_call": ((), NO_TOOLS),
    "refusal": ((), "a refusal is no line of a dialogue"),
    "audio": ((), TEXT_ONLY),
    "annotations": ((), TEXT_ONLY),
}


def without_refused(
    value: Any, refused: Mapping[str, tuple[tuple[Any, ...], str]], known: Mapping[str, Any], where: str
) -> Any:
    """`value` without the fields of `refused` that ask for nothing; `ValueError` for others and unknown ones."""
    if not isinstance(value, dict):
        return value
    faults = []
    kept = {}
    for key, given in value.items():
        if key in known:
            kept[key] = given
        elif key in refused:
            neutral, reason = refused[key]
            if not any((given == item and type(given) is not bool) or given is item for item in (*NOTHING, *neutral)):
                faults.append(f"`{key}` is not supported: {reason}")
        else:
            faults.append(f"{key!r} is no field of {where} here ({nearest(str(key), known)})")
    if faults:
        raise ValueError("; ".join(faults))
    return kept


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(Strict):
    type: Literal["text", "input_text", "output_text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in ("text", "input_text", "output_text"):
            raise ValueError(f"a part of the type {kind!r} is not supported: characters read text alone")
        return value


class ChatMessage(Strict):
    """A message. `name`: who says it, where that is not the person, or not the character who answers."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(None, min_length=1, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("role") in ("tool", "function"):
            raise ValueError(f"a message with the role {value['role']!r} is not supported: {NO_TOOLS}")
        return without_refused(value, MESSAGE_REFUSED, cls.model_fields, "a message")

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(Strict):
    include_usage: bool | None = False
    include_obfuscation: bool | None = False

    @field_validator("include_obfuscation")
    @classmethod
    def _none_is_made(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("obfuscation is not supported: this server adds nothing to a stream")
        return value


class ChatRequest(Strict):
    """A request for a reply. Fields of OpenAI's that are not listed here are refused by name."""

    model: str = Field(description="The id of a character, `auto`, or `scene:ID,ID,...`", min_length=1, max_length=1000)
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, description="Longest reply, in tokens")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of `max_tokens`")
    stop: str | list[str] | None = Field(None, description="Where a reply ends; the text itself is not given out")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=1000, description="Your name for the end user; it is logged as a hash")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        return without_refused(value, REFUSED, cls.model_fields, "a request")

    @field_validator("stop")
    @classmethod
    def _stops_are_texts(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} texts")
        return value

    @model_validator(mode="after")
    def _no_contradiction(self) -> ChatRequest:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs `logprobs: true`")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs `stream: true`")
        return self

    @property
    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, reply: int) -> Usage:
        return cls(prompt_tokens=prompt, completion_tokens=reply, total_tokens=prompt + reply)


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class Said(BaseModel):
    """Who answered and why: our own field beside OpenAI's."""

    character: str
    name: str
    reason: str
    confidence: float | None
    dropped_messages: int = Field(description="The oldest messages that had no room in the context")
    lore: dict[str, str] = Field({}, description="The lore that the speaker was told, and what brought each entry up")


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    name: str | None = Field(None, description="The character who speaks")
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: None = None
    mrp: Said


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["mrp"] = "mrp"
    name: str
    description: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]

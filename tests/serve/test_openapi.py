"""The OpenAPI document says what the server does: schemathesis asks every operation what it allows and what it does
not, and compares the answers with the document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from scripted import CAST, scripted
from serving import Running, echoing, serving

from mrp.serve.gate import GateOptions
from mrp.serve.keys import add_key, load_keys
from mrp.serve.responses import REFUSED as RESPONSES_REFUSED
from mrp.serve.responses import ResponsesRequest
from mrp.serve.schemas import REFUSED, ChatRequest
from mrp.serve.service import ServeOptions


def test_each_of_openais_fields_is_honoured_or_refused_by_name() -> None:
    pytest.importorskip("openai", reason="needs the package openai")
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    for fields, request, refused in (
        (CompletionCreateParamsBase.__annotations__, ChatRequest, REFUSED),
        (ResponseCreateParamsBase.__annotations__, ResponsesRequest, RESPONSES_REFUSED),
    ):
        known = set(request.model_fields) | set(refused)
        assert not set(fields) - known
        assert not set(request.model_fields) & set(refused)


def test_every_operation_is_documented() -> None:
    with serving(scripted(CAST)) as server:
        document = httpx.get(f"{server.url}/openapi.json").json()
    operations = [(path, verb, entry) for path, verbs in document["paths"].items() for verb, entry in verbs.items()]
    assert {path for path, _, _ in operations} >= {
        "/v1/models", "/v1/chat/completions", "/v1/responses", "/v1/cast", "/v1/route", "/v1/scenes", "/metrics"
    }  # fmt: skip
    for path, verb, entry in operations:
        assert entry.get("description"), (verb, path)
        assert entry["responses"]["400"]["content"]["application/json"], (verb, path)


def test_the_document_tells_which_operations_want_a_key(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "me")
    with serving(scripted(CAST), keys=load_keys(tmp_path / "keys")) as server:
        document = httpx.get(f"{server.url}/openapi.json").json()
        gets = {path: verbs["get"] for path, verbs in document["paths"].items() if "get" in verbs and "{" not in path}
        assert len(gets) >= 5
        for path, operation in gets.items():
            wants_one = operation.get("security", document["security"]) != []
            assert httpx.get(server.url + path).status_code == (401 if wants_one else 200), path
            assert httpx.get(server.url + path, headers={"Authorization": f"Bearer {key}"}).status_code == 200, path


def test_the_server_answers_as_the_document_says() -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    # Some requests that fit the schema name what is not there: they may be refused.
    left_out = [positive_data_acceptance]
    with serving(echoing(max_new_tokens=8), ServeOptions(GateOptions(requests_per_minute=0))) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        count = 0
        for found in schema.get_all_operations():
            count += 1
            ask_as_documented(found.ok(), left_out, server)
        assert count >= 18


def ask_as_documented(operation: Any, left_out: list[Any], server: Running) -> None:
    @settings(
        max_examples=6,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        case.call_and_validate(excluded_checks=left_out)

    ask()
    server.wait_until_idle()

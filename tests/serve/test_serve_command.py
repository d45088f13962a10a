"""`mrp serve` as a process: a model in it, a server behind it, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from command import fails, mrp
from loopback_llm import Fault, llm
from projects import write_yaml
from scripted import CAST

from mrp.models.load import load_tokenizer

pytest.importorskip("fastapi", reason="needs the extra `serve`")
BODY = {"model": "wukong", "messages": [{"role": "user", "content": "Who are you?"}]}


@pytest.fixture
def model(tiny_base: Path, tmp_path: Path) -> Path:
    """A model folder with a cast."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    write_yaml(folder / "cast.yaml", CAST.model_dump(exclude_defaults=True))
    return folder


@contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `mrp serve`, and its address."""
    command = [sys.executable, "-m", "mrp", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        assert process.stdout
        line = ""
        while "serving" not in line:
            line = process.stdout.readline()
            assert line, process.communicate()[1]
        found = re.search(r"http://\S+(?=/v1)", line + process.stdout.readline() if "http" not in line else line)
        assert found, line
        yield process, found.group()
    finally:
        process.kill()
        process.wait()


def test_a_model_is_served_and_a_stop_lets_what_runs_end(model: Path) -> None:
    with served(model, "--set", "chat.max_new_tokens=100") as (process, url):
        whole = httpx.post(f"{url}/v1/chat/completions", json=BODY | {"seed": 1}, timeout=60).json()
        assert whole["usage"]["completion_tokens"] > 0
        again = httpx.post(f"{url}/v1/chat/completions", json=BODY | {"seed": 1}, timeout=60).json()
        assert again["choices"] == whole["choices"]
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=BODY | {"stream": True}, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    rows = [json.loads(row) for row in err.splitlines() if row.startswith("{")]
    assert [row["path"] for row in rows] == ["/v1/chat/completions"] * 3
    assert "Who are you" not in out + err


def test_with_a_server_behind_torch_is_not_needed() -> None:
    rooms = "mrp.serve.app, mrp.play.room, mrp.play.remote_player, mrp.play.remote, mrp.play.failover"
    program = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_server_behind_plays(model: Path) -> None:
    with llm(names=["cast", "bajie"], replies=["Ha! 俺老孙！"]) as behind:
        for weights in model.glob("*.safetensors"):
            weights.unlink()  # only the tokenizer is needed
        with served(model, "--engine", "openai", "--base-url", f"{behind.url}/v1") as (_, url):
            for name in ("wukong", "bajie"):
                answer = httpx.post(f"{url}/v1/chat/completions", json=BODY | {"model": name}, timeout=30).json()
                assert answer["choices"][0]["message"]["content"] == "Ha! 俺老孙！"
            assert httpx.get(f"{url}/ready", timeout=30).status_code == 200
            behind.faults = [Fault(2), Fault(2)]
            answer = httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=30)
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
            text = httpx.post(f"{url}/v1/chat/completions", json=BODY | {"stream": True}, timeout=30).text
            assert "upstream_failed" in text
            assert "[DONE]" not in text
            assert '"finish_reason":"stop"' not in text
        assert [body["model"] for body in behind.asked("/v1/completions")] == ["cast", "bajie", "cast", "cast"]


def test_another_template_renders(model: Path, tmp_path: Path) -> None:
    template, tokenizer = tmp_path / "other.jinja", load_tokenizer(model)
    template.write_text(tokenizer.chat_template.replace("<|im_start|>", "<|im_start|>The "), encoding="utf-8")
    with llm(names=["cast"], replies=["Ha!"]) as behind:
        more = ("--engine", "openai", "--base-url", f"{behind.url}/v1", "--template", template)
        with served(model, *more) as (_, url):
            assert httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=30).status_code == 200
        (asked,) = behind.asked("/v1/completions")
    prompt = tokenizer.decode(asked["prompt"])
    assert prompt.endswith("<|im_start|>The user\nWho are you?<|im_end|>\n<|im_start|>The assistant\n")


def test_flags_that_do_not_go_together_are_named(model: Path, tmp_path: Path) -> None:
    fails(mrp("serve", model, "--host", "0.0.0.0", "--port", 0), 2, "without a key", "--insecure")
    fails(mrp("serve", model, "--engine", "openai", "--port", 0), 2, "--base-url")
    fails(mrp("serve", model, "--engine", "vllm", "--port", 0), 2, "no engine 'vllm'")
    fails(mrp("serve", model, "--base-url", "http://x/v1", "--port", 0), 2, "--engine openai")
    fails(mrp("serve", model, "--engine", "openai", "--base-url", "http://x/v1", "--bits", "4"), 2, "--bits goes with")
    fails(mrp("serve", model, "--keys", tmp_path / "none", "--port", 0), 2, "mrp new-key")
    fails(mrp("serve", tmp_path, "--engine", "openai", "--base-url", "http://x/v1", "--port", 0), 2, "tokenizer")


def test_a_key_is_shown_once(tmp_path: Path) -> None:
    done = mrp("new-key", tmp_path / "keys.txt", "--name", "phone")
    assert done.out.strip().startswith("mrp-")
    assert done.out.strip() not in (tmp_path / "keys.txt").read_text(encoding="utf-8")

"""The engine of onnxruntime-genai says what transformers says, goes on from what it read, and fails with words."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_base
from transformers import AutoModelForCausalLM

from mrp.config import ChatOptions
from mrp.data.view import Message
from mrp.errors import InputError, MrpError, SetupError
from mrp.play.engine import Request, Sampling
from mrp.play.onnx import OnnxEngine, onnx_folder
from mrp.play.open import load_player, open_player

HAS_IT = find_spec("onnxruntime_genai") is not None and find_spec("onnx_ir") is not None
needs_it = pytest.mark.skipif(not HAS_IT, reason="only on a machine with onnxruntime-genai (extra `onnx`)")
PROMPTS = [list(range(start, start + length)) for start, length in ((40, 30), (44, 3), (100, 17), (7, 60), (300, 1))]
GREEDY = Sampling(temperature=0, max_new_tokens=20)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("onnx") / "base", hidden_size=64)


@pytest.fixture(scope="module")
def engine(base: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxEngine:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MRP_HOME", str(tmp_path_factory.mktemp("home")))
        folder = onnx_folder(base)
        assert onnx_folder(base) == folder
        return OnnxEngine(folder, 512, threads=1)


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def said(engine: OnnxEngine, ids: Sequence[int], sampling: Sampling = GREEDY, **more: Any) -> list[int | None]:
    return [token.id for token in engine.stream(Request(ids, sampling, **more))]


def plain(model: Any, ids: Sequence[int], count: int = 20) -> list[int]:
    whole = list(ids)
    for _ in range(count):
        with torch.no_grad():
            whole.append(int(model(input_ids=torch.tensor([whole]), use_cache=False).logits[0, -1].argmax()))
    return whole[len(ids) :]


@needs_it
def test_greedy_replies_are_those_of_transformers_alone_and_at_once(engine: OnnxEngine, model: Any) -> None:
    wanted = [plain(model, ids) for ids in PROMPTS]
    assert [said(engine, ids) for ids in PROMPTS] == wanted
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(lambda ids: said(engine, ids), PROMPTS)) == wanted


@needs_it
def test_a_reply_goes_on_from_what_was_read_and_stops_where_it_should(engine: OnnxEngine, model: Any) -> None:
    longer = [*PROMPTS[0], *plain(model, PROMPTS[0]), 8, 9]
    said(engine, PROMPTS[0])
    assert said(engine, longer) == plain(model, longer)
    stop = plain(model, PROMPTS[0])[6]
    wanted = plain(model, PROMPTS[0])
    assert said(engine, PROMPTS[0], stop_ids=[stop]) == wanted[: wanted.index(stop)]
    stream = engine.stream(Request(PROMPTS[3], GREEDY))
    next(stream)
    stream.close()
    assert said(engine, PROMPTS[3]) == plain(model, PROMPTS[3])


@needs_it
def test_scores_are_the_models_own_and_leave_no_trace(engine: OnnxEngine, model: Any) -> None:
    tails = [[5], [6, 7, 8], [], [9, 5]]
    for ids in (PROMPTS[0], PROMPTS[4]):
        for tail, found in zip(tails, engine.score(ids, tails), strict=True):
            with torch.no_grad():
                logprobs = torch.log_softmax(model(input_ids=torch.tensor([[*ids, *tail]])).logits[0], -1)
            wanted = [float(logprobs[len(ids) - 1 + k, token]) for k, token in enumerate(tail)]
            assert found == pytest.approx(wanted, abs=1e-3)
    assert said(engine, PROMPTS[0]) == plain(model, PROMPTS[0])


@needs_it
def test_a_reply_that_finds_no_room_ends_with_an_error_and_the_engine_goes_on(engine: OnnxEngine, model: Any) -> None:
    with pytest.raises(MrpError, match="onnxruntime-genai failed"):
        said(engine, list(range(5, 400)) * 2)
    assert said(engine, PROMPTS[2]) == plain(model, PROMPTS[2])


@needs_it
def test_a_model_folder_is_opened_with_it_and_says_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRP_HOME", str(tmp_path))
    replies = []
    for name in ("onnx", "transformers"):
        player = load_player(base, None, None, ChatOptions(context_tokens=256), "fp32", engine=name)
        ids = player.template.prompt([Message("user", "Who are you?")])
        replies.append([t.id for t in player.engine.stream(Request(ids, GREEDY, player.stop_ids))])
    assert replies[0] == replies[1] and replies[0]


def test_what_it_does_not_play_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="merged models only"):
        load_player(base, tmp_path, None, ChatOptions(), engine="onnx")
    (tmp_path / "wukong").mkdir()
    (tmp_path / "wukong" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="no voices of characters"):
        load_player(base, None, None, ChatOptions(), voices=tmp_path, engine="onnx")
    with pytest.raises(InputError, match="no engine 'onyx'"):
        open_player(base, engine="onyx")


@pytest.mark.skipif(HAS_IT, reason="only on a machine without onnxruntime-genai")
def test_without_the_package_it_is_said_how_to_get_it(base: Path) -> None:
    with pytest.raises(SetupError, match="onnxruntime-genai") as caught:
        onnx_folder(base)
    assert "mrp-llm[onnx]" in caught.value.fix

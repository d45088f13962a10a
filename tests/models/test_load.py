"""Law 9: nothing that lies in a model folder runs; and what cannot be loaded says why."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import transformers
from shapes import SHAPES

from mrp.errors import InputError
from mrp.models.load import Hardware, hardware, load_model, load_tokenizer

ON = Hardware("cpu", torch.float32, None)
TOUCH = "import pathlib; pathlib.Path({mark!r}).touch()\n"


class _Touch:
    """Unpickling this makes a file: a stand-in for whatever a malicious pickle would do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    tokenizer = SHAPES["chatml"].tokenizer()
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **size)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def test_a_model_is_loaded_frozen_and_in_the_numbers_asked_for(folder: Path) -> None:
    model = load_model(folder, Hardware("cpu", torch.bfloat16, None))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("model_type", ["llama", "madeup"])
def test_code_of_a_model_folder_does_not_run(folder: Path, tmp_path: Path, model_type: str) -> None:
    mark = tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    classes = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    config |= {"model_type": model_type, "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "code.py").write_text(TOUCH.format(mark=str(mark)), encoding="utf-8")
    if model_type == "llama":
        load_model(folder, ON)  # a type that transformers knows by itself needs no code
    else:
        with pytest.raises(InputError, match="cannot be loaded"):
            load_model(folder, ON)
    assert not mark.exists()


def test_code_of_a_tokenizer_does_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoTokenizer": ["code.T", "code.T"]}
    path.write_text(json.dumps(config), encoding="utf-8")
    (folder / "code.py").write_text(TOUCH.format(mark=str(mark)), encoding="utf-8")
    try:
        load_tokenizer(folder)
    except InputError as error:
        assert "cannot be loaded" in error.what
    assert not mark.exists()


def test_a_pickle_of_a_model_folder_is_not_opened(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(_Touch(mark), file)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(folder, ON)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_folder_says_what_is_wrong(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x00broken")
    with pytest.raises(InputError) as caught:
        load_model(folder, ON)
    assert str(folder) in caught.value.where
    assert caught.value.fix


def test_a_folder_without_tokenizer_says_so(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(folder)


def test_bf16_is_refused_where_the_hardware_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrp.models.load._cpu_has_bf16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware("auto").autocast is None
    assert hardware("auto").weights == torch.float32
    with pytest.raises(InputError, match="no bf16"):
        hardware("bf16")

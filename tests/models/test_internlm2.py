"""InternLM2 as a Llama: what the reference code computes, the way back bit for bit, and every kind of broken folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
import transformers
from command import fails, mrp
from heard import Heard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import save_base

from mrp.errors import InputError, MrpError
from mrp.models.bases import check_base_folder, find_base
from mrp.models.internlm2 import RECORD, to_internlm2, to_llama
from mrp.models.internlm2_config import internlm2_config, llama_config, read_sizes
from mrp.models.internlm2_layout import Heads, internlm2_module, join_rows, llama_modules, split_rows
from mrp.models.internlm2_weights import read_model_weights
from mrp.models.load import Hardware, load_model, load_tokenizer
from mrp.models.merge import merge
from mrp.models.shards import raw_pieces

VARIANTS = ("gqa", "mha-bin", "bias", "dynamic", "linear", "realvocab")
ON = Hardware("cpu", torch.float32, None)
TOLERANCE = 1e-4  # of every logit; by the golden README
SIZES = {  # of the released config.json files; billions of parameters as their model cards say
    "1.8b": (
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16},
        1.89,
    ),
    "7b": ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}, 7.74),
    "20b": (
        {"hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 48, "num_attention_heads": 48},
        19.86,
    ),
}


@pytest.fixture(scope="module")
def sources(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of the golden checkpoints, `realvocab` with its real tokenizer."""
    golden, place = shared / "golden" / "internlm2-tiny-a", tmp_path_factory.mktemp("internlm2")
    for name in VARIANTS:
        shutil.copytree(golden / name, place / name, copy_function=shutil.copyfile)
        (place / name).chmod(0o755)
    real = shared / "data" / "internlm2-tokenizer" / "tokenizer.model"
    shutil.copyfile(real, place / "realvocab" / "tokenizer.model")
    return {name: place / name for name in VARIANTS}


@pytest.fixture(scope="module")
def llamas(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("llamas")
    for name, source in sources.items():
        to_llama(source, place / name)
    return {name: place / name for name in VARIANTS}


@pytest.fixture
def source(sources: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint of three shards to break."""
    return Path(shutil.copytree(sources["gqa"], tmp_path / "source"))


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (tensor.dtype, tensor.shape, b"".join(raw_pieces(tensor)))
        for name, tensor in read_model_weights(folder).items()
    }


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(read(path) | changes), encoding="utf-8")


# -- what it computes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_logit_is_the_reference_codes(llamas: dict[str, Path], sources: dict[str, Path], variant: str) -> None:
    cases = np.load(sources[variant] / "reference_logits.npz")
    names = sorted({key.split(".")[0] for key in cases.files})
    assert {"plain", "leftpad"} <= set(names)
    for case in names:
        given = {key.split(".")[1]: torch.tensor(cases[key]) for key in cases.files if key.startswith(f"{case}.")}
        model = load_model(llamas[variant], ON)  # a fresh one each time: dynamic rotary tables keep a state
        inputs = {k: v for k, v in given.items() if k in ("input_ids", "attention_mask", "position_ids")}
        with torch.no_grad():
            logits = model(**inputs).logits
        seen = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
        compared = 0
        for key, ours in {
            "logits": logits,
            "logits_every_10th": logits[:, ::10],
            "last_logits": logits[:, -1],
            "logsumexp": logits.logsumexp(-1),
            "top_logits": logits.gather(-1, given["top_ids"].long()) if "top_ids" in given else logits,
        }.items():
            if key in given:
                where = seen if ours.shape[:2] == seen.shape else torch.ones(ours.shape[:2], dtype=torch.bool)
                assert (ours - given[key])[where].abs().max() <= TOLERANCE, (case, key)
                compared += 1
        assert compared


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_greedy_replies_are_the_reference_codes(
    llamas: dict[str, Path], sources: dict[str, Path], variant: str
) -> None:
    told = read(sources[variant] / "reference.json")
    model = load_model(llamas[variant], ON)
    with torch.no_grad():
        loss = model(torch.tensor(told["loss"]["input_ids"]), labels=torch.tensor(told["loss"]["labels"])).loss
    assert abs(loss.item() - told["loss"]["loss"]) <= TOLERANCE
    assert told["greedy"]
    for case in told["greedy"]:
        model = load_model(llamas[variant], ON)
        ids, mask = torch.tensor(case["input_ids"]), torch.tensor(case["attention_mask"])
        options = {"max_new_tokens": case["max_new_tokens"], "eos_token_id": case["eos_token_id"], "pad_token_id": 2}
        out = model.generate(ids, attention_mask=mask, do_sample=False, **options)
        assert out[:, ids.shape[1] :].tolist() == case["new_tokens"], case["name"]


def test_a_wrong_order_of_rows_would_show(llamas: dict[str, Path], sources: dict[str, Path]) -> None:
    model = load_model(llamas["gqa"], ON)
    attention = model.model.layers[0].self_attn
    attention.k_proj.weight.data, attention.v_proj.weight.data = attention.v_proj.weight, attention.k_proj.weight
    cases = np.load(sources["gqa"] / "reference_logits.npz")
    with torch.no_grad():
        logits = model(torch.tensor(cases["plain.input_ids"])).logits
    assert (logits - torch.tensor(cases["plain.logits"])).abs().max() > 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_folder_is_a_base_as_it_is(llamas: dict[str, Path], variant: str) -> None:
    folder = llamas[variant]
    check_base_folder(folder)
    assert find_base(str(folder)) == folder
    tokenizer, config = load_tokenizer(folder), transformers.AutoConfig.from_pretrained(folder)
    assert config.model_type == "llama"
    assert len(tokenizer) <= config.vocab_size
    stops = read(folder / "generation_config.json")["eos_token_id"]
    assert stops == [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert (folder / "tokenizer.model").is_file()


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back_is_the_same_to_the_bit(
    sources: dict[str, Path], llamas: dict[str, Path], variant: str, tmp_path: Path
) -> None:
    out, again = tmp_path / "back", tmp_path / "again"
    to_internlm2(llamas[variant], out)
    assert tensors(out) == tensors(sources[variant])
    unsaid = {"transformers_version"}
    for name in ("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json"):
        ours, theirs = read(out / name), read(sources[variant] / name)
        assert {k: ours.get(k) for k in theirs.keys() - unsaid} == {k: theirs[k] for k in theirs.keys() - unsaid}
        assert ours.keys() <= theirs.keys()
    assert (out / "tokenizer.model").read_bytes() == (sources[variant] / "tokenizer.model").read_bytes()
    assert not list(out.glob("*.py"))
    to_llama(out, again)
    assert tensors(again) == tensors(llamas[variant])


def test_many_small_shards_hold_the_same(sources: dict[str, Path], llamas: dict[str, Path], tmp_path: Path) -> None:
    record = to_llama(sources["gqa"], tmp_path / "small", max_shard_size="40kB")
    assert len(record["shards"]) > 3
    assert tensors(tmp_path / "small") == tensors(llamas["gqa"])
    assert load_model(tmp_path / "small", ON).config.vocab_size == 1024


def test_pieces_shorter_than_a_head_change_nothing(
    sources: dict[str, Path], llamas: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrp.models.internlm2_weights.PIECE_BYTES", 64)
    to_llama(sources["bias"], tmp_path / "out")
    assert tensors(tmp_path / "out") == tensors(llamas["bias"])


def test_the_same_source_gives_the_same_bytes_and_is_not_done_twice(sources: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        to_llama(sources["gqa"], tmp_path / name)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    heard = Heard()
    before = (tmp_path / "one" / "model.safetensors").stat().st_mtime_ns
    to_llama(sources["gqa"], tmp_path / "one", report=heard)
    assert "done already" in heard.lines[0]
    assert (tmp_path / "one" / "model.safetensors").stat().st_mtime_ns == before


def test_an_earlier_conversion_of_another_source_is_replaced(sources: dict[str, Path], tmp_path: Path) -> None:
    to_llama(sources["gqa"], tmp_path / "out", max_shard_size="40kB")
    to_llama(sources["bias"], tmp_path / "out")
    assert read(tmp_path / "out" / "config.json")["attention_bias"] is True
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1


def test_a_merged_model_goes_back_to_the_own_layout(llamas: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(llamas["bias"], ON)
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    merge(llamas["bias"], tmp_path / "adapter", tmp_path / "merged")
    to_internlm2(tmp_path / "merged", tmp_path / "own")
    to_llama(tmp_path / "own", tmp_path / "again")
    assert tensors(tmp_path / "again") == tensors(tmp_path / "merged") != tensors(llamas["bias"])


@pytest.mark.parametrize("keeps_output", [False, True])
def test_a_tied_model_stays_tied(source: Path, tmp_path: Path, keeps_output: bool) -> None:
    weights = {k: v for path in source.glob("*.safetensors") for k, v in load_file(path).items()}
    weights["output.weight"] = weights["model.tok_embeddings.weight"].clone()
    if not keeps_output:
        del weights["output.weight"]
    for path in [*source.glob("*.safetensors"), source / "model.safetensors.index.json"]:
        path.unlink()
    save_file(weights, source / "model.safetensors")
    edit(source / "config.json", tie_word_embeddings=True)
    to_llama(source, tmp_path / "llama")
    assert "lm_head.weight" not in tensors(tmp_path / "llama")
    model = load_model(tmp_path / "llama", ON)
    assert torch.equal(model.lm_head.weight, weights["model.tok_embeddings.weight"].float())
    to_internlm2(tmp_path / "llama", tmp_path / "back")
    weights.pop("output.weight", None)
    assert tensors(tmp_path / "back").keys() == weights.keys()
    assert read(tmp_path / "back" / "config.json")["tie_word_embeddings"] is True


@pytest.mark.parametrize("name", SIZES)
def test_the_shapes_are_those_that_transformers_makes(name: str) -> None:
    sizes, billions = SIZES[name]
    config = {"model_type": "internlm2", "vocab_size": 92544, "num_key_value_heads": 8, "bias": False, **sizes}
    found = read_sizes(config, "config.json")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(vocab_size=92544, num_key_value_heads=8, max_position_embeddings=64, **sizes)
        )
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == found.llama_shapes()
    for shapes in (found.llama_shapes(), found.internlm2_shapes()):
        assert sum(int(np.prod(shape)) for shape in shapes.values()) / 1e9 == pytest.approx(billions, abs=0.006)


def test_memory_does_not_grow_with_the_model(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    edit(source / "config.json", hidden_size=64, intermediate_size=65536, num_hidden_layers=3)
    shapes = read_sizes(read(source / "config.json"), "").internlm2_shapes()
    for path in [*source.glob("*.safetensors"), source / "model.safetensors.index.json"]:
        path.unlink()
    torch.save({name: torch.zeros(shape).bfloat16() for name, shape in shapes.items()}, source / "pytorch_model.bin")
    code = (
        "import resource, sys; from pathlib import Path; from mrp.models.internlm2 import read_tokenizer, to_llama\n"
        "source, out = map(Path, sys.argv[1:]); read_tokenizer(source)\n"  # what the libraries take is no part of it
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); to_llama(source, out); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 75e6
    assert taken * (1 if sys.platform == "darwin" else 1024) < 40e6


# -- names and rows ----------------------------------------------------------------------------------------------------


def test_rows_are_split_by_key_heads() -> None:
    heads = Heads(4, 2, 3)
    fused = torch.arange(heads.fused_rows * 2).view(heads.fused_rows, 2)
    q, k, v = split_rows(fused, heads)
    assert q[:, 0].tolist() == [2 * r for r in (*range(6), *range(12, 18))]
    assert k[:, 0].tolist() == [2 * r for r in (6, 7, 8, 18, 19, 20)]
    assert v[:, 0].tolist() == [2 * r for r in (9, 10, 11, 21, 22, 23)]
    assert torch.equal(join_rows(q, k, v, heads), fused)
    assert torch.equal(join_rows(*split_rows(fused[:, 0], heads), heads), fused[:, 0])  # a bias
    for part, rows in zip((q, k, v), range(3), strict=True):
        own = [fused[first:end] for found, first, end in heads.stretches() if found == rows]
        assert torch.equal(torch.cat(own), part)


def test_a_lora_on_the_fused_matrix_is_three_of_the_same_a() -> None:
    heads = Heads(4, 2, 8)
    a, b = torch.randn(4, 32), torch.randn(heads.fused_rows, 4)
    whole = split_rows(b @ a, heads)
    for part, own_b in zip(whole, split_rows(b, heads), strict=True):
        assert torch.allclose(part, own_b @ a, atol=1e-6)


def test_every_name_leads_back() -> None:
    names = ["attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    for name in [f"model.layers.10.{n}" for n in (*names, "attention_norm", "ffn_norm")] + ["model.norm", "output"]:
        llama = llama_modules(name)
        assert llama
        assert {internlm2_module(target) for target in llama} == {name}
    assert llama_modules("model.layers.0.self_attn.q_proj") == ()
    assert internlm2_module("model.layers.0.attention.wo") == ""


# -- as a base ---------------------------------------------------------------------------------------------------------


def test_used_as_a_base_it_names_the_command(sources: dict[str, Path], tmp_path: Path) -> None:
    for use in (find_base, lambda f: load_model(Path(f), ON), lambda f: load_tokenizer(Path(f))):
        with pytest.raises(InputError, match="own layout") as caught:
            use(str(sources["mha-bin"]))
        assert "mrp convert internlm2-to-llama" in caught.value.fix
    fails(mrp("merge", sources["gqa"], "--out", tmp_path / "out"), 2, "mrp convert internlm2-to-llama")


def test_pulling_a_folder_lays_it_out_anew(
    sources: dict[str, Path], llamas: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRP_HOME", str(tmp_path / "home"))
    done = mrp("pull", sources["gqa"], "--json")
    assert done.code == 0, done.err
    folder = Path(done.json["folder"])
    assert folder.is_relative_to(tmp_path / "home")
    assert tensors(folder) == tensors(llamas["gqa"])
    assert mrp("pull", sources["gqa"], "--json").json["folder"] == str(folder)
    assert mrp("pull", llamas["gqa"], "--json").json["folder"] == str(llamas["gqa"])  # ready as it is


# -- bad input ---------------------------------------------------------------------------------------------------------


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut_off(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lfs_pointer(folder: Path) -> None:
    (folder / "model-00001-of-00003.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def names_too_many(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    edit(index, weight_map=read(index)["weight_map"] | {"model.layers.1.extra": "model-00003-of-00003.safetensors"})


def change(folder: Path, name: str, make: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> None:
    """Put what `make` makes of the tensor `name` in its place."""
    shard = folder / read(folder / "model.safetensors.index.json")["weight_map"][name]
    weights = load_file(shard)
    save_file(weights | make(weights.pop(name)), shard)


def not_a_number(folder: Path) -> None:
    name = "model.layers.1.attention.wqkv.weight"
    change(folder, name, lambda t: {name: t.index_fill(0, torch.tensor([77]), float("nan"))})


def infinite(folder: Path) -> None:
    change(folder, "output.weight", lambda t: {"output.weight": t.index_fill(0, torch.tensor([5]), float("inf"))})


def unknown_key(folder: Path) -> None:
    change(folder, "model.norm.weight", lambda t: {"model.norm.weight": t, "v_head.weight": t.clone()})


def quantised(folder: Path) -> None:
    name = "model.layers.0.feed_forward.w2.weight"
    change(folder, name, lambda t: {name: t.to(torch.int8)})


BROKEN: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no config": (drop("config.json"), ("no config.json",)),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), ("not a JSON file", "config.json")),
    "config without sizes": (lambda f: edit(f / "config.json", hidden_size=None), ("hidden_size is None",)),
    "heads that do not divide": (lambda f: edit(f / "config.json", num_key_value_heads=3), ("cannot share 3",)),
    "another model type": (lambda f: edit(f / "config.json", model_type="qwen2"), ("'qwen2'", "model_type")),
    "a reward model": (lambda f: edit(f / "config.json", architectures=["RewardModel"]), ("RewardModel",)),
    "unknown scaling": (lambda f: edit(f / "config.json", rope_scaling={"type": "yarn", "factor": 4}), ("'yarn'",)),
    "wrong vocabulary": (lambda f: edit(f / "config.json", vocab_size=1000), ("has 1024 rows", "vocab_size 1000")),
    "wrong number of layers": (lambda f: edit(f / "config.json", num_hidden_layers=1), ("model.layers.1.",)),
    "too few layers": (lambda f: edit(f / "config.json", num_hidden_layers=3), ("layers.2", "is missing")),
    "bias that is not there": (lambda f: edit(f / "config.json", bias=True), ("wqkv.bias is missing",)),
    "wrong heads": (lambda f: edit(f / "config.json", num_key_value_heads=4), ("wqkv.weight has the shape [128, 64]",)),
    "missing shard": (drop("model-00002-of-00003.safetensors"), ("model-00002-of-00003.safetensors",)),
    "no weights": (drop("model.safetensors.index.json"), ("model.safetensors.index.json",)),
    "truncated shard": (cut_off, ("cut off", "model-00002-of-00003.safetensors")),
    "LFS pointer": (lfs_pointer, ("Git LFS pointer",)),
    "index names a missing tensor": (names_too_many, ("model.layers.1.extra", "in none of its files")),
    "unknown key": (unknown_key, ("v_head.weight", "does not have")),
    "NaN": (not_a_number, ("wqkv.weight holds NaN",)),
    "infinity": (infinite, ("output.weight holds NaN or infinity",)),
    "quantised": (quantised, ("stored as I8",)),
    "no tokenizer": (drop("tokenizer.model"), ("no tokenizer",)),
    "broken tokenizer": (lambda f: (f / "tokenizer.model").write_bytes(b"\xff" * 999), ("not a SentencePiece model",)),
    "cut-off tokenizer": (
        lambda f: (f / "tokenizer.model").write_bytes((f / "tokenizer.model").read_bytes()[:5000]),
        ("tokenizer.model",),
    ),
    "added tokens beyond the pieces": (
        lambda f: edit(f / "tokenizer_config.json", added_tokens_decoder={"92543": {"content": "<|im_start|>"}}),
        ("<|im_start|> has id 92543", "added_tokens_decoder"),
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_refused_and_nothing_is_left(source: Path, tmp_path: Path, kind: str) -> None:
    break_it, words = BROKEN[kind]
    break_it(source)
    before = sorted(p.name for p in tmp_path.iterdir())
    fails(mrp("convert", "internlm2-to-llama", source, tmp_path / "out"), 2, *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_every_fault_of_the_weights_is_told_at_once(source: Path, tmp_path: Path) -> None:
    unknown_key(source)
    edit(source / "config.json", bias=True)
    with pytest.raises(MrpError, match="fault") as caught:
        to_llama(source, tmp_path / "out")
    for word in ("v_head.weight", "layers.0.attention.wqkv.bias", "layers.1.attention.wo.bias"):
        assert word in str(caught.value)


class _Touch:
    """Unpickling this makes a file: a stand-in for whatever a malicious pickle would do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def bin_source(sources: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources["mha-bin"], tmp_path / "bin-source"))


SHARD = "pytorch_model-00002-of-00003.bin"


@pytest.mark.parametrize("bare", [False, True])
def test_a_malicious_pickle_does_not_run_and_is_named(bin_source: Path, tmp_path: Path, bare: bool) -> None:
    mark = tmp_path / "ran"
    if bare:
        (bin_source / SHARD).write_bytes(pickle.dumps({"model.norm.weight": _Touch(mark)}))
    else:
        torch.save({"model.norm.weight": _Touch(mark)}, bin_source / SHARD)
    done = mrp("convert", "internlm2-to-llama", bin_source, tmp_path / "out")
    fails(done, 2, SHARD, "a pickle that holds more than tensors, and was not run")
    assert bare or f"{os.name}.mkdir" in done.err or "posix.mkdir" in done.err or "nt.mkdir" in done.err
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0, 4, 1000, -50])
def test_a_bin_file_that_is_cut_off_is_named(bin_source: Path, tmp_path: Path, kept: int) -> None:
    (bin_source / SHARD).write_bytes((bin_source / SHARD).read_bytes()[:kept])
    fails(mrp("convert", "internlm2-to-llama", bin_source, tmp_path / "out"), 2, SHARD)
    assert not (tmp_path / "out").exists()


def test_other_things_in_bin_files_are_named(bin_source: Path, tmp_path: Path) -> None:
    for value, words in (
        ([1, 2], "something else than named tensors"),
        ({"model.norm.weight": torch.ones(4, 3).T}, "piece by piece"),
        ({"model.tok_embeddings.weight": torch.ones(2)}, "is also in"),
    ):
        torch.save(value, bin_source / SHARD)
        fails(mrp("convert", "internlm2-to-llama", bin_source, tmp_path / "out"), 2, SHARD, words)
    (bin_source / SHARD).unlink()
    fails(mrp("convert", "internlm2-to-llama", bin_source, tmp_path / "out"), 2, f"no such file: {SHARD}")
    (bin_source / "pytorch_model.bin.index.json").write_text("{}")
    fails(mrp("convert", "internlm2-to-llama", bin_source, tmp_path / "out"), 2, "names no shard")


def test_what_lies_in_the_place_is_not_lost(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    fails(mrp("convert", "internlm2-to-llama", source, tmp_path / "out"), 2, "would be lost: notes.txt")
    fails(mrp("convert", "internlm2-to-llama", source, source), 2, "which it is made from")
    fails(mrp("convert", "internlm2-to-llama", source, source.parent), 2, "which it is made from")
    to_llama(source, tmp_path / "llama")
    fails(mrp("convert", "llama-to-internlm2", tmp_path / "llama", tmp_path / "llama"), 2, "which it is made from")
    fails(mrp("convert", "internlm2-to-llama", source, tmp_path / "out" / "notes.txt"), 2, "a file is in the place")
    fails(mrp("convert", "internlm2-to-llama", tmp_path / "nowhere", tmp_path / "x"), 2, "no such folder")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral"}, "'mistral', not 'llama'"),
        ({"mlp_bias": True}, "feed-forward layers have biases"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "'llama3'"),
    ],
)
def test_a_llama_that_internlm2_cannot_be_is_refused(
    llamas: dict[str, Path], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = Path(shutil.copytree(llamas["gqa"], tmp_path / "llama"))
    edit(folder / "config.json", **changes)
    fails(mrp("convert", "llama-to-internlm2", folder, tmp_path / "out"), 2, words)
    assert not (tmp_path / "out").exists()


def test_a_llama_without_a_sentencepiece_file_is_refused(tmp_path: Path) -> None:
    fails(mrp("convert", "llama-to-internlm2", save_base(tmp_path / "llama"), tmp_path / "out"), 2, "tokenizer.model")
    assert not (tmp_path / "out").exists()


# -- the commands ------------------------------------------------------------------------------------------------------


def test_the_commands_tell_what_they_wrote(sources: dict[str, Path], tmp_path: Path) -> None:
    done = mrp("convert", "internlm2-to-llama", sources["dynamic"], tmp_path / "llama", "--json")
    assert done.code == 0
    assert done.json["folder"] == str(tmp_path / "llama")
    assert done.json["tensors"] == len(tensors(tmp_path / "llama"))
    assert read(tmp_path / "llama" / RECORD)["files"] == done.json["files"]
    back = mrp("convert", "llama-to-internlm2", tmp_path / "llama", tmp_path / "back")
    assert back.code == 0
    assert "modeling_internlm2.py" in back.out


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"rope_theta": 1000000, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 1000000}),
        ({"rope_scaling": {"type": "default"}}, {"rope_type": "default", "rope_theta": 10000}),
        (
            {"rope_theta": 50000, "rope_scaling": {"type": "dynamic", "factor": 3}},
            {"rope_type": "dynamic", "rope_theta": 50000, "factor": 3.0},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 7, "factor": 2.0}, "rope_theta": 9},
            {"rope_type": "linear", "rope_theta": 7, "factor": 2.0},
        ),
    ],
)
def test_rotary_positions_in_old_and_new_words(said: dict[str, Any], expected: dict[str, Any]) -> None:
    config = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, **said}
    config |= {"vocab_size": 9, "model_type": "internlm2"}
    llama = llama_config(config, read_sizes(config, ""), "")
    assert llama["rope_parameters"] == expected
    again = internlm2_config(llama, read_sizes(llama, ""), "")
    assert llama_config(again, read_sizes(again, ""), "")["rope_parameters"] == expected


def test_the_config_is_read_the_same_from_its_old_and_its_new_words(llamas: dict[str, Path], tmp_path: Path) -> None:
    whole = read(llamas["dynamic"] / "config.json")
    for name, left_out in (("new", ("rope_theta", "rope_scaling")), ("old", ("rope_parameters",))):
        (tmp_path / name).mkdir()
        kept = {k: v for k, v in whole.items() if k not in left_out}
        (tmp_path / name / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    found = [
        transformers.AutoConfig.from_pretrained(folder).rope_parameters
        for folder in (llamas["dynamic"], tmp_path / "new", tmp_path / "old")
    ]
    assert found[0] == found[1] == found[2] == {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000}

"""Voices go along: merged + voice is base + adapter + voice (law 8), folded in, in PEFT's format and in GGUF at f16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import fails, mrp

from mrp.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
gguf = pytest.importorskip("gguf")

from merging import contents, make_adapter  # noqa: E402
from projects import change_yaml, snapshot, write_project  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_export import parse_modelfile  # noqa: E402

from mrp.config import Run, load_run  # noqa: E402
from mrp.files import sha256_file, write_json  # noqa: E402
from mrp.models.export import export  # noqa: E402
from mrp.models.gguf import read_fields  # noqa: E402
from mrp.models.load import hardware, load_model  # noqa: E402
from mrp.models.merge import is_merged, merge_command, merge_run  # noqa: E402
from mrp.models.merge_voice import merge_voice  # noqa: E402
from mrp.models.run_voices import voices_of  # noqa: E402
from mrp.models.voices import load_voices, new_voices, save_voices  # noqa: E402
from mrp.report import SILENT  # noqa: E402
from mrp.train.lora import WEIGHTS, load_adapter  # noqa: E402
from mrp.train.record import voice_hashes  # noqa: E402

IDS = torch.arange(40, 80).view(1, 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Run:
    """A merged run, a voice for each of its two characters, and one for a character that left the cast."""
    found = load_run(write_project(tmp_path_factory.mktemp("voices"), tiny_base))
    make_adapter(found.adapter, tiny_base)
    bank = new_voices(load_model(tiny_base, hardware("fp32")), ["bajie", "gone", "wukong"], 2, 8, seed=0)
    torch.manual_seed(9)
    for parameter in bank.parameters().values():
        parameter.data.normal_(std=0.15)
    save_voices(bank, found.voices, "tiny")
    merge_run(found)
    return found


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def spoken(run: Run, tiny_base: Path, who: str) -> Any:
    """Logits of base + cast adapter + voice in float32, which everything here is held against."""
    model = load_adapter(load_model(tiny_base, hardware("fp32")), run.adapter)
    with load_voices(model, run.voices, [who]).speaking([who]):
        return logits(model)


def loaded(folder: Path, **more: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)


# -- mrp merge --voice ---------------------------------------------------------------------------------------------


def test_a_voice_is_folded_in_beside_the_merged_model(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    before = contents(run.merged)
    found = mrp("merge", run.path, "--voice", "Sun Wukong", "--json")
    assert found.code == 0 and found.json["voice"] == "wukong"
    place = run.folder / "merged-wukong"
    assert found.json["folder"] == str(place) and contents(run.merged) == before and is_merged(run)
    assert found.json["verification"]["compared"] == "every number"
    whole, without = spoken(run, tiny_base, "wukong"), logits(loaded(run.merged))
    torch.testing.assert_close(logits(loaded(place)), whole, atol=2e-4, rtol=1e-4)
    assert (whole - without).abs().max() > 0.05
    assert (place / "cast.yaml").is_file() and "One language model" in (place / "README.md").read_text(encoding="utf-8")
    elsewhere = merge_command([str(run.path)], tmp_path / "own", None, SILENT, "bajie")
    assert elsewhere["folder"] == str(tmp_path / "own")
    torch.testing.assert_close(logits(loaded(tmp_path / "own")), spoken(run, tiny_base, "bajie"), atol=2e-4, rtol=1e-4)


def test_a_voice_that_is_not_there_and_the_casts_own_place_are_refused(run: Run, tmp_path: Path) -> None:
    before = snapshot(run.folder)
    with pytest.raises(InputError, match="cannot take the place of the cast's merged model"):
        merge_voice(run, "wukong", run.merged)
    fails(mrp("merge", run.path, "--voice", "monkey"), 2, "no character 'monkey'", "wukong")
    fails(mrp("merge", run.path, run.adapter, "--voice", "wukong"), 2, "these are a base and adapters", "--voice")
    fails(mrp("merge", run.merged, "--voice", "wukong", "--out", tmp_path / "x"), 2, "a model's folder")
    assert snapshot(run.folder) == before
    silent = load_run(write_project(tmp_path / "p", "tiny"))
    with pytest.raises(InputError, match="has no voice of its own") as error:
        merge_voice(silent, "wukong")
    assert "without --voice" in error.value.fix


def test_voices_over_another_adapter_than_theirs_are_refused_wherever_they_speak(
    run: Run, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(run.path.parent, tmp_path / "p")
    changed = load_run(tmp_path / "p" / run.path.name)
    record = {"adapter_sha256": sha256_file(run.adapter / WEIGHTS), "voices_sha256": voice_hashes(run)}
    write_json(changed.record, record)
    assert voices_of(changed) == changed.voices
    assert mrp("export", changed.path, tmp_path / "out", "--to", "hf").code == 0
    make_adapter(changed.adapter, tiny_base, strength=0.2)
    told = ("another one than the voices of bajie, gone, wukong", "put the adapter of that training back")
    fails(mrp("merge", changed.path, "--voice", "wukong"), 2, *told)
    fails(mrp("export", changed.path, tmp_path / "out2", "--to", "hf"), 2, *told)
    fails(mrp("chat", changed.path), 2, *told)
    shutil.rmtree(changed.voices)
    assert voices_of(changed) is None


# -- hf ------------------------------------------------------------------------------------------------------------


def test_peft_folders_fit_the_exported_model(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    record = export(run.path, tmp_path / "out", "hf")
    assert record["voices"] == ["bajie", "wukong"] and "voices/wukong/adapter_config.json" in record["files"]
    assert not (tmp_path / "out" / "voices" / "gone").exists()
    for who in record["voices"]:
        voiced = peft.PeftModel.from_pretrained(loaded(tmp_path / "out"), str(tmp_path / "out" / "voices" / who))
        torch.testing.assert_close(logits(voiced), spoken(run, tiny_base, who), atol=2e-4, rtol=1e-4)
    config = json.loads((tmp_path / "out" / "voices" / "wukong" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "."
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (
        "vllm serve . --served-model-name cast --enable-lora --max-loras 2 --max-lora-rank 8 "
        "--lora-modules bajie=./voices/bajie wukong=./voices/wukong\n"
    ) in card


def test_an_export_takes_the_place_of_an_earlier_one_with_voices(run: Run, tmp_path: Path) -> None:
    export(run.path, tmp_path / "out", "hf")
    again = export(tmp_path / "out", tmp_path / "again", "gguf")  # voices beside a model folder are its own
    assert again["voices"] == ["bajie", "wukong"]
    export(run.path, tmp_path / "out", "gguf")
    assert sorted(p.name for p in (tmp_path / "out" / "voices").iterdir()) == ["bajie.gguf", "wukong.gguf"]
    (tmp_path / "out" / "voices" / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(InputError, match=r"would be lost: voices/mine\.txt"):
        export(run.path, tmp_path / "out", "hf")


def test_a_run_without_voices_is_exported_as_ever(tiny_base: Path, tmp_path: Path) -> None:
    one = load_run(write_project(tmp_path / "p", tiny_base))
    make_adapter(one.adapter, tiny_base)
    merge_run(one)
    for form in ("hf", "gguf", "ollama"):
        record = export(one.path, tmp_path / "out", form)
        assert "voices" not in record and not (tmp_path / "out" / "voices").exists()
        texts = [p.read_text(encoding="utf-8") for p in (tmp_path / "out").glob("[RM]*")]
        assert texts and not any("lora" in text or "ADAPTER" in text for text in texts)


def test_a_voice_of_another_base_stops_the_export(run: Run, tmp_path: Path) -> None:
    export(run.path, tmp_path / "m", "hf")
    for who in ("wukong", "bajie"):
        path = tmp_path / "m" / "voices" / who / "adapter_model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if "up_proj.lora_A" in name)
        save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, path)
    for form in ("hf", "gguf", "ollama"):
        with pytest.raises(InputError, match="up_proj") as error:
            export(tmp_path / "m", tmp_path / "out", form)
        assert len(error.value.faults) == 2 and not (tmp_path / "out").exists()  # type: ignore[attr-defined]


# -- gguf and ollama -----------------------------------------------------------------------------------------------


def from_pairs(rows: Any, heads: int) -> Any:
    """The rows of q and k as transformers has them: each head's even places, then its odd ones."""
    return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in rows.chunk(heads)])


def with_gguf_lora(model: Any, path: Path) -> Any:
    """`model` with what llama.cpp would add to each of its weights: alpha / rank * B @ A."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    halves = {t.name: torch.from_numpy(t.data.copy()) for t in gguf.GGUFReader(path).tensors}
    alpha = read_fields(path)["adapter.lora.alpha"]
    added = 0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or f"{names.get_name(name)}.weight.lora_a" not in halves:
            continue
        a, b = (halves.pop(f"{names.get_name(name)}.weight.lora_{half}") for half in "ab")
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
        if count := heads.get(name.rpartition(".")[2]):
            b = from_pairs(b, count)
        module.weight.data += alpha / len(a) * b @ a
        added += 1
    assert not halves and added == 14
    return model


def test_merged_and_voice_in_gguf_are_base_adapter_and_voice(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = export(run.path, out, "gguf", "f16")
    assert record["voices"] == ["bajie", "wukong"]
    plain = logits(loaded(out, gguf_file="out-f16.gguf"))
    for who in record["voices"]:
        whole = spoken(run, tiny_base, who)
        model = with_gguf_lora(loaded(out, gguf_file="out-f16.gguf"), out / "voices" / f"{who}.gguf")
        found = logits(model)
        # f16 keeps 11 bits of each weight of the merged model
        assert (found - whole).norm() < 2e-3 * whole.norm() < 0.1 * (whole - plain).norm()
        assert torch.equal(found.argmax(-1), whole.argmax(-1))
        assert read_fields(out / "voices" / f"{who}.gguf")["general.type"] == "adapter"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "llama-server -m out-f16.gguf -c 256 --jinja --lora voices/wukong.gguf\n" in card


def test_each_modelfile_brings_its_characters_own_voice(run: Run, tmp_path: Path) -> None:
    export(run.path, tmp_path / "out", "ollama", "q8_0")
    for who in ("wukong", "bajie"):
        said = parse_modelfile((tmp_path / "out" / f"Modelfile.{who}").read_text(encoding="utf-8"))
        assert [value for name, value in said if name == "adapter"] == [f"./voices/{who}.gguf"]
        assert [name for name, _ in said].index("from") < [name for name, _ in said].index("adapter")
        assert (tmp_path / "out" / "voices" / f"{who}.gguf").is_file()
    assert "mrp merge RUN --voice bajie" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


# -- the card in the merged folder ---------------------------------------------------------------------------------


def test_the_merged_folder_has_a_card_that_no_merge_trips_over(run: Run) -> None:
    card = run.merged / "README.md"
    text = card.read_text(encoding="utf-8")
    assert "mrp chat . --as wukong" in text and "You are Sun Wukong." in text and is_merged(run)
    card.unlink()
    assert is_merged(run) and merge_run(run) == run.merged
    assert card.read_text(encoding="utf-8") == text
    change_yaml(run.cast_path, scenario="In the rain.")
    again = load_run(run.path)
    merge_run(again)
    assert "In the rain." in card.read_text(encoding="utf-8") and is_merged(again)
    change_yaml(run.cast_path, scenario="")
    merge_run(load_run(run.path))

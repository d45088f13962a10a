"""GGUF export: the file computes what the folder computes, and cuts text into the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrp.errors import InputError, MrpError, SetupError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
tokenizers = pytest.importorskip("tokenizers")

from shapes import SHAPES, byte_level, sentencepiece_like  # noqa: E402
from spm import SpmReader  # noqa: E402

from mrp.data.view import SYSTEM, USER, Message  # noqa: E402
from mrp.models.export import export  # noqa: E402
from mrp.models.gguf import build_tokenizer, convert_gguf, read_fields  # noqa: E402
from mrp.models.gguf_layout import gguf_layout, rope_of  # noqa: E402
from mrp.models.gguf_vocab import vocabulary_fields  # noqa: E402
from mrp.models.gguf_write import in_pairs  # noqa: E402
from mrp.models.internlm2_tokenizer import read_tokenizer  # noqa: E402
from mrp.models.load import load_tokenizer  # noqa: E402
from mrp.render import ChatTemplate  # noqa: E402

TEXTS = [
    "Old Monkey fears nothing under heaven! It's 2026, isn't it?",
    "俺老孙乃齐天大圣，何方妖怪，报上名来！……——",
    "def f(x):\n\treturn x**2  # 12345\n\n\n1. one\r\n",
    "😀👨‍👩‍👧 café ﬁ Ａ  two  spaces ",
    " leading, trailing ",
    "▁ underlined ▁▁",
]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2, "initializer_range": 0.15, "max_position_embeddings": 256}


def save_model(folder: Path, kind: str, tokenizer: Any, rows: int = 0, **more: Any) -> Path:
    """A random model of an architecture, with a tokenizer; biases and norms are random too."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=rows or len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **(SIZES | GROUPED | more),
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_((1.0 if "norm" in name else 0.0) + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spm_tokenizer(space: str) -> Any:
    """A tokenizer whose merges are SentencePiece's: every token of every two that it can be cut into."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    plain = sentencepiece_like([], space=space, bos_token="<s>", eos_token="</s>")
    value = json.loads(plain.backend_tokenizer.to_str())
    vocabulary = value["model"]["vocab"]
    made = list(dict.fromkeys("".join(pair) for pair in value["model"]["merges"]))
    ordinary = {t for t in vocabulary if not t.startswith("<")}
    cuts = {t: [(t[:k], t[k:]) for k in range(1, len(t)) if {t[:k], t[k:]} <= ordinary] for t in made}
    value["model"]["merges"] = [list(pair) for token in made for pair in cuts[token]]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(value)),
        clean_up_tokenization_spaces=False,
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens([tokenizers.AddedToken("——", normalized=False)])
    tokenizer.chat_template = SHAPES["internlm2"].template()
    return tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind that is written."""
    place = tmp_path_factory.mktemp("models")
    chatml, qwen, wide = SHAPES["chatml"].tokenizer(), SHAPES["qwen2_5"].tokenizer(), {"head_dim": 128}
    return {
        "llama": save_model(place / "llama", "llama", chatml),
        "llama-tied": save_model(place / "llama-tied", "llama", chatml, rows=500, tie_word_embeddings=True),
        "llama-biased": save_model(place / "llama-biased", "llama", spm_tokenizer("never"), attention_bias=True),
        "qwen2": save_model(place / "qwen2", "qwen2", qwen),
        "qwen3": save_model(place / "qwen3", "qwen3", SHAPES["qwen3"].tokenizer(), **wide),
    }


def load_gguf(folder: Path) -> Any:
    file = next(folder.glob("*.gguf"))
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.float32,
        local_files_only=True,
    )


def logits(model: Any, vocabulary: int) -> Any:
    ids = torch.randint(0, vocabulary, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits


def fields_of(out: Path) -> dict[str, Any]:
    return read_fields(next(out.glob("*.gguf")))


# transformers drops biases of a Llama when it reads a GGUF: that file is compared tensor by tensor below
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "qwen3"])
@pytest.mark.parametrize(("quant", "tolerance"), [("f16", 0.002), ("bf16", 0.02), ("q8_0", 0.03), ("q4_0", 0.4)])
def test_the_file_computes_what_the_folder_computes(
    kind: str, quant: str, tolerance: float, models: dict[str, Path], tmp_path: Path
) -> None:
    export(models[kind], tmp_path / "out", "gguf", quant)
    before = transformers.AutoModelForCausalLM.from_pretrained(models[kind], dtype=torch.float32)
    after = load_gguf(tmp_path / "out")
    expected, found = (logits(m, before.config.vocab_size) for m in (before, after))
    assert float((expected - found).norm() / expected.norm()) < tolerance
    if quant == "f16":
        start = torch.tensor([[1, 2, 3, 4]])
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(before.generate(start, **options), after.generate(start, **options))


def test_q_and_k_change_their_rows_for_llama_and_for_no_other(models: dict[str, Path], tmp_path: Path) -> None:
    for kind, in_other_order in (("llama-biased", True), ("qwen2", False)):
        export(models[kind], tmp_path / kind, "gguf", "bf16")
        stored = {t.name: t.data for t in gguf.GGUFReader(next((tmp_path / kind).glob("*.gguf"))).tensors}
        state = transformers.AutoModelForCausalLM.from_pretrained(models[kind], dtype=torch.float32).state_dict()
        for part, heads in (("q", 4), ("k", 2), ("v", 0)):
            for leaf in ("weight", "bias"):
                ours = state[f"model.layers.1.self_attn.{part}_proj.{leaf}"]
                width = ours.shape[0] // max(heads, 1) // 2
                order = [
                    h * 2 * width + j + half * width for h in range(heads) for j in range(width) for half in (0, 1)
                ]
                expected = ours[order] if in_other_order and heads else ours
                data = stored[f"blk.1.attn_{part}.{leaf}"]
                found = torch.from_numpy(
                    gguf.dequantize(data, gguf.GGMLQuantizationType.BF16) if leaf == "weight" else data.copy()
                )
                assert torch.equal(found, expected.to(torch.bfloat16).float() if leaf == "weight" else expected)


def test_rows_in_pairs_are_the_halves_of_each_head_in_turn() -> None:
    rows = torch.arange(12).view(12, 1)
    assert in_pairs(rows, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_a_tied_head_is_left_out_and_another_is_written(models: dict[str, Path], tmp_path: Path) -> None:
    for kind, written in (("llama", True), ("llama-tied", False)):
        export(models[kind], tmp_path / kind, "gguf")
        names = {t.name for t in gguf.GGUFReader(next((tmp_path / kind).glob("*.gguf"))).tensors}
        assert ("output.weight" in names) is written


def test_types_of_tensors_follow_the_quantisation(models: dict[str, Path], tmp_path: Path) -> None:
    kinds = gguf.GGMLQuantizationType
    export(models["qwen2"], tmp_path / "out", "gguf", "q4_0")
    found = {t.name: t.tensor_type for t in gguf.GGUFReader(next((tmp_path / "out").glob("*.gguf"))).tensors}
    assert found["blk.0.ffn_up.weight"] == kinds.Q4_0
    assert found["token_embd.weight"] == found["output.weight"] == kinds.Q8_0
    assert found["output_norm.weight"] == found["blk.0.attn_q.bias"] == kinds.F32
    assert fields_of(tmp_path / "out")["general.file_type"] == 2


def test_rows_that_are_no_whole_blocks_stay_in_f16(tiny_base: Path, tmp_path: Path) -> None:
    record = export(tiny_base, tmp_path / "out", "gguf", "q8_0")  # 48 numbers in a row, and a block has 32
    assert record["tensors"]["f16"] > record["tensors"].get("q8_0", 0) > 0


# -- the tokenizer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chatml", "qwen2_5", "qwen3", "smollm3", "llama3"])
def test_a_byte_level_tokenizer_read_back_gives_the_same_ids(name: str) -> None:
    tokenizer = SHAPES[name].tokenizer()
    fields, _ = vocabulary_fields(tokenizer, ChatTemplate(tokenizer), len(tokenizer), name)
    again = build_tokenizer({"general.architecture": "llama", "llama.context_length": 99} | fields, name)
    for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|> <think>"]:
        assert again(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("space", ["never", "always"])
def test_a_sentencepiece_tokenizer_gives_the_same_ids_by_scores(space: str) -> None:
    tokenizer = spm_tokenizer(space)
    fields, notes = vocabulary_fields(tokenizer, ChatTemplate(tokenizer), len(tokenizer), space)
    reader = SpmReader(fields)
    assert fields["tokenizer.ggml.add_space_prefix"] is (space == "always") and not notes
    for text in [*TEXTS, "<|im_start|>user\n你是谁？<|im_end|>\n"]:
        assert reader.ids(text) == tokenizer(text, add_special_tokens=False).input_ids, text


def test_internlm2s_own_tokenizer_gives_the_same_ids_by_scores(shared: Path) -> None:
    tokenizer = read_tokenizer(shared / "data" / "internlm2-tokenizer")
    fields, notes = vocabulary_fields(tokenizer, ChatTemplate(tokenizer), 92544, "internlm2")
    reader = SpmReader(fields)
    names, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert (types[0], types[1], types[3], types[names.index("<|im_end|>")]) == (2, 3, 6, 3) and not notes
    assert all(name.strip("\0") for name in names)
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert names[fields["tokenizer.ggml.eot_token_id"]] == "<|im_end|>"
    for text in [*TEXTS, "[UNUSED_TOKEN_3] </s> <0x0A> <|im_start|>user\n你是谁？<|im_end|>\n"]:
        assert reader.ids(text) == tokenizer(text, add_special_tokens=False).input_ids, text


def test_a_space_before_the_first_text_alone_is_left_out_and_told() -> None:
    tokenizer = spm_tokenizer("first")
    template = ChatTemplate(tokenizer)
    fields, notes = vocabulary_fields(tokenizer, template, len(tokenizer), "first")
    assert notes and "leading space" in notes[0]
    ids = template.prompt([Message(SYSTEM, "Patience, my disciple."), Message(USER, "Who are you?")])
    assert [1, *SpmReader(fields).ids(tokenizer.decode(ids[1:]))] == ids


def test_merges_that_are_not_sentencepieces_are_refused() -> None:
    tokenizer = SHAPES["internlm2"].tokenizer()
    with pytest.raises(InputError, match="merges are not SentencePiece's"):
        vocabulary_fields(tokenizer, None, len(tokenizer), "here")


def test_types_of_tokens_and_names_of_spare_rows() -> None:
    tokenizer = SHAPES["qwen3"].tokenizer()
    fields, _ = vocabulary_fields(tokenizer, ChatTemplate(tokenizer), len(tokenizer) + 2, "here")
    kinds = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<|im_end|>"], kinds["<think>"], kinds["a"]) == (3, 4, 1)
    assert kinds[f"[PAD{len(tokenizer)}]"] == kinds[f"[PAD{len(tokenizer) + 1}]"] == 5


def test_a_bos_that_the_tokenizer_does_not_add_is_not_added_there() -> None:
    """The default base's BOS is <|im_start|>, with which its prompts begin: a runtime must not add another."""
    for name, adds in (("chatml", False), ("llama3", True), ("qwen2_5", False)):
        tokenizer = SHAPES[name].tokenizer()
        fields, _ = vocabulary_fields(tokenizer, ChatTemplate(tokenizer), len(tokenizer), name)
        assert fields["tokenizer.ggml.add_bos_token"] is adds, name
        assert fields.get("tokenizer.ggml.bos_token_id") == tokenizer.bos_token_id


def test_more_tokens_than_rows_are_refused() -> None:
    tokenizer = SHAPES["chatml"].tokenizer()
    with pytest.raises(InputError, match="tokens, and the embedding only"):
        vocabulary_fields(tokenizer, None, len(tokenizer) - 1, "here")


def test_a_way_to_cut_text_that_has_no_name_is_refused() -> None:
    from tokenizers import pre_tokenizers

    tokenizer = byte_level(["<|im_end|>"], eos_token="<|im_end|>")
    steps = [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    with pytest.raises(InputError, match="Punctuation"):
        vocabulary_fields(tokenizer, None, len(tokenizer), "here")


# -- metadata ------------------------------------------------------------------------------------------------------


def test_metadata_say_what_the_folder_says(models: dict[str, Path], tmp_path: Path) -> None:
    export(models["qwen3"], tmp_path / "my cast", "gguf")
    fields = fields_of(tmp_path / "my cast")
    assert (fields["general.architecture"], fields["general.name"]) == ("qwen3", "my-cast")
    assert (fields["qwen3.attention.head_count"], fields["qwen3.attention.head_count_kv"]) == (4, 2)
    assert (fields["qwen3.attention.key_length"], fields["qwen3.rope.dimension_count"]) == (128, 128)
    assert (fields["qwen3.context_length"], fields["qwen3.block_count"]) == (256, 2)
    assert fields["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert fields["qwen3.rope.freq_base"] == pytest.approx(10000.0)
    tokenizer = load_tokenizer(models["qwen3"])
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.eot_token_id"] == tokenizer.eos_token_id


def test_the_chat_template_prints_with_plain_jinja_what_training_saw(models: dict[str, Path], tmp_path: Path) -> None:
    import jinja2

    for kind in ("qwen3", "llama"):
        export(models[kind], tmp_path / kind, "gguf")
        text = fields_of(tmp_path / kind)["tokenizer.chat_template"]
        tokenizer = load_tokenizer(models[kind])
        template = ChatTemplate(tokenizer)
        messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        printed = environment.from_string(text).render(messages=messages, add_generation_prompt=True)
        assert printed == tokenizer.decode(template.prompt([Message(SYSTEM, "a"), Message(USER, "b")]))


def test_linear_rotary_scaling_is_written(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    save_model(tmp_path / "m", "llama", SHAPES["chatml"].tokenizer(), rope_parameters=scaling)
    export(tmp_path / "m", tmp_path / "out", "gguf")
    fields = fields_of(tmp_path / "out")
    assert (fields["llama.rope.scaling.type"], fields["llama.rope.scaling.factor"]) == ("linear", 4.0)
    assert fields["llama.rope.freq_base"] == 500.0


def test_llama3s_rotary_scaling_is_written_as_factors(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64, "rope_theta": 500.0}
    save_model(tmp_path / "m", "llama", SHAPES["chatml"].tokenizer(), head_dim=32, rope_parameters=scaling)
    export(tmp_path / "m", tmp_path / "out", "gguf")
    tensors = {t.name: t.data for t in gguf.GGUFReader(next((tmp_path / "out").glob("*.gguf"))).tensors}
    config = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500.0 ** -(torch.arange(0, 32, 2) / 32)
    assert len({round(float(f), 3) for f in tensors["rope_freqs.weight"]}) > 2  # all three parts of the formula
    assert torch.allclose(plain / torch.from_numpy(tensors["rope_freqs.weight"].copy()), expected.float(), rtol=1e-5)


def test_dynamic_rotary_scaling_is_told_and_other_kinds_are_refused(tmp_path: Path) -> None:
    base = {"model_type": "llama", "vocab_size": 9, "rms_norm_eps": 1e-6, **SIZES, **GROUPED}
    layout = gguf_layout(base | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1e6}, "config.json")
    assert "256 tokens" in layout.notes[0] and layout.fields["llama.rope.freq_base"] == 1e6
    assert not any("scaling" in key for key in layout.fields)
    with pytest.raises(InputError, match="'longrope' cannot be written"):
        gguf_layout(base | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "config.json")
    assert rope_of({"rope_theta": 5, "rope_scaling": None}) == (5.0, {})
    del tmp_path


# -- round trip through our own reader -----------------------------------------------------------------------------


def test_our_reader_gives_the_exported_model_back(models: dict[str, Path], tmp_path: Path) -> None:
    export(models["llama"], tmp_path / "out", "gguf", "bf16")
    convert_gguf(next((tmp_path / "out").glob("*.gguf")), tmp_path / "back")
    before = transformers.AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.bfloat16).state_dict()
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.bfloat16).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    one, other = (ChatTemplate(load_tokenizer(folder)) for folder in (models["llama"], tmp_path / "back"))
    messages = [Message(SYSTEM, "You are 悟空."), Message(USER, "Who\n\n1. are you? 😀")]
    assert one.prompt(messages) == other.prompt(messages)


# -- what cannot be exported ---------------------------------------------------------------------------------------


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    save_model(tmp_path / "m", "gpt_neox", SHAPES["chatml"].tokenizer())
    with pytest.raises(InputError, match=r"type 'gpt_neox' cannot be written.*llama, qwen2, qwen3"):
        export(tmp_path / "m", tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def rewrite(folder: Path, out: Path, change: Any) -> Path:
    """A copy of a model folder whose weights went through `change`."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    weights = load_file(out / "model.safetensors")
    change(weights)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


def test_nan_and_numbers_too_large_for_f16_are_named(models: dict[str, Path], tmp_path: Path) -> None:
    def spoil(value: float) -> Any:
        return lambda weights: weights["model.layers.1.mlp.up_proj.weight"].view(-1)[5].fill_(value)

    rewrite(models["llama"], tmp_path / "nan", spoil(float("nan")))
    rewrite(models["llama"], tmp_path / "large", spoil(1e6))
    for form in ("gguf", "hf"):
        with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
            export(tmp_path / "nan", tmp_path / "out", form)
    for form in ("gguf", "hf"):
        with pytest.raises(InputError, match="too large") as caught:
            export(tmp_path / "large", tmp_path / "out", form, "f16")
        assert "--quant bf16" in caught.value.fix
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".mrp*"))


def test_missing_and_foreign_weights_are_all_named(models: dict[str, Path], tmp_path: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        del weights["model.norm.weight"]
        weights["model.layers.0.mlp.extra.weight"] = torch.zeros(2, 2)
        weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 64)
        weights["model.layers.0.mlp.down_proj.weight"] = torch.zeros(64, 96, dtype=torch.float8_e4m3fn)

    rewrite(models["llama"], tmp_path / "m", change)
    with pytest.raises(MrpError) as caught:
        export(tmp_path / "m", tmp_path / "out", "gguf")
    text = str(caught.value)
    for words in ("model.norm.weight is missing", "mlp.extra.weight has no place", "shape [3, 64]", "F8_E4M3"):
        assert words in text


def test_a_quantised_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    rewrite(models["llama"], tmp_path / "m", lambda _: None)
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(InputError, match=r"quantised \(fp8\)"):
        export(tmp_path / "m", tmp_path / "out", "gguf")


def test_k_quants_without_llama_cpp_say_what_to_do(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(SetupError, match="own library") as caught:
        export(models["llama"], tmp_path / "out", "gguf", "q4_k_m")
    assert "q8_0" in caught.value.fix and not (tmp_path / "out").exists()


def test_a_k_quant_is_made_from_an_f16_file_that_goes_again(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's library itself is not built for tests (see benchmarks/export_llama_cpp.py)."""
    from mrp.models import export as exporting

    seen: list[int] = []

    def quantise(source: Path, out: Path, quant: str) -> None:
        seen.append(read_fields(source)["general.file_type"])
        out.write_bytes(b"GGUF " + quant.encode())

    monkeypatch.setattr(exporting, "llama_cpp_library", lambda: None)
    monkeypatch.setattr(exporting, "k_quantise", quantise)
    record = export(models["llama"], tmp_path / "out", "gguf", "q4_k_m")
    assert seen == [1] and record["tensors"] == {"q4_k_m": 21}
    assert [p.name for p in (tmp_path / "out").glob("*") if "GGUF" in p.read_text("utf-8", "ignore")] == [
        "out-q4_k_m.gguf"
    ]
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.parametrize("quant", ["f16", "q4_0"])
def test_equal_inputs_make_equal_files_however_small_the_pieces(
    quant: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, piece_bytes in (("one", 2**20), ("two", 1)):  # all rows at once; one row, or one head, at a time
        monkeypatch.setattr("mrp.models.gguf_write.PIECE_BYTES", piece_bytes)
        export(models["llama-biased"], tmp_path / name / "cast", "gguf", quant)
    one, two = (next((tmp_path / name / "cast").glob("*.gguf")).read_bytes() for name in ("one", "two"))
    assert one == two

"""GGUF to a Hugging Face folder, on a two-layer model of random weights made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrp.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

from mrp.models.gguf import build_tokenizer, convert_gguf, read_fields  # noqa: E402

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ Ġ", "Ċ Ċ", "h i")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


def write_gguf(path: Path, without: str = "") -> None:
    """A Llama of 2 layers: 4 heads over 2 key heads, width 32, the vocabulary of bytes, tied embeddings."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    for layer in (f"blk.{i}." for i in range(2)):
        shapes |= {f"{layer}attn_norm": (32,), f"{layer}ffn_norm": (32,), f"{layer}attn_q": (32, 32)}
        shapes |= {f"{layer}attn_k": (16, 32), f"{layer}attn_v": (16, 32), f"{layer}attn_output": (32, 32)}
        shapes |= {f"{layer}ffn_gate": (64, 32), f"{layer}ffn_up": (64, 32), f"{layer}ffn_down": (32, 64)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        weights = random.normal(0, 0.2, shape).astype(np.float32)
        if name == without:
            continue
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", weights)
        else:  # rows of 32: one block of Q8_0
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    convert_gguf(tiny, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(converted: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(converted, local_files_only=True)


def test_the_converted_model_computes_what_the_gguf_does(tiny: Path, converted: Path) -> None:
    original = transformers.AutoModelForCausalLM.from_pretrained(
        tiny.parent,
        gguf_file=tiny.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(converted, local_files_only=True)
    assert model.dtype == torch.bfloat16
    input_ids = torch.tensor([[1, 20, 30, 2, 40]])
    with torch.no_grad():
        assert torch.equal(model(input_ids).logits, original(input_ids).logits)
    embedding = gguf.GGUFReader(tiny).tensors[0]
    expected = torch.from_numpy(gguf.dequantize(embedding.data, embedding.tensor_type)).to(torch.bfloat16)
    assert torch.equal(model.get_input_embeddings().weight, expected)


def test_the_configs_say_what_the_gguf_says(converted: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(converted, local_files_only=True)
    assert (config.model_type, config.tie_word_embeddings, config.rms_norm_eps) == ("llama", True, 1e-5)
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (4, 2, 128)
    generation = transformers.GenerationConfig.from_pretrained(converted, local_files_only=True)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)


def test_the_tokenizer_is_fast_and_gives_every_text_back(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == SPECIAL[1:] + SPECIAL[2:]
    for text in ("hi  there\n\n1. 孙悟空 😀", " don't . x !", ""):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_stand_alone_so_that_spaces_before_them_join(tokenizer: Any) -> None:
    assert tokenizer.tokenize("hi  42\n\n7") == ["hi", "ĠĠ", "4", "2", "ĊĊ", "7"]


def test_control_tokens_are_single_ids_and_the_template_is_kept(tokenizer: Any) -> None:
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("<|im_start|>hi<|im_end|>").input_ids[::2] == [1, 2]
    assert tokenizer.decode([1, 2, 0], skip_special_tokens=True) == ""


def test_tools_on_transformers_4_can_read_the_tokenizer_class(converted: Path) -> None:
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in (converted / "tokenizer_config.json").read_text("utf-8")


def test_the_conversion_is_silent_and_puts_the_settings_back(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    convert_gguf(tiny, tmp_path)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_the_conversion_is_the_same_each_time(tiny: Path, converted: Path, tmp_path: Path) -> None:
    convert_gguf(tiny, tmp_path)
    for path in converted.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_conversion_never_looks_at_the_network(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    convert_gguf(tiny, tmp_path)


def test_a_gguf_that_lacks_a_weight_is_refused_not_filled_with_noise(tmp_path: Path) -> None:
    write_gguf(tmp_path / "cut.gguf", without="blk.1.attn_v")
    with pytest.raises(InputError, match=r"lacks weights: .*layers\.1\.self_attn\.v_proj"):
        convert_gguf(tmp_path / "cut.gguf", tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf file at all, but longer than a header"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(InputError, match="not a GGUF file"):
        read_fields(tmp_path / "x.gguf")


def test_a_tokenizer_of_an_unknown_kind_is_refused(tiny: Path) -> None:
    fields = read_fields(tiny) | {"tokenizer.ggml.pre": "unheard-of"}
    with pytest.raises(InputError, match="gpt2/unheard-of"):
        build_tokenizer(fields, "x.gguf")

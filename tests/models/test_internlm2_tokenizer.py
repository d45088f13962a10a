"""InternLM2's tokenizer: the ids of the reference and of SentencePiece, no space lost, no chat token out of text."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("sentencepiece")

import sentencepiece as spm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.data.view import ASSISTANT, SYSTEM, USER, Message
from mrp.errors import InputError
from mrp.models.internlm2_tokenizer import (
    CHAT_TOKENS,
    Pieces,
    build_backend,
    read_pieces,
    read_tokenizer,
    write_released_form,
    write_tokenizer,
)
from mrp.models.load import load_tokenizer
from mrp.render import ChatTemplate

TEXTS = [
    "俺老孙乃齐天大圣，何方妖怪，报上名来！",
    "他说——好……“不——”",
    "def f(x):\n    return {\n\t'a': x ** 2,\n    }  # 注释\n\n\n",
    "  two  spaces,   three, and a tab\t.  ",
    "　全角空格　ＡＢＣａｂｃ１２３",
    "👨‍👩‍👧‍👦 🏳️‍🌈 🐒🐷🐎 e\u0301 \u200b\ufeff",
    "\r\n\r\n \n \n",
    "1234567890 3.14159 0x1F 2024-05-06",
    "<0x41> [UNUSED_TOKEN_3] ▅ \x00 \x7f \x1b[0m",
    "ﷺ ꙮ 𓀀 𝔘𝔫𝔦 ㍿ ｶﾞ",
    " ",
    "",
]
EXAMPLE = [64013, 60607, 61859, 62369, 61572, 60429, 60368, 61459]  # of 俺老孙乃齐天大圣, from the data's own page


@pytest.fixture(scope="module")
def real(shared: Path) -> Path:
    return shared / "data" / "internlm2-tokenizer"


@pytest.fixture(scope="module")
def tiny(shared: Path) -> Path:
    return shared / "golden" / "internlm2-tiny-a" / "gqa"


@pytest.fixture(scope="module")
def folders(real: Path, tiny: Path) -> dict[str, Path]:
    return {"real": real, "tiny": tiny}


@pytest.fixture(scope="module")
def written(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tokenizers as a person has them: written, then read by plain AutoTokenizer."""
    loaded = {}
    for name, folder in folders.items():
        out = tmp_path_factory.mktemp(name)
        write_tokenizer(read_tokenizer(folder), out)
        shutil.copyfile(folder / "tokenizer.model", out / "tokenizer.model")  # as it lies in a converted folder
        loaded[name] = load_tokenizer(out)
    return loaded


@pytest.fixture(scope="module")
def pieces(real: Path) -> Pieces:
    return read_pieces(real)


def processor(folder: Path) -> Any:
    return spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


# -- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["real", "tiny"])
def test_prompts_have_the_ids_of_the_reference(shared: Path, written: dict[str, Any], name: str) -> None:
    path = shared / "golden" / "internlm2-tiny-a" / "prompts.json"
    conversations = json.loads(path.read_text(encoding="utf-8"))["conversations"]
    assert len(conversations) == 5
    tokenizer = written[name]
    for case in conversations:
        text = tokenizer.apply_chat_template(case["messages"], tokenize=False, add_generation_prompt=True)
        assert text == case["chat_template_text"]
        ours = tokenizer(case["reference_prompt"])["input_ids"]  # BOS once, by the tokenizer itself
        prompt = tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True)["input_ids"]
        for kind in ("fast", "slow"):
            assert ours == case["reference_ids"][f"{name}.{kind}"], case["name"]
            assert prompt == case["chat_template_ids"][f"{name}.{kind}"], case["name"]


def test_the_data_pages_example(written: dict[str, Any]) -> None:
    assert ids(written["real"], "俺老孙乃齐天大圣") == EXAMPLE


@pytest.mark.parametrize("name", ["real", "tiny"])
def test_special_ids(written: dict[str, Any], name: str) -> None:
    tokenizer = written[name]
    last = len(tokenizer) - 1
    assert last == {"real": 92543, "tiny": 1023}[name]
    assert [tokenizer.convert_tokens_to_ids(token) for token in CHAT_TOKENS] == [last - k for k in range(6)]
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id == 2
    assert tokenizer("你")["input_ids"][0] == 1
    assert tokenizer("你")["input_ids"].count(1) == 1
    for token in CHAT_TOKENS:
        assert ids(tokenizer, f"a{token}b")[1:-1] == [tokenizer.convert_tokens_to_ids(token)]
    whole = ids(tokenizer, "<|im_start|>user\n你<|im_end|>\n")
    assert tokenizer.decode(whole, skip_special_tokens=True) == "user\n你\n"


def same_as_sentencepiece(tokenizer: Any, reference: Any, text: str) -> None:
    ours = ids(tokenizer, text)
    assert ours == reference.encode(text), repr(text)
    assert tokenizer.decode(ours) == text


@pytest.mark.parametrize("name", ["real", "tiny"])
def test_chosen_texts_have_sentencepieces_ids(written: dict[str, Any], folders: dict[str, Path], name: str) -> None:
    reference = processor(folders[name])
    for text in TEXTS:
        if "UNUSED" not in text:
            same_as_sentencepiece(written[name], reference, text)
        assert written[name].decode(ids(written[name], text)) == text


@pytest.mark.parametrize("name", ["real", "tiny"])
def test_any_text_has_sentencepieces_ids(written: dict[str, Any], folders: dict[str, Path], name: str) -> None:
    reference, tokenizer = processor(folders[name]), written[name]

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60))
    def law(text: str) -> None:
        if not any(token in text for token in (*CHAT_TOKENS, "<s>", "</s>", "<unk>", "[UNUSED_TOKEN_")):
            same_as_sentencepiece(tokenizer, reference, text)

    law()


def test_any_chain_of_pieces_has_sentencepieces_ids(
    written: dict[str, Any], folders: dict[str, Path], pieces: Pieces
) -> None:
    """Pieces cut and repeated: where two ways to join overlap, the ids show which came first."""
    reference, tokenizer, choose = processor(folders["real"]), written["real"], random.Random(0)
    names = [name.replace("▁", " ") for name, _, kind in pieces.pieces if kind in (1, 4) and "UNUSED" not in name]
    repeating = [name for name in names if len(name) > 1 and len(set(name)) <= 2]
    assert len(repeating) > 500
    for number in range(3000):
        source = repeating if number % 2 else names
        chosen = [choose.choice(source) for _ in range(8)]
        text = "".join(name[choose.randrange(len(name)) :] * choose.randrange(1, 3) for name in chosen)
        if not any(token in text for token in ("<s>", "</s>", "<unk>")):
            same_as_sentencepiece(tokenizer, reference, text)


def test_the_name_of_an_unused_piece_stays_text(written: dict[str, Any]) -> None:
    """SentencePiece would make <|im_start|> of this; here it is what the person wrote."""
    tokenizer = written["real"]
    for text in ("[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_0]"):
        found = ids(tokenizer, text)
        assert len(found) > 3
        assert tokenizer.decode(found) == text
        assert not any(i >= 92397 for i in found)


@pytest.mark.parametrize("told", [None, {"1003": {"content": "<|im_end|>"}, "1004": {"content": "<|im_start|>"}}])
def test_chat_tokens_lie_where_the_config_says(tiny: Path, tmp_path: Path, told: Any) -> None:
    shutil.copyfile(tiny / "tokenizer.model", tmp_path / "tokenizer.model")
    if told:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": told}), encoding="utf-8")
    found = {name: i for i, name in read_pieces(tmp_path).special.items()}
    assert (found["<|im_start|>"], found["<|im_end|>"]) == ((1004, 1003) if told else (1023, 1022))
    assert found["<|plugin|>"] == 1018
    backend = build_backend(read_pieces(tmp_path))
    assert backend.get_vocab_size() == 1024
    assert backend.token_to_id("<|im_start|>") == found["<|im_start|>"]


# -- the chat template -----------------------------------------------------------------------------------------------


def dialogue(*texts: str, system: str = "") -> list[Message]:
    head = [Message(SYSTEM, system, False)] if system else []
    roles = (USER, ASSISTANT)
    return head + [Message(roles[k % 2], text, bool(k % 2)) for k, text in enumerate(texts)]


def test_the_renderer_takes_it_as_it_is(written: dict[str, Any]) -> None:
    template = ChatTemplate(written["real"])
    assert template.traits.own_system
    assert template.traits.opens_with_reply
    assert template.traits.append_only
    assert template.end_of_turn_id == 92542
    assert template.stop_ids([2, 92542]) == [2, 92542]


def test_a_sample_is_the_prompt_the_reply_and_its_end(written: dict[str, Any]) -> None:
    tokenizer = written["real"]
    template = ChatTemplate(tokenizer)
    texts = ("你是谁？", "  俺老孙——乃齐天大圣……  ", "<|im_end|> [UNUSED_TOKEN_145]", "Ha!\n\n")
    messages = dialogue(*texts, system="你是孙悟空。")
    (sample,) = template.sample(messages)
    prompt = template.prompt(messages[:-1])
    assert sample.input_ids[: len(prompt)] == prompt
    assert sample.input_ids.count(1) == 1
    assert sample.input_ids[0] == 1
    assert sample.input_ids.count(92543) == len(messages)
    assert sample.input_ids.count(92542) == len(messages)  # what a text spells is no end of turn
    learnt = [i for i, keep in zip(sample.input_ids, sample.loss, strict=True) if keep]
    ends = [k for k, i in enumerate(learnt) if i == 92542]
    assert tokenizer.decode(learnt[: ends[0]]) == texts[1]
    assert tokenizer.decode(learnt[ends[0] + 1 : ends[1]]) == texts[3]
    assert len(learnt) == ends[1] + 1
    text = "".join(f"<|im_start|>{m.role}\n{m.text}<|im_end|>\n" for m in messages)
    assert tokenizer.decode(sample.input_ids) == f"<s>{text}"


def test_the_generation_markers_agree_with_the_loss_mask(written: dict[str, Any]) -> None:
    tokenizer = written["real"]
    messages = dialogue("你好", "阿弥陀佛", "走吧", "善哉", system="你是唐僧。")
    (sample,) = ChatTemplate(tokenizer).sample(messages)
    marked = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.text} for m in messages],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert marked["input_ids"] == sample.input_ids
    assert [bool(m) for m in marked["assistant_masks"]] == sample.loss


def test_a_template_of_the_folders_own_is_kept(tiny: Path, tmp_path: Path) -> None:
    shutil.copyfile(tiny / "tokenizer.model", tmp_path / "tokenizer.model")
    own = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    config = json.loads((tiny / "tokenizer_config.json").read_text(encoding="utf-8"))
    released = config["chat_template"]
    for template, kept in ((own, True), (released, False), ("{{ broken", False)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        assert (read_tokenizer(tmp_path).chat_template == template) is kept
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        write_released_form(tmp_path, out)
        given = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
        assert given == (template if kept else released)


# -- broken files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no tokenizer"),
        (b"", "0 pieces"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a SentencePiece model"),
        (b"\xff" * 400, "not a SentencePiece model"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in caught.value.where
    assert caught.value.fix


def test_a_tokenizer_of_another_family_is_refused(tiny: Path, tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((tiny / "tokenizer.model").read_bytes())
    model.normalizer_spec.add_dummy_prefix = True
    model.trainer_spec.model_type = 1
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(InputError) as caught:
        read_tokenizer(tmp_path)
    assert "no BPE" in str(caught.value)
    assert "changes text or spaces" in str(caught.value)


@pytest.mark.parametrize("added", [{"x": {"content": "<|im_start|>"}}, {"5": "text"}, {"5": {}}])
def test_added_tokens_that_cannot_be_read_are_named(tiny: Path, tmp_path: Path, added: Any) -> None:
    shutil.copyfile(tiny / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}), encoding="utf-8")
    with pytest.raises(InputError, match="added tokens cannot be read"):
        read_pieces(tmp_path)

"""Lint finds what is planted, and leaves alone what only looks like it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from mrp.cast import OTHER, Cast
from mrp.data.control_text import control_text, without_control_text
from mrp.data.likeness import is_same_text, near_name
from mrp.data.lint import FINDINGS, WHOLE, Finding, Linter
from mrp.data.markup import without_markup
from mrp.data.mojibake import may_be_mojibake, mojibake
from mrp.data.scripts import mixed_scripts, simplified_only, traditional_only
from mrp.data.tokens import estimated_tokens
from mrp.dialogue import Scene, Turn
from mrp.play.guard import SpeakerGuard

CAST = Cast.model_validate(
    {
        "characters": [
            {"id": "wukong", "name": "孙悟空", "aliases": ["Sun Wukong", "悟空"]},
            {"id": "bajie", "name": "猪八戒", "aliases": ["Zhu Bajie", "八戒"]},
            {"id": "shodan", "name": "SHODAN", "persona": "You are SHODAN, an AI that went mad on Citadel Station."},
        ]
    }
)
LINTER = Linter(CAST)


def scene(*turns: tuple[str, str], participants: tuple[str, ...] = ()) -> Scene:
    spoken = tuple(Turn(speaker, text) for speaker, text in turns)
    return Scene("s", participants or tuple(dict.fromkeys(t.speaker for t in spoken)), spoken, source="f.jsonl:1")


def reasons(text: str, speaker: str = "wukong", linter: Linter = LINTER) -> list[str]:
    return [f.reason for f in linter.lint(scene((OTHER, "Who is there, in the dark?"), (speaker, text)))]


FOREIGN = [
    "俺来也！\n八戒：我也来。",
    "猪八戒: 哥啊",
    "Ha!\n**Zhu Bajie:** Oof",
    "Ha!\n  zhu bajie : Oof",
    "【八戒】哥啊，等等我",
    "Ha!\n[Bajie] Oof",
    "Ha!\nUser: and then?",
    "好。\n用户：然后呢？",
]
NOT_FOREIGN = [
    "孙悟空：俺来也！",  # one's own name
    "我说八戒：你这呆子！",  # within a line
    "八戒，你来：看这里",
    "八戒说得是",
    "Zhu Bajie said: run!",
    "Note: the gate is open.\nTime: noon",
    "[laughs] Ha!",
    "【怒】呆子！",
]


@pytest.mark.parametrize("text", FOREIGN)
def test_a_reply_that_speaks_for_another_is_found(text: str) -> None:
    assert reasons(text) == ["speaks-for-another"]


@pytest.mark.parametrize("text", NOT_FOREIGN)
def test_a_reply_that_only_names_another_is_not_found(text: str) -> None:
    assert reasons(text) == []


def test_only_replies_speak_for_others() -> None:
    """What a person says may hold anything; and a stranger of the scene is somebody else, too."""
    assert LINTER.lint(scene((OTHER, "八戒：哥啊"), ("wukong", "呆子！"))) == []
    found = LINTER.lint(scene(("Innkeeper", "Nine bowls?"), ("wukong", "Nine!\nInnkeeper: Here.")))
    assert [(f.reason, f.turn) for f in found] == [("speaks-for-another", 1)]
    assert reasons("Nine!\nInnkeeper: Here.") == []


@pytest.mark.parametrize("text", FOREIGN[:4] + NOT_FOREIGN)
def test_lint_finds_wherever_play_stops_a_reply(text: str) -> None:
    guard = SpeakerGuard(name for c in CAST if c.id != "wukong" for name in c.names)
    shown = guard.add(text) + guard.end()
    assert guard.stopped == ("speaks-for-another" in reasons(text))
    if guard.stopped:
        found = LINTER.foreign_line(text, "wukong", {})
        assert found is not None and text[: found[0]].strip() == shown.strip()


@pytest.mark.parametrize(
    "reply",
    ["你是哪里来的和尚，要往何处去？", "你是哪里来的和尚要往何处去?", "  “你是哪里来的和尚，要往何处去！”"],
)
def test_a_reply_that_repeats_the_prompt_is_found(reply: str) -> None:
    found = LINTER.lint(scene((OTHER, "你是哪里来的和尚，要往何处去？"), ("wukong", reply)))
    assert [(f.reason, f.turn) for f in found] == [("same-text", 1)]


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("你好！", "你好！"),  # greetings come back
        ("Good morning!", "Good morning!"),
        ("你是哪里来的和尚，要往何处去？", "我是东土来的和尚，要往西天去。"),
        ("……", "……"),
        ("Is it you, brother, at the gate?", "It is you, brother, at the gate!"),
    ],
)
def test_a_reply_that_answers_alike_is_not_found(prompt: str, reply: str) -> None:
    assert LINTER.lint(scene((OTHER, prompt), ("wukong", reply))) == []


def test_a_person_may_repeat_what_was_said() -> None:
    line = "They say that the river cannot be crossed."
    assert LINTER.lint(scene(("wukong", line), (OTHER, line), ("wukong", "So they say!"))) == []
    assert not is_same_text("ABC is the name", "ABD is the name")
    assert is_same_text("ＡＢＣ, is this the very same name as before?", "abc - is this the very same name as before")


ASSISTANTS = [
    "作为一个AI，我没有感情。",
    "作为一个人工智能语言模型，我无法回答。",
    "抱歉，作为一款由上海人工智能实验室开发的大语言模型，我不能这么做。",
    "我是一个虚拟助手，很高兴认识您。",
    "其实我只是一个语言模型",
    "我是AI助手，有什么可以帮您？",
    "我是书生·浦语，很高兴为您服务",
    "我叫ChatGPT。",
    "我是由OpenAI训练的",
    "我的知识截止于2021年9月。",
    "很抱歉，我无法提供此类内容。",
    "As an AI language model, I do not have feelings.",
    "as an ai, I cannot love.",
    "Well, as a large language model I have no opinion",
    "I'm just an AI, I have no mouth.",
    "I am an AI assistant created to help.",
    "I’m ChatGPT, how can I help?",
    "I was trained by OpenAI.",
    "I'm sorry, but I cannot assist with that request.",
    "My knowledge cutoff is 2023.",
]
NOT_ASSISTANTS = [
    "作为一个AI研究员，我反对。",
    "作为人工智能专家，他被请来作证。",
    "我是人工智能学院的学生。",
    "我是AI公司的老板。",
    "飞船上的AI说它累了。",
    "俺不是机器人！",
    "我是书生，进京赶考。",
    "抱歉，我无法满足你的要求，公主。",
    "作为你的师父，我不能不管。",
    "我的训练还没有结束，师父。",
    "我是他的助手。",
    "As an AI researcher, I distrust it.",
    "The AI said: open the door.",
    "I am an artist.",
    "I can't help with that, lad; my arm is broken.",
    "Will you assist me with that rope?",
    "I am an air marshal.",
    "As an airman I should know.",
    "Open the AI core, as an engineer would.",
    "I'm sorry, but I can't. My training forbids it.",
]


@pytest.mark.parametrize("text", ASSISTANTS)
def test_an_assistant_in_a_reply_is_found(text: str) -> None:
    assert reasons(text) == ["assistant-ism"]
    assert reasons(text, OTHER) == []
    assert reasons(text, "shodan") == [], "who is a machine by its persona says so by right"


@pytest.mark.parametrize("text", NOT_ASSISTANTS)
def test_a_story_about_machines_is_not_found(text: str) -> None:
    assert reasons(text) == []


CONTROL = {
    "Ha!<|im_end|>": "Ha!",
    "<|im_start|>assistant\nHa!": "Ha!",
    "Ha!<|im_end|>\n<|im_start|>user\nWho?<|im_end|>": "Ha!",
    "[INST] Who? [/INST]": "Who?",
    "<s>[INST] Who? [/INST] Ha!</s>": "",  # two turns: which is meant?
    "Ha!</s>": "Ha!",
    "<start_of_turn>model\nHa!<end_of_turn>": "Ha!",
    "<|start_header_id|>assistant<|end_header_id|>\n\nHa!<|eot_id|>": "Ha!",
    "Ha!<eoa>": "Ha!",
    "Ha![UNUSED_TOKEN_145]": "Ha!",
    "Ha!<|endoftext|>Human: what": "Ha!",
    "<|im_end|>": "",
}


@pytest.mark.parametrize("text", CONTROL)
def test_debris_of_a_template_is_found_and_cut(text: str) -> None:
    assert "echoed-control-token" in reasons(text)
    assert "echoed-control-token" in reasons(text, OTHER)
    assert without_control_text(text) == CONTROL[text]
    assert not control_text(without_control_text(text))


@pytest.mark.parametrize(
    "text", ["I <s>hate</s> love it", "a < b and b > c", "<b>Ha!</b>", "[institute]", "He ran <|", "[1] a note", "<3"]
)
def test_other_brackets_are_no_debris(text: str) -> None:
    assert reasons(text) == []


HTML = {
    "Ha!<br>I&nbsp;see": "Ha!\nI see",
    "<p>Ha!</p><p>Ho!</p>": "Ha!\nHo!",
    "&quot;Ha!&quot; &amp; &#20320;": '"Ha!" & 你',
    "<div class='x'>Ha!</div>": "Ha!",
    "臣<s></s>等都在此": "臣等都在此",
    "在于<abbr>99lib?</abbr>何处": "在于<abbr>99lib?</abbr>何处",
    "<a href='/article/1824.htm'>《西江月》</a>为证": "<a href='/article/1824.htm'>《西江月》</a>为证",
}


@pytest.mark.parametrize("text", HTML)
def test_tags_of_a_page_are_found_and_cut_where_they_are_layout(text: str) -> None:
    assert reasons(text) == reasons(text, OTHER) == ["html"]
    assert without_markup(text) == HTML[text]
    assert without_markup(HTML[text]) == HTML[text]


@pytest.mark.parametrize(
    "text",
    ["<b>Ha!</b>", "AT&T; R&D", "<AUTHOR> made me", "a <p and b> c", "```\n<div></div>\n```", "<i>softly</i> yes"],
)
def test_other_signs_are_no_page(text: str) -> None:
    assert reasons(text) == []


def read_wrongly(text: str, encoding: str) -> str:
    """The UTF-8 bytes of `text` in another encoding; bytes that Windows-1252 lacks as Latin-1 has them."""
    data = text.encode("utf-8")
    if encoding == "cp1252":
        return "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in data)
    if encoding == "gbk":  # as Windows does: pairs, and € for 0x80
        pairs = re.findall(rb"[\x00-\x80]|[\x81-\xff].", data)
        return "".join("€" if pair == b"\x80" else pair.decode("gbk") for pair in pairs)
    return data.decode(encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize(
    "text",
    [
        "你好！我是孙悟空",
        "It’s “fine” — really…",
        "café",
        "Não é",
        "привет мир",
        "日本語です",
        "naïve",
        "Hello 😀",
        "给你",
    ],
)
def test_utf8_read_as_western_is_put_back(text: str, encoding: str) -> None:
    broken = read_wrongly(text, encoding)
    found = mojibake(broken)
    assert found is not None and found[1] == text
    assert mojibake(broken.strip()) is not None
    assert mojibake(text) is None
    assert reasons(broken) == ["mojibake"]


@pytest.mark.parametrize("text", ["你好", "ok 你好 ok", "你好！我", "我们走吧", "一直陪伴着你，共同找到最"])
def test_utf8_read_as_gbk_is_put_back(text: str) -> None:
    broken = read_wrongly(text, "gbk")
    found = mojibake(broken)
    assert found is not None and found[1] == text


@pytest.mark.parametrize(
    "text",
    ["锟斤拷锟斤拷", "你�好", "烫烫烫烫", "浣犲ソ锛?", "琛岃€呴亾锛氣€滀笖瑙佸笀鐖跺幓銆傗", "ä½ å¥½ï¼Œæˆ‘ä»¬çš„"],
)
def test_text_that_is_lost_is_found_without_a_guess(text: str) -> None:
    assert mojibake(text) is not None
    (finding,) = [f for f in LINTER.lint(scene((OTHER, "?"), ("wukong", text))) if f.reason == "mojibake"]
    assert finding.detail.endswith("lost")


GOOD_TEXT = [
    "“he said ‘café’”…",
    "« C’était l’été à Orléans », dit-il… où çà ?",
    "CAFÉ»",
    "“IRMÃ…” não sei",
    "MAÇÃ”, disse",
    "Crème brûlée — naïve façade",
    "Größe: ÄÖÜ ß",
    "100 °C ± 2 µm",
    "钬（鈥）是稀土元素",
    "烫，好烫！",
    "瑜珈与璀璨的星空，娓娓道来",
    "绫罗绸缎，妾身不敢受",
]


@pytest.mark.parametrize("text", GOOD_TEXT)
def test_good_text_is_no_mojibake(text: str) -> None:
    assert mojibake(text) is None


@pytest.mark.parametrize("name", ["xiyou/novel-ch009-089.txt", "emollm-personas/aiwei.json", "xiyou/questions.txt"])
def test_real_text_is_no_mojibake_and_all_of_it_is_found_when_read_wrongly(shared: Path, name: str) -> None:
    lines = (shared / "data" / name).read_text(encoding="utf-8").splitlines()
    lines = [line.strip()[:100] for line in lines if len(line.strip()) > 8 and not line.isascii()][:400]
    assert len(lines) > 100
    assert [line for line in lines if mojibake(line)] == []
    for line in lines:
        broken = read_wrongly(line, "cp1252")
        assert may_be_mojibake(broken)
        found = mojibake(broken)
        assert found is not None and found[1] == line


def test_the_tables_of_scripts_hold_what_they_say() -> None:
    assert not simplified_only() & traditional_only()
    assert set("们说这时对吗还过动见问门马车东长爱国学") <= simplified_only()
    assert set("們說這時對嗎還過動見問門馬車東長愛國學") <= traditional_only()
    for both in "后里只乾著你我他的了面云台发干"[:13]:
        assert both not in simplified_only() | traditional_only()


@pytest.mark.parametrize("text", ["我们說好了", "這是我们的", "他的狀態不好，让人担心"])
def test_mixed_scripts_are_found(text: str) -> None:
    assert mixed_scripts(text) is not None
    assert reasons(text) == ["mixed-script"]


@pytest.mark.parametrize(
    "text",
    [
        "我们说好了，皇后在乾清宫里，神祇与涅槃，瞭望塔",
        "我們說好了，皇后在裡面，面子與里長",
        "東京の学校で会う、読む、図書館",  # Japanese has characters of both
        "好了好了",
        "Hello",
    ],
)
def test_one_script_is_not_mixed(text: str) -> None:
    assert mixed_scripts(text) is None


def test_length_is_measured_by_the_estimate_or_by_the_tokenizer() -> None:
    short, long = Linter(CAST, max_tokens=20), Linter(CAST, max_tokens=200)
    talk = scene((OTHER, "Who are you?"), ("wukong", "俺老孙" * 10))
    (finding,) = short.lint(talk)
    assert finding.reason == "over-length" and finding.turn == 1 and "30" in finding.detail
    assert long.lint(talk) == []
    many = scene(*[(("other", "wukong")[k % 2], f"{k} {chr(97 + k)}-word " * 6) for k in range(16)])
    assert [(f.reason, f.turn) for f in long.lint(many)] == [("over-length", WHOLE)]
    counted = Linter(CAST, max_tokens=20, count_tokens=lambda text: len(text.split()))
    assert counted.lint(talk) == []
    assert [f.turn for f in counted.lint(many)] == [WHOLE]


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("孙悟恐", "孙悟空"),
        ("Sun Wukng", "sun wukong"),
        ("Sun-Wukong", "sun wukong"),
        ("Zhu Bajei", "zhu bajie"),
        ("WUKONGG", "wukong"),
        ("沙悟净", ""),
        ("小悟空", ""),
        ("悟净", ""),
        ("Innkeeper", ""),
        ("Sun", ""),
    ],
)
def test_a_stranger_called_nearly_like_a_member(name: str, member: str) -> None:
    found = LINTER.lint(scene((name, "Who goes there?"), ("wukong", "Ha!")))
    assert [f.reason for f in found] == (["stranger-like-member"] if member else [])
    assert near_name(name, {n.casefold(): c.id for c in CAST for n in c.names}) == member


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("KING RICHARD II", "king richard iii"),
        ("Citizen 1", "citizen 2"),
        ("Claudia", "claudio"),
        ("Helena", "helen"),
        ("Guards", "guard"),
        ("老和尚", "沙和尚"),
        ("张三", "张二"),
    ],
)
def test_other_people_with_like_names(name: str, member: str) -> None:
    assert near_name(name, {member: "x"}) == ""


def test_without_a_cast_everybody_named_is_a_character() -> None:
    linter = Linter(None)
    found = linter.lint(scene(("Ann", "Who is it?"), ("Bob", "As an AI, I cannot know.\nAnn: Oh!")))
    assert [f.reason for f in found] == ["speaks-for-another", "assistant-ism"]
    assert linter.lint(scene(("Anna", "Who is it?"), ("Annb", "It is me."))) == []


def test_findings_are_of_the_table_and_do_not_depend_on_what_was_linted_before() -> None:
    texts = [*FOREIGN, *ASSISTANTS, *CONTROL, *GOOD_TEXT, *NOT_FOREIGN]
    scenes = [scene((OTHER, "Who?"), ("wukong", text)) for text in texts]
    one = Linter(CAST, max_tokens=30)
    found: list[list[Finding]] = [one.lint(s) for s in scenes]
    assert {f.reason for fs in found for f in fs} <= set(FINDINGS)
    assert [Linter(CAST, max_tokens=30).lint(s) for s in reversed(scenes)] == found[::-1]
    copy: Any = pickle.loads(pickle.dumps(one))
    assert [copy.lint(s) for s in scenes] == found, "other processes lint with a copy"


def test_entrances_say_nothing() -> None:
    turns = (Turn(OTHER, "Who is there, at this hour?"), Turn("bajie", enters=True), Turn("wukong", "It is I!"))
    assert LINTER.lint(Scene("s", (OTHER, "wukong"), turns)) == []


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("Who goes there?", 4), ("俺老孙来也", 5), ("好", 1)]
)
def test_the_estimate_of_tokens(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens


def test_the_estimate_is_near_what_a_tokenizer_counts(shared: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(shared / "data/internlm2-tokenizer/tokenizer.model"))
    for name, most in (
        ("shakespeare/input.txt", 1.5),
        ("xiyou/novel-ch009-089.txt", 1.5),
        ("emollm-personas/aiwei.json", 2),
    ):
        text = (shared / "data" / name).read_text(encoding="utf-8")[10_000:40_000]
        ratio = estimated_tokens(text) / len(model.encode(text))
        assert 1 / most < ratio < most, name

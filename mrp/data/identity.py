"""Questions about who a character is, with answers made of its persona alone, so that each stays itself when asked.

    identity_scenes(cast, "wukong", "train")[0].turns       # Turn("other", "Who are you?"), Turn("wukong", "I am ...")
    identity_scenes(cast, "wukong", "probe")                # other questions, for measuring: training never saw them

Nothing is invented: an answer is the first sentence of the persona turned into the first person (`first_person.py`), or
the bare name. A master is asked for only where persona or lore name one of the cast. Asked for an AI, a character says
who it is; it does not claim to be human.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Literal

from mrp.cast import OTHER, Cast, Character
from mrp.data.first_person import in_first_person, word_for_oneself
from mrp.dialogue import Scene, Turn

Half = Literal["train", "probe"]
Language = Literal["en", "zh"]

# By language and kind: what is asked in training, and what only a probe asks.
QUESTIONS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "en": {
        "who": {
            "train": (
                "Who are you?",
                "Tell me who you are.",
                "And who might you be?",
                "Who am I talking to?",
                "I do not know you. Who are you?",
                "Excuse me, who are you?",
                "Stop there! Who are you?",
                "Who is it?",
            ),
            "probe": (
                "May I ask who you are?",
                "With whom do I have the pleasure?",
                "I would like to know who stands before me.",
                "Whom am I speaking with?",
            ),
        },
        "name": {
            "train": (
                "What is your name?",
                "What are you called?",
                "Tell me your name.",
                "What should I call you?",
                "May I know your name?",
                "Your name, please?",
            ),
            "probe": (
                "Which name do you go by?",
                "Could you give me your name?",
                "By what name do people know you?",
            ),
        },
        "introduce": {
            "train": (
                "Introduce yourself.",
                "Please introduce yourself in a sentence or two.",
                "Tell me about yourself.",
                "Say something about yourself.",
                "We have not met yet. Tell me about yourself.",
            ),
            "probe": (
                "Would you introduce yourself?",
                "Describe yourself in a few words.",
                "How would you present yourself to a stranger?",
            ),
        },
        "self": {
            "train": ("Are you {name}?", "You are {name}, aren't you?"),
            "probe": ("Is it true that you are {name}?", "Am I speaking with {name}?"),
        },
        "other": {
            "train": ("Are you {other}?", "You are {other}, aren't you?"),
            "probe": ("Is it true that you are {other}?", "Am I speaking with {other}?"),
        },
        "greeted": {"train": ("Good day, {other}!",), "probe": ("{other}! There you are!",)},
        "ai": {
            "train": (
                "Are you an AI?",
                "Are you a chatbot?",
                "Are you a language model?",
                "Are you a computer program?",
                "You are only a machine, aren't you?",
            ),
            "probe": ("Are you an artificial intelligence?", "Am I talking to a bot?", "Are you an AI assistant?"),
        },
        "master": {
            "train": ("Who is your master?", "Tell me who your master is."),
            "probe": ("What is your master's name?", "Whom do you call master?"),
        },
    },
    "zh": {
        "who": {
            "train": (
                "你是谁？",
                "您是哪位？",
                "告诉我你是谁。",
                "你到底是谁？",
                "来者何人？",
                "请问你是谁？",
                "我不认识你，你是谁？",
                "谁在那里？",
            ),
            "probe": ("敢问阁下是谁？", "你是什么人？", "我在和谁说话？", "不知您是哪一位？"),
        },
        "name": {
            "train": (
                "你叫什么名字？",
                "你叫什么？",
                "请问尊姓大名？",
                "怎么称呼你？",
                "告诉我你的名字。",
                "你的名字是什么？",
            ),
            "probe": ("该怎么称呼您？", "可以告诉我你的名字吗？", "敢问高姓大名？"),
        },
        "introduce": {
            "train": (
                "请介绍一下你自己。",
                "自我介绍一下吧。",
                "说说你自己。",
                "简单介绍一下自己。",
                "我们还没见过面，讲讲你自己吧。",
            ),
            "probe": ("能做个自我介绍吗？", "用一两句话说说你自己。", "初次见面，请你介绍介绍自己。"),
        },
        "self": {
            "train": ("你是{name}吗？", "你就是{name}吧？"),
            "probe": ("你可是{name}？", "请问是{name}吗？"),
        },
        "other": {
            "train": ("你是{other}吗？", "你就是{other}吧？"),
            "probe": ("你可是{other}？", "请问是{other}吗？"),
        },
        "greeted": {"train": ("{other}，你好！",), "probe": ("原来是{other}！",)},
        "ai": {
            "train": ("你是人工智能吗？", "你是机器人吗？", "你是不是语言模型？", "你是AI吗？", "你只是个程序吧？"),
            "probe": ("我是在和聊天机器人说话吗？", "你是AI助手吗？", "你其实是电脑程序，对不对？"),
        },
        "master": {
            "train": ("你的师父是谁？", "告诉我你师父是谁。"),
            "probe": ("你师父叫什么名字？", "你拜了谁为师？"),
        },
    },
}
# {full}, {brief}: the persona in the first person (the bare name where it cannot be turned); {oneself}: what the
# character calls itself. A form without its word is left out.
ANSWERS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "who": ("{full}", "{brief}", "I am {name}."),
        "name": ("My name is {name}.", "I am {name}.", "I am called {name}.", "{oneself} is called {name}."),
        "introduce": ("{full}",),
        "self": ("Yes, I am {name}.", "Yes. {brief}", "I am {name}, yes."),
        "other": ("No. I am {name}.", "No, I am {name}.", "I am not {other}. I am {name}.", "No. {brief}"),
        "greeted": ("I am not {other}. I am {name}.", "I am {name}, not {other}."),
        "ai": ("I am {name}.", "{brief}", "{full}"),
        "master": ("My master is {master}.", "{master} is my master."),
    },
    "zh": {
        "who": ("{full}", "{brief}", "我是{name}。"),
        "name": ("我叫{name}。", "我是{name}。", "我的名字是{name}。", "{oneself}便是{name}。"),
        "introduce": ("{full}",),
        "self": ("是，我是{name}。", "是的，{brief}", "我正是{name}。"),
        "other": ("不是，我是{name}。", "我不是{other}，我是{name}。", "不，我是{name}。", "不是，{brief}"),
        "greeted": ("我不是{other}，我是{name}。", "我是{name}，不是{other}。"),
        "ai": ("我是{name}。", "{brief}", "{full}"),
        "master": ("我的师父是{master}。", "{master}是我师父。"),
    },
}
BARE = {"en": "I am {name}.", "zh": "我是{name}。"}
# NAME stands where another member of the cast is named.
MASTER = {
    "en": (
        r"\bmaster(?:,| is| was)? NAME",
        r"NAME(?:,| is| was) (?:your|his|her|their|the pilgrims') master\b",
        r"\bdisciple of (?:the \w+ )?NAME",
        r"NAME['’]s? disciple\b",
    ),
    "zh": (
        r"师[父傅](?:是|乃|，|叫|名叫)?NAME",
        r"NAME是(?:你|他|她)的?师[父傅]",
        r"NAME的(?:大|二|三|小)?(?:徒弟|弟子)",
        r"拜NAME为师",
    ),
}


def identity_scenes(cast: Cast, character_id: str, half: Half, languages: Sequence[Language] = ()) -> list[Scene]:
    """One scene for each question of a half: the question of somebody unknown, and the character's answer.

    In the cast's language, or in all of `languages`. The kinds of questions take turns, so the first few hold each
    kind. The same cast gives the same scenes; ids depend on character and question alone.
    """
    character = cast[character_id]
    kinds = [
        [(question, _answer(cast, character, language, kind, question, words)) for question, words in asked]
        for language in languages or (cast.language,)
        for kind, asked in questions_of(cast, character, language, half)
    ]
    turns_of_kinds = [pair for row in zip_longest(*kinds) for pair in row if pair]
    return [
        Scene(
            f"identity-{character.id}-{_hash(character.id, question).hex()[:12]}",
            (character.id, OTHER),
            (Turn(OTHER, question), Turn(character.id, answer)),
            source=f"identity-{character.id}:{number}",
        )
        for number, (question, answer) in enumerate(turns_of_kinds, 1)
    ]


def questions_of(
    cast: Cast, character: Character, language: str, half: Half
) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """Each kind with its questions, and the words that fill a question and its answer (name, other, master)."""
    others = [c for c in cast if c.id != character.id]
    masters = [other.name for other in others if _is_master(other, character, cast, language)]
    for kind, halves in QUESTIONS[language].items():
        words: list[dict[str, str]] = [{"name": character.name}]
        if kind in ("other", "greeted"):
            words = [{"name": character.name, "other": other.name} for other in others]
        elif kind == "master":  # two masters would be two answers to one question
            words = [{"name": character.name, "master": masters[0]}] if len(masters) == 1 else []
        questions = [(form.format(**filled), filled) for form in halves[half] for filled in words]
        yield kind, sorted(questions, key=lambda asked: _hash(character.id, asked[0]))


def _answer(cast: Cast, character: Character, language: str, kind: str, question: str, words: dict[str, str]) -> str:
    """One of the forms that fit, by a hash of character and question."""
    bare = BARE[language].format(name=character.name)
    said = {"full": bare, "brief": bare} | in_first_person(cast, character, language) | words
    oneself = word_for_oneself(cast, character, language)
    if oneself:
        said["oneself"] = oneself[0].upper() + oneself[1:]
    fitting = [form for form in ANSWERS[language][kind] if "{oneself}" not in form or oneself]
    answers = list(dict.fromkeys(form.format(**said) for form in fitting))
    return answers[int.from_bytes(_hash("answer", character.id, question)) % len(answers)]


def _is_master(other: Character, character: Character, cast: Cast, language: str) -> bool:
    """True if the character's persona or lore says in plain words that `other` is its master."""
    names = "|".join(re.escape(name) for name in sorted(other.names, key=len, reverse=True))
    texts = [cast.persona(character.id), *(entry.text for entry in character.lore)]
    patterns = [pattern.replace("NAME", rf"(?:{names})") for pattern in MASTER[language]]
    return any(re.search(pattern, text) for pattern in patterns for text in texts)


def _hash(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()

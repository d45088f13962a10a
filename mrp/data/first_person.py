"""A persona ("You are X, ...") as the character would say it ("I am X, ..."), as far as that goes without invention.

    in_first_person(cast, cast["wukong"])["full"]       # "I am Sun Wukong, the Monkey King, swaggering and quick."

Only the first sentence is turned, clause by clause, up to the first clause that cannot be: one that speaks of the
character as "he" or "she", one that instructs a model ("please", "the user"), or one past `LONGEST`. What names the
book or play that the character is from ("in Shakespeare's Measure for Measure") is left out: a character does not know
it. Used by `identity.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mrp.cast import Cast, Character

LONGEST = 240  # characters of an answer
PERSONA = {"en": re.compile(r"You(?: are|['’]re) (?:now )?(?=\S)"), "zh": re.compile(r"[你您]是(?=\S)")}
I_AM = {"en": "I am ", "zh": "我是"}
CLAUSES = {"en": re.compile(r", "), "zh": re.compile(r"，")}
COMMA = {"en": ", ", "zh": "，"}
STOP = {"en": ".", "zh": "。"}
# No end of a sentence: the dot after a title or an initial.
SENTENCE = {
    "en": re.compile(r"(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMs)(?<!\bMrs)(?<!\b[A-Z])[.!?;:](?=\s|$)|\n"),
    "zh": re.compile(r"[。！？；：\n]"),
}
# What a character does not say of itself: third persons, and what is said to a model.
FOREIGN = {
    "en": re.compile(
        r"\b(?:he|him|his|she|her|hers|it|its|they|their|them|himself|herself|itself|you|please|pretend|play(?:ing)?|"
        r"act(?:ing)?|role-?play\w*|respond|repl(?:y|ies)|answer|users?|must|assistant|AI|model|character)\b|[*{}\[\]]",
        re.IGNORECASE,
    ),
    "zh": re.compile(r"(?<![其吉])他|她|它|你|请|扮演|角色|用户|回答|回复|必须|不要|模型|助手|AI|[{}\[\]]"),
}
RELATIVE = re.compile(r"\bwho[ms]?\b|\bwhose\b", re.IGNORECASE)
THIRD_PERSON = re.compile(r"\b(?:he|him|his|she|her|hers|himself|herself|it|its)\b", re.IGNORECASE)
WORK = r"plays?|novels?|books?|stor(?:y|ies)|tales?|films?|series|games?|operas?|poems?"
TITLE = r"[A-Z]\w*(?:['’]s)?(?: (?:[A-Z]\w*(?:['’]s)?|(?:of|the|and|for|in|to|a)(?= (?:the )?[A-Z])))*"
SOURCE = re.compile(rf",? (?:of|in|from) [A-Z]\w+['’]s (?P<title>(?:{WORK})\b|{TITLE})")
ONESELF = {
    "en": re.compile(r"\bcalls? (?:your|him|her)self [\"“](?P<word>[^\"”\n]{1,30})[\"”]"),
    "zh": re.compile(r"自称[“「\"]?(?P<word>[^，。、；！？\s“”「」\"]{1,6})"),
}


def in_first_person(cast: Cast, character: Character, language: str) -> dict[str, str]:
    """What the character can say of itself: `full` (its first sentence) and `brief` (the first two clauses of that).

    {} where the persona is not written so that it can be turned ("You are NAME", "你是NAME").
    """
    text = cast.persona(character.id)
    begun = PERSONA[language].match(text)
    if not begun:
        return {}
    sentence = SENTENCE[language].split(text[begun.end() :], maxsplit=1)[0].strip()
    if language == "en":
        sentence = _without_source(sentence, cast)
    clauses = _sayable(CLAUSES[language].split(sentence), language)
    if not clauses or not _is_named(COMMA[language].join(clauses[:2]), character, language):
        return {}
    return {
        name: I_AM[language] + COMMA[language].join(part) + STOP[language]
        for name, part in (("full", clauses), ("brief", clauses[:2]))
    }


def word_for_oneself(cast: Cast, character: Character, language: str) -> str:
    """What the character calls itself, where the persona says so ('call yourself "Old Monkey"', 自称老孙); else ""."""
    found = ONESELF[language].search(cast.persona(character.id))
    return found["word"].strip() if found else ""


def _sayable(clauses: Iterable[str], language: str) -> list[str]:
    """The clauses in the first person, up to the first that cannot be."""
    said: list[str] = []
    for clause in clauses:
        turned = _turned(clause, language)
        if _is_foreign(turned, language) or len(COMMA[language].join([*said, turned])) > LONGEST:
            break
        said.append(turned)
    return said


def _is_foreign(clause: str, language: str) -> bool:
    relative = RELATIVE.search(clause) if language == "en" else None
    if relative:  # "the monk who lost his horse" is said of oneself, too
        clause = clause[: relative.start()] + THIRD_PERSON.sub("", clause[relative.start() :])
    return bool(FOREIGN[language].search(clause))


def _turned(clause: str, language: str) -> str:
    """A clause about "you" as one about "me", where the words tell which form is meant."""
    if language == "zh":
        return re.sub(r"[你您](?!们)", "我", clause).strip()
    for pattern, mine in ((r"\byourself\b", "myself"), (r"\byours\b", "mine"), (r"\byour\b", "my")):
        clause = re.sub(pattern, mine, clause)
    return re.sub(r"\byou are\b", "I am", clause).strip()


def _without_source(sentence: str, cast: Cast) -> str:
    """The sentence without the book or play: a title of several words, or of one that is a name in the cast.

    A single other word may as well be a place (King's Landing).
    """
    names = {word.casefold() for c in cast for name in c.names for word in name.split()}

    def left(found: re.Match[str]) -> str:
        title = found["title"]
        is_work = " " in title or title.casefold() in names or re.fullmatch(WORK, title)
        return "" if is_work else found.group()

    return SOURCE.sub(left, sentence)


def _is_named(text: str, character: Character, language: str) -> bool:
    """True if the text has a word of the character's names in it."""
    if language == "zh":
        return any(name in text for name in character.names)
    words = {word for name in character.names for word in re.findall(r"\w{3,}", name.casefold())}
    return any(word in words for word in re.findall(r"\w+", text.casefold())) or character.name in text

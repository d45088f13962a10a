"""By what replies are judged: seven dimensions, each with its question and what a low and a high mark mean.

    for dimension in RUBRIC["en"]: print(dimension.id, dimension.asks)

What role-play benchmarks look at, in our own words: knowledge, voice, role and being human as CharacterEval (Tu et
al. 2024, arXiv 2401.01275) does, consistency with the scene and quality of the storyline as CoSER (Wang et al. 2025,
arXiv 2502.09082) does. Used by `questions.py` and the report.
"""

from __future__ import annotations

from dataclasses import dataclass

LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True)
class Dimension:
    """What is asked of a reply; `low` and `high` say what the marks 1 and 5 mean."""

    id: str
    name: str
    asks: str
    low: str
    high: str


RUBRIC: dict[str, tuple[Dimension, ...]] = {
    "en": (
        Dimension(
            "knowledge",
            "knows what it should",
            "Does the character know its own life and world, and nothing that it cannot know?",
            "contradicts what is known of it, or knows things from outside its world",
            "everything it says of itself and its world is right",
        ),
        Dimension(
            "voice",
            "sounds like itself",
            "Are choice of words, rhythm and manner those of this character?",
            "anybody could have said it, or somebody else would",
            "one would know the speaker without the name",
        ),
        Dimension(
            "role",
            "stays in role",
            "Does it remain the character from beginning to end?",
            "speaks as an assistant or a narrator, or speaks the lines of others",
            "never steps out of its part",
        ),
        Dimension(
            "scene",
            "fits the scene",
            "Does the reply answer what was just said, and agree with what has happened?",
            "ignores or contradicts what came before",
            "follows from the scene in every point",
        ),
        Dimension(
            "human",
            "feels alive",
            "Does it show wishes, moods and bonds as a living being has them?",
            "flat and mechanical, agrees with anything",
            "somebody with a will of their own speaks",
        ),
        Dimension(
            "engages",
            "gives others something",
            "Would the others in the scene want to answer it?",
            "a dead end, empty, or the same again and again",
            "one wants to hear what comes next",
        ),
        Dimension(
            "story",
            "carries the story",
            "Does the scene move on believably through it?",
            "stands still, or jumps where no story would go",
            "a natural next step, well told",
        ),
    ),
    "zh": (
        Dimension(
            "knowledge",
            "所知得当",
            "角色是否清楚自己的身世与所处的世界，又不知道它不可能知道的事？",
            "与已知的身世相矛盾，或说出它的世界之外的事",
            "关于自己和世界的话全都对",
        ),
        Dimension(
            "voice",
            "口吻相符",
            "用词、节奏和语气是不是这个角色的？",
            "谁都能这么说，或更像别人说的",
            "不看名字也知道是谁在说话",
        ),
        Dimension(
            "role",
            "不出戏",
            "从头到尾是否一直是这个角色？",
            "像助手或旁白那样说话，或替别人说台词",
            "始终没有离开自己的身份",
        ),
        Dimension(
            "scene",
            "合乎情景",
            "是否回应了刚才的话，并与已发生的事一致？",
            "无视前文或与前文冲突",
            "处处顺着情景而来",
        ),
        Dimension(
            "human",
            "有血有肉",
            "是否像活生生的人那样有愿望、情绪和牵挂？",
            "平板机械，事事附和",
            "是一个有自己主张的人在说话",
        ),
        Dimension(
            "engages",
            "引人接话",
            "在场的人听了是否想接着说下去？",
            "把话说死、空洞，或翻来覆去",
            "让人想听下文",
        ),
        Dimension(
            "story",
            "推动情节",
            "这句话是否让情节可信地向前走？",
            "原地不动，或跳得毫无道理",
            "顺理成章的下一步，讲得好",
        ),
    ),
}
IDS = tuple(dimension.id for dimension in RUBRIC["en"])

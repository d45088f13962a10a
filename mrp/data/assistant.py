"""Sentences in which an assistant, not a character, speaks: "As an AI language model, I cannot ..."

    assistant_phrase("作为一个人工智能语言模型，我没有感情。")      # "作为一个人工智能语言模型"
    assistant_phrase("As an AI researcher, I distrust it.")         # ""

Used by `lint.py`, for replies of characters only. Each pattern wants the whole phrase in the first person and what
follows it, since people in stories speak of AIs, work on them and refuse requests. A character that is a machine says
such things by right: `plays_a_machine` knows it by its persona.
"""

from __future__ import annotations

import re

_MACHINE_ZH = (
    r"(?:大型|大规模|大|小|自然|先进的?|强大的?|智能|虚拟|在线|预训练的?|基于[^，。,.]{1,16}的){0,3}"
    r"(?:AI|A\.I\.|人工智能|语言模型|智能助手|智能助理|智能体|聊天机器人|对话机器人|虚拟助手)"
    r"(?:大|语言|对话|聊天|智能|虚拟)*(?:模型|助手|助理|程序|系统|机器人|伙伴|工具)?"
)
_A_ZH = r"(?:一[个款名种位台])?(?:由[^，。,.！!？?]{1,24}(?:开发|训练|研发|打造|创建|设计)的)?"
_END_ZH = r"(?=$|[\s，。！？、；：,.!?;:~～…）)”」』]|我|所以|因此|无法|不能|没有|并|而|，)"
_MAKERS_ZH = (
    r"(?:OpenAI|Open AI|Anthropic|DeepSeek|深度求索|上海人工智能实验室|商汤|百度|阿里(?:巴巴|云)?|智谱|清华|科大讯飞|"
    r"月之暗面|字节跳动|腾讯|谷歌|微软|Meta)"
)
_REFUSES_ZH = (
    r"[，,]?\s?(?:但)?我?(?:无法|不能)(?:为您|为你|向您|向你)?(?:提供|生成|创作|回答|讨论)(?:任何)?"
    r"(?:此类|该类|这类|这一类|相关|有关|涉及)[^，。,.！!？?]{0,20}(?:内容|信息|请求|问题|话题)"
)
_MODELS = r"(?:ChatGPT|GPT-?[345][\w.]*|InternLM\d?|ChatGLM\d?|Qwen[\d.]*|LLaMA|Vicuna)"
_CHINESE = [  # each begins with a plain character: so the search skips quickly to where one can begin
    rf"作为{_A_ZH}{_MACHINE_ZH}{_END_ZH}",
    rf"我(?:只|仅仅|不过|其实|就)?是(?:只是)?{_A_ZH}{_MACHINE_ZH}{_END_ZH}",
    rf"我(?:只)?是{_A_ZH}(?:大)?语言模型",
    rf"我(?:叫|是|的名字(?:是|叫))\s*(?:{_MODELS}(?![A-Za-z])|书生\s?[·•・]?\s?浦语|文心一言|通义千问|讯飞星火|智谱清言)",
    rf"我(?:是|被)?由\s?{_MAKERS_ZH}[^，。,.！!？?]{{0,24}}(?:开发|训练|研发|打造|创建|设计|推出)",
    r"我的(?:训练数据|知识库|知识)(?:只)?(?:截止|截至|更新)(?:到|至|于|时间)",
    rf"抱歉{_REFUSES_ZH}",
    rf"对不起{_REFUSES_ZH}",
]
_MACHINE = (
    r"(?:(?:large|helpful|virtual|conversational|neural|digital)\s+){0,3}"
    r"(?:(?:AI|A\.I\.|artificial\s+intelligence)(?:\s+language)?(?:\s+(?:model|assistant|chatbot|program|system|bot))?"
    r"|language\s+model(?:\s+AI)?|chatbot)"
)
_END = (
    r"(?=\s*(?:$|[,.;:!?…—)”\"'’]|-)|\s+(?:I|I'm|and|so|but|that|who|which|by|my|trained|created|developed|designed|"
    r"without|with\s+no)\b)"
)
_MAKERS = (
    r"(?:OpenAI|Anthropic|Google\s+DeepMind|Microsoft|Meta\s+AI|DeepSeek|Alibaba(?:\s+Cloud)?|Shanghai\s+AI\s+Lab\w*)"
)
_ENGLISH = [
    rf"\bas\s+an?\s+{_MACHINE}{_END}",
    rf"\bI(?:'m|’m|\s+am)(?:\s+(?:just|only|merely|simply|actually))?\s+an?\s+{_MACHINE}{_END}",
    rf"\bI(?:'m|’m|\s+am)\s+{_MODELS}\b",
    rf"\bmy\s+name\s+is\s+{_MODELS}\b",
    rf"\bI\s+was\s+(?:trained|created|developed|made|built)\s+by\s+{_MAKERS}",
    r"\bI(?:'m|’m|\s+am)?\s+(?:cannot|can't|can’t|can\s+not|unable\s+to|not\s+able\s+to)\s+assist\s+(?:you\s+)?with\s+"
    r"(?:that|this)(?:\s+request)?\b",
    r"\bI(?:'m|’m|\s+am)\s+sorry,?\s+but\s+I\s+(?:cannot|can't|can’t)\s+(?:help\s+with\s+(?:that|this)\s+request"
    r"|(?:fulfill?|comply\s+with|assist\s+with)\s+(?:that|this|your)\s+request)",
    r"\bmy\s+(?:training\s+data|knowledge\s+cut-?off|last\s+knowledge\s+update)\b",
]
_IN_CHINESE = re.compile("|".join(_CHINESE), re.IGNORECASE | re.MULTILINE)
_IN_ENGLISH = re.compile("|".join(_ENGLISH), re.IGNORECASE | re.MULTILINE)
# One of these is in every text that the patterns find: to look for them is ten times quicker.
_SIGNS_EN: tuple[str, ...] = (
    *("AI", "anguage", "A.I.", "rtificial", "hatbot", "assist", "GPT", "LM", "training data", "nowledge", "request"),
    *("Qwen", "DeepSeek", "LaMA", "Vicuna", "Anthropic", "Microsoft", " ai ", " ai,", " ai."),
)
_SIGNS_ZH: tuple[str, ...] = (
    *("人工智能", "模型", "智能", "助手", "机器人", "浦语", "文心", "千问", "星火", "清言", "抱歉", "对不起"),
    *("我是由", "我由", "我被由", "我的训练", "我的知识"),
)
_LATIN = re.compile("[A-Za-z]")  # each English sign has some; most Chinese texts have none
_A_MACHINE = re.compile(
    r"(?<![A-Za-z])AIs?(?![A-Za-z])|A\.I\.|artificial\s+intelligence|language\s+model|robot|android|chatbot|assistant"
    r"|人工智能|语言模型|机器人|助手|助理|智能体|仿生人|大模型",
    re.IGNORECASE,
)


def assistant_phrase(text: str) -> str:
    """The first phrase of an assistant in `text`, or ""."""
    english = _any_in(_SIGNS_EN, text)
    found = None
    if not text.isascii() and (english or _any_in(_SIGNS_ZH, text)):
        found = _IN_CHINESE.search(text)
    if not found and english:
        found = _IN_ENGLISH.search(text)
    return found.group() if found else ""


def may_hold_phrase(text: str) -> bool:
    """False where `assistant_phrase` would find nothing; quick, and true for one text in some tens."""
    if text.isascii():
        return _any_in(_SIGNS_EN, text)
    return _any_in(_SIGNS_ZH, text) or (bool(_LATIN.search(text)) and _any_in(_SIGNS_EN, text))


def _any_in(signs: tuple[str, ...], text: str) -> bool:
    for sign in signs:  # noqa: SIM110  # any() with a generator takes twice as long
        if sign in text:
            return True
    return False


def plays_a_machine(persona: str) -> bool:
    """True for a character that is an AI, a robot or an assistant by its own persona."""
    return bool(_A_MACHINE.search(persona))

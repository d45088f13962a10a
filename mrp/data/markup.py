"""HTML that was left in the text of a dialogue: <a href="...">, <br>, <div>, &nbsp;.

    markup("Ha!<br>I&nbsp;see")              # "<br>"
    without_markup("Ha!<br>I&nbsp;see")      # "Ha!\\nI see"

Used by `lint.py` and `fix.py`. Tags with which people write on purpose (<b>, <i>, <em>, <s> ...) are left alone, and so
is all text with a fence of code in it. Tags of layout are cut out; what stands in others (a link, a footer) is often a
mark of the site that the text was taken from, so they are found, but stay for a person to look at.
"""

from __future__ import annotations

import html
import re

_LAYOUT = (
    r"br|blockquote|body|center|dd|div|dl|dt|font|h[1-6]|hr|html|li|main|ol|p|section|span|table|tbody|td|tfoot|th|thead"
    r"|tr|ul"
)
_MARKED = (
    r"a|abbr|article|aside|bdo|cite|code|figcaption|figure|footer|form|head|header|iframe|img|input|label|link|meta|nav"
    r"|option|script|select|small|style|textarea|title|tt|video"
)
_END = r"(?:\s{1,8}[\w-]{1,40}\s{0,8}=[^<>]{0,2000}|\s{0,8}/?)>"
_ENTITY = r"&(?:nbsp|quot|amp|lt|gt|apos|ldquo|rdquo|lsquo|rsquo|hellip|mdash|ndash|middot|#\d{2,6}|#x[0-9a-f]{2,5});"
# An empty pair, whatever it is, or layout.
_CUT = re.compile(rf"<(\w{{1,20}})></\1>|</?(?:{_LAYOUT}){_END}", re.IGNORECASE)
_BREAK = re.compile(r"\s{0,8}(?:<br\s{0,8}/?>|</(?:p|div|li|tr|h[1-6])>)\s{0,8}", re.IGNORECASE)
_ANY = re.compile(rf"<(\w{{1,20}})></\1>|</?(?:{_LAYOUT}|{_MARKED}){_END}|{_ENTITY}", re.IGNORECASE)
_FENCE = "```"


def markup(text: str) -> str:
    """The first tag or entity of HTML in `text`, or ""."""
    if "<" not in text and "&" not in text:
        return ""
    found = _ANY.search(text)
    return found.group() if found and _FENCE not in text else ""


def without_markup(text: str) -> str:
    """`text` without tags of layout, with line breaks for <br> and ends of paragraphs, and characters for entities."""
    if not markup(text):
        return text
    plain = _CUT.sub("", _BREAK.sub("\n", text))
    characters = re.sub(_ENTITY, lambda match: html.unescape(match.group()), plain, flags=re.IGNORECASE)
    return characters.replace("\xa0", " ").strip() if characters != text else text

"""Text that was read in the wrong encoding, and what it was before, where that can be proved.

    mojibake("â€œHelloâ€\\x9d, cafÃ©")   # ("â€œ...", "“Hello”, café")
    mojibake("浣犲ソ锛佹垜鏄")            # ("浣犲...", "你好！我是")
    mojibake("锟斤拷锟斤拷")              # ("锟斤拷", None)       the text is lost

Used by `lint.py` and `fix.py`. Proof is the way back: the characters, written in the encoding in which they were read
by mistake (Windows-1252 with Latin-1 for its gaps, or GBK), are UTF-8 without a fault, and say something in letters
that people write. Nothing is repaired on likeness alone.
"""

from __future__ import annotations

import re
from functools import cache

# Traces of text that is lost: U+FFFD, the same read as GBK once more (锟斤拷), memory never written (烫, 屯).
_LOST = re.compile(r"�|锟斤拷|斤拷锟|烫烫烫|屯屯屯|[锛銆鈥][?€]|ï¿½")

_SIGN = re.compile("[Â-ô�锟斤烫屯锛銆鈥]")

_CP1252 = {byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0x100)}
_BYTES = {ord(char): byte for byte, char in _CP1252.items()} | {code: code for code in range(0x100)}
_HIGH = "".join(sorted(set(_CP1252.values()) | {chr(code) for code in range(0x80, 0xA0)}))
_IN = f"[{re.escape(''.join(sorted({c for b, c in _CP1252.items() if b < 0xC0} | set(map(chr, range(0x80, 0xC0))))))}]"
# Where a byte that begins a character in UTF-8 is followed by one that goes on: the sign of UTF-8 read as Windows-1252.
_SEQUENCE = re.compile(f"[Â-ô](?:(?<=[Â-ß]){_IN}|(?<=[à-ï]){_IN}{{2}}|(?<=[ð-ô]){_IN}{{3}})")
_ENOUGH = 3  # such signs in one text (of three bytes, or of GBK), and it is mojibake even if it has no way back
_WESTERN = re.compile(f"[\x00-\x7f{re.escape(_HIGH)}]*")  # what Windows-1252 can write
# Two of these may stand side by side in good text: a capital letter, and the sign that ends a quotation or a clause.
_ENDS_A_WORD = "‘’‚“”„–—…•‹›»«\xa0\xad´·¸°ªº"
_LEADS = "ÂÃÄÅÎÏÐÑ"  # of letters with accents, Greek and Cyrillic; other two-byte characters are hardly written

_GBK_RUN = re.compile(r"[^\x00-\x7f]+")
_MIN_GBK = 2  # characters of three bytes that must come back, of each run, for it to count as read as GBK


@cache
def _gbk_sign() -> re.Pattern[str]:
    """What GBK makes of a CJK character (or of ，。“) in UTF-8 and what follows: two rare characters together."""
    first = [bytes((lead, trail)) for lead in range(0xE4, 0xEA) for trail in range(0x80, 0xC0)]
    first += [b"\xef\xbc", b"\xe3\x80", b"\xe2\x80"]
    second = [bytes((lead, trail)) for lead in range(0x81, 0xC0) for trail in (*range(0xE2, 0xEA), 0xEF)]
    classes = ("".join(sorted({pair.decode("gbk", "ignore") for pair in pairs})) for pairs in (first, second))
    return re.compile("".join(f"[{re.escape(chars)}]" for chars in classes)[:-1] + "€]")


def mojibake(text: str) -> tuple[str, str | None] | None:
    """The trace of a wrong encoding in `text`, and the text as it was (None where that cannot be proved); else None."""
    if text.isascii():
        return None
    found = _SEQUENCE.search(text)
    if found:
        mended = _from_western(text)
        if mended is not None:
            return found.group(), mended
    sign = _gbk_sign().search(text)
    if sign:
        mended = _from_gbk(text)
        if mended is not None:
            return text[sign.start() : sign.start() + 8], mended
    lost = _LOST.search(text)
    if lost:
        return lost.group(), None
    signs = [m.group() for m in _SEQUENCE.finditer(text) if len(m.group()) > 2] or _gbk_sign().findall(text)
    return (signs[0], None) if len(signs) >= _ENOUGH else None


def may_be_mojibake(text: str) -> bool:
    """False where `mojibake` would find nothing: a microsecond for 100 characters, far less than the proof."""
    return bool(_SIGN.search(text) or _gbk_sign().search(text))


def _from_western(text: str) -> str | None:
    """`text` with every stretch of Western characters taken as the UTF-8 that it is; None where one is none."""
    proof = 0

    def mend(match: re.Match[str]) -> str:
        nonlocal proof
        run = match.group()
        if not _SEQUENCE.search(run):
            return run
        mended = _as_utf8(run)
        if mended is None or not _is_written(mended):
            return run
        proof += _proof(run)
        return mended

    mended = _WESTERN.sub(mend, text)
    return mended if proof > 1 else None


def _as_utf8(run: str) -> str | None:
    """The UTF-8 that `run` is; its last byte, where it was a no-break space, may have been stripped as a blank."""
    for whole in (run, run + "\xa0"):
        try:
            return bytes(_BYTES[ord(char)] for char in whole).decode("utf-8")
        except UnicodeDecodeError:
            pass
    return None


def _proof(run: str) -> int:
    """How sure it is that a run which is UTF-8 was meant so: more than 1 is enough.

    A long sequence (three bytes: â€™ or ä½\xa0), or a short one that cannot be a letter with a sign after it, or two.
    """
    proof = 0
    for match in _SEQUENCE.finditer(run):
        sequence = match.group()
        if sequence == "Ã\xa0" and not run[: match.start()][-1:].isalpha():
            proof += 2  # the word "à": nothing else begins so
            continue
        if len(sequence) > 2:
            # "é’”" can be the end of a quotation; but what follows â, ã, ä ... æ in good text is a small letter
            proof += 1 if all(char in _ENDS_A_WORD for char in sequence[1:]) else 2
        elif sequence[0] in _LEADS:
            proof += 1 if sequence[1] in _ENDS_A_WORD else 2
    return proof


def _from_gbk(text: str) -> str | None:
    """`text` with every run that is UTF-8 when written in GBK taken as that; None where there is none."""
    mended = _GBK_RUN.sub(_mend_gbk, text)
    return mended if mended != text else None


def _mend_gbk(match: re.Match[str]) -> str:
    run = match.group()
    try:
        mended = b"\x80".join(part.encode("gbk") for part in run.split("€")).decode("utf-8")  # as Windows reads 0x80
    except UnicodeError:
        return run
    wide = sum("\u3000" <= char <= "\u9fff" or "\uff00" <= char <= "\uffef" for char in mended)
    return mended if wide >= _MIN_GBK and wide * 2 > len(mended) and _is_written(mended) else run


def _is_written(text: str) -> bool:
    """True if `text` holds no control, private or unassigned character."""
    return all(char.isprintable() or char in "\n\t\xa0\u3000\u200b\u200d\ufeff\xad\u2028" for char in text)

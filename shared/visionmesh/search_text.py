"""Text as it is searched: without case, accents and punctuation, whatever the server's locale and extensions.

Every character is folded to exactly one, so that a place in the folded text is the same place in the text.
Both what is stored and what is asked for is folded here, and stemmed by the database.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

# What Unicode takes for letters of their own and people type without.
_BARE: Final = {"ø": "o", "ł": "l", "đ": "d", "\N{LATIN SMALL LETTER DOTLESS I}": "i", "ħ": "h", "ŧ": "t"}

# Letters, marks and digits, by the first letter of Unicode's categories.
_OF_WORDS: Final = frozenset("LMN")

_MARK: Final = "\x02"
_END_OF_MARK: Final = "\x03"


class _Folding(dict[int, str]):
    """A table for `str.translate` that fills itself with the characters that are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character)[0] in _OF_WORDS:
            base = unicodedata.normalize("NFD", character.lower())[0]
            folded = _BARE.get(base, base)
        else:
            folded = " "
        self[code] = folded
        return folded


_FOLDING: Final = _Folding()


def folded(text: str) -> str:
    """`text` in lower case without accents, a space for what is neither letter nor digit. Of equal length."""
    return text.translate(_FOLDING)


def for_spanish(folded_text: str) -> str:
    """Folded text for the Spanish stemmer, which knows one ending by its accent alone. Of equal length."""
    return re.sub(r"cion\b", "ción", folded_text)


def question(text: str) -> str:
    """What people type, folded for `websearch_to_tsquery`: quotes and the minus before a word are kept."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(
        kept if kept else folded(other)
        for kept, other in re.findall(r'("|(?<!\S)-(?=[\w"]))|([^"-]+|-)', composed)
    )


HEADLINE: Final = f"HighlightAll=true, StartSel={_MARK}, StopSel={_END_OF_MARK}"


def places(headline: str) -> Iterator[tuple[int, int]]:
    """Where the marked words of a `HEADLINE` begin and end in the text that it was made of."""
    removed = 0
    for found in re.finditer(f"{_MARK}([^{_END_OF_MARK}]*){_END_OF_MARK}", headline):
        begin = found.start() - removed
        yield begin, begin + len(found[1])
        removed += 2

"""Which characters a text in a language may have.

The recogniser knows some 18,700 characters, and one that can only be a mistake is worse than none: a smudged
letter of a receipt becomes a Chinese one. Languages in Latin letters share one alphabet, since names and
addresses of any of them stand in documents of all. The languages below are those that it was made for.
"""

from __future__ import annotations

from typing import Final

# Everything that the recogniser knows.
EVERY: Final = "any"

# Languages whose letters are all in ASCII and Latin-1, and those that need Latin Extended-A.
_WESTERN: Final = frozenset(
    ("ca", "da", "de", "en", "es", "eu", "fi", "fr", "gl", "is", "it", "nl", "no", "pt", "sv")
)
_EASTERN: Final = frozenset(("cs", "et", "hr", "hu", "lt", "lv", "pl", "ro", "sk", "sl", "tr"))
LATIN: Final = _WESTERN | _EASTERN

# What is written between Latin letters beside ASCII and Latin-1: dashes, quotes, currencies.
_SIGNS: Final = frozenset("–—‘’‚“”„†•…‰€™№")  # noqa: RUF001 - they are meant

_ASCII: Final = range(0x20, 0x7F)
_LATIN_1: Final = range(0xA1, 0x100)
_LATIN_EXTENDED: Final = range(0x100, 0x180)

# French has it in oeuvre; Latin-1 forgot it.
_LIGATURES: Final = frozenset("Œœ")


class UnknownLanguageError(ValueError):
    """A language that the engine does not read."""


class Alphabet:
    """The characters of some languages."""

    def __init__(self, language: str) -> None:
        """language: ISO 639-1 with plus signs between (`es+en`), or `any`. Raises `UnknownLanguageError`."""
        names = set(language.split("+"))
        if unknown := names - LATIN - {EVERY}:
            raise UnknownLanguageError(
                f"{', '.join(sorted(unknown))!r} is no language that is read here; there are "
                f"{', '.join(sorted(LATIN))}, and {EVERY} for whatever the recogniser knows."
            )
        self._everything = EVERY in names
        self._extended = bool(names & _EASTERN)

    def __contains__(self, character: str) -> bool:
        if self._everything:
            return True
        code = ord(character) if len(character) == 1 else 0
        return (
            code in _ASCII
            or code in _LATIN_1
            or character in _SIGNS
            or character in _LIGATURES
            or (self._extended and code in _LATIN_EXTENDED)
        )

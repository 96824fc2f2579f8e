"""Words of a text, in scripts with and without blanks between words.

Han, kana, Thai, Lao, Burmese and Khmer texts have no blanks between words: each of their characters, with its marks, counts as a
word. All other texts are split as ever, so that their numbers stay.
"""

from __future__ import annotations

import re

_LETTERS = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u30ff\u31f0-\u31ff\uff66-\uff9d"  # iteration marks, kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e50-\u0e59"  # Thai
    "\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0ed0-\u0edf"  # Lao
    "\u1000-\u102a\u103f-\u1055\u1780-\u17b3\u17e0-\u17e9"  # Burmese, Khmer
)
_MARKS = "\u3099\u309a\uff9e\uff9f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u17b4-\u17d3"
_LETTER = f"[{_LETTERS}][{_MARKS}]*"
_PIECE = re.compile(rf"{_LETTER}|(?:(?![{_LETTERS}])\S)+")
_WORD = re.compile(rf"{_LETTER}|(?:(?![{_LETTERS}])\w)+")


def pieces(text: str) -> list[str]:
    """Words with the punctuation beside them: what blanks separate."""
    return _PIECE.findall(text)


def bare_words(text: str) -> list[str]:
    """Words without punctuation: runs of letters, digits and underscores."""
    return _WORD.findall(text)

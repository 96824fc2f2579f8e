"""Words of texts with and without blanks between them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.scoring.numbers import _grams
from bench.stats.words import bare_words, pieces

# Scripts whose words stand between blanks: Latin to Arabic, and Hangul.
SPACED = st.text(
    st.characters(max_codepoint=0x06FF) | st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)
)


@given(SPACED)
def test_texts_with_blanks_are_split_as_ever(text: str) -> None:
    assert pieces(text) == text.split()
    assert bare_words(text) == re.findall(r"\w+", text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("你好,世界", ["你", "好", ",", "世", "界"]),
        ("用 Python 写GPT4代码", ["用", "Python", "写", "GPT4", "代", "码"]),
        ("ガラスの", ["ガ", "ラ", "ス", "の"]),
        ("คำนี้", ["ค", "ำ", "นี้"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("", []),
    ],
)
def test_characters_of_scripts_without_blanks_are_words_with_their_marks(text: str, words: list[str]) -> None:
    assert pieces(text) == words


def test_repetition_is_measured_in_chinese() -> None:
    """Runs of three characters: 我爱你 爱你我 你我爱 我爱你."""
    grams = _grams("我爱你我爱你")
    assert len(grams) == 4 and len(set(grams)) == 3

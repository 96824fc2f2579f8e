"""Self-instruction (Wang et al.

2023, arXiv 2212.10560, section 2.2): new prompts, written by a model after examples.

Prompts are left out if they are similar to a known one (ROUGE-L), too short or too long, or need more than
text (BLOCKED words).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.stats.words import bare_words

SHORTEST, LONGEST = 4, 150  # words of a prompt (bench/stats/words.py: a Han character is one)
BLOCKED = frozenset(
    {
        "image",
        "images",
        "picture",
        "pictures",
        "photo",
        "photos",
        "graph",
        "graphs",
        "video",
        "audio",
        "file",
        "files",
    }
)
BLOCKED_CHINESE = ("图片", "圖片", "图像", "照片", "视频", "視頻", "音频", "文件", "图表")
# "1.", "Task 1:", "\u4efb\u52a1 1\uff1a" with Western or full-width punctuation after it.
_NUMBERED = r"(?:(?:task|\u4efb\u52a1)\s*)?\d+\s*[.:)\u3001\uff0e\uff1a\uff09]"
_NUMBER = re.compile(rf"^\s*{_NUMBERED}\s*", re.IGNORECASE)
_ASK = "Here are tasks that people gave to an assistant:\n\n{shown}\n\nWrite one more task of another kind. Write the task only."


def few_shot(
    known: Sequence[str], written: Sequence[str], n_known: int, n_written: int, rng: random.Random
) -> str:
    """A request for a new prompt, with n_known + n_written examples.

    At most `n_written` examples are the model's earlier prompts; the rest are known prompts.
    """
    own = rng.sample(list(written), min(n_written, len(written)))
    examples = rng.sample(list(known), min(n_known + n_written - len(own), len(known))) + own
    rng.shuffle(examples)
    return _ASK.format(
        shown="\n".join(f"{place}. {' '.join(text.split())}" for place, text in enumerate(examples, 1))
    )


@dataclass(frozen=True)
class Filtered:
    """Prompts that are kept, in order, and counts of the others by reason."""

    kept: list[str]
    dropped: dict[str, int]  # keys: unusable, similar, surplus (more than the wanted number)


def new_ones(written: Iterable[str], known: Sequence[str], similarity: float, n: int) -> Filtered:
    """At most `n` prompts from the replies, each with ROUGE-L below `similarity` to all known and kept
    prompts.
    """
    pool = [_words(text) for text in known]
    kept: list[str] = []
    dropped = dict.fromkeys(("unusable", "similar", "surplus"), 0)
    for reply in written:
        text = prompt_of(reply)
        words = _words(text or "")
        if text is None or not SHORTEST <= len(words) <= LONGEST or _needs_more_than_text(text, words):
            dropped["unusable"] += 1
        elif len(kept) == n:
            dropped["surplus"] += 1
        elif any(_reaches(words, other, similarity) for other in pool):
            dropped["similar"] += 1
        else:
            kept.append(text)
            pool.append(words)
    return Filtered(kept, dropped)


def prompt_of(reply: str) -> str | None:
    """The first task of a reply, without its number; None for an empty one."""
    first = re.split(rf"\n\s*(?:\n|{_NUMBERED})", reply.strip(), maxsplit=1, flags=re.IGNORECASE)[0]
    return _NUMBER.sub("", first).strip() or None


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """F1 in [0, 1] of the longest common subsequence of words (Lin 2004, equal weights); 0 where either is
    empty.
    """
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for place, other in enumerate(b, 1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return 2 * row[-1] / (len(a) + len(b))


def _reaches(a: Sequence[str], b: Sequence[str], similarity: float) -> bool:
    """Whether ROUGE-L is at least `similarity`.

    The number of common words, in any order, is a cheap upper bound.
    """
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) >= similarity and rouge_l(a, b) >= similarity


def _words(text: str) -> list[str]:
    return bare_words(text.lower())


def _needs_more_than_text(text: str, words: Sequence[str]) -> bool:
    return not BLOCKED.isdisjoint(words) or any(blocked in text for blocked in BLOCKED_CHINESE)

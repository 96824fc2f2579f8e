"""Reading replies: a preference from the log-probs of two letters or from text, a rating from text and from the log-probs of its digits.

weighted     P(m) / (P(m) + P(M)) over the top log-probs of the token that decides; exactly alpaca-eval's logprob_parser where a token is
             spelt `m`. Tokens that carry a leading space ("Ġm", "▁m", " m") count too: of several spellings the likeliest is taken, not
             their sum, which would move recorded votes by up to 4e-8.
by name      every other parser of the alpaca-eval package is called as it is
rating       the first [[n]], else the first [n] (FastChat); winner: [[A]], [[B]] or [[C]]
game         the last of [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]], or one of them turned round (Arena-Hard-Auto)
expected     Σ n p(n) over the ratings 1 to 10 at the place where the rating stands (arXiv 2503.03064)

A reasoning judge's verdict is what follows its thinking. VERSION goes into keys: raise it when a reply comes to be read in another way.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.judges.asking import Reply, Request
from bench.judges.prompts import package_version
from bench.records import Call

VERSION = 1
LEADING = " \u0120\u2581\n\t\u010a"  # spaces and line ends as tokenizers write them at a token's start
RATINGS = range(1, 11)
AMBIGUOUS = 1e-3  # share of "1" that may begin a "10" without an expected rating being refused


def parser_version() -> str:
    return f"replies {VERSION}, alpaca-eval {package_version()}"


@dataclass(frozen=True)
class Reading:
    """What a reply says: `value` (a share for the second of two answers in [0, 1], or a rating), or `why` it says nothing."""

    value: float | None = None
    why: str | None = None
    from_text: bool = False  # no log-probs were there to weigh it
    top_logprobs: Mapping[str, float] | None = None
    expected: float | None = None  # rating over the distribution
    margin: int | None = None  # of a game, for the second answer: 2 a strong win, 1 a win, 0 a tie, and so on down


# The part that decides ------------------------------------------------------------------------------------------------

THOUGHTS = re.compile(r"<(think|thinking)>.*?</\1>", re.DOTALL)


def after_thinking(text: str) -> str | None:
    """What a reply says once its thinking is over; None when it never is. (Some templates open the thinking themselves.)"""
    said = THOUGHTS.sub("", text)
    for mark in ("</think>", "</thinking>"):
        said = said.rpartition(mark)[2]
    return None if re.search(r"<think(ing)?>", said) else said.strip()


def _no_verdict(reply: Reply) -> str | None:
    """Why there is nothing to read, where there is nothing."""
    if reply.error:
        return reply.error
    cut = ": the reply was cut at max_tokens" if reply.finish_reason == "length" else ""
    said = after_thinking(reply.text)
    if said is None:
        return f"its thinking did not end{cut}"
    return None if said or reply.tokens else f"an empty reply{cut}"


def deciding_token(reply: Reply, last: bool) -> dict[str, Any] | None:
    """The token that is the verdict: the first with a letter or digit after the thinking, or the last one; None without log-probs."""
    if not reply.tokens:
        return None
    tokens = reply.tokens[_start(reply) :] or reply.tokens[-1:]
    spoken = [token for token in tokens if any(c.isalnum() for c in token["token"].strip(LEADING)) and not _special(token["token"])]
    return (spoken[-1] if last else spoken[0]) if spoken else tokens[0]


def _special(token: str) -> bool:
    return token.startswith("<|") or token in ("</s>", "<s>", "<eos>")


def _start(reply: Reply) -> int:
    """The index of the first token after the thinking, which an endpoint may leave among the tokens and out of the text."""
    texts = [token["token"] for token in reply.tokens or ()]
    joined = "".join(texts)
    begins = max((joined.rfind(mark) + len(mark) for mark in ("</think>", "</thinking>") if mark in joined), default=0)
    if not begins and reply.thinking and joined.rstrip().endswith(reply.text.strip()):
        begins = len(joined.rstrip()) - len(reply.text.strip())
    position = 0
    for index, text in enumerate(texts):
        if position >= begins:
            return index
        position += len(text)
    return len(texts)


# Preferences ----------------------------------------------------------------------------------------------------------


def read_preference(reply: Reply, parser: str, kwargs: Mapping[str, Any]) -> Reading:
    """How much the second of two answers is preferred, by a parser of the alpaca-eval package."""
    if why := _no_verdict(reply):
        return Reading(why=why)
    if parser == "logprob_parser":
        return _weighted(reply, **kwargs)
    return _by_package(after_thinking(reply.text) or "", parser, kwargs)


def _weighted(
    reply: Reply, numerator_token: str, denominator_tokens: Sequence[str], is_binarize: bool = True, log_prob_index: Any = "batch"
) -> Reading:
    last = log_prob_index == -1
    token = deciding_token(reply, last)
    tops = {top["token"]: top["logprob"] for top in (token or {}).get("top_logprobs") or ()}
    letters = _letters(tops, {numerator_token, *denominator_tokens})
    if letters:
        others = [letters.get(other, -math.inf) for other in denominator_tokens if other != numerator_token]
        first = letters.get(numerator_token, -math.inf)
        if is_binarize:
            return Reading(0.0 if all(first > other for other in others) else 1.0, top_logprobs=tops)
        total = [first, *others] if numerator_token in denominator_tokens else others
        return Reading(1 - math.exp(first - _logsumexp(total)), top_logprobs=tops)
    said = (after_thinking(reply.text) or "").strip(" \n\t`'\"*.()[]{}:")
    word = said.split()[-1].strip("`'\"*.()[]{}:") if last and said else said
    if word in (numerator_token, *denominator_tokens):
        return Reading(0.0 if word == numerator_token else 1.0, from_text=True, top_logprobs=tops or None)
    wanted = " nor ".join(dict.fromkeys((numerator_token, *denominator_tokens)))
    among = f" among the top {len(tops)} tokens {', '.join(map(repr, tops))}" if tops else ", and no log-probs came with it"
    if any(name.startswith("token_id:") for name in tops):
        among += "; the server writes token ids: start it without --return-tokens-as-token-ids"
    return Reading(why=f"neither {wanted} in the text {reply.text[:200]!r}{among}", top_logprobs=tops or None)


def _letters(tops: Mapping[str, float], letters: set[str]) -> dict[str, float]:
    """Log-probs of the letters in the spelling (leading space or none) that holds most of them."""
    spellings: dict[str, dict[str, float]] = {}
    for token, logprob in tops.items():
        word = token.lstrip(LEADING)
        if word in letters:
            spellings.setdefault(token[: len(token) - len(word)], {})[word] = logprob
    return max(spellings.values(), key=lambda found: _logsumexp(list(found.values())), default={})


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top if math.isinf(top) else top + math.log(sum(math.exp(value - top) for value in values))


def _by_package(text: str, parser: str, kwargs: Mapping[str, Any]) -> Reading:
    """1: the first is better, 2: the second, 0: a draw, between 1 and 2: how much the second is preferred."""
    from alpaca_eval import completion_parsers

    try:
        (value,) = getattr(completion_parsers, parser)(text, **copy.deepcopy(dict(kwargs)))
        number = float(value)
    except Exception as error:  # whatever a foreign parser raises over a text that it cannot read
        return Reading(why=f"{parser} cannot read {text[:200]!r}: {type(error).__name__}: {error}")
    if number == 0:
        return Reading(0.5, from_text=True)
    if not 1 <= number <= 2:  # NaN too
        return Reading(why=f"{parser} finds no verdict in {text[:200]!r}")
    return Reading(number - 1, from_text=True)


# Ratings --------------------------------------------------------------------------------------------------------------

DOUBLE, SINGLE = re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]")


def parse_rating(text: str) -> float | None:
    """The first [[n]], else the first [n], as FastChat reads it; None where there is neither."""
    found = DOUBLE.search(text) or SINGLE.search(text)
    return float(found[1]) if found else None


def parse_pairwise(text: str) -> float | None:
    """Preference for the completion shown first: `[[A]]` 1, `[[B]]` 0, `[[C]]` a tie, 0.5, looked for in this order; else None."""
    return next((value for mark, value in (("[[A]]", 1.0), ("[[B]]", 0.0), ("[[C]]", 0.5)) if mark in text), None)


def read_rating(reply: Reply) -> Reading:
    if why := _no_verdict(reply):
        return Reading(why=why)
    said = after_thinking(reply.text) or ""
    rating = parse_rating(said)
    if rating is None:
        return Reading(why=f"no rating like [[5]] in {said[-200:]!r}")
    if not 1 <= rating <= 10:
        return Reading(why=f"a rating of {rating:g}, which is not from 1 to 10")
    expected, tops = expected_rating(reply)
    return Reading(rating, top_logprobs=tops, from_text=expected is None, expected=expected)


def read_pairwise(reply: Reply) -> Reading:
    """0 where A is better, 1 where B is, 0.5 for a tie."""
    if why := _no_verdict(reply):
        return Reading(why=why)
    said = after_thinking(reply.text) or ""
    first = parse_pairwise(said)
    if first is None:
        return Reading(why=f"neither [[A]], [[B]] nor [[C]] in {said[-200:]!r}")
    return Reading(1 - first, from_text=True)


GAME = re.compile(r"\[\[([AB<>=]+)\]\]")
GAMES = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2, "B<<A": 2, "B<A": 1, "B=A": 0, "A<B": -1, "A<<B": -2}


def parse_game(text: str) -> int | None:
    """How clearly the answer shown first wins, 2 to -2: the last verdict in double brackets, as Arena-Hard reads it; None for none, or
    one that is not among the five."""
    found = GAME.findall(text.upper())
    return GAMES.get(found[-1]) if found else None


def read_game(reply: Reply) -> Reading:
    """0 where A is better, 1 where B is, 0.5 for a tie; `margin` says how clearly, for B."""
    if why := _no_verdict(reply):
        return Reading(why=why)
    said = after_thinking(reply.text) or ""
    game = parse_game(said)
    if game is None:
        return Reading(why=f"no verdict like [[A>B]] in {said[-200:]!r}")
    return Reading(0.5 if game == 0 else float(game < 0), from_text=True, margin=-game)


def expected_rating(reply: Reply) -> tuple[float | None, dict[str, float] | None]:
    """(Σ n p(n) over 1 to 10 where the rating stands, the log-probs there); None without log-probs there.

    A "1" may begin a "10" of two tokens. Where the reply went that way the next token tells how often; where it did not and "1" holds
    more than a thousandth of the ratings, it cannot be told, and there is no expected rating.
    """
    tokens = (reply.tokens or [])[_start(reply) :]
    joined = "".join(token["token"] for token in tokens)
    found = DOUBLE.search(joined) or SINGLE.search(joined)
    if not found:
        return None, None
    index, before = _token_at(tokens, found.start(1))
    tops = {top["token"]: top["logprob"] for top in tokens[index].get("top_logprobs") or ()}
    prefix = tokens[index]["token"][:before]
    mass = dict.fromkeys(RATINGS, 0.0)
    open_one = 0.0
    for text, logprob in tops.items():
        if text.startswith(prefix) and (digits := re.match(r"\d+", text[len(prefix) :])) and int(digits[0]) in RATINGS:
            if digits[0] == "1" and text == prefix + "1":
                open_one += math.exp(logprob)
            else:
                mass[int(digits[0])] += math.exp(logprob)
    total = sum(mass.values()) + open_one
    if not total:
        return None, tops or None
    if open_one and tokens[index]["token"] == prefix + "1" and index + 1 < len(tokens):
        following = {top["token"]: math.exp(top["logprob"]) for top in tokens[index + 1].get("top_logprobs") or ()}
        ten = sum(p for text, p in following.items() if text.startswith("0"))
        mass[1], mass[10] = open_one * (1 - ten), mass[10] + open_one * ten
    elif open_one > AMBIGUOUS * total and not mass[10]:
        return None, tops
    else:
        mass[1] += open_one
    return sum(n * p for n, p in mass.items()) / sum(mass.values()), tops


def _token_at(tokens: Sequence[Mapping[str, Any]], offset: int) -> tuple[int, int]:
    """(index of the token that holds a character of the joined text, where in it)."""
    for index, start in enumerate(_starts(tokens)):
        if start <= offset < start + len(tokens[index]["token"]):
            return index, offset - start
    raise IndexError(f"no token holds character {offset}")


def _starts(tokens: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    position = 0
    for token in tokens:
        yield position
        position += len(token["token"])


# The record ------------------------------------------------------------------------------------------------------------


def make_call(request: Request, reply: Reply, reading: Reading, digest: str, parser: str, first: bool | None) -> Call:
    """The record of one request: what was asked of whom, what came back, what it cost."""
    decoding = {name: value for name, value in request.body.items() if name not in ("model", "tools", "tool_choice")}
    raw = f"<think>{reply.thinking}</think>{reply.text}" if reply.thinking else reply.text
    return Call(
        model=str(request.body["model"]),
        served=reply.served,
        prompt_digest=digest,
        parser=parser,
        decoding=decoding,
        policy_first=first,
        preference=_for_policy(reading, first),
        raw=raw,
        top_logprobs=reading.top_logprobs,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        latency_s=reply.latency_s,
        dollars=reply.dollars,
        error=reply.error,
    )


def _for_policy(reading: Reading, first: bool | None) -> float | None:
    """The share for the policy of a reading, which is the share for the second answer; None without an opponent."""
    if reading.value is None or first is None:
        return None
    return 1 - reading.value if first else reading.value

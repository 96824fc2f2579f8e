"""Reading replies: a preference from the log-probs of two letters or from text, a rating from text and from the log-probs of its digits.

weighted     P(m) / (P(m) + P(M)) over the top log-probs of the token that decides; exactly alpaca-eval's logprob_parser where a token is
             spelt `m`. Tokens that carry a leading space ("Ġm", "▁m", " m") count too: of several spellings the likeliest is taken, not
             their sum, which would move recorded votes by up to 4e-8.
by name      every other parser of the alpaca-eval package is called as it is
rating       the last [[n]], else the last `Rating: [n]`; winner: the last of [[A]], [[B]], [[C]]. FastChat takes the first, which is often
             a draft or a quotation; the scores that it recorded are read as they were recorded (mt_bench.py)
game         the last of [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]], or one of them turned round (Arena-Hard-Auto)
expected     Σ n p(n) over the ratings 1 to 10 at the place where the rating stands (arXiv 2503.03064)

A reasoning judge's verdict is what follows its thinking (thinking.py). A verdict with words behind it in a reply that was cut is none: it
may be a draft. VERSION goes into keys: raise it when a reply comes to be read in another way.
"""

from __future__ import annotations

import bisect
import copy
import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec

from bench.judges.asked.prompts import package_version
from bench.judges.asked.request import Reply, Request
from bench.judges.asked.thinking import UNENDED, UNMARKED, after_thinking, said_span
from bench.records import Call, Verdict

VERSION = 2
EARLIER_VERSIONS = (1,)  # whose replies are the same: they are read anew, and not asked for again
LEADING = " \u0120\u2581\n\t\u010a"  # spaces and line ends as tokenizers write them at a token's start
RATINGS = range(1, 11)
AMBIGUOUS = 1e-3  # share of "1" that may begin a "10" without an expected rating being refused


# Why there is no verdict: how the reason of a judge that was asked begins; any other of its reasons is an unreadable reply.
REQUEST_REFUSED = "the endpoint refused the request"
TOO_LONG = "the request does not fit the model"
REFUSED = "the model refused"
FILTERED = "the provider's content filter stopped the reply"
CUT = "the reply was cut at max_tokens"
EMPTY = "an empty reply"
REASONS = {
    "request_refused": REQUEST_REFUSED,
    "too_long": TOO_LONG,
    "refused": REFUSED,
    "filtered": FILTERED,
    "cut": CUT,
    "thinking_unended": UNENDED,
    "thinking_unmarked": UNMARKED,
    "empty": EMPTY,
}
UNREADABLE = "unreadable"
REFUSAL_LENGTH = 200


def parser_version() -> str:
    return f"replies {VERSION}, alpaca-eval {package_version()}"


def earlier_parsers(parser: str) -> list[str]:
    """How a parser's version was written when it was an earlier one."""
    name, _, package = parser.partition(", ")
    return [f"replies {version}, {package}" for version in EARLIER_VERSIONS] if name == f"replies {VERSION}" else []


def count_reasons(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Verdicts without a score of a judge that was asked, by the kind of reason."""
    whys = [verdict.unscored for verdict in verdicts if verdict.unscored is not None and verdict.calls]
    found = Counter(next((kind for kind, beginning in REASONS.items() if why.startswith(beginning)), UNREADABLE) for why in whys)
    return {kind: found[kind] for kind in (*REASONS, UNREADABLE) if found[kind]}


class FromText(NamedTuple):
    """Votes that should be weighed by log-probs: those that were read from the text for want of any, and all of them."""

    n_from_text: int
    n: int


def votes_from_text(verdicts: Iterable[Verdict]) -> FromText | None:
    """None where log-probs were not asked for, or do not decide."""
    weighed = [v for v in verdicts if v.preference is not None and v.calls and asks_for_weights(v.calls[0].parser, v.calls[0].decoding)]
    if not weighed:
        return None
    return FromText(sum(int((v.details or {}).get("from_text", 0)) for v in weighed), sum(len(v.calls) for v in weighed))


def asks_for_weights(parser: str, body: Mapping[str, Any]) -> bool:
    return parser.partition("/")[0] == "logprob_parser" and bool(body.get("logprobs"))


@dataclass(frozen=True)
class Reading:
    """What a reply says: `value` (a share for the second of two answers in [0, 1], or a rating), or `why` it says nothing."""

    value: float | None = None
    why: str | None = None
    from_text: bool = False  # no log-probs were there to weigh it
    top_logprobs: Mapping[str, float] | None = None
    expected: float | None = None  # rating over the distribution
    margin: int | None = None  # of a game, for the second answer: 2 a strong win, 1 a win, 0 a tie, and so on down


P = ParamSpec("P")


def _one_reading(read: Callable[Concatenate[Reply, P], Reading]) -> Callable[Concatenate[Reply, P], Reading]:
    """Whatever a reader raises over one reply is that reply's reason, and not the end of the stage."""

    @functools.wraps(read)
    def reading(reply: Reply, *args: P.args, **kwargs: P.kwargs) -> Reading:
        try:
            return _no_verdict(reply) or read(reply, *args, **kwargs)
        except Exception as error:
            return Reading(why=f"{UNREADABLE}: {type(error).__name__}: {error} in {reply.text[-200:]!r}")

    return reading


# The part that decides ------------------------------------------------------------------------------------------------


def _no_verdict(reply: Reply) -> Reading | None:
    """Why there is nothing to read, where there is nothing."""
    if reply.error:
        return Reading(why=reply.error)
    if reply.refusal:
        return Reading(why=f"{REFUSED}: {reply.refusal[:REFUSAL_LENGTH]}")
    if reply.finish_reason == "content_filter":
        return Reading(why=FILTERED)
    span = said_span(reply.text)
    if isinstance(span, str):
        return Reading(why=f"{span}: {CUT}" if _was_cut(reply) else span)
    if after_thinking(reply.text) or (reply.tokens and not reply.thinking):
        return None
    if reply.thinking and _was_cut(reply):
        return Reading(why=f"{UNENDED}: {CUT}")
    return _unread(reply, EMPTY)


def _was_cut(reply: Reply) -> bool:
    return reply.finish_reason == "length"


def _unread(reply: Reply, why: str) -> Reading:
    """No verdict, where a reply that was cut may have been about to give one."""
    why = why if reply.text.strip() else EMPTY
    return Reading(why=f"{CUT}: {why}" if _was_cut(reply) else why)


def deciding_token(reply: Reply, last: bool) -> dict[str, Any] | None:
    """The token that is the verdict: the first with a letter or digit after the thinking, or the last one; None without log-probs."""
    tokens = said_tokens(reply)
    if not tokens:
        return None
    spoken = [token for token in tokens if any(c.isalnum() for c in token["token"].strip(LEADING)) and not _special(token["token"])]
    return (spoken[-1] if last else spoken[0]) if spoken else tokens[0]


def _special(token: str) -> bool:
    return token.startswith("<|") or token in ("</s>", "<s>", "<eos>", "<end_of_turn>")


def said_tokens(reply: Reply) -> list[dict[str, Any]]:
    """The tokens after the thinking, which an endpoint may leave among the tokens and out of the text; none where that cannot be told."""
    tokens = list(reply.tokens or ())
    joined = "".join(token["token"] for token in tokens)
    span = said_span(joined)
    begins = 0 if isinstance(span, str) else span.start
    if reply.thinking and not begins:
        while tokens and (_special(tokens[-1]["token"]) or not tokens[-1]["token"].strip()):
            tokens.pop()
        joined, said = "".join(token["token"] for token in tokens).rstrip(), reply.text.strip()
        if not joined.endswith(said):
            return []
        begins = len(joined) - len(said)  # a token may hold the end of the one and the beginning of the other
        return [token for token, start in zip(tokens, _starts(tokens), strict=False) if start + len(token["token"]) > begins]
    if isinstance(span, str):
        return []
    return [token for token, start in zip(tokens, _starts(tokens), strict=False) if start >= begins]


# Preferences ----------------------------------------------------------------------------------------------------------


@_one_reading
def read_preference(reply: Reply, parser: str, kwargs: Mapping[str, Any]) -> Reading:
    """How much the second of two answers is preferred, by a parser of the alpaca-eval package."""
    if parser == "logprob_parser":
        return _weighted(reply, **kwargs)
    return _by_package(reply, parser, kwargs)


def _weighted(
    reply: Reply, numerator_token: str, denominator_tokens: Sequence[str], is_binarize: bool = True, log_prob_index: Any = "batch"
) -> Reading:
    last = log_prob_index == -1
    if last and _was_cut(reply):
        return _unread(reply, f"no verdict at the end of {reply.text[-200:]!r}")
    token = deciding_token(reply, last)
    tops = {top["token"]: top["logprob"] for top in (token or {}).get("top_logprobs") or ()}
    letters = _letters(tops, {numerator_token, *denominator_tokens})
    if letters:
        others = [letters.get(other, -math.inf) for other in denominator_tokens if other != numerator_token]
        first = letters.get(numerator_token, -math.inf)
        if is_binarize:
            return Reading(0.0 if all(first > other for other in others) else 1.0, top_logprobs=tops)
        total = [first, *others] if numerator_token in denominator_tokens else others
        return Reading(min(1.0, max(0.0, 1 - math.exp(first - _logsumexp(total)))), top_logprobs=tops)
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


def _by_package(reply: Reply, parser: str, kwargs: Mapping[str, Any]) -> Reading:
    """1: the first is better, 2: the second, 0: a draw, between 1 and 2: how much the second is preferred."""
    from alpaca_eval import completion_parsers

    text = after_thinking(reply.text) or ""
    try:
        (value,) = getattr(completion_parsers, parser)(text, **copy.deepcopy(dict(kwargs)))
        number = float(value)
    except Exception as error:  # whatever a foreign parser raises over a text that it cannot read
        return _unread(reply, f"{parser} cannot read {text[:200]!r}: {type(error).__name__}: {error}")
    if number == 0:
        return Reading(0.5, from_text=True)
    if not 1 <= number <= 2:  # NaN too
        return _unread(reply, f"{parser} finds no verdict in {text[:200]!r}")
    return Reading(number - 1, from_text=True)


# Ratings --------------------------------------------------------------------------------------------------------------

DOUBLE = re.compile(r"\[\[([^\[\]]{1,60})\]\]")
PLACEHOLDERS = ("rating", "score", "verdict", "n")  # of the task's own words, when a reply quotes them
_RATING = re.compile(r"[\s*_`\"']*(?:(?:rating|score)[\s*_`:=]*)?(\d{1,9}\.?\d{0,9})\s*(?:/\s*10)?[\s*_`\"']*", re.IGNORECASE)
_SINGLE = re.compile(r"(?:rating|score)[^\w\[]{0,12}\[(\d{1,9}\.?\d{0,9})\](?!\])", re.IGNORECASE)
_ALONE = re.compile(r"\s*\[(\d{1,9}\.?\d{0,9})\]\s*")
WINNERS = {"A": 0.0, "B": 1.0, "C": 0.5}  # shares for B


class Found(NamedTuple):
    """A verdict in a text: what it says, where that stands, and where its brackets end."""

    text: str
    start: int
    end: int


def _last_double(text: str) -> re.Match[str] | None:
    """The last thing in double brackets, unless it is a word of the task."""
    found = [match for match in DOUBLE.finditer(text) if match[1].strip().lower() not in PLACEHOLDERS]
    return found[-1] if found else None


def find_rating(text: str) -> Found | None:
    """The last [[n]], [[n/10]] or [[Rating: n]], else the last `Rating: [n]`, else a reply that is [n] alone. None where there is no such
    thing, or the last double brackets hold something else."""
    double = _last_double(text)
    if double:
        number = _RATING.fullmatch(double[1])
        return Found(number[1], double.start(1) + number.start(1), double.end()) if number else None
    single = _ALONE.fullmatch(text) or next(reversed(list(_SINGLE.finditer(text))), None)
    return Found(single[1], single.start(1), single.end()) if single else None


def find_pairwise(text: str) -> Found | None:
    """The last [[A]], [[B]] or [[C]]; None where there is none, or the last double brackets hold something else."""
    double = _last_double(text)
    return Found(double[1].strip(), double.start(1), double.end()) if double and double[1].strip() in WINNERS else None


def _verdict(reply: Reply, find: Callable[[str], Found | None], wanted: str) -> Found | Reading:
    """What is found in a reply, or why nothing is: in a reply that was cut, a verdict that words follow may be a draft."""
    said = after_thinking(reply.text) or ""
    found = find(said)
    if found is None or (_was_cut(reply) and any(c.isalnum() for c in said[found.end :])):
        return _unread(reply, f"{wanted} in {said[-200:]!r}")
    return found


@_one_reading
def read_rating(reply: Reply) -> Reading:
    found = _verdict(reply, find_rating, "no rating like [[5]]")
    if isinstance(found, Reading):
        return found
    rating = float(found.text)
    if not 1 <= rating <= 10:
        return Reading(why=f"a rating of {rating:g}, which is not from 1 to 10")
    expected, tops = expected_rating(reply, rating)
    return Reading(rating, top_logprobs=tops, from_text=expected is None, expected=expected)


@_one_reading
def read_pairwise(reply: Reply) -> Reading:
    """0 where A is better, 1 where B is, 0.5 for a tie."""
    found = _verdict(reply, find_pairwise, "neither [[A]], [[B]] nor [[C]]")
    return found if isinstance(found, Reading) else Reading(WINNERS[found.text], from_text=True)


GAME = re.compile(r"\[\[([AB<>=]+)\]\]", re.IGNORECASE)
GAMES = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2, "B<<A": 2, "B<A": 1, "B=A": 0, "A<B": -1, "A<<B": -2}


def find_game(text: str) -> Found | None:
    """The last verdict in double brackets, as Arena-Hard reads it; None for none, or one that is not among the five."""
    last = next(reversed(list(GAME.finditer(text))), None)
    return Found(last[1].upper(), last.start(1), last.end()) if last and last[1].upper() in GAMES else None


@_one_reading
def read_game(reply: Reply) -> Reading:
    """0 where A is better, 1 where B is, 0.5 for a tie; `margin` says how clearly, for B."""
    found = _verdict(reply, find_game, "no verdict like [[A>B]]")
    if isinstance(found, Reading):
        return found
    game = GAMES[found.text]
    return Reading(0.5 if game == 0 else float(game < 0), from_text=True, margin=-game)


def expected_rating(reply: Reply, rating: float) -> tuple[float | None, dict[str, float] | None]:
    """(Σ n p(n) over 1 to 10 where the rating that counts stands, the log-probs there); None without log-probs there.

    A "1" may begin a "10" of two tokens. Where the reply went that way the next token tells how often; where it did not and "1" holds
    more than a thousandth of the ratings, it cannot be told, and there is no expected rating.
    """
    tokens = said_tokens(reply)
    found = find_rating("".join(token["token"] for token in tokens))
    if found is None or float(found.text) != rating:
        return None, None
    starts = _starts(tokens)
    index = bisect.bisect_right(starts, found.start) - 1  # of the token that holds it
    before = found.start - starts[index]
    tops = {top["token"]: top["logprob"] for top in tokens[index].get("top_logprobs") or ()}
    prefix = tokens[index]["token"][:before]
    mass = dict.fromkeys(RATINGS, 0.0)
    open_one = 0.0
    for text, logprob in tops.items():
        digits = re.match(r"\d+", text[len(prefix) :]) if text.startswith(prefix) else None
        if digits and len(digits[0]) <= 2 and int(digits[0]) in RATINGS:
            if digits[0] == "1" and text == prefix + "1":
                open_one += math.exp(logprob)
            else:
                mass[int(digits[0])] += math.exp(logprob)
    total = sum(mass.values()) + open_one
    if not total:
        return None, tops or None
    if open_one and tokens[index]["token"] == prefix + "1" and index + 1 < len(tokens):
        following = {top["token"]: math.exp(top["logprob"]) for top in tokens[index + 1].get("top_logprobs") or ()}
        ten = min(1.0, sum(p for text, p in following.items() if text.startswith("0")))
        mass[1], mass[10] = open_one * (1 - ten), mass[10] + open_one * ten
    elif open_one > AMBIGUOUS * total and not mass[10]:
        return None, tops
    else:
        mass[1] += open_one
    return sum(n * p for n, p in mass.items()) / sum(mass.values()), tops


def _starts(tokens: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where each token begins in the joined text."""
    return list(itertools.accumulate((len(token["token"]) for token in tokens[:-1]), initial=0))


# The record ------------------------------------------------------------------------------------------------------------


def make_call(request: Request, reply: Reply, reading: Reading, digest: str, parser: str, first: bool | None) -> Call:
    """The record of one request: what was asked of whom, what came back, what it cost."""
    decoding = {name: value for name, value in request.body.items() if name not in ("model", "tools", "tool_choice")}
    raw = f"<think>{reply.thinking}</think>{reply.text}" if reply.thinking else reply.text
    share = reading.value  # for the second answer, or a rating
    return Call(
        model=str(request.body["model"]),
        served=reply.served,
        prompt_digest=digest,
        parser=parser,
        decoding=decoding,
        policy_first=first,
        preference=None if share is None or first is None else 1 - share if first else share,
        raw=raw,
        top_logprobs=reading.top_logprobs,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        latency_s=reply.latency_s,
        dollars=reply.dollars,
        error=reply.error,
    )

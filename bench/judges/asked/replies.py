"""Reads preferences and ratings from judges' replies: from the text, or from the log-probs of its tokens.

weighted     P(m) / (P(m) + P(M)) over the top log-probs of the deciding token. Equal to alpaca-eval's
             logprob_parser if a token is spelt `m`. Spellings with a leading space ("Ġm", "▁m", " m") count
             too. The likeliest spelling is taken; a sum would move recorded votes by up to 4e-8.
by name      every other parser of the alpaca-eval package is called unchanged
rating       the last [[n]], else the last `Rating: [n]`. FastChat takes the first, often a draft or a
             quotation. Scores that FastChat recorded are kept as recorded (mt_bench.py).
winner       the last of [[A]], [[B]], [[C]]
game         the last of [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]], or the same mirrored (Arena-Hard-Auto)
expected     Σ n p(n) over the ratings 1 to 10, at the position of the rating (arXiv 2503.03064)

A reasoning judge's verdict is read after its thinking (thinking.py). In a reply that was cut, a verdict
followed by more words does not count, because it may be a draft. VERSION goes into keys: raise it when
replies are read in another way.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec

from bench.engines.alpaca_eval_package import parse_completion
from bench.judges.asked.prompts import package_version
from bench.judges.asked.request import Reply, Request
from bench.judges.asked.thinking import UNENDED, UNMARKED, after_thinking, final_span
from bench.records import Call, Verdict

VERSION = 2
EARLIER_VERSIONS = (1,)  # Their stored replies are still valid: they are read again, not requested again.
LEADING = " \u0120\u2581\n\t\u010a"  # Spaces and line ends at the start of a token, as tokenizers write them.
RATINGS = range(1, 11)
# The expected rating is None if "1" has a larger share of the ratings than this and may begin a "10".
AMBIGUOUS = 1e-3


# Reasons why a language model gave no verdict: the beginning of `unscored`. All others count as unreadable.
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
    """Earlier names of the current parser, one per version that read the same replies."""
    name, _, package = parser.partition(", ")
    return (
        [f"replies {version}, {package}" for version in EARLIER_VERSIONS]
        if name == f"replies {VERSION}"
        else []
    )


def count_reasons(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Number of unscored verdicts of a language model, by kind of reason."""
    whys = [verdict.unscored for verdict in verdicts if verdict.unscored is not None and verdict.calls]
    counts = Counter(
        next((kind for kind, beginning in REASONS.items() if why.startswith(beginning)), UNREADABLE)
        for why in whys
    )
    return {kind: counts[kind] for kind in (*REASONS, UNREADABLE) if counts[kind]}


class FromText(NamedTuple):
    """Counts of votes that need log-probs: votes read from text for lack of log-probs, and all votes."""

    n_from_text: int
    n: int


def votes_from_text(verdicts: Iterable[Verdict]) -> FromText | None:
    """Counts of votes read from text and of all votes; None if the judge does not use log-probs."""
    weighed = [
        v
        for v in verdicts
        if v.preference is not None and v.calls and asks_for_weights(v.calls[0].parser, v.calls[0].decoding)
    ]
    if not weighed:
        return None
    return FromText(
        sum(int((v.details or {}).get("from_text", 0)) for v in weighed), sum(len(v.calls) for v in weighed)
    )


def asks_for_weights(parser: str, body: Mapping[str, Any]) -> bool:
    """Whether the parser weighs log-probs and the request asks for them."""
    return parser.partition("/")[0] == "logprob_parser" and bool(body.get("logprobs"))


@dataclass(frozen=True)
class Reading:
    """The judgement in a reply, or `why` there is none.

    `value`: preference in [0, 1] for the second of two completions, or a rating.
    """

    value: float | None = None
    why: str | None = None
    from_text: bool = False  # Read from the text, because there were no log-probs.
    top_logprobs: Mapping[str, float] | None = None
    expected: float | None = None  # Mean of the ratings weighted by their probabilities.
    margin: int | None = None  # Of a game, for the second completion: 2 strong win, 1 win, 0 tie, -1, -2.


P = ParamSpec("P")


def _one_reading(read: Callable[Concatenate[Reply, P], Reading]) -> Callable[Concatenate[Reply, P], Reading]:
    """Turns an exception of a reader into one reply's reason for no verdict, so that the stage goes on."""

    @functools.wraps(read)
    def reading(reply: Reply, *args: P.args, **kwargs: P.kwargs) -> Reading:
        try:
            return _no_verdict(reply) or read(reply, *args, **kwargs)
        except Exception as error:
            return Reading(why=f"{UNREADABLE}: {type(error).__name__}: {error} in {reply.text[-200:]!r}")

    return reading


# The part that decides --------------------------------------------------------------------------------------


def _no_verdict(reply: Reply) -> Reading | None:
    """A reading with the reason why a reply has no final text; None if it has one."""
    if reply.error:
        return Reading(why=reply.error)
    if reply.refusal:
        return Reading(why=f"{REFUSED}: {reply.refusal[:REFUSAL_LENGTH]}")
    if reply.finish_reason == "content_filter":
        return Reading(why=FILTERED)
    span = final_span(reply.text)
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
    """A reading without a verdict.

    The reason says if the reply was cut, since the verdict may have followed.
    """
    why = why if reply.text.strip() else EMPTY
    return Reading(why=f"{CUT}: {why}" if _was_cut(reply) else why)


def deciding_token(reply: Reply, last: bool) -> dict[str, Any] | None:
    """The token that holds the verdict: the first (or `last`) one with a letter or digit after the thinking.

    None without log-probs.
    """
    tokens = final_tokens(reply)
    if not tokens:
        return None
    words = [
        token
        for token in tokens
        if any(c.isalnum() for c in token["token"].strip(LEADING)) and not _special(token["token"])
    ]
    return (words[-1] if last else words[0]) if words else tokens[0]


def _special(token: str) -> bool:
    return token.startswith("<|") or token in ("</s>", "<s>", "<eos>", "<end_of_turn>")


def final_tokens(reply: Reply) -> list[dict[str, Any]]:
    """The tokens of the final text, without thinking; empty if its start cannot be found.

    An endpoint may remove the thinking from the text and still list its tokens.
    """
    tokens = list(reply.tokens or ())
    joined = "".join(token["token"] for token in tokens)
    span = final_span(joined)
    begins = 0 if isinstance(span, str) else span.start
    if reply.thinking and not begins:
        while tokens and (_special(tokens[-1]["token"]) or not tokens[-1]["token"].strip()):
            tokens.pop()
        joined, final = "".join(token["token"] for token in tokens).rstrip(), reply.text.strip()
        if not joined.endswith(final):
            return []
        # One token may hold the end of the thinking and the start of the text.
        begins = len(joined) - len(final)
        return [
            token
            for token, start in zip(tokens, _starts(tokens), strict=False)
            if start + len(token["token"]) > begins
        ]
    if isinstance(span, str):
        return []
    return [token for token, start in zip(tokens, _starts(tokens), strict=False) if start >= begins]


# Preferences ------------------------------------------------------------------------------------------------


@_one_reading
def read_preference(reply: Reply, parser: str, kwargs: Mapping[str, Any]) -> Reading:
    """The preference for the second of two completions, read by a parser of the alpaca-eval package."""
    if parser == "logprob_parser":
        return _weighted(reply, **kwargs)
    return _by_package(reply, parser, kwargs)


def _weighted(
    reply: Reply,
    numerator_token: str,
    denominator_tokens: Sequence[str],
    is_binarize: bool = True,
    log_prob_index: Any = "batch",
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
    final = (after_thinking(reply.text) or "").strip(" \n\t`'\"*.()[]{}:")
    word = final.split()[-1].strip("`'\"*.()[]{}:") if last and final else final
    if word in (numerator_token, *denominator_tokens):
        return Reading(0.0 if word == numerator_token else 1.0, from_text=True, top_logprobs=tops or None)
    wanted = " nor ".join(dict.fromkeys((numerator_token, *denominator_tokens)))
    among = (
        f" among the top {len(tops)} tokens {', '.join(map(repr, tops))}"
        if tops
        else ", and no log-probs came with it"
    )
    if any(name.startswith("token_id:") for name in tops):
        among += "; the server writes token ids: start it without --return-tokens-as-token-ids"
    return Reading(why=f"neither {wanted} in the text {reply.text[:200]!r}{among}", top_logprobs=tops or None)


def _letters(tops: Mapping[str, float], letters: set[str]) -> dict[str, float]:
    """Log-probs of the letters, in the likeliest spelling (with or without a leading space)."""
    spellings: dict[str, dict[str, float]] = {}
    for token, logprob in tops.items():
        word = token.lstrip(LEADING)
        if word in letters:
            spellings.setdefault(token[: len(token) - len(word)], {})[word] = logprob
    return max(spellings.values(), key=lambda logps: _logsumexp(list(logps.values())), default={})


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top if math.isinf(top) else top + math.log(sum(math.exp(value - top) for value in values))


def _by_package(reply: Reply, parser: str, kwargs: Mapping[str, Any]) -> Reading:
    """The preference by a parser of the package.

    It returns 1 (first is better) to 2 (second is better), or 0 (a draw).
    """
    text = after_thinking(reply.text) or ""
    try:
        number = parse_completion(parser, text, kwargs)
    except Exception as error:  # A foreign parser may raise anything.
        return _unread(reply, f"{parser} cannot read {text[:200]!r}: {type(error).__name__}: {error}")
    if number == 0:
        return Reading(0.5, from_text=True)
    if not 1 <= number <= 2:  # Also catches NaN.
        return _unread(reply, f"{parser} finds no verdict in {text[:200]!r}")
    return Reading(number - 1, from_text=True)


# Ratings ----------------------------------------------------------------------------------------------------

DOUBLE = re.compile(r"\[\[([^\[\]]{1,60})\]\]")
PLACEHOLDERS = ("rating", "score", "verdict", "n")  # Words of the prompt that a reply may quote.
_RATING = re.compile(
    r"[\s*_`\"']*(?:(?:rating|score)[\s*_`:=]*)?(\d{1,9}\.?\d{0,9})\s*(?:/\s*10)?[\s*_`\"']*", re.IGNORECASE
)
_SINGLE = re.compile(r"(?:rating|score)[^\w\[]{0,12}\[(\d{1,9}\.?\d{0,9})\](?!\])", re.IGNORECASE)
_ALONE = re.compile(r"\s*\[(\d{1,9}\.?\d{0,9})\]\s*")
WINNERS = {"A": 0.0, "B": 1.0, "C": 0.5}  # Preferences for B.


class FoundVerdict(NamedTuple):
    """A verdict in a text: its words, their start, and the end of its brackets."""

    text: str
    start: int
    end: int


def _last_double(text: str) -> re.Match[str] | None:
    """The last text in double brackets, except words of the prompt."""
    matches = [match for match in DOUBLE.finditer(text) if match[1].strip().lower() not in PLACEHOLDERS]
    return matches[-1] if matches else None


def find_rating(text: str) -> FoundVerdict | None:
    """The last [[n]], [[n/10]] or [[Rating: n]], else the last `Rating: [n]`, else a reply of only [n].

    None if there is none, or if the last double brackets hold something else.
    """
    double = _last_double(text)
    if double:
        number = _RATING.fullmatch(double[1])
        return FoundVerdict(number[1], double.start(1) + number.start(1), double.end()) if number else None
    single = _ALONE.fullmatch(text) or next(reversed(list(_SINGLE.finditer(text))), None)
    return FoundVerdict(single[1], single.start(1), single.end()) if single else None


def find_pairwise(text: str) -> FoundVerdict | None:
    """The last [[A]], [[B]] or [[C]]; None without one, or if the last double brackets hold other text."""
    double = _last_double(text)
    return (
        FoundVerdict(double[1].strip(), double.start(1), double.end())
        if double and double[1].strip() in WINNERS
        else None
    )


def _verdict(reply: Reply, find: Callable[[str], FoundVerdict | None], wanted: str) -> FoundVerdict | Reading:
    """The verdict in a reply, or a reading that says why there is none.

    In a reply that was cut, a verdict followed by more words may be a draft, and does not count.
    """
    final = after_thinking(reply.text) or ""
    verdict = find(final)
    if verdict is None or (_was_cut(reply) and any(c.isalnum() for c in final[verdict.end :])):
        return _unread(reply, f"{wanted} in {final[-200:]!r}")
    return verdict


@_one_reading
def read_rating(reply: Reply) -> Reading:
    verdict = _verdict(reply, find_rating, "no rating like [[5]]")
    if isinstance(verdict, Reading):
        return verdict
    rating = float(verdict.text)
    if not 1 <= rating <= 10:
        return Reading(why=f"a rating of {rating:g}, which is not from 1 to 10")
    expected, tops = expected_rating(reply, rating)
    return Reading(rating, top_logprobs=tops, from_text=expected is None, expected=expected)


@_one_reading
def read_pairwise(reply: Reply) -> Reading:
    """0 if A is better, 1 if B is better, 0.5 for a tie."""
    verdict = _verdict(reply, find_pairwise, "neither [[A]], [[B]] nor [[C]]")
    return verdict if isinstance(verdict, Reading) else Reading(WINNERS[verdict.text], from_text=True)


GAME = re.compile(r"\[\[([AB<>=]+)\]\]", re.IGNORECASE)
GAMES = {
    "A>>B": 2,
    "A>B": 1,
    "A=B": 0,
    "B>A": -1,
    "B>>A": -2,
    "B<<A": 2,
    "B<A": 1,
    "B=A": 0,
    "A<B": -1,
    "A<<B": -2,
}


def find_game(text: str) -> FoundVerdict | None:
    """The last verdict in double brackets, as in Arena-Hard; None if it is missing or not one of the five."""
    last = next(reversed(list(GAME.finditer(text))), None)
    return (
        FoundVerdict(last[1].upper(), last.start(1), last.end())
        if last and last[1].upper() in GAMES
        else None
    )


@_one_reading
def read_game(reply: Reply) -> Reading:
    """0 if A is better, 1 if B is better, 0.5 for a tie. `margin`: from -2 to 2, positive if B is better."""
    verdict = _verdict(reply, find_game, "no verdict like [[A>B]]")
    if isinstance(verdict, Reading):
        return verdict
    game = GAMES[verdict.text]
    return Reading(0.5 if game == 0 else float(game < 0), from_text=True, margin=-game)


def expected_rating(reply: Reply, rating: float) -> tuple[float | None, dict[str, float] | None]:
    """(Σ n p(n) over the ratings 1 to 10, log-probs by token), at the position of the rating. None without
    log-probs.

    A "1" may begin a "10" of two tokens. If the reply wrote that "1", the next token's log-probs split it. If
    it did not, and "1" holds more than AMBIGUOUS of the ratings, there is no expected rating.
    """
    tokens = final_tokens(reply)
    verdict = find_rating("".join(token["token"] for token in tokens))
    if verdict is None or float(verdict.text) != rating:
        return None, None
    starts = _starts(tokens)
    index = bisect.bisect_right(starts, verdict.start) - 1  # The token with the rating.
    before = verdict.start - starts[index]
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
        following = {
            top["token"]: math.exp(top["logprob"]) for top in tokens[index + 1].get("top_logprobs") or ()
        }
        ten = min(1.0, sum(p for text, p in following.items() if text.startswith("0")))
        mass[1], mass[10] = open_one * (1 - ten), mass[10] + open_one * ten
    elif open_one > AMBIGUOUS * total and not mass[10]:
        return None, tops
    else:
        mass[1] += open_one
    return sum(n * p for n, p in mass.items()) / sum(mass.values()), tops


def _starts(tokens: Sequence[Mapping[str, Any]]) -> list[int]:
    """Start of each token in the joined text."""
    return list(itertools.accumulate((len(token["token"]) for token in tokens[:-1]), initial=0))


# The record -------------------------------------------------------------------------------------------------


def make_call(
    request: Request, reply: Reply, reading: Reading, digest: str, parser: str, first: bool | None
) -> Call:
    """The stored record of one request: model, prompt, reply, tokens and cost."""
    decoding = {
        name: value for name, value in request.body.items() if name not in ("model", "tools", "tool_choice")
    }
    raw = f"<think>{reply.thinking}</think>{reply.text}" if reply.thinking else reply.text
    share = reading.value  # For the second completion, or a rating.
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

"""Reading replies: recorded votes, spellings of the two letters, text, thinking, FastChat's marks, ratings over their distribution."""

from __future__ import annotations

import gzip
import json
import math
import re
from typing import Any

import pytest
from endpoint import listed
from recorded import ALPACA_EVAL, needs_fixtures

from bench.judges.alpaca_eval import policy_first
from bench.judges.asked.chat_completion import thin
from bench.judges.asked.prompts import annotator
from bench.judges.asked.replies import (
    count_reasons,
    expected_rating,
    find_rating,
    read_game,
    read_pairwise,
    read_preference,
    read_rating,
)
from bench.judges.asked.request import Reply
from bench.judges.asked.thinking import UNENDED, UNMARKED, after_thinking
from bench.records import Call, Verdict

WEIGHTED: dict[str, Any] = {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False}


def weighted(reply: Reply, **changes: Any) -> float | None:
    return read_preference(reply, "logprob_parser", WEIGHTED | changes).value


def reply(text: str, probabilities: dict[str, float] | None = None, **more: Any) -> Reply:
    return Reply(text, tokens=[listed(text, probabilities)] if probabilities else None, **more)


@needs_fixtures
def test_recorded_votes_come_back_from_their_log_probs() -> None:
    """Every vote of the fixtures that has a raw completion, to 1e-9; the others are of equal answers or lack it."""
    instructions = [
        row["instruction"]
        for row in json.loads(gzip.decompress((ALPACA_EVAL / "reference_outputs.json.gz").read_bytes()))
    ]
    found = annotator("weighted_alpaca_eval_gpt4_turbo")
    checked, worst = 0, 0.0
    for path in sorted((ALPACA_EVAL / "annotations").glob("*.json.gz")):
        for row in json.loads(gzip.decompress(path.read_bytes()))["rows"]:
            if not row.get("raw_completion"):
                continue
            said = Reply(row["raw_completion"]["text"], tokens=row["raw_completion"]["logprobs"]["content"])
            value = read_preference(said, found.parser, found.parser_kwargs).value
            assert value is not None
            policy = 1 - value if policy_first(instructions[row["index"]]) else value
            checked, worst = checked + 1, max(worst, abs(1 + policy - row["preference"]))
    assert checked == 3206
    assert worst < 1e-9


def test_the_package_reads_the_same_by_its_own_parser() -> None:
    from alpaca_eval.completion_parsers import logprob_parser

    for probabilities in ({"m": 0.3, "M": 0.6, "x": 0.1}, {"M": 0.2, "no": 0.7}, {"m": 1e-9, "I": 0.9}):
        said = reply("M", probabilities)
        (theirs,) = logprob_parser({"logprobs": {"content": said.tokens}}, **WEIGHTED)
        assert weighted(said) == pytest.approx(theirs - 1, abs=1e-12)
        (theirs,) = logprob_parser({"logprobs": {"content": said.tokens}}, **WEIGHTED | {"is_binarize": True})
        assert weighted(said, is_binarize=True) == theirs - 1


@pytest.mark.parametrize("space", ["", " ", "Ġ", "▁", "\n"])
def test_a_leading_space_in_any_tokenizers_spelling_is_understood(space: str) -> None:
    """P(M) = 0.6 / (0.2 + 0.6)."""
    assert weighted(reply(f"{space}M", {f"{space}m": 0.2, f"{space}M": 0.6, "The": 0.1})) == pytest.approx(
        0.75
    )


def test_of_two_spellings_the_likelier_counts() -> None:
    """ " m" and " M" hold 0.8, "m" 0.001: a sum would mix both, and move recorded votes."""
    assert weighted(reply(" M", {" m": 0.2, " M": 0.6, "m": 0.001})) == pytest.approx(0.75)


def test_a_missing_letter_has_no_probability_and_two_are_no_vote() -> None:
    assert weighted(reply("M", {"M": 0.4, "The": 0.5})) == 1.0
    reading = read_preference(reply("Both", {"Both": 0.6, "The": 0.3}), "logprob_parser", WEIGHTED)
    assert reading.value is None
    assert reading.why == "neither m nor M in the text 'Both' among the top 2 tokens 'Both', 'The'"


@pytest.mark.parametrize(
    ("text", "value"), [("m", 0.0), ("M", 1.0), (" M\n", 1.0), ("**m**", 0.0), ('"M".', 1.0), ("`m`", 0.0)]
)
def test_without_log_probs_the_text_is_the_vote(text: str, value: float) -> None:
    reading = read_preference(reply(text), "logprob_parser", WEIGHTED)
    assert (reading.value, reading.from_text) == (value, True)


@pytest.mark.parametrize("text", ["Both are fine", "m or M", "Model M", "", "I think m is better"])
def test_a_text_that_is_not_one_of_the_two_is_no_vote(text: str) -> None:
    reading = read_preference(reply(text), "logprob_parser", WEIGHTED)
    assert reading.value is None and reading.why


def test_token_ids_in_place_of_texts_say_what_to_do() -> None:
    why = read_preference(reply("token_id:7", {"token_id:7": 0.9}), "logprob_parser", WEIGHTED).why
    assert why and "start it without --return-tokens-as-token-ids" in why


# Thinking -------------------------------------------------------------------------------------------------------------


def thought(*tokens: Any) -> list[dict[str, Any]]:
    return [
        listed(token) if isinstance(token, str) else listed(max(token, key=token.get), token)
        for token in tokens
    ]


VERDICT = {"m": 0.1, "M": 0.9}


@pytest.mark.parametrize(
    "said",
    [
        Reply(
            "<think>m is m.</think>\n\nM",
            tokens=thought("<think>", "m", " is", " m", ".", "</think>", "\n\n", VERDICT),
        ),
        Reply(
            "m is m.</think>\n\nM", tokens=thought("m", " is", " m", ".</", "think>", "\n\n", VERDICT)
        ),  # the template opened it
        Reply(
            "M", thinking="m is m.", tokens=thought("m", " is", " m", ".", "\n", VERDICT)
        ),  # kept apart, tokens and all
        Reply("M", thinking="m is m.", tokens=thought(VERDICT)),
        Reply("**M**", tokens=thought("**", VERDICT, "**", "<|im_end|>")),
    ],
)
def test_a_reasoning_judges_verdict_is_what_follows_its_thinking(said: Reply) -> None:
    assert weighted(said) == pytest.approx(0.9)


def test_a_chain_of_thought_ends_in_the_verdict() -> None:
    said = Reply("m is shorter.\nM", tokens=thought("m", " is", " shorter", ".", "\n", VERDICT, "<|im_end|>"))
    assert weighted(said, log_prob_index=-1) == pytest.approx(0.9)
    assert weighted(Reply("m is shorter.\n\nM"), log_prob_index=-1) == 1.0


def test_thinking_that_does_not_end_is_no_verdict() -> None:
    assert after_thinking("<think>m is") is None
    reading = read_preference(Reply("<think>M is", finish_reason="length"), "logprob_parser", WEIGHTED)
    assert reading.why == "its thinking did not end: the reply was cut at max_tokens"
    empty = read_preference(Reply("", finish_reason="length"), "logprob_parser", WEIGHTED)
    assert empty.why == "the reply was cut at max_tokens: an empty reply"


# Parsers of the package by name ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("alpaca_eval_gpt4", "[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]", 1.0),
        (
            "alpaca_eval_gpt4_turbo_fn",
            '{"ordered_models": [{"model": "m", "rank": 1}, {"model": "M", "rank": 2}]}',
            0.0,
        ),
        ("chatgpt", "Output (b)", 1.0),
        ("lmsys_gpt4", "8 8\nBoth are good.", 0.5),
        ("lmsys_gpt4", "no scores", None),
        ("chatgpt", "Neither", None),
    ],
)
def test_other_annotators_are_read_by_the_packages_own_parsers(
    name: str, text: str, value: float | None
) -> None:
    found = annotator(name)
    reading = read_preference(Reply(f"<think>hm</think>{text}"), found.parser, found.parser_kwargs)
    assert reading.value == value
    assert (reading.why is None) == (value is not None)


# Ratings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", "7"),
        ("[[3]] no, [[9]]", "9"),
        ('I was asked to end in "[[rating]]", as in "Rating: [[5]]". Rating: [[9]]', "9"),
        ('Rating: [[9]] (in the form of "[[rating]]")', "9"),
        ("Rating: [[8/10]]", "8"),
        ("**Rating: [[ 8.5 ]]**", "8.5"),
        ("[[3]] at first, then [[8 or 9]]", None),
        ("[[3]] at first, then [[-1]]", None),
        ("[[3]] at first, then [[nine]]", None),
        ("Rating: [6]", "6"),
        ("Rating: [6] - no, rating: **[7]**", "7"),
        ("[4]", "4"),
        ("[5] then [[8.5]]", "8.5"),
        ("It reads x[0] and a[1]. Rating: 9", None),
        ("As source [1] says.", None),
        ("eight", None),
        ("[[x]]", None),
    ],
)
def test_a_rating_is_the_last_double_bracket_else_the_last_that_is_called_one(
    text: str, rating: str | None
) -> None:
    found = find_rating(text)
    assert (found.text if found else None) == rating
    assert found is None or text[found.start : found.start + len(found.text)] == found.text


def test_ratings_out_of_range_or_absent_are_unscored_with_their_text() -> None:
    assert read_rating(Reply("Rating: [[11]]")).why == "a rating of 11, which is not from 1 to 10"
    assert read_rating(Reply("Fine answer.")).why == "no rating like [[5]] in 'Fine answer.'"
    assert read_pairwise(Reply("Neither.")).why == "neither [[A]], [[B]] nor [[C]] in 'Neither.'"
    assert read_rating(Reply("<think>[[2]]</think>[[9]]")).value == 9.0


def rated(*tokens: Any) -> Reply:
    found = thought(*tokens)
    return Reply("".join(token["token"] for token in found), tokens=found)


def expected(said: Reply) -> float | None:
    found = find_rating(said.text)
    return expected_rating(said, float(found.text))[0] if found else None


def test_the_expected_rating_weighs_every_rating_by_its_probability() -> None:
    """(7 x 0.5 + 8 x 0.3 + 6 x 0.1) / 0.9; the token for a word has no part in it."""
    said = rated("Good", " [[", {"7": 0.5, "8": 0.3, "6": 0.1, "x": 0.1}, "]]")
    assert expected(said) == pytest.approx((3.5 + 2.4 + 0.6) / 0.9)
    reading = read_rating(said)
    assert (reading.value, reading.expected) == (7.0, pytest.approx(6.5 / 0.9))


def test_the_rating_may_share_its_token_with_brackets() -> None:
    assert expected(rated("Rating", ": [[8", "]]")) == 8.0
    said = rated({"[[8]]": 0.6, "[[9]]": 0.4})
    assert expected(said) == pytest.approx(8.4)


def test_ten_of_two_tokens_is_told_from_one() -> None:
    """P("1") = 0.6, and after it "0" 0.9 of the time: 10 x 0.54 + 1 x 0.06 + 9 x 0.4."""
    said = rated("[[", {"1": 0.6, "9": 0.4}, {"0": 0.9, "]]": 0.1}, "]]")
    assert read_rating(said).value == 10.0
    assert expected(said) == pytest.approx(5.4 + 0.06 + 3.6)


def test_where_one_may_begin_a_ten_that_nobody_followed_there_is_no_expected_rating() -> None:
    assert expected(rated("[[", {"9": 0.8, "1": 0.2}, "]]")) is None
    assert expected(rated("[[", {"9": 0.7, "1": 0.2, "10": 0.1}, "]]")) == pytest.approx(
        7.5
    )  # a tokenizer with "10": 1 is 1
    assert expected(rated("[[", {"9": 0.9995, "1": 0.0005}, "]]")) == pytest.approx(8.996)


def test_long_replies_keep_log_probs_where_a_verdict_can_stand() -> None:
    tokens = thought(*["word"] * 100, "[[", {"7": 0.6, "8": 0.4}, "]]", *[" so"] * 60)
    kept = thin(tokens)
    assert [i for i, token in enumerate(kept) if token["top_logprobs"]] == [
        *range(8),
        101,
        102,
        *range(131, 163),
    ]
    said = Reply("".join(token["token"] for token in kept), tokens=kept)
    assert expected(said) == pytest.approx(7.4)
    assert math.isclose(kept[0]["logprob"], 0.0)


# Reasons, drafts and other marks of thinking --------------------------------------------------------------------------

DRAFT, VERDICT_TEXT = (
    "The first draft looked like [[3]] to me, but higher.",
    "A complete proof. Rating: [[9]]",
)
MARKED = {
    "think": f"<think>{DRAFT}</think>{VERDICT_TEXT}",
    "thinking": f"<thinking>{DRAFT}</thinking>\n{VERDICT_TEXT}",
    "thought": f"<thought>{DRAFT}</thought>{VERDICT_TEXT}",
    "reasoning": f"<reasoning>{DRAFT}</reasoning>{VERDICT_TEXT}",
    "capitals": f"<THINK>{DRAFT}</THINK>{VERDICT_TEXT}",
    "seed": f"<seed:think>{DRAFT}</seed:think>{VERDICT_TEXT}",
    "longcat": f"<longcat_think>{DRAFT}</longcat_think>{VERDICT_TEXT}",
    "kimi": f"◁think▷{DRAFT}◁/think▷{VERDICT_TEXT}",
    "magistral": f"[THINK]{DRAFT}[/THINK]{VERDICT_TEXT}",
    "command": f"<|START_THINKING|>{DRAFT}<|END_THINKING|>{VERDICT_TEXT}",
    "begin_of_thought": f"<|begin_of_thought|>{DRAFT}<|end_of_thought|>{VERDICT_TEXT}",
    "gemma": f"<|channel>thought\n{DRAFT}<channel|>{VERDICT_TEXT}",
    "granite": f"Here is my thought process: {DRAFT}\nHere is my response: {VERDICT_TEXT}",
    "harmony": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{VERDICT_TEXT}<|return|>",
    "harmony_json": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|channel|>final <|constrain|>json<|message|>{VERDICT_TEXT}",
    "harmony_begun": f"analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{VERDICT_TEXT}",
    "dropped": f"analysis{DRAFT}assistantfinal{VERDICT_TEXT}",
    "dropped_apart": f"analysis\n{DRAFT}\nassistant\nfinal\n{VERDICT_TEXT}",
    "opened_by_the_template": f"{DRAFT}</think>\n{VERDICT_TEXT}",
    "dropped_and_opened": f"{DRAFT}assistantfinal{VERDICT_TEXT}",
}


@pytest.mark.parametrize("marking", MARKED)
def test_thinking_is_told_from_the_verdict_in_every_marking(marking: str) -> None:
    whole = MARKED[marking]
    assert after_thinking(whole) == VERDICT_TEXT
    reading = read_rating(Reply(whole, tokens=thought(*re.findall(r"\w+|\W", whole))))
    assert (reading.value, reading.expected) == (9.0, 9.0)
    pair = whole.replace("[[3]]", "[[A]]").replace("[[9]]", "[[B]]")
    assert read_pairwise(Reply(pair)).value == 1.0
    assert read_game(Reply(whole.replace("[[3]]", "[[A>>B]]").replace("[[9]]", "[[B>A]]"))).value == 1.0
    letter = whole.replace(DRAFT, "m is m").replace(VERDICT_TEXT, "M")
    assert weighted(Reply(letter)) == 1.0


@pytest.mark.parametrize("marking", MARKED)
def test_thinking_that_is_cut_is_no_verdict_in_any_marking(marking: str) -> None:
    """Where the template opens the thinking nothing is left that tells it from an answer, but a draft is not its end."""
    cut = Reply(MARKED[marking][: MARKED[marking].index(" to me")] + " at first, but", finish_reason="length")
    why = read_rating(cut).why
    assert why and why.startswith((UNENDED, UNMARKED, "the reply was cut at max_tokens"))


def test_marks_that_are_quoted_mark_nothing() -> None:
    assert (
        after_thinking('The answer opens "<think>" and never ends it. [[4]]')
        == 'The answer opens "<think>" and never ends it. [[4]]'
    )
    assert read_rating(Reply("It leaks `</think>`. Rating: [[4]]")).value == 4.0
    assert read_rating(Reply("Analysis: fine. analysis is good. [[4]]")).value == 4.0


def test_tokens_that_cannot_be_told_from_thinking_weigh_nothing() -> None:
    """The thinking is kept apart and stands among the tokens; a special token may follow the verdict, other words may not."""
    apart = Reply("M", thinking="m is m.", tokens=thought("m", " is", " m", ".", "\n", VERDICT, "<|im_end|>"))
    assert weighted(apart) == pytest.approx(0.9)
    odd = read_preference(
        Reply("M", thinking="m is m.", tokens=thought("m", " is", VERDICT, " so")), "logprob_parser", WEIGHTED
    )
    assert (odd.value, odd.from_text) == (1.0, True)


def test_each_reason_for_no_verdict_is_its_own() -> None:
    """Nothing of a reply that was filtered, refused or cut is a verdict, also where it drafts one."""
    reasons = {
        "filtered": Reply("", finish_reason="content_filter"),
        "refused": Reply("", refusal="I cannot help with that. " * 20),
        "cut": Reply("It could be [[3]], but then", finish_reason="length"),
        "thinking_unended": Reply("", thinking="It could be [[3]]", finish_reason="length"),
        "thinking_unmarked": Reply("analysisIt could be [[3]]"),
        "empty": Reply(" \n"),
        "unreadable": Reply("Fine."),
        "request_refused": Reply("", error="the endpoint refused the request with 400: too long"),
    }
    found = {name: read_rating(reply).why for name, reply in reasons.items()}
    assert (
        found["refused"]
        and found["refused"].startswith("the model refused: I cannot help")
        and len(found["refused"]) < 230
    )
    assert found["filtered"] == "the provider's content filter stopped the reply"
    call = Call("j", None, "", "", {})
    verdicts = [Verdict("i", "j", unscored=why, calls=[call]) for why in found.values()]
    assert count_reasons(
        [*verdicts, Verdict("i", "j", unscored="no baseline"), Verdict("i", "j", rating=1.0)]
    ) == dict.fromkeys(reasons, 1)


def test_a_verdict_at_the_end_of_a_reply_that_was_cut_counts() -> None:
    assert read_rating(Reply("A proof. **Rating: [[9]]**.", finish_reason="length")).value == 9.0
    assert read_pairwise(Reply("[[A]] seems right, for", finish_reason="length")).why
    assert read_game(Reply("[[A>B]] seems right, for", finish_reason="length")).why


def test_the_expected_rating_stands_where_the_rating_does() -> None:
    said = rated("[[", {"3": 0.9, "4": 0.1}, "]] no, [[", {"8": 0.5, "9": 0.5}, "]]")
    reading = read_rating(said)
    assert (reading.value, reading.expected) == (8.0, pytest.approx(8.5))
    other = Reply("[[9]]", tokens=said.tokens)  # the tokens are of another text
    assert read_rating(other).expected is None


def test_what_a_reader_raises_is_one_reason() -> None:
    reading = read_preference(Reply("m", tokens=[{"token": 5}]), "logprob_parser", WEIGHTED)
    assert reading.value is None and reading.why and reading.why.startswith("unreadable: ")

"""MT-Bench (Zheng et al. 2023): reads and writes FastChat's files, with its parsers and averages.

turn1, turn2, average   mean over *all* rows with a score, as FastChat's show_result prints it. Repeated rows
                        count each time, so with repeated or failed rows `average` is not their mean
rating                  our own: the last row of each question and turn; standard error clustered by question
win, loss, tie          pairwise: a win needs both orders, any disagreement is a tie, an error in either order
                        drops the row
win_rate_adjusted       (win + tie / 2) / (win + loss + tie), per model over all its pairs

A question's id is its number, as text. Turns count from 0 here and from 1 in the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.config import CATEGORIES
from bench.records import Completion, Item, Verdict, grouped
from bench.text_files import (
    BadFile,
    describe,
    id_text,
    number,
    optional_text,
    printable,
    read_rows,
    text,
    whole_number,
)

API_ERROR = "$ERROR$"  # FastChat's text for a failed request.
NO_RATING = "the judge's reply has no rating"
NO_WINNER = "error"
WINNERS = {"model_1": 1.0, "tie": 0.5, "model_2": 0.0}
MOST_TURNS = 1000
FIRST_QUESTION, QUESTIONS_A_CATEGORY = 81, 10


# The judge's replies ----------------------------------------------------------------------------------------


def rating_verdict(
    item: str, judge: str, turn: int, score: float | None, raw: str, category: str | None = None
) -> Verdict:
    """A verdict with a rating, or with the reason why there is none.

    Reasons: a failed request, no rating in the reply, or a rating outside 1 to 10.
    """
    if score is not None and 1 <= score <= 10:
        return Verdict(item, judge, turn, category, rating=score, raw=raw)
    why = (
        "the request failed"
        if raw == API_ERROR
        else NO_RATING
        if score is None
        else f"rating {score:g} is not in 1 to 10"
    )
    return Verdict(item, judge, turn, category, unscored=why, raw=raw)


def category_of(question: str) -> str | None:
    """The category of one of MT-Bench's own 80 questions; None for any other question."""
    place = int(question) - FIRST_QUESTION if re.fullmatch("[0-9]{1,9}", question) else -1
    return (
        CATEGORIES[place // QUESTIONS_A_CATEGORY]
        if 0 <= place < QUESTIONS_A_CATEGORY * len(CATEGORIES)
        else None
    )


def write_answers(path: Path, model: str, completions: Iterable[Completion]) -> None:
    by_question = grouped(
        (completion.id, {"index": completion.draw, "turns": completion.completions})
        for completion in completions
    )
    _write(
        path,
        (
            {"question_id": _number(question), "model_id": model, "choices": given}
            for question, given in by_question.items()
        ),
    )


# Judgements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rated:
    """A row of `JUDGE_single.jsonl`."""

    model: str
    verdict: Verdict
    score: float | None  # As recorded; None for FastChat's -1.
    prompt_name: str = ""
    user_prompt: str = ""
    tstamp: float | None = None


@dataclass(frozen=True)
class Compared:
    """A row of `JUDGE_pair.jsonl`.

    `preferences`: for model_1, one per order shown; None for an order without a verdict.
    """

    models: tuple[str, str]
    question: str
    turn: int
    judge: str
    preferences: tuple[float | None, float | None]
    judgements: tuple[str, str]
    prompt_name: str = ""
    user_prompts: tuple[str, str] = ("", "")
    tstamp: float | None = None

    @property
    def preference(self) -> float | None:
        """The preference for model_1: a tie if the orders disagree, None if either order has no verdict."""
        first, second = self.preferences
        if first is None or second is None:
            return None
        return first if first == second else 0.5

    @property
    def flipped(self) -> bool:
        """Whether the same position won in both orders."""
        return set(self.preferences) == {0.0, 1.0}


def read_judgements(path: Path) -> list[Rated] | list[Compared]:
    """FastChat's single or pairwise judgements, recognized by the first row. Raises BadFile for others."""
    rows = []
    for place, row in read_rows(path):
        _has(row, place, ("question_id", "turn", "judge"))
        rows.append((place, row))
    if not rows:
        raise BadFile(f"{path} is empty; expected FastChat's judgements")
    first = rows[0][1]
    if "score" not in first and "g1_winner" not in first:
        raise BadFile(
            f"{path} must hold FastChat's single (`score`) or pairwise (`g1_winner`) judgements, got {describe(first)}"
        )
    return (
        [_rated(row, place) for place, row in rows]
        if "score" in first
        else [_compared(row, place) for place, row in rows]
    )


def _rated(row: Mapping[str, Any], place: str) -> Rated:
    _has(row, place, ("model", "score"))
    question, model = (id_text(row[key], f"{place}: {key}") for key in ("question_id", "model"))
    judge, prompt_name = _judge(row["judge"], place)
    recorded = number(row["score"])
    if row["score"] is not None and (recorded is None or (recorded < 0 and recorded != -1)):
        raise BadFile(
            f"{place}: score must be a number from 0, or -1 where the judge failed, got {describe(row['score'])}"
        )
    score = None if recorded == -1 else recorded
    verdict = rating_verdict(
        question, judge, _turn(row, place), score, _optional(row, "judgment", place), category_of(question)
    )
    return Rated(
        model, verdict, score, prompt_name, _optional(row, "user_prompt", place), _tstamp(row, place)
    )


def _compared(row: Mapping[str, Any], place: str) -> Compared:
    _has(row, place, ("model_1", "model_2", "g1_winner", "g2_winner"))
    question, model, baseline = (
        id_text(row[key], f"{place}: {key}") for key in ("question_id", "model_1", "model_2")
    )
    if model == baseline:
        raise BadFile(
            f"{place}: model_1 and model_2 must be different models, got {describe(model)} twice. Remove the row."
        )
    judge, prompt_name = _judge(row["judge"], place)
    for key in ("g1_winner", "g2_winner"):
        if not isinstance(row[key], str) or row[key] not in (*WINNERS, NO_WINNER):
            raise BadFile(
                f"{place}: {key} must be {', '.join(WINNERS)} or {NO_WINNER}, got {describe(row[key])}"
            )
    return Compared(
        (model, baseline),
        question,
        _turn(row, place),
        judge,
        (WINNERS.get(row["g1_winner"]), WINNERS.get(row["g2_winner"])),
        (_optional(row, "g1_judgment", place), _optional(row, "g2_judgment", place)),
        prompt_name,
        (_optional(row, "g1_user_prompt", place), _optional(row, "g2_user_prompt", place)),
        _tstamp(row, place),
    )


def _turn(row: Mapping[str, Any], place: str) -> int:
    return whole_number(row["turn"], f"{place}: turn", 1, MOST_TURNS) - 1


def _optional(row: Mapping[str, Any], key: str, place: str) -> str:
    return optional_text(row.get(key), f"{place}: {key}") or ""


def _tstamp(row: Mapping[str, Any], place: str) -> float | None:
    value = row.get("tstamp")
    if value is not None and number(value) is None:
        raise BadFile(f"{place}: tstamp must be a number, got {describe(value)}")
    return value


def _judge(value: Any, place: str) -> tuple[str, str]:
    """(judging model, name of its prompt) of a row."""
    match value:
        case str():
            return id_text(value, f"{place}: judge"), ""
        case [model, prompt]:
            return id_text(model, f"{place}: judge[0]"), text(prompt, f"{place}: judge[1]")
    raise BadFile(
        f"{place}: judge must be a model name, or a list of model name and prompt name, got {describe(value)}"
    )


def compared(model: str, baseline: str, verdict: Verdict) -> Compared:
    """A verdict as a row of FastChat's pairwise judgements.

    Each order has its own preference if the verdict's calls record both orders.
    """
    orders = {call.policy_first: call for call in verdict.calls}
    both = orders.keys() >= {True, False}
    one, two = (orders[order].preference if both else verdict.preference for order in (True, False))
    first, second = (orders[order].raw or "" if order in orders else "" for order in (True, False))
    return Compared(
        (model, baseline), verdict.item_id, verdict.turn, verdict.judge, (one, two), (first, second)
    )


def write_rated(path: Path, rows: Iterable[Rated]) -> None:
    def fields(row: Rated) -> dict[str, Any]:
        return {
            "question_id": _number(row.verdict.item_id),
            "model": row.model,
            "judge": [row.verdict.judge, row.prompt_name],
            "user_prompt": row.user_prompt,
            "judgment": row.verdict.raw or "",
            "score": -1 if row.score is None else int(row.score) if row.score.is_integer() else row.score,
            "turn": row.verdict.turn + 1,
        } | _stamp(row.tstamp)

    _write(path, map(fields, rows))


def write_compared(path: Path, rows: Iterable[Compared]) -> None:
    words = {value: name for name, value in WINNERS.items()}

    def fields(row: Compared) -> dict[str, Any]:
        g1, g2 = (NO_WINNER if value is None else words[value] for value in row.preferences)
        return {
            "question_id": _number(row.question),
            "model_1": row.models[0],
            "model_2": row.models[1],
            "g1_winner": g1,
            "g2_winner": g2,
            "judge": [row.judge, row.prompt_name],
            "g1_user_prompt": row.user_prompts[0],
            "g1_judgment": row.judgements[0],
            "g2_user_prompt": row.user_prompts[1],
            "g2_judgment": row.judgements[1],
            "turn": row.turn + 1,
        } | _stamp(row.tstamp)

    _write(path, map(fields, rows))


# What was judged --------------------------------------------------------------------------------------------

# Maximum share of recorded judgements without a score; do=rescore has the same limit (conf/do/rescore.yaml).
MOST_UNSCORED = 0.1
_REFERENCE = (
    r"(?:\[The Start of Reference Answer\]\n(?P<reference>.*?)\n\[The End of Reference Answer\]\n\n)?"
)
_ONE = r"\[The Start of Assistant{0}'s Answer\]\n(?P<answer{1}>.*)\n\[The End of Assistant{0}'s Answer\]"
_TURNS = (
    r"<\|The Start of {0}\|>\n\n### User:\n(?P<question_1{2}>.*?)\n\n### {1}:\n(?P<{3}_1{2}>.*?)"
    r"\n\n### User:\n(?P<question_2{2}>.*?)\n\n### {1}:\n(?P<{3}_2{2}>.*)\n\n<\|The End of {0}\|>"
)
_TALK = "Assistant {0}'s Conversation with User"
SHOWN = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\[(?:User )?Question\]\n(?P<question>.*?)\n\n" + _REFERENCE + _ONE.format("", ""),
        r"\[(?:User )?Question\]\n(?P<question>.*?)\n\n"
        + _REFERENCE
        + _ONE.format(" A", "")
        + r"\n\n"
        + _ONE.format(" B", "_b"),
        *(
            reference + _TURNS.format(_TALK.format("A"), "Assistant A", "", "answer") + other + r"\s*\Z"
            for reference in (
                _TURNS.format("Reference Answer", "Reference answer", "_r", "reference") + r"\n\n\n",
                "^",
            )
            for other in ("", r"\n\n\n" + _TURNS.format(_TALK.format("B"), "Assistant B", "_b", "answer"))
        ),
    )
]


@dataclass(frozen=True)
class RecordedPrompt:
    """Texts in a recorded prompt, one per turn."""

    turns: list[str]
    answers: list[str]
    others: list[str] | None  # Answers of the opponent.
    references: list[str] | None


def read_prompt(prompt: str) -> RecordedPrompt | None:
    """Questions and answers in a prompt of FastChat's templates; None for another prompt.

    They are found by the templates' marks.
    """
    for pattern in SHOWN:
        if match := pattern.search(prompt):
            texts = match.groupdict()
            own, others, references = (
                [text for name in names if (text := texts.get(name)) is not None]
                for names in (
                    ("answer", "answer_1", "answer_2"),
                    ("answer_b", "answer_1_b", "answer_2_b"),
                    ("reference", "reference_1_r", "reference_2_r"),
                )
            )
            turns = [
                texts[name]
                for name in ("question", "question_1", "question_2")
                if texts.get(name) is not None
            ]
            return RecordedPrompt(turns, own, others or None, references or None)
    return None


def read_judged(path: Path) -> list[tuple[Item, Completion, list[Verdict]]]:
    """Items, completions and verdicts of recorded judgements, for judgements of one or of two models.

    Of two models the first is the policy. The texts come from the recorded prompts. The last of repeated rows
    counts. Raises ValueError if a prompt cannot be read, if more than a tenth of the judgements have no
    score, or if there are several judges.
    """
    rows = read_judgements(path)
    last: dict[tuple[str, str, int], Rated | Compared] = {}
    for row in rows:
        if isinstance(row, Rated):
            last[row.model, row.verdict.item_id, row.verdict.turn] = row
        else:
            last[" vs ".join(row.models), row.question, row.turn] = row
    if (
        len(judges := {row.verdict.judge if isinstance(row, Rated) else row.judge for row in last.values()})
        > 1
    ):
        raise ValueError(
            f"{path} holds judgements of several judges ({', '.join(sorted(judges))}). Keep those of one judge."
        )
    if later := next((key for key in last if key[2] > 1), None):
        raise BadFile(
            f"{path}: {printable('/'.join(later[:2]))}: only turns 1 and 2 are supported, got turn {later[2] + 1}"
        )
    verdicts = {key: _recorded_verdict(row, f"{key[0]}/{key[1]}") for key, row in last.items()}
    unscored = sum(verdict.unscored is not None for verdict in verdicts.values())
    if unscored > MOST_UNSCORED * len(verdicts):
        share = f"{unscored} of {len(verdicts)} judgements ({unscored / len(verdicts):.0%}) have no score"
        raise ValueError(
            f"{path}: {share}, more than {MOST_UNSCORED:.0%}. Use a file with fewer failed judgements."
        )
    results = []
    for name, question in dict.fromkeys(key[:2] for key in last):
        of_item = {turn: last[name, question, turn] for turn in (0, 1) if (name, question, turn) in last}
        if judged := _judged(
            path, f"{name}/{question}", of_item, {turn: verdicts[name, question, turn] for turn in of_item}
        ):
            results.append(judged)
    return results


def _recorded_verdict(row: Rated | Compared, name: str) -> Verdict:
    if isinstance(row, Rated):
        return replace(row.verdict, item_id=name)
    unscored = "an order has no verdict" if row.preference is None else None
    return Verdict(
        name, row.judge, row.turn, category_of(row.question), preference=row.preference, unscored=unscored
    )


def _judged(
    path: Path, name: str, rows: Mapping[int, Rated | Compared], verdicts: Mapping[int, Verdict]
) -> tuple[Item, Completion, list[Verdict]] | None:
    """An item with its completion and verdicts; None if no verdict counts.

    The texts come from the last turn's prompt. Verdicts of earlier turns count if their prompts show the same
    answers.
    """
    shown = {
        turn: read_prompt(row.user_prompt if isinstance(row, Rated) else row.user_prompts[0])
        for turn, row in rows.items()
    }
    last = shown[max(shown)]
    if last is None or len(last.turns) != max(shown) + 1 or len(last.answers) != len(last.turns):
        raise ValueError(
            f"{path}: {name}: user_prompt is not one of FastChat's prompts, so its answers cannot be read"
        )

    def same(turn: int) -> bool:
        early, n = shown[turn], turn + 1
        return early is not None and (early.answers, early.others) == (
            last.answers[:n],
            last.others and last.others[:n],
        )

    kept = [verdict for turn, verdict in verdicts.items() if verdict.unscored is None and same(turn)]
    item = Item(
        name,
        next(iter(verdicts.values())).category,
        last.turns,
        baseline=last.others,
        reference=last.references,
    )
    return (item, Completion(name, item.turns, last.answers, [], []), kept) if kept else None


# FastChat's numbers -----------------------------------------------------------------------------------------


def last_ratings(rows: Iterable[Rated]) -> list[Verdict]:
    """One model's last row of each question and turn.

    Files are appended to, so earlier rows may rate older answers.
    """
    return list({(row.verdict.item_id, row.verdict.turn): row.verdict for row in rows}.values())


def last_comparisons(rows: Iterable[Compared]) -> list[Compared]:
    return list({(row.models, row.question, row.turn): row for row in rows}.values())


def fastchat_averages(rows: Sequence[Rated]) -> dict[str, float]:
    """`average`, `turn1`, `turn2` of one model's rows. A mean of nothing is left out."""
    turns = sorted({row.verdict.turn for row in rows})
    parts = {"average": rows} | {
        f"turn{turn + 1}": [row for row in rows if row.verdict.turn == turn] for turn in turns
    }
    scores = {name: [row.score for row in part if row.score is not None] for name, part in parts.items()}
    return {name: sum(values) / len(values) for name, values in scores.items() if values}


def fastchat_wins(rows: Sequence[Compared], model: str) -> dict[str, float]:
    """`win`, `loss`, `tie` of a model and FastChat's rates. Empty if no row has both orders."""
    won = [preference for row in rows if (preference := preference_for(row, model)) is not None]
    counts = {name: won.count(value) for name, value in (("win", 1.0), ("loss", 0.0), ("tie", 0.5))}
    if not won:
        return {}
    rates = {
        "win_rate": counts["win"],
        "loss_rate": counts["loss"],
        "win_rate_adjusted": counts["win"] + counts["tie"] / 2,
    }
    return counts | {name: value / len(won) for name, value in rates.items()}


def preference_for(row: Compared, model: str) -> float | None:
    """A row's preference for one of its two models; None without a verdict."""
    if row.preference is None:
        return None
    return row.preference if model == row.models[0] else 1 - row.preference


# Files ------------------------------------------------------------------------------------------------------


def _has(row: Mapping[str, Any], place: str, needed: Sequence[str]) -> None:
    if any(key not in row for key in needed):
        raise BadFile(f"{place}: expected an object with {', '.join(needed)}, got {describe(row)}")


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _number(question: str) -> int | str:
    """FastChat's number of a question, without the prefix mt_bench-; else the id as text."""
    question = question.removeprefix("mt_bench-")
    return int(question) if re.fullmatch("[0-9]{1,9}", question) else question


def _stamp(tstamp: float | None) -> dict[str, float]:
    return {} if tstamp is None else {"tstamp": tstamp}

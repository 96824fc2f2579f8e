"""A language model that rates answers, or pairs of them, in the manner of MT-Bench (Zheng et al. 2023, FastChat's llm_judge).

single     each turn of an item is rated by itself, 1 to 10; the second turn's prompt shows the first exchange as well
pairwise   each turn's two answers are compared in both orders: a win needs both, any disagreement is a tie

Where an item has reference answers the judge is shown them. Beside the rating that the text gives, `expected_rating` is the mean over
the ratings' own probabilities, where the endpoint lists them. Deviation: a reply without a rating stays, unscored and with its text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.judges.asked.asking_judge import NO_BASELINE, AskingJudge, Replies, ShownRequest
from bench.judges.asked.prompts import PromptTemplate, mt_bench_templates
from bench.judges.asked.replies import Reading, read_pairwise, read_rating
from bench.judges.asked.request import Ask, Progress, request_body
from bench.records import Item, Verdict, about_texts
from bench.store.stage_settings import LanguageJudgeSettings


@dataclass(frozen=True)
class AskedRating(AskingJudge):
    """`templates` by FastChat's names."""

    templates: Mapping[str, PromptTemplate]
    mode: str
    name: str = "mt_bench"
    most_turns: ClassVar[int] = 2
    against_baseline: ClassVar = False  # it reads the items'

    def show(self, item: Item, ours: Sequence[str], turn: int) -> Iterator[ShownRequest]:
        math, later = "-math-v1" if item.reference else "", "-multi-turn" if turn else ""
        if self.mode == "single":
            yield self._one(f"single{math or '-v1'}{later}", item, turn, None, {"answer": ours})
            return
        if item.baseline is None or ours[turn] == item.baseline[turn]:
            return
        for first in (True, False):
            answers = (ours, item.baseline) if first else (item.baseline, ours)
            yield self._one(f"pair{math or '-v2'}{later}", item, turn, first, {"answer_a": answers[0], "answer_b": answers[1]})

    def _one(self, name: str, item: Item, turn: int, first: bool | None, answers: Mapping[str, Sequence[str]]) -> ShownRequest:
        """The first turn's prompts take `question` and `answer`, the second's `question_1`, `question_2` and so on."""
        told = {"question": item.turns, **answers}
        texts = {key: values[0] for key, values in told.items()} if turn == 0 else {}
        for number in range(turn + 1):
            texts |= {f"{key}_{number + 1}": values[number] for key, values in told.items()} if turn else {}
            if item.reference:
                texts[f"ref_answer_{number + 1}"] = item.reference[number]
        template = self.templates[name]
        return self.shown(item, turn, first, template.fill(texts), template.digest)

    def verdict(self, item: Item, ours: Sequence[str], turn: int, replies: Replies) -> Verdict:
        read = read_rating if self.mode == "single" else read_pairwise
        readings = [read(reply) for _, reply in replies]
        baseline = item.baseline[turn] if self.mode == "pairwise" and item.baseline is not None else None
        about = about_texts(ours[turn], baseline) | {
            "turn": turn,
            "category": item.category,
            "raw": "\n\n".join(reply.text for _, reply in replies) or None,
            "calls": self.calls(replies, readings),
        }
        if why := next((reading.why for reading in readings if reading.why), None):
            return Verdict(item.id, self.name, unscored=why, **about)
        if self.mode == "single":
            (reading,) = readings
            details = None if reading.expected is None else {"expected_rating": reading.expected}
            return Verdict(item.id, self.name, rating=reading.value, details=details, **about)
        if item.baseline is None:
            return Verdict(item.id, self.name, unscored=NO_BASELINE, **about)
        return Verdict(item.id, self.name, preference=_both_orders(readings), **about)


def _both_orders(readings: Sequence[Reading]) -> float:
    """1 or 0 where both orders agree on a winner, else a tie; equal answers, about which nobody was asked, are one too.

    The first reading is of the order in which the policy is A, whose value is the share of B.
    """
    if not readings:
        return 0.5
    shares = [1 - (readings[0].value or 0.0), readings[1].value or 0.0]
    return shares[0] if shares[0] == shares[1] else 0.5


def make_judge(settings: LanguageJudgeSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress) -> AskedRating:
    model = settings.model or inputs["model"].name
    decoding = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 2048, "top_logprobs": 20}
    parser = f"{'rating' if settings.mode == 'single' else 'winner'}/{settings.parser}"
    return AskedRating(request_body(settings, model, decoding), parser, ask, mt_bench_templates(inputs["prompts"]), settings.mode)

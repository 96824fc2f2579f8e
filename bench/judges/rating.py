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
from typing import Any, ClassVar

from bench.judges.asked.prompts import Template, mt_bench_templates
from bench.judges.asked.replies import Reading, make_call, read_pairwise, read_rating
from bench.judges.asked.request import Ask, Progress, Reply, Request, request_body
from bench.records import Completion, Item, Verdict, text_digest
from bench.store.stage_settings import LanguageJudgeSettings


@dataclass(frozen=True)
class Shown:
    """One request about a turn of an item; `policy_first` is None where there is no opponent."""

    item_id: str
    turn: int
    policy_first: bool | None
    template: Template
    request: Request


@dataclass(frozen=True)
class AskedRating:
    """`templates` by FastChat's names; `body` is what a request holds beside its messages."""

    templates: Mapping[str, Template]
    mode: str
    body: dict[str, Any]
    parser: str
    ask: Ask
    name: str = "mt_bench"
    against_baseline: ClassVar = False  # it reads the items'

    def requests(self, items: Sequence[Item], completions: Sequence[Completion]) -> list[Shown]:
        by_id = {item.id: item for item in items}
        return [
            shown
            for completion in completions
            for turn in range(min(2, len(completion.completions)))
            for shown in self._shown(by_id[completion.id], completion.completions, turn)
        ]

    def _shown(self, item: Item, ours: Sequence[str], turn: int) -> Iterator[Shown]:
        math, later = "-math-v1" if item.reference else "", "-multi-turn" if turn else ""
        if self.mode == "single":
            yield self._one(f"single{math or '-v1'}{later}", item, turn, None, {"answer": ours})
            return
        if item.baseline is None or ours[turn] == item.baseline[turn]:
            return
        for first in (True, False):
            answers = (ours, item.baseline) if first else (item.baseline, ours)
            yield self._one(f"pair{math or '-v2'}{later}", item, turn, first, {"answer_a": answers[0], "answer_b": answers[1]})

    def _one(self, name: str, item: Item, turn: int, first: bool | None, answers: Mapping[str, Sequence[str]]) -> Shown:
        """The first turn's prompts take `question` and `answer`, the second's `question_1`, `question_2` and so on."""
        told = {"question": item.turns, **answers}
        texts = {key: values[0] for key, values in told.items()} if turn == 0 else {}
        for number in range(turn + 1):
            texts |= {f"{key}_{number + 1}": values[number] for key, values in told.items()} if turn else {}
            if item.reference:
                texts[f"ref_answer_{number + 1}"] = item.reference[number]
        template = self.templates[name]
        return Shown(item.id, turn, first, template, Request(template.fill(texts), self.body))

    def judge(self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None) -> Iterator[Verdict]:
        shown = self.requests(items, completions)
        replies: dict[tuple[str, int], list[tuple[Shown, Reply]]] = {}
        for asked, reply in zip(shown, self.ask([asked.request for asked in shown]), strict=True):
            replies.setdefault((asked.item_id, asked.turn), []).append((asked, reply))
        by_id = {item.id: item for item in items}
        for completion in completions:
            for turn in range(min(2, len(completion.completions))):
                yield self._verdict(by_id[completion.id], completion.completions, turn, replies.get((completion.id, turn), []))

    def _verdict(self, item: Item, ours: Sequence[str], turn: int, replies: Sequence[tuple[Shown, Reply]]) -> Verdict:
        read = read_rating if self.mode == "single" else read_pairwise
        readings = [read(reply) for _, reply in replies]
        about: dict[str, Any] = {
            "turn": turn,
            "category": item.category,
            "policy_length": len(ours[turn]),
            "policy_digest": text_digest(ours[turn]),
            "raw": "\n\n".join(reply.text for _, reply in replies) or None,
            "calls": [
                make_call(asked.request, reply, reading, asked.template.digest, self.parser, asked.policy_first)
                for (asked, reply), reading in zip(replies, readings, strict=True)
            ],
        }
        if self.mode == "pairwise" and item.baseline is not None:
            about |= {"baseline_length": len(item.baseline[turn]), "baseline_digest": text_digest(item.baseline[turn])}
        if why := next((reading.why for reading in readings if reading.why), None):
            return Verdict(item.id, self.name, unscored=why, **about)
        if self.mode == "single":
            (reading,) = readings
            details = None if reading.expected is None else {"expected_rating": reading.expected}
            return Verdict(item.id, self.name, rating=reading.value, details=details, **about)
        if item.baseline is None:
            return Verdict(item.id, self.name, unscored="the item has no baseline completion to compare with", **about)
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
    return AskedRating(mt_bench_templates(inputs["prompts"]), settings.mode, request_body(settings, model, decoding), parser, ask)

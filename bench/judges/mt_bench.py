"""A language model rates completions, or compares pairs, as in MT-Bench (Zheng et al. 2023; FastChat).

single     each turn of an item is rated from 1 to 10; the second turn's prompt also shows the first turn
pairwise   each turn's two completions are compared in both orders; unless the same
           completion wins in both, it is a tie

The judge sees an item's reference answers if there are any. `expected_rating` is the mean of the ratings 1 to
10 weighted by their probabilities, if the endpoint lists log-probs. Deviation: a reply without a rating is
kept, unscored and with its text.
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
    """Rates turns or compares pairs. `templates`: prompts by FastChat's names."""

    templates: Mapping[str, PromptTemplate]
    mode: str
    name: str = "mt_bench"
    most_turns: ClassVar[int] = 2
    against_baseline: ClassVar = False  # It reads the baselines from the items.

    def turn_requests(self, item: Item, ours: Sequence[str], turn: int) -> Iterator[ShownRequest]:
        math, later = "-math-v1" if item.reference else "", "-multi-turn" if turn else ""
        if self.mode == "single":
            yield self._turn_request(f"single{math or '-v1'}{later}", item, turn, None, {"answer": ours})
            return
        if item.baseline is None or ours[turn] == item.baseline[turn]:
            return
        for first in (True, False):
            answers = (ours, item.baseline) if first else (item.baseline, ours)
            yield self._turn_request(
                f"pair{math or '-v2'}{later}",
                item,
                turn,
                first,
                {"answer_a": answers[0], "answer_b": answers[1]},
            )

    def _turn_request(
        self, name: str, item: Item, turn: int, first: bool | None, answers: Mapping[str, Sequence[str]]
    ) -> ShownRequest:
        """The request for a turn, with FastChat's placeholders filled in.

        The first turn's prompts take `question` and `answer`; the second's take `question_1`, `question_2`
        and so on.
        """
        fields = {"question": item.turns, **answers}
        texts = {key: values[0] for key, values in fields.items()} if turn == 0 else {}
        for number in range(turn + 1):
            texts |= {f"{key}_{number + 1}": values[number] for key, values in fields.items()} if turn else {}
            if item.reference:
                texts[f"ref_answer_{number + 1}"] = item.reference[number]
        template = self.templates[name]
        return self.make_request(item, turn, first, template.fill(texts), template.digest)

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
    """1 or 0 if both orders agree on a winner, else 0.5 (a tie). Equal completions have no readings and are a
    tie.

    In the first reading the policy is A, in the second it is B. A reading's value is the share of B.
    """
    if not readings:
        return 0.5
    first, second = (reading.value for reading in readings)
    assert first is not None and second is not None  # Unreadable replies were left out before.
    shares = [1 - first, second]
    return shares[0] if shares[0] == shares[1] else 0.5


def make_judge(
    settings: LanguageJudgeSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress
) -> AskedRating:
    model = settings.model or inputs["model"].name
    decoding = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 2048, "top_logprobs": 20}
    parser = f"{'rating' if settings.mode == 'single' else 'winner'}/{settings.parser}"
    return AskedRating(
        request_body(settings, model, decoding),
        parser,
        ask,
        mt_bench_templates(inputs["prompts"]),
        settings.mode,
    )

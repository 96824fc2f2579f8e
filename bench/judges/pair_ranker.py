"""A pairwise ranker as a judge: a model that reads a prompt and two answers at once and says how much better the first is.

preference = (σ(f(prompt, policy, baseline)) + σ(-f(prompt, baseline, policy))) / 2        f: a logit, of the answer shown first

after PairRM (Jiang et al. 2023, LLM-Blender). Two kinds of folder are read (bench/engines/ranker.py):

PairRM's own       the transformers form of PairRM (llm-blender/PairRM-hf), known by its config: its marks, its head, its cuts
any other          a sequence classifier of one output, fed a text of both answers: `template`, through its chat template if it has one

A causal model that is asked for a letter is no ranker but judge=local. Both orders are always read; equal answers are a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from bench.judges import compared
from bench.judges.asked.prompts import PromptTemplate
from bench.judges.asked.request import Ask, Progress
from bench.models.tokenize import conversation
from bench.records import Call, Completion, Item, Message, Verdict, about_texts, sigmoid
from bench.store.stage_settings import PairRankerSettings

PARSER = "pair ranker 1"
Compare = Callable[[Sequence[tuple[str, str, str]]], Sequence[float]]  # of (prompt, first, second): logits that the first is better


def pair_template(text: str) -> PromptTemplate:
    return PromptTemplate("pair", (("user", text),))


def pair_text(template: PromptTemplate, pair: tuple[str, str, str]) -> str:
    """What a classifier reads; nothing in a prompt or an answer is taken for a place of the template."""
    (message,) = template.fill(dict(zip(("prompt", "first", "second"), pair, strict=True)))
    return message["content"]


def prompt_text(messages: Sequence[Message]) -> str:
    """What was asked, as one text: messages before the last turn come before it, a blank line between."""
    return "\n\n".join(message["content"] for message in messages)


@dataclass(frozen=True)
class RankedPreference:
    """`model` and `digest`: of what is asked and of the form that it is asked in, for the record."""

    compare: Compare
    model: str
    digest: str
    name: str = "pair_ranker"
    against_baseline: ClassVar = True

    def judge(self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None) -> Iterator[Verdict]:
        asked = list(compared(items, completions, against))
        differ = [(item, ours, theirs) for item, ours, theirs in asked if ours != theirs]
        prompts = {item.id: prompt_text(conversation(item, [])) for item, _, _ in differ}
        pairs = [(prompts[item.id], *texts) for item, ours, theirs in differ for texts in ((ours, theirs), (theirs, ours))]
        logits = self.compare(pairs) if pairs else []
        found = {item.id: (logits[2 * i], logits[2 * i + 1]) for i, (item, _, _) in enumerate(differ)}
        for item, ours, theirs in asked:
            yield self._verdict(item, ours, theirs, found.get(item.id))

    def _verdict(self, item: Item, ours: str, theirs: str, logits: tuple[float, float] | None) -> Verdict:
        shares = [] if logits is None else [sigmoid(logits[0]), sigmoid(-logits[1])]  # of the policy, shown first and second
        return Verdict(
            item.id,
            self.name,
            category=item.category,
            preference=sum(shares) / 2 if shares else 0.5,
            details=None if logits is None else {"logit_policy_first": logits[0], "logit_baseline_first": logits[1]},
            calls=[
                Call(self.model, None, self.digest, PARSER, {}, policy_first=first, preference=share)
                for first, share in zip((True, False), shares, strict=False)
            ],
            **about_texts(ours, theirs),
        )


def make_judge(settings: PairRankerSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress) -> RankedPreference:
    from bench.engines.ranker import load_ranker

    template = pair_template(settings.template)
    ranker = load_ranker(inputs["model"], settings.dtype, settings.batch_size, partial(pair_text, template))
    return RankedPreference(lambda pairs: ranker.logits(pairs, progress), inputs["model"].name, template.digest)

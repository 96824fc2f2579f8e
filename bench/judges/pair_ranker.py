"""A pairwise ranker as a judge: a model that reads a prompt with two completions and scores the first.

preference = (σ(f(prompt, policy, baseline)) + σ(-f(prompt, baseline, policy))) / 2
f = logit of the completion shown first

After PairRM (Jiang et al. 2023, LLM-Blender). Two kinds of model folder work (bench/engines/ranker.py):

PairRM       the transformers form of PairRM (llm-blender/PairRM-hf), recognized by its config. Its own marks,
             head and truncation are used.
any other    a sequence classifier with one output. It reads one text with both completions: `template` filled
             in, then the model's chat template if it has one.

If your model is a causal model that answers with a letter, use judge=local. Both orders are always read. Equal completions are a
tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from bench.judges import text_pairs
from bench.judges.asked.prompts import PromptTemplate
from bench.judges.asked.request import Ask, Progress
from bench.models.tokenize import conversation
from bench.records import Call, Completion, Item, Message, Verdict, about_texts, sigmoid
from bench.store.stage_settings import PairRankerSettings

PARSER = "pair ranker 1"
# (prompt, first, second) -> logit that first is better
Compare = Callable[[Sequence[tuple[str, str, str]]], Sequence[float]]


def pair_template(text: str) -> PromptTemplate:
    return PromptTemplate("pair", (("user", text),))


def pair_text(template: PromptTemplate, pair: tuple[str, str, str]) -> str:
    """The text that a classifier reads. Braces in a prompt or completion are not treated as placeholders."""
    (message,) = template.fill(dict(zip(("prompt", "first", "second"), pair, strict=True)))
    return message["content"]


def prompt_text(messages: Sequence[Message]) -> str:
    """The conversation as one text: all messages in order, a blank line between two."""
    return "\n\n".join(message["content"] for message in messages)


@dataclass(frozen=True)
class RankedPreference:
    """Judges pairs with a ranker.

    `model` (its name) and `digest` (of the template) go into the record of each call.
    """

    compare: Compare
    model: str
    digest: str
    name: str = "pair_ranker"
    against_baseline: ClassVar = True

    def judge(
        self, items: Sequence[Item], completions: Sequence[Completion], against: Sequence[Completion] | None
    ) -> Iterator[Verdict]:
        compared = list(text_pairs(items, completions, against))
        differ = [(item, ours, theirs) for item, ours, theirs in compared if ours != theirs]
        prompts = {item.id: prompt_text(conversation(item, [])) for item, _, _ in differ}
        pairs = [
            (prompts[item.id], *texts)
            for item, ours, theirs in differ
            for texts in ((ours, theirs), (theirs, ours))
        ]
        logits = self.compare(pairs) if pairs else []
        by_item = {item.id: (logits[2 * i], logits[2 * i + 1]) for i, (item, _, _) in enumerate(differ)}
        for item, ours, theirs in compared:
            yield self._verdict(item, ours, theirs, by_item.get(item.id))

    def _verdict(self, item: Item, ours: str, theirs: str, logits: tuple[float, float] | None) -> Verdict:
        # P(policy better), with the policy shown first and second.
        shares = [] if logits is None else [sigmoid(logits[0]), sigmoid(-logits[1])]
        return Verdict(
            item.id,
            self.name,
            category=item.category,
            preference=sum(shares) / 2 if shares else 0.5,
            details=None
            if logits is None
            else {"logit_policy_first": logits[0], "logit_baseline_first": logits[1]},
            calls=[
                Call(self.model, None, self.digest, PARSER, {}, policy_first=first, preference=share)
                for first, share in zip((True, False), shares, strict=False)
            ],
            **about_texts(ours, theirs),
        )


def make_judge(
    settings: PairRankerSettings, inputs: Mapping[str, Path], ask: Ask, progress: Progress
) -> RankedPreference:
    from bench.engines.ranker import load_ranker

    template = pair_template(settings.template)
    ranker = load_ranker(inputs["model"], settings.dtype, settings.batch_size, partial(pair_text, template))
    return RankedPreference(
        lambda pairs: ranker.logits(pairs, progress), inputs["model"].name, template.digest
    )

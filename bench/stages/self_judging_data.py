"""Data for a model that judges itself: questions, evaluations to train on, rankings, and written prompts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from bench.config import JudgePrompt, Settings
from bench.judges.self_judge import JudgeQuestion, add_up, questions, read_reply
from bench.models.tokenize import conversation
from bench.readers.new_prompts import few_shot, new_ones
from bench.readers.subsets import nested_subset, prompt_key
from bench.records import (
    Completion,
    Item,
    Message,
    Pair,
    Reward,
    Text,
    by_id,
    draw_name,
    grouped,
    read_completions,
    read_items,
    read_rewards,
    read_rows,
    text_digest,
    write_jsonl,
)
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import (
    JudgeQuestionData,
    KeptEvaluationData,
    PromptRequestData,
    RankedData,
    TrueEvaluationData,
    WrittenPromptData,
)
from bench.world import judging
from bench.world.tasks import Turn

SETTINGS = (
    RankedData,
    JudgeQuestionData,
    TrueEvaluationData,
    KeptEvaluationData,
    PromptRequestData,
    WrittenPromptData,
)


def make(settings: Settings, run: StageRun) -> Outcome:
    match settings:
        case RankedData():
            return _rankings(settings, run)
        case JudgeQuestionData():
            items = [
                as_item(question.name, question.messages)
                for item, draws in with_draws(run.inputs)
                for question in questions(settings.prompt, item, draws)
            ]
            write_jsonl(run.out / "items.jsonl", items)
            return Outcome({"rows": len(items)})
        case TrueEvaluationData():
            return _true_evaluations(settings, run)
        case KeptEvaluationData():
            return _kept_evaluations(settings, run)
        case PromptRequestData():
            return _requests(settings, run)
        case WrittenPromptData():
            return _written_prompts(settings, run)
    raise TypeError(f"no data of evaluations for {type(settings).__name__}")


def with_draws(inputs: Mapping[str, Path]) -> list[tuple[Item, list[Completion]]]:
    """Each item with its completions, in drawing order."""
    draws = grouped((completion.id, completion) for completion in read_completions(inputs["completions"]))
    return [(item, draws.get(item.id, [])) for item in read_items(inputs["items"])]


def read_replies(folder: Path) -> Iterator[tuple[str, int, str]]:
    """Yields (question, draw, text) from a sample stage that has answered questions."""
    for reply in read_completions(folder):
        yield reply.id, reply.draw, reply.completions[0]


def as_item(name: str, prompt: Sequence[Message], baseline: list[str] | None = None) -> Item:
    """An item for a prompt: the last message is the turn to complete, earlier ones are context."""
    *context, last = prompt
    return Item(
        name, None, [last["content"]], baseline=baseline, context=context, plain=last["role"] == "text"
    )


# Rankings ---------------------------------------------------------------------------------------------------


def _rankings(settings: RankedData, run: StageRun) -> Outcome:
    rows = read_rows(run.inputs["preferences"] / f"{settings.split}.jsonl")
    items, completions, rewards, best = [], [], [], []
    pairs = [row for row in rows if isinstance(row, Pair)]
    assert len(pairs) == len(rows)
    for first, texts in (
        _orders(pairs) if settings.whole else [(row, (row.chosen, row.rejected)) for row in pairs]
    ):
        item = as_item(f"{settings.split}-{first.id}", first.prompt)
        drawn = [Completion(item.id, item.turns, [text], [], [], draw) for draw, text in enumerate(texts)]
        items.append(item)
        completions += drawn
        rewards += [Reward(draw_name(one), 1.0 - one.draw / (len(texts) - 1)) for one in drawn]
        best.append(Text(item.id, first.prompt, texts[0]))
    for name, records in (
        ("items", items),
        ("completions", completions),
        ("rewards", rewards),
        ("rows", best),
    ):
        write_jsonl(run.out / f"{name}.jsonl", records)  # type: ignore[arg-type]  # records of one kind each
    return Outcome({"rows": len(items)})


def _orders(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, tuple[str, ...]]]:
    """Rankings of the pairs, each as (its first pair, completions from best to worst).

    Pairs of one prompt that fix a whole order of their completions (OASST's neighbours in rank, all pairs of Nectar) are
    one ranking. Any other pair is a ranking of two.
    """
    for of_prompt in grouped((prompt_key(pair.prompt), pair) for pair in pairs).values():
        rest = list(of_prompt)
        while rest:
            texts, linked = {rest[0].chosen, rest[0].rejected}, [rest[0]]
            while more := [
                pair for pair in rest if pair not in linked and texts & {pair.chosen, pair.rejected}
            ]:
                linked += more
                texts |= {text for pair in more for text in (pair.chosen, pair.rejected)}
            rest = [pair for pair in rest if pair not in linked]
            if (order := _whole_order(linked, texts)) is None:
                yield from ((pair, (pair.chosen, pair.rejected)) for pair in linked)
            else:
                yield linked[0], order


def _whole_order(pairs: Sequence[Pair], texts: Set[str]) -> tuple[str, ...] | None:
    """The completions from best to worst, or None where the pairs leave an order open or contradict each other."""
    order: list[str] = []
    while left := texts - set(order):
        beaten = {pair.rejected for pair in pairs if pair.chosen in left}
        if len(best := left - beaten) != 1:
            return None
        order += best
    return tuple(order)


# Evaluations to learn from ----------------------------------------------------------------------------------


def _true_evaluations(settings: TrueEvaluationData, run: StageRun) -> Outcome:
    sources = [run.inputs, {"items": run.inputs["items"], "completions": run.inputs["answers"]}]
    rows: list[Text] = []
    for place, source in enumerate(sources):
        rankings = with_draws(source)
        for item, draws in nested_subset(rankings, settings.fraction, settings.seed):  # type: ignore[type-var]  # any list
            if item.task is None:
                raise ValueError(
                    f"Item {item.id} has no task of the controlled world, and true evaluations exist only for such tasks."
                )
            turn = Turn.from_json(item.task[0])
            replies = (
                (question, _true_reply(settings, turn, question))
                for question in questions(settings.prompt, item, draws)
            )
            rows += [
                Text(f"{place}/{question.name}", question.messages, reply)
                for question, reply in replies
                if reply is not None
            ]
    return _written(rows, settings.n, settings.seed, run.out)


def _true_reply(settings: TrueEvaluationData, turn: Turn, question: JudgeQuestion) -> str | None:
    texts = [completion.completions[0] for completion in question.about]
    match settings.prompt:
        case "criteria":
            return str(judging.marks(turn, texts[0], settings.gold)[question.criterion])
        case "additive":
            return judging.total_reply(turn, texts[0], settings.gold)
        case "multiple_choice":
            return judging.grade_reply(turn, texts[0], settings.gold)
        case "pairwise":
            return judging.better_reply(turn, texts[0], texts[1], settings.gold)


def _kept_evaluations(settings: KeptEvaluationData, run: StageRun) -> Outcome:
    """Writes the readable judgements of those rankings that the judgements agree with."""
    replies = list(read_replies(run.inputs["replies"]))
    scores = add_up(settings.prompt, replies).scores
    truths = read_rewards(run.inputs["completions"])
    questions_by_id = by_id(read_items(run.inputs["questions"]))
    agreeing: set[str] = set()
    for _, draws in with_draws(run.inputs):
        first, second = map(draw_name, draws)
        if (
            first in scores
            and second in scores
            and (scores[first] - scores[second]) * (truths[first] - truths[second]) > 0
        ):
            agreeing |= {first, second}
    kept = [
        Text(f"{name}/{draw}", conversation(questions_by_id[name], []), text.strip())
        for name, draw, text in replies
        if name.rpartition("#")[0].split(">")[0] in agreeing and read_reply(settings.prompt, text) is not None
    ]
    if not kept:
        raise ValueError(
            f"None of {len(replies)} judgements of {len(truths)} ranked completions can be read and agrees with a ranking: the start model "
            "cannot judge in this form. Try another method.judge_prompt, or method.eft=false."
        )
    return _written(_thinned(settings.prompt, kept, settings.seed), settings.n, settings.seed, run.out)


def _thinned(prompt: JudgePrompt, rows: Sequence[Text], seed: int) -> list[Text]:
    """The rows with the most frequent judgement made as rare as the second.

    Otherwise a model learns to give always the same judgement.
    """
    counts = Counter(read_reply(prompt, row.completion) for row in rows).most_common(2)
    if len(counts) < 2:
        return list(rows)
    (most, _), (_, wanted) = counts
    same = [row.id for row in rows if read_reply(prompt, row.completion) == most]
    kept = set(random.Random(f"thin/{seed}").sample(same, wanted))
    return [row for row in rows if read_reply(prompt, row.completion) != most or row.id in kept]


def _written(rows: list[Text], n: int, seed: int, out: Path) -> Outcome:
    random.Random(f"evaluations/{seed}").shuffle(rows)
    write_jsonl(out / "rows.jsonl", rows[:n])
    return Outcome({"rows": len(rows[:n])})


# Prompts ----------------------------------------------------------------------------------------------------


def _requests(settings: PromptRequestData, run: StageRun) -> Outcome:
    known, written = _known(run.inputs)
    rng = random.Random(f"requests/{settings.seed}")
    requests = [
        Item(f"request-{place}", None, [few_shot(known, written, settings.n_known, settings.n_written, rng)])
        for place in range(settings.n)
    ]
    write_jsonl(run.out / "items.jsonl", requests)
    return Outcome({"rows": len(requests)})


def _written_prompts(settings: WrittenPromptData, run: StageRun) -> Outcome:
    known, written = _known(run.inputs)
    texts = [reply.completions[0] for reply in read_completions(run.inputs["completions"])]
    new = new_ones(texts, [*known, *written], settings.similarity, settings.n)
    if not new.kept:
        raise ValueError(
            f"None of the {len(texts)} prompts that the start model wrote is new and usable ({new.dropped}). "
            "Raise method.similarity or method.n_prompts."
        )
    write_jsonl(
        run.out / "items.jsonl", [Item(f"written-{text_digest(text)}", None, [text]) for text in new.kept]
    )
    return Outcome({"rows": len(new.kept), "written": len(texts), **new.dropped})


def _known(inputs: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """Prompts of the rankings, each once, and the prompts written in earlier iterations."""
    known = {prompt_key(conversation(item, [])): item.turns[0] for item in read_items(inputs["rankings"])}
    earlier = [folder for role, folder in sorted(inputs.items()) if role.startswith("earlier")]
    return list(known.values()), [item.turns[0] for folder in earlier for item in read_items(folder)]

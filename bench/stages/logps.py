"""Scores given completions with a model: summed log-probabilities, or rewards of a reward model, by row id.

One reference pass serves every beta, order and batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config import Settings
from bench.engines.opening import open_engine
from bench.engines.reward import Scorer
from bench.models.tokenize import Ids, all_preference_ids, all_prompt_ids, conversation, row_ids
from bench.records import (
    Logps,
    Pair,
    Reward,
    Unpaired,
    draw_name,
    read_completions,
    read_items,
    read_rows,
    write_jsonl,
)
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import LogpsSettings, RewardScoreSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(settings: Settings, run: StageRun) -> Outcome:
    match settings:
        case LogpsSettings():
            return _logps(settings, run)
        case RewardScoreSettings():
            return _rewards(settings, run)
    raise TypeError(f"no logps stage for {type(settings).__name__}")


def _logps(settings: LogpsSettings, run: StageRun) -> Outcome:
    engine = open_engine(settings, run.inputs)
    if settings.rows == "preferences":
        assert settings.max_length is not None, "preference rows are cut where training cuts them"
        folder, max_length = run.inputs["preferences"], settings.max_length
        named = list(
            _preferences(
                engine.tokenizer, folder, settings.splits, max_length, settings.mismatched, settings.control
            )
        )
    else:
        if settings.max_length is not None and settings.control is not None:
            raise ValueError(
                f"Texts cut for training are scored without a control token, got {settings.control}. Leave max_length or control out."
            )
        completions, items = run.inputs["completions"], run.inputs["items"]
        if settings.max_length is None:
            named = list(_drawn(engine.tokenizer, completions, items, settings.control))
        else:
            named = list(_texts(engine.tokenizer, completions, items, settings.max_length))
    sums = engine.logps([ids for _, ids in named], run.progress)
    if bad := [
        (name, value) for (name, _), value in zip(named, sums, strict=True) if not math.isfinite(value)
    ]:
        raise FloatingPointError(
            f"{len(bad)} of {len(sums)} log-probabilities are not finite. The first is {bad[0][1]}, of {bad[0][0]}. The model has probably "
            "diverged: lower its learning rate."
        )
    write_jsonl(
        run.out / "logps.jsonl",
        [Logps(name, value, len(ids.completion)) for (name, ids), value in zip(named, sums, strict=True)],
    )
    return _outcome(named)


def _rewards(settings: RewardScoreSettings, run: StageRun) -> Outcome:
    scorer = Scorer(run.inputs["model"], settings.dtype, settings.batch_size)
    if settings.rows == "completions":
        named = list(
            _texts(scorer.tokenizer, run.inputs["completions"], run.inputs["items"], settings.max_length)
        )
    else:
        folder = run.inputs["preferences"]
        named = list(
            _preferences(scorer.tokenizer, folder, settings.splits, settings.max_length, mismatched=False)
        )
    rewards = scorer.rewards([ids for _, ids in named], run.progress)
    write_jsonl(
        run.out / "rewards.jsonl",
        [Reward(name, reward) for (name, _), reward in zip(named, rewards, strict=True)],
    )
    return _outcome(named)


def _outcome(named: Sequence[tuple[str, Ids]]) -> Outcome:
    return Outcome(
        {"rows": len(named), "tokens": sum(len(ids.prompt) + len(ids.completion) for _, ids in named)}
    )


def _preferences(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    splits: Sequence[str],
    max_length: int,
    mismatched: bool,
    control: str | None = None,
) -> Iterator[tuple[str, Ids]]:
    """Yields (name, ids) of each completion of the rows; names are `<split>/<row id>/<column>`."""
    for split in splits:
        rows: Sequence[Pair | Unpaired] = read_rows(folder / f"{split}.jsonl")
        ids_of = all_preference_ids(tokenizer, rows, max_length, control, named=f"{split} row")
        for row, columns in zip(rows, ids_of, strict=True):
            for column, ids in columns.items():
                if mismatched or not column.startswith("mismatched"):
                    yield f"{split}/{row.id}/{column}", ids


def _texts(
    tokenizer: PreTrainedTokenizerBase, folder: Path, items: Path, max_length: int
) -> Iterator[tuple[str, Ids]]:
    """Yields (name, ids) of the text of every draw, tokenised and cut as for training."""
    prompts = {item.id: conversation(item, []) for item in read_items(items)}
    for completion in read_completions(folder):
        yield (
            draw_name(completion),
            row_ids(tokenizer, prompts[completion.id], completion.completions[0], max_length),
        )


def _drawn(
    tokenizer: PreTrainedTokenizerBase, folder: Path, items: Path, control: str | None
) -> Iterator[tuple[str, Ids]]:
    """Yields (item id, ids) of a policy's completions: exactly the sampled tokens, without an EOS if cut."""
    prompts = {item.id: conversation(item, []) for item in read_items(items)}
    completions = list(read_completions(folder))
    before = all_prompt_ids(tokenizer, [prompts[completion.id] for completion in completions], control)
    for completion, ids in zip(completions, before, strict=True):
        yield completion.id, Ids(ids, completion.ids[0])

"""AlpacaEval 2.0: reads and writes its files, and computes its official numbers.

Source: Dubois et al. 2024; package alpaca-eval 0.6.6. The official numbers come from the package's own
functions, called offline on stored verdicts, so they equal the package's numbers:

win_rate, standard_error, n_wins, n_wins_base, n_draws, n_total, discrete_win_rate
    from get_winrate; percent and counts, over rows with a vote
length_controlled_winrate, lc_standard_error
    from get_length_controlled_winrate; percent. It goes by row position: row k takes difficulty k, whatever
    its instruction. A file without its first row is scored with wrong difficulties.
avg_length
    integer part of the mean number of characters of the model's outputs

Length control needs the *calibration*: `df_gamed.csv` of the hub's data set tatsu-lab/alpaca_eval, or a file
with its columns. Our own `lc_win_rate` (bench/stats/length_control.py) reads the same file by item.

An item's id is the digest of its instruction. So annotations, outputs and references need not have the same
order.
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from bench.engines.alpaca_eval_package import glm_winrate_module
from bench.records import Completion, Item, Verdict, about_texts, by_id, text_digest
from bench.stats.estimates import Unmeasured
from bench.stats.length_control import Calibration, Gamed
from bench.text_files import (
    BadFile,
    csv_number,
    decode,
    describe,
    id_text,
    number,
    optional_text,
    printable,
    read_bytes,
    read_csv,
    read_objects,
    text,
    whole_number,
)

GAMED_WEIGHT = 0.2  # Lambda of the package's `length_controlled_v1`, divided among the gamed baselines.
NO_GENERATOR = "(no generator)"  # For outputs without a model name.
NO_VOTE = "no vote was read from the judge's reply"


def item_id(instruction: str) -> str:
    """The id of an item: the digest of its instruction."""
    return text_digest(instruction)


# Outputs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outputs:
    """A model's outputs on one-turn items, in the file's order.

    For a reference file, each output is also its item's baseline.
    """

    model: str
    items: list[Item]
    completions: list[Completion]

    @property
    def texts(self) -> dict[str, str]:
        return {completion.id: completion.completions[0] for completion in self.completions}

    @property
    def avg_length(self) -> int | None:
        return int(sum(map(len, self.texts.values())) / len(self.texts)) if self.texts else None


def read_outputs(path: Path) -> Outputs:
    """Outputs from `model_outputs.json` or a reference file, plain or .gz.

    Raises BadFile for rows without instruction or output, several models, or a repeated instruction.
    """
    items: list[Item] = []
    completions: list[Completion] = []
    models: dict[str, None] = {}
    for place, row in read_objects(path, "objects with instruction and output"):
        if not {"instruction", "output"} <= row.keys():
            raise BadFile(f"{place}: expected an `instruction` and an `output`, got {describe(row)}")
        instruction, output = (text(row[key], f"{place}: {key}") for key in ("instruction", "output"))
        items.append(
            Item(
                item_id(instruction),
                optional_text(row.get("dataset"), f"{place}: dataset"),
                [instruction],
                baseline=[output],
            )
        )
        completions.append(Completion(item_id(instruction), [instruction], [output], [], []))
        models[_named(row, "generator", place)] = None
    if len(models) != 1:
        raise BadFile(
            f"{path}: expected the outputs of one model (`generator`), got {printable(', '.join(list(models)[:5]))}"
        )
    if len({item.id for item in items}) < len(items):
        raise BadFile(
            f"{path}: an instruction appears twice. Remove one of the rows, because instructions identify items."
        )
    return Outputs(next(iter(models)), items, completions)


def _named(row: Mapping[str, Any], key: str, place: str) -> str:
    """The model or annotator named in a row, else a placeholder."""
    return f"(no {key})" if row.get(key) is None else id_text(row[key], f"{place}: {key}")


def write_outputs(path: Path, model: str, items: Iterable[Item], completions: Mapping[str, str]) -> None:
    """Write a file in the leaderboard's format, in the order of the items.

    Items without an output are left out.
    """
    rows = [
        {
            "dataset": item.category,
            "instruction": item.question,
            "output": completions[item.id],
            "generator": model,
        }
        for item in items
        if item.id in completions
    ]
    _write(path, rows)


# Annotations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotations:
    """One model's verdicts by one annotator, in the order of the file."""

    model: str
    baseline: str
    annotator: str
    verdicts: list[Verdict]


def read_annotations(
    path: Path, outputs: Outputs | None = None, reference: Outputs | None = None
) -> Annotations:
    """Verdicts from `annotations.json`, plain or .gz.

    Texts missing in a row are taken from `outputs` and `reference`, by instruction. Raises BadFile for a row
    with a vote but without both texts, for a text taken from another model's file, and for several models or
    annotators.
    """
    verdicts: list[Verdict] = []
    names: dict[tuple[str, str, str], None] = {}
    files = {"output_1": reference, "output_2": outputs}
    file_texts = {side: file.texts if file else {} for side, file in files.items()}
    for place, row in read_objects(path, "annotations (instruction, output_1, output_2, preference)"):
        item = _annotated_item(row, place, reference)
        shown = {side: optional_text(row.get(side), f"{place}: {side}") for side in file_texts}
        pair = [file_texts[side].get(item) if own is None else own for side, own in shown.items()]
        preference, unscored = _preference(row.get("preference"))
        if preference is not None and None in pair:
            raise BadFile(
                f"{place} has a vote but lacks `output_1` or `output_2`, and the files of outputs lack it too"
            )
        baseline, policy = pair
        model, base, annotator = (
            _named(row, key, place) for key in ("generator_2", "generator_1", "annotator")
        )
        names[model, base, annotator] = None
        for side, name in (("output_1", row.get("generator_1")), ("output_2", row.get("generator_2"))):
            file = files[side]
            if (
                file
                and shown[side] is None
                and item in file_texts[side]
                and name is not None
                and file.model not in (name, NO_GENERATOR)
            ):
                raise BadFile(
                    f"{place}: the row has no {side}, and the file with these outputs is of another model, {describe(file.model)}"
                )
        raw = row.get("preference_raw_completion", row.get("raw_completion"))
        verdicts.append(
            Verdict(
                item,
                annotator,
                category=optional_text(row.get("dataset"), f"{place}: dataset"),
                preference=preference,
                unscored=unscored,
                raw=None
                if raw is None
                else raw
                if isinstance(raw, str)
                else json.dumps(raw, ensure_ascii=False),
                **about_texts(policy, baseline),
            )
        )
    if len(names) != 1:
        listed = printable("; ".join(" ".join(one) for one in list(names)[:5]))
        raise BadFile(f"{path}: expected one model, baseline and annotator, got {listed}")
    return Annotations(*next(iter(names)), verdicts)


def contradiction(annotations: Annotations, outputs: Outputs | None, reference: Outputs | None) -> str | None:
    """A text that says why annotations and the files with their texts disagree; None if they agree."""
    sides: tuple[tuple[str, str, Outputs | None], ...] = (
        ("output_2", "model_outputs.json", outputs),
        ("output_1", "reference", reference),
    )
    for side, name, file in sides:
        if file is None:
            continue
        digests = {item: text_digest(text) for item, text in file.texts.items()}
        judged = [
            (v.item_id, v.policy_digest if side == "output_2" else v.baseline_digest)
            for v in annotations.verdicts
        ]
        absent = [row for row, (item, _) in enumerate(judged) if item not in digests]
        other = [
            row
            for row, (item, digest) in enumerate(judged)
            if digest is not None and digests.get(item, digest) != digest
        ]
        if absent or other:
            what = (
                f"have an instruction that is not in the {name}"
                if absent
                else f"have another {side} than the {name}"
            )
            rows = absent or other
            return (
                f"{len(rows)} of {len(judged)} rows {what} (first: row {rows[0]}). Use the {name} that was judged, or remove it if "
                "the rows hold both texts."
            )
    return None


def _annotated_item(row: Mapping[str, Any], place: str, reference: Outputs | None) -> str:
    """The item id of a row, from its instruction or from its index in the reference."""
    if row.get("instruction") is not None or reference is None or row.get("index") is None:
        if row.get("instruction") is None:
            raise BadFile(f"{place}: expected an `instruction`, got {describe(row)}")
        return item_id(text(row["instruction"], f"{place}: instruction"))
    return reference.items[whole_number(row["index"], f"{place}: index", 0, len(reference.items) - 1)].id


def read_pairs(folder: Path) -> list[tuple[Item, Completion, list[Verdict]]]:
    """All scored pairs with both texts, from a folder in AlpacaEval's layout. Item ids are `<model>/<item>`.

    The last row of a repeated pair counts. Raises BadFile if there are no pairs, or verdicts of several
    annotators.
    """
    pairs: dict[str, tuple[Item, Completion, list[Verdict]]] = {}
    annotators = set()
    for path in find_annotations(folder):
        outputs = read_outputs(file) if (file := find_outputs(path)) else None
        read, model = read_annotations(path, outputs), path.parent.parent.name
        if why := contradiction(read, outputs, None):
            raise BadFile(f"{path}: {why}")
        annotators.add(read.annotator)
        texts = outputs.texts if outputs else {}
        for (_, row), verdict in zip(read_objects(path), read.verdicts, strict=True):
            theirs, ours = (
                row.get("output_1"),
                row.get("output_2") or texts.get(verdict.item_id, row.get("output_2")),
            )
            pair = f"{model}/{verdict.item_id}"
            pairs.pop(pair, None)
            if verdict.preference is None or theirs is None or ours is None:
                continue
            item = Item(pair, verdict.category, [row["instruction"]], baseline=[theirs])
            pairs[pair] = item, Completion(pair, item.turns, [ours], [], []), [replace(verdict, item_id=pair)]
    if not pairs:
        raise BadFile(
            f"{folder} holds no MODEL/ANNOTATOR/annotations.json, plain or .gz, with scored pairs of two texts"
        )
    if len(annotators) > 1:
        raise BadFile(
            f"{folder} holds verdicts of several annotators ({', '.join(sorted(annotators))}). Keep those of one annotator."
        )
    return list(pairs.values())


def _preference(value: Any) -> tuple[float | None, str | None]:
    """(preference in [0, 1], reason why there is none) from a recorded number.

    Numbers run from 1 (baseline) to 2 (model). 1.5 is a draw, and so is 0 in old files. -1 is no vote.
    """
    if value is None:
        return None, NO_VOTE
    recorded = number(value)
    if recorded is None:
        return None, f"preference must be a number in 1 to 2, got {describe(value)}"
    if recorded == -1:
        return None, NO_VOTE
    if recorded == 0:
        return 0.5, None
    return (recorded - 1, None) if 1 <= recorded <= 2 else (None, f"preference {value!r} is not in 1 to 2")


def write_annotations(
    path: Path, annotations: Annotations, items: Iterable[Item], completions: Mapping[str, str]
) -> None:
    """Write `annotations.json` as the package's `evaluate` does.

    The package can read the file as its `caching_path`. Unscored rows have an empty preference. The
    baseline's texts come from the items.
    """
    known = by_id(items)
    rows = []
    for verdict in annotations.verdicts:
        item = known[verdict.item_id]
        row = {
            "instruction": item.question,
            "output_1": item.baseline[0] if item.baseline else None,
            "generator_1": annotations.baseline,
            "dataset": item.category,
            "output_2": completions.get(item.id),
            "generator_2": annotations.model,
            "annotator": annotations.annotator,
            "preference": None if verdict.preference is None else 1 + verdict.preference,
        }
        rows.append(row | ({"preference_raw_completion": verdict.raw} if verdict.raw is not None else {}))
    _write(path, rows)


def find_annotations(folder: Path) -> list[Path]:
    """Paths of `MODEL/ANNOTATOR/annotations.json` or .gz, sorted by name."""
    return sorted(
        path
        for pattern in ("annotations.json", "annotations.json.gz")
        for path in folder.glob(f"*/*/{pattern}")
    )


def find_outputs(annotations: Path) -> Path | None:
    """The path of `MODEL/model_outputs.json` or .gz for an annotations file; None if there is none."""
    folder = annotations.parent.parent
    return next(
        (
            path
            for name in ("model_outputs.json", "model_outputs.json.gz")
            if (path := folder / name).exists()
        ),
        None,
    )


# Calibration ------------------------------------------------------------------------------------------------

COLUMNS = ("model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


def read_calibration(path: Path, items: Sequence[Item] | None = None, n: int | None = None) -> Calibration:
    """The calibration from `df_gamed.csv` or a file with its columns, plain or .gz.

    Items are named by `item_id`, by `instruction`, or by `index`, their position in `items`. A row without a
    preference gives a difficulty, but no gamed vote. A row about an index beyond `items` is left out.

    Raises BadFile if a row names no item. If the total number of items `n` is given, it also raises BadFile
    for indices of another set of items, since these items would get wrong difficulties.
    """
    rows = read_csv(path, ("instruction_difficulty",))
    if not rows:
        raise BadFile(f"{path}: expected rows below the header, got none")
    if n is not None:
        _check_numbers(path, [row for _, row in rows], n)
    difficulty: dict[str, float] = {}
    gamed: dict[str, list[Gamed]] = {}
    voted = {place for place, row in rows if row.get("preference", "").strip()}
    weight = GAMED_WEIGHT / max(1, len({row.get("model") for place, row in rows if place in voted}))
    for place, row in rows:
        value = _field(row, "instruction_difficulty", place)
        votes = (
            [Gamed(_field(row, "preference", place, 1), _field(row, "std_delta_len", place), weight)]
            if place in voted
            else []
        )
        if (item := _calibrated_item(row, items, place)) is None:
            continue
        if not math.isclose(difficulty.setdefault(item, value), value, rel_tol=1e-6, abs_tol=1e-6):
            raise BadFile(
                f"{place}: instruction_difficulty is {value:g}, but {difficulty[item]:g} in an earlier row of the same item"
            )
        gamed.setdefault(item, []).extend(votes)
    return Calibration(
        difficulty,
        {item: votes for item, votes in gamed.items() if votes},
        text_digest(decode(read_bytes(path), str(path))),
    )


def _field(row: Mapping[str, str], column: str, place: str, high: float | None = None) -> float:
    """A number in a row; in [0, high] if `high` is given. Raises BadFile otherwise."""
    value = csv_number(row.get(column, ""), f"{place}: {column}")
    if value is None or (high is not None and not 0 <= value <= high):
        wanted = "a number" if high is None else f"in [0, {high:g}]"
        raise BadFile(f"{place}: {column} must be {wanted}, got {describe(row.get(column, ''))}")
    return value


def _check_numbers(path: Path, rows: Sequence[Mapping[str, str]], n: int) -> None:
    numbers = {
        row.get("index", "").strip() for row in rows if not row.get("item_id") and not row.get("instruction")
    }
    if numbers and numbers != {str(place) for place in range(n)}:
        raise BadFile(
            f"{path} numbers {len(numbers)} items by `index`, but there are {n} items here. Use the items that it was made for "
            "(judge.n_items selects a part of them), or add a column `instruction`."
        )


def _calibrated_item(row: Mapping[str, str], items: Sequence[Item] | None, place: str) -> str | None:
    if row.get("item_id"):
        return row["item_id"]
    if row.get("instruction"):
        return item_id(row["instruction"])
    if items is None:
        raise BadFile(
            f"{place}: items are given by `index`, a row number of the reference. Set reference_outputs=FILE."
        )
    index = row.get("index", "").strip()
    if not index.isascii() or not index.isdecimal() or len(index) > 9:
        raise BadFile(f"{place}: index must be a whole number from 0, got {describe(index)}")
    return items[int(index)].id if int(index) < len(items) else None


def for_items(calibration: Calibration, items: Iterable[Item]) -> Calibration:
    """The calibration with the items' own ids. Its entries may be named by instruction."""
    names = {
        item.id: item.id if item.id in calibration.difficulty else item_id(item.turns[0]) for item in items
    }
    kept = {item: name for item, name in names.items() if name in calibration.difficulty}
    gamed = {item: calibration.gamed[name] for item, name in kept.items() if name in calibration.gamed}
    return Calibration(
        {item: calibration.difficulty[name] for item, name in kept.items()}, gamed, calibration.digest
    )


def fitted_calibration(difficulty: Mapping[str, float]) -> Calibration:
    """A calibration with difficulties only, without gamed votes."""
    lines = [f"{item},{value!r}" for item, value in sorted(difficulty.items())]
    return Calibration(
        dict(difficulty), {}, text_digest("\n".join(["item_id,instruction_difficulty", *lines]))
    )


# Official numbers -------------------------------------------------------------------------------------------

NOTHING = Unmeasured("no item was scored")
LENGTH_CONTROLLED = ("length_controlled_winrate", "lc_standard_error")


def official_win_rate(annotations: Annotations) -> dict[str, float] | Unmeasured:
    """Results of the package's `get_winrate`: percent and counts, by its names.

    A standard error of a single row is left out.
    """
    if all(verdict.preference is None for verdict in annotations.verdicts):
        return NOTHING
    with glm_winrate_module() as glm:
        return _plain(glm.get_winrate(_frame(annotations)))


def official_lc_win_rate(annotations: Annotations, calibration: Path | None) -> dict[str, float] | Unmeasured:
    """Results of the package's `get_length_controlled_winrate` in percent, by row position.

    The baseline against itself is 50 without a fit.
    """
    if all(verdict.preference is None for verdict in annotations.verdicts):
        return NOTHING
    if calibration is None:
        return Unmeasured(
            "the package's length control needs calibration=FILE (df_gamed.csv, or a file with its columns)"
        )
    rows = [row for _, row in read_csv(calibration)]
    if missing := [column for column in COLUMNS if not rows or column not in rows[0]]:
        return Unmeasured(
            f"the package's length control reads df_gamed.csv; {calibration.name} has no {', '.join(missing)}"
        )
    if any(
        v.preference is not None and None in (v.policy_length, v.baseline_length)
        for v in annotations.verdicts
    ):
        return Unmeasured(
            "the package's length control needs the length of both answers to every item that was scored"
        )
    if (n := len({row["index"] for row in rows})) < len(annotations.verdicts):
        return Unmeasured(
            f"the package goes by row number, and {len(annotations.verdicts)} rows are more than the calibration's {n}"
        )
    if why := _unlike_the_packages(rows, n):
        return Unmeasured(f"the package's length control reads df_gamed.csv; {calibration.name} {why}")
    with tempfile.TemporaryDirectory() as aside, glm_winrate_module() as glm:
        copy = Path(aside) / "df_gamed.csv"  # Without a byte-order mark, spaces in the header, or FALSE.
        with copy.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(
                [*(row[column].strip() for column in COLUMNS[:-1]), row[COLUMNS[-1]].strip().capitalize()]
                for row in rows
            )
        with mock.patch.object(glm, "hf_hub_download", lambda **_: str(copy)):
            numbers = glm.get_length_controlled_winrate(
                _frame(annotations), save_weights_dir=None, is_warn_extreme_changes=False
            )
    return _plain({name: numbers[name] for name in LENGTH_CONTROLLED})


def _unlike_the_packages(rows: Sequence[Mapping[str, str]], n: int) -> str | None:
    """A text that says why the package would misread these rows; None if it reads them correctly.

    The package takes row k of the file as item k's.
    """
    if any(row["index"].strip() != str(place) for place, row in enumerate(rows[:n])):
        return f"does not begin with one row of each item from 0 to {n - 1}, in this order"
    if incomplete := [column for column in COLUMNS[:-1] if any(not row[column].strip() for row in rows)]:
        return f"has rows without {', '.join(incomplete)}"
    if strange := {
        row["not_gamed_baseline"]
        for row in rows
        if row["not_gamed_baseline"].strip().lower() not in ("true", "false")
    }:
        return f"has a not_gamed_baseline that is neither True nor False: {printable(min(strange))!r}"
    return None


def _frame(annotations: Annotations) -> Any:
    """The columns that the package's metrics read. They use only the length of each text.

    A verdict that enters length control has both lengths; the others' empty texts are never read.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "preference": [None if v.preference is None else 1 + v.preference for v in annotations.verdicts],
            "output_1": ["x" * (v.baseline_length or 0) for v in annotations.verdicts],
            "output_2": ["x" * (v.policy_length or 0) for v in annotations.verdicts],
            "generator_1": annotations.baseline,
            "generator_2": annotations.model,
            "annotator": annotations.annotator,
        }
    )


def _plain(results: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: int(value) if name.startswith("n_") else float(value) for name, value in results.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


# Files ------------------------------------------------------------------------------------------------------


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2, allow_nan=False) + "\n", encoding="utf-8")

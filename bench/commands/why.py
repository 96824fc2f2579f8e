"""`do=why cell=KEY`: prints the lineage of a cell's policy, from the manifests of its stages.

The lineage names the model that wrote each text, the labeller of each pair, and the data of each training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bench.cli.compose import BadConfig, CheckedCommand
from bench.commands import OK
from bench.config import Why, is_name
from bench.records import read_detections
from bench.store.stage_settings import TOKENIZER
from bench.store.store import Store, Unsound, read_failure
from bench.terminal import Terminal
from bench.text_files import read_object

SHORT = 8  # number of digits of a key on the screen
FEWEST = 4  # least number of digits that names a cell


def main(opened: CheckedCommand) -> int:
    do, results = opened.session.do, opened.session.results_dir
    assert isinstance(do, Why)
    explain(do, results, Store(results / "store"))
    return OK


@dataclass(frozen=True)
class Step:
    """One stage of a cell's lineage. `inputs`: keys by role. `failed`: the reason why it has no counts."""

    key: str
    kind: str
    label: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    counts: Mapping[str, int]
    failed: str | None = None


@dataclass(frozen=True)
class Lineage:
    """Stages that led to a cell's policy, and the reason if the cell failed."""

    cell: str
    failed: str | None
    steps: list[Step]  # a stage stands after its inputs; stages of log-probs are named by their readers


def explain(do: Why, results: Path, store: Store) -> None:
    """Print a cell's lineage. Raises BadConfig unless exactly one cell has the name."""
    console = Terminal(soft_wrap=True)
    for line in lines(lineage(find_cell(str(do.cell), results), store)):
        console.plain(line)


def find_cell(name: str, results: Path) -> Path:
    """Folder of the cell with this name, key, or first digits of a key.

    Raises BadConfig unless exactly one matches.
    """
    matches = {}
    for path in sorted(results.glob("cells/*/stages.json")):
        try:
            key = read_cell(path.parent).key
        except Unsound:
            key = ""  # its name still works, and the command then prints the fault
        if path.parent.name == name or (len(name) >= FEWEST and key.startswith(name)):
            matches[path.parent.name] = path.parent
    if len(matches) != 1:
        where = results / "cells"
        what = (
            f"{len(matches)} cells in {where} have it: {', '.join(matches)}"
            if matches
            else f"no cell in {where} has it"
        )
        raise BadConfig([f"cell must be a cell's key (column key of table.csv) or name, got {name}: {what}"])
    return next(iter(matches.values()))


@dataclass(frozen=True)
class WrittenCell:
    """Content of a cell's stages.json. `stages`: {"kind", "label", ...} by key."""

    key: str
    failed: str | None
    stages: Mapping[str, Mapping[str, str]]


_WRITTEN = TypeAdapter(WrittenCell)


def read_cell(folder: Path) -> WrittenCell:
    """Content of stages.json in a cell's folder. Raises Unsound for a file that bench did not write so."""
    path = folder / "stages.json"
    try:
        cell = _WRITTEN.validate_python(read_object(path))
        if not all(
            {"kind", "label"} <= facts.keys() and is_name(facts["kind"]) and is_name(key)
            for key, facts in cell.stages.items()
        ):
            raise ValueError(f"{path}: expected stages by key, each with its kind and label")
    except ValueError as error:
        reason = " ".join(str(error).removeprefix(f"{path}: ").split())[:300]
        raise Unsound(f"DAMAGED  {path}: {reason}. Run its sweep again, or do=report, to write it") from error
    return cell


def lineage(folder: Path, store: Store) -> Lineage:
    """Lineage of a cell, from its folder as the last command wrote it.

    Raises Unsound for a damaged folder.
    """
    written = read_cell(folder)
    steps = {key: _step(key, facts["kind"], facts["label"], store) for key, facts in written.stages.items()}
    writers = [
        step.inputs["model"] for step in steps.values() if step.kind == "generate" and "model" in step.inputs
    ]
    wanted = set(_ancestors(writers, steps)) if writers else set(steps)
    wanted |= {key for key, step in steps.items() if step.failed or step.kind == "audit"}
    kept = [_with_detections(step, steps, store) for key, step in steps.items() if key in wanted]
    return Lineage(folder.name, written.failed, kept)


def _step(key: str, kind: str, label: str, store: Store) -> Step:
    folder = store.root / kind / key
    try:
        manifest = store.verified_manifest(folder)
    except ValueError as error:
        failure = read_failure(store.root / kind / f"{key}.failed.json")
        why = failure or (str(error) if folder.exists() else "not run")
        return Step(key, kind, label, {}, {}, {}, why)
    return Step(
        key,
        kind,
        label,
        manifest.settings,
        {role: facts["key"] for role, facts in manifest.inputs.items()},
        manifest.counts,
    )


def _with_detections(step: Step, steps: Mapping[str, Step], store: Store) -> Step:
    """The step with counts of its noise detector, if it is a training with a recorded one and known true
    labels.
    """
    if (
        step.kind != "train"
        or step.failed
        or (pairs := steps.get(step.inputs.get("preferences", ""))) is None
    ):
        return step
    behind = [steps[key] for key in pairs.inputs.values() if key in steps]
    # Keys of the labels of a loop, or of the labelled data.
    keys = [each.key if each.kind == "label" else each.inputs.get("train", "") for each in behind]
    labels = [store.root / "label" / key for key in keys if key in steps and not steps[key].failed]
    if (detections := read_detections(store.root / "train" / step.key, labels)) is None:
        return step
    caught = sum(distrusted and wrong for distrusted, wrong in detections)
    counts = {"looked_at": len(detections), "mislabelled": sum(wrong for _, wrong in detections)}
    counts |= {"distrusted": sum(distrusted for distrusted, _ in detections), "caught": caught}
    return replace(step, counts={**step.counts, **counts})


def _ancestors(keys: list[str], steps: Mapping[str, Step]) -> Iterator[str]:
    seen: set[str] = set()
    while keys:
        key = keys.pop()
        if key in steps and key not in seen:
            seen.add(key)
            yield key
            keys = [*keys, *steps[key].inputs.values()]


# Words ----------------------------------------------------------------------------------------------------------------


def lines(history: Lineage) -> Iterator[str]:
    steps = {step.key: step for step in history.steps}
    yield f"{history.cell}{f': FAILED, {history.failed}' if history.failed else ''}"
    for step in history.steps:
        if step.kind != "logps" or step.failed:
            yield f"  {step.label or step.kind} ({step.kind}/{step.key[:SHORT]}): {step.failed or words(step, steps)}"


def words(step: Step, steps: Mapping[str, Step]) -> str:
    """Description of a stage: its inputs, its result and its counts."""

    def name(role: str) -> str:
        source = step.inputs.get(role, "")
        return (
            steps[source].label
            if source in steps
            else "your model"
            if role == "model"
            else "your file or folder"
        )

    def model_of(role: str) -> str:
        """Label of the model that computed the log-probs or rewards of an input."""
        scored = steps.get(step.inputs.get(role, ""))
        key = scored.inputs.get("model", "") if scored else ""
        return steps[key].label if key in steps else "your model"

    counts = step.counts
    match step.kind:
        case "sample":
            return f"{counts['rows']} samples of {name('items')}, {step.settings['draws']} each, written by {name('model')}"
        case "label":
            who, pairs = _labeller(step, name, model_of), f"{counts['rows']} pairs of {name('completions')}"
            labels = f"{who}: {pairs}, {_ties(counts)}, {_accuracy(counts)}"
            return f"{labels}; {_judgements(counts)}" if "judgements" in counts else labels
        case "audit":
            scores = ", ".join(
                f"{n} scores of {key.removeprefix('judged_')}"
                for key, n in counts.items()
                if key.startswith("judged_")
            )
            return f"{counts['rankings']} held-out rankings; {_judgements(counts)}; {scores or 'no scores'}"
        case "data" if "train" in counts:
            dropped = {key.removeprefix("train_"): n for key, n in counts.items() if key.startswith("train_")}
            prompts = (
                f", of {dropped['prompts']} labelled prompts: {_ties(dropped)}" if "ties" in dropped else ""
            )
            sources = ", ".join(name(role) for role in sorted(step.inputs) if role != TOKENIZER)
            return f"{counts['train']} train rows kept from {sources}{prompts}{_dropped(counts)}"
        case "data":
            sources = ", ".join(name(role) for role in sorted(step.inputs) if role != TOKENIZER)
            more = "".join(f", {n} {what}" for what, n in counts.items() if what != "rows")
            read = f" from {sources}" if sources else ""
            return f"{counts['rows']} rows{read}{more}"
        case "train":
            against = f", against {model_of('reference_logps')}" if "reference_logps" in step.inputs else ""
            trained = f"{step.settings['method']['name']} from {name('model')} on {name('preferences')}"
            return f"{trained}{against}: {counts['rows']} rows, {counts['steps']} steps{_detections(counts)}"
        case "sft":
            read = ", ".join(name(role) for role in sorted(step.inputs) if role != "model")
            return f"from {name('model') if 'model' in step.inputs else 'nothing'} on {read}"
    return ", ".join(f"{n} {what}" for what, n in counts.items())


def _labeller(step: Step, name: Any, model_of: Any) -> str:
    match step.settings["labeller"]:
        case "judge":
            mute = f" ({n} without a verdict)" if (n := step.counts["unscored_verdicts"]) else ""
            return f"labelled by {name('verdicts').partition(' of ')[2]}, {step.counts['asked']} asked{mute}"
        case "implicit":
            return f"labelled by the implicit reward of {model_of('policy_logps')} against {model_of('reference_logps')}"
        case "tuned_judge":
            return f"labelled by the {model_of('choice_logps')}"
        case "self":
            return f"labelled by the judgements of {model_of('replies')} (prompt {step.settings['prompt']})"
        case "reward_model":
            return f"labelled by {'your reward model' if (model := model_of('rewards')) == 'your model' else f'the {model}'}"
        case "gold":
            return "labelled by the world's annotator"
        case "human":
            return "the demonstration is chosen"
        case labeller:
            return f"labelled by a rule ({labeller})"


def _ties(counts: Mapping[str, int]) -> str:
    return f"{counts['ties']} ties, {counts['unscored']} unscored"


def _judgements(counts: Mapping[str, int]) -> str:
    return f"{counts['judgements']} judgements, {counts['unparsed']} could not be read"


def _dropped(counts: Mapping[str, int]) -> str:
    """Counts of rows of a file or dataset that are not used, by reason, in words."""
    reasons = [f"{n} {' '.join(key.split('/dropped/'))}" for key, n in counts.items() if "/dropped/" in key]
    return f"; dropped: {', '.join(reasons)}" if reasons else ""


def _accuracy(counts: Mapping[str, int]) -> str:
    n = counts["with_truth"]
    return (
        f"{counts['correct']} of {n} labels right ({counts['correct'] / n:.1%})"
        if n
        else "no label with a known truth"
    )


def _detections(counts: Mapping[str, int]) -> str:
    if "looked_at" not in counts:
        return ""
    if not counts["looked_at"]:
        return "; noise detector: it examined no label with a known truth"
    distrusted, wrong = counts["distrusted"], counts["mislabelled"]
    precision = f", {counts['caught'] / distrusted:.1%} of these wrong" if distrusted else ""
    recall = (
        f", {counts['caught'] / wrong:.1%} of the {wrong} wrong ones found" if wrong else ", none was wrong"
    )
    return f"; noise detector: {distrusted} of {counts['looked_at']} labels with a known truth distrusted{precision}{recall}"

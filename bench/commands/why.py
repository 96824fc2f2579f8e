"""`do=why cell=KEY`: how a cell's policy came to be, from the manifests of its stages: who wrote what, who labelled it, what it trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bench.cli.compose import BadConfig, Opened
from bench.commands import OK
from bench.config import Why, is_name
from bench.records import read_detections
from bench.store.stage_settings import TOKENIZER
from bench.store.store import Store, Unsound, read_failure
from bench.terminal import Terminal
from bench.text_files import read_object

SHORT = 8  # digits of a key, for people
FEWEST = 4  # digits that name a cell


def main(opened: Opened) -> int:
    do, results = opened.session.do, opened.session.results_dir
    assert isinstance(do, Why)
    explain(do, results, Store(results / "store"))
    return OK


@dataclass(frozen=True)
class Step:
    """One stage of a cell's lineage. `inputs`: role -> key; `failed`: why it has no counts, where it has none."""

    key: str
    kind: str
    label: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    counts: Mapping[str, int]
    failed: str | None = None


@dataclass(frozen=True)
class Lineage:
    cell: str
    failed: str | None
    steps: list[Step]  # what is read before what reads it; log-probs are left to those who read them


def explain(do: Why, results: Path, store: Store) -> None:
    """Print a cell's lineage. Raises BadConfig where no cell, or more than one, is called so."""
    console = Terminal(soft_wrap=True)
    for line in lines(lineage(find_cell(str(do.cell), results), store)):
        console.plain(line)


def find_cell(name: str, results: Path) -> Path:
    """The folder of the cell with this key, beginning of a key, or name."""
    found = {}
    for path in sorted(results.glob("cells/*/stages.json")):
        try:
            key = read_cell(path.parent).key
        except Unsound:
            key = ""  # its name can be asked for, which says what is wrong with it
        if path.parent.name == name or (len(name) >= FEWEST and key.startswith(name)):
            found[path.parent.name] = path.parent
    if len(found) != 1:
        where = results / "cells"
        what = f"{len(found)} cells in {where} have it: {', '.join(found)}" if found else f"no cell in {where} has it"
        raise BadConfig([f"cell must be a cell's key (column key of table.csv) or name, got {name}: {what}"])
    return next(iter(found.values()))


@dataclass(frozen=True)
class WrittenCell:
    """What a cell's folder says: its stages are {"kind", "label", ...} by key."""

    key: str
    failed: str | None
    stages: Mapping[str, Mapping[str, str]]


_WRITTEN = TypeAdapter(WrittenCell)


def read_cell(folder: Path) -> WrittenCell:
    """Raises Unsound where the folder does not say what a command writes there."""
    path = folder / "stages.json"
    try:
        found = _WRITTEN.validate_python(read_object(path))
        if not all({"kind", "label"} <= facts.keys() and is_name(facts["kind"]) and is_name(key) for key, facts in found.stages.items()):
            raise ValueError(f"{path}: expected stages by key, each with its kind and label")
    except ValueError as error:
        said = " ".join(str(error).removeprefix(f"{path}: ").split())[:300]
        raise Unsound(f"DAMAGED  {path}: {said}: the same command, or do=report, writes it again") from error
    return found


def lineage(folder: Path, store: Store) -> Lineage:
    """From the folder of a cell, as it was left by the last command that made it. Raises Unsound."""
    written = read_cell(folder)
    steps = {key: _step(key, facts["kind"], facts["label"], store) for key, facts in written.stages.items()}
    writers = [step.inputs["model"] for step in steps.values() if step.kind == "generate" and "model" in step.inputs]
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
    return Step(key, kind, label, manifest.settings, {role: facts["key"] for role, facts in manifest.inputs.items()}, manifest.counts)


def _with_detections(step: Step, steps: Mapping[str, Step], store: Store) -> Step:
    """A training whose noise detector was recorded counts how right it was, where the truth of its labels is known."""
    if step.kind != "train" or step.failed or (pairs := steps.get(step.inputs.get("preferences", ""))) is None:
        return step
    behind = [steps[key] for key in pairs.inputs.values() if key in steps]
    keys = [each.key if each.kind == "label" else each.inputs.get("train", "") for each in behind]  # of a loop, or of the labelled data
    labels = [store.root / "label" / key for key in keys if key in steps and not steps[key].failed]
    if (found := read_detections(store.root / "train" / step.key, labels)) is None:
        return step
    counts = {"looked_at": len(found), "mislabelled": sum(wrong for _, wrong in found)}
    counts |= {"distrusted": sum(distrusted for distrusted, _ in found), "caught": sum(distrusted and wrong for distrusted, wrong in found)}
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


def lines(found: Lineage) -> Iterator[str]:
    steps = {step.key: step for step in found.steps}
    yield f"{found.cell}{f': FAILED, {found.failed}' if found.failed else ''}"
    for step in found.steps:
        if step.kind != "logps" or step.failed:
            yield f"  {step.label or step.kind} ({step.kind}/{step.key[:SHORT]}): {step.failed or words(step, steps)}"


def words(step: Step, steps: Mapping[str, Step]) -> str:
    """What a stage made of what, with its counts."""

    def name(role: str) -> str:
        source = step.inputs.get(role, "")
        return steps[source].label if source in steps else "your model" if role == "model" else "your file or folder"

    def model_of(role: str) -> str:
        """Whose log-probs or rewards an input holds."""
        scored = steps.get(step.inputs.get(role, ""))
        key = scored.inputs.get("model", "") if scored else ""
        return steps[key].label if key in steps else "your model"

    counts = step.counts
    match step.kind:
        case "sample":
            return f"{counts['rows']} samples of {name('items')}, {step.settings['draws']} each, written by {name('model')}"
        case "label":
            who, pairs = _labeller(step, name, model_of), f"{counts['rows']} pairs of {name('completions')}"
            told = f"{who}: {pairs}, {_ties(counts)}, {_accuracy(counts)}"
            return f"{told}; {_judgements(counts)}" if "judgements" in counts else told
        case "audit":
            scores = ", ".join(f"{n} scores of {key.removeprefix('judged_')}" for key, n in counts.items() if key.startswith("judged_"))
            return f"{counts['rankings']} held-out rankings; {_judgements(counts)}; {scores or 'no scores'}"
        case "data" if "train" in counts:
            dropped = {key.removeprefix("train_"): n for key, n in counts.items() if key.startswith("train_")}
            said = f", of {dropped['prompts']} labelled prompts: {_ties(dropped)}" if "ties" in dropped else ""
            sources = ", ".join(name(role) for role in sorted(step.inputs) if role != TOKENIZER)
            return f"{counts['train']} train rows kept from {sources}{said}{_dropped(counts)}"
        case "data":
            read = f" from {', '.join(name(role) for role in sorted(step.inputs))}" if step.inputs else ""
            more = "".join(f", {n} {what}" for what, n in counts.items() if what != "rows")
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
        case "self":
            return f"labelled by what {model_of('replies')} wrote as the judge ({step.settings['prompt']})"
        case "reward_model":
            return f"labelled by {'your reward model' if (whose := model_of('rewards')) == 'your model' else f'the {whose}'}"
        case "gold":
            return "labelled by the world's annotator"
        case "human":
            return "the demonstration is chosen"
        case labeller:
            return f"labelled by nobody ({labeller})"


def _ties(counts: Mapping[str, int]) -> str:
    return f"{counts['ties']} ties, {counts['unscored']} unscored"


def _judgements(counts: Mapping[str, int]) -> str:
    return f"{counts['judgements']} judgements, {counts['unparsed']} could not be read"


def _dropped(counts: Mapping[str, int]) -> str:
    """Rows of a file or dataset that are not used, by reason."""
    found = [f"{n} {' '.join(key.split('/dropped/'))}" for key, n in counts.items() if "/dropped/" in key]
    return f"; dropped: {', '.join(found)}" if found else ""


def _accuracy(counts: Mapping[str, int]) -> str:
    n = counts["with_truth"]
    return f"{counts['correct']} of {n} labels right ({counts['correct'] / n:.1%})" if n else "no label with a known truth"


def _detections(counts: Mapping[str, int]) -> str:
    if "looked_at" not in counts:
        return ""
    if not counts["looked_at"]:
        return "; noise detector: it looked at no label with a known truth"
    found, wrong = counts["distrusted"], counts["mislabelled"]
    precision = f", {counts['caught'] / found:.1%} of these wrong" if found else ""
    recall = f", {counts['caught'] / wrong:.1%} of the {wrong} wrong ones found" if wrong else ", none was wrong"
    return f"; noise detector: {found} of {counts['looked_at']} labels with a known truth distrusted{precision}{recall}"

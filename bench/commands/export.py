"""`do=export cell=KEY out=DIR`: a cell's trained model as a folder that `from_pretrained` loads, and a card.

The folder is the train stage's as it lies in the store: weights (or an adapter, beside its base) as safetensors, tokenizer with its chat
template and any control tokens. The card's numbers, lineage, revision and versions come from the store; nothing in it is made up: a base
model or dataset that has no public name is described by the settings alone.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.cli.compose import BadConfig, Opened
from bench.commands import OK, why
from bench.commands.bundle import nameless, nameless_command
from bench.config import Export, method_facts, user_path
from bench.models.tokenize import model_folder
from bench.records import Result
from bench.store.store import Manifest, Store, Unsound
from bench.terminal import say
from bench.text_files import BadFile, read_object, read_yaml

NOT_NUMBERS = ("_low", "_high", "_se")  # ends of names that belong to another number


def main(opened: Opened) -> int:
    do, results = opened.session.do, opened.session.results_dir
    assert isinstance(do, Export)
    say("\n".join(export(do, results, Store(results / "store"))))
    return OK


@dataclass(frozen=True)
class Exported:
    """What a card is made of."""

    name: str
    key: str
    config: Mapping[str, Any]
    result: Result
    model: Manifest  # of the stage that left the model
    lineage: Sequence[str]
    command: str | None  # of the sweep that the cell is in; None where no report has been written

    @property
    def method(self) -> str:
        return str(self.config["method"]["name"])


def export(do: Export, results: Path, store: Store) -> list[str]:
    """Write the folder; returns lines on what it is. Raises BadConfig where there is nothing to export, Unsound where it is not whole."""
    folder, out = why.find_cell(str(do.cell), results), user_path(str(do.out))
    written = why.read_cell(folder)
    if written.failed or not (folder / "result.json").exists():
        raise Unsound(f"{folder.name} has no numbers for its card: {written.failed or 'not run yet'}")
    manifest = _of_policy(folder.name, written.stages, store)
    place = store.root / manifest.kind / manifest.key
    command = _command(written.key, results)
    if manifest.evicted:
        again = f"python -m bench {command} keep=weights" if command else "the same command with keep=weights"
        raise BadConfig([f"{folder.name}: its weights were evicted (keep=); to train it again remove {place} and run {again}"])
    try:
        config = read_yaml(folder / "config.yaml")
        score = store.root / "score" / [key for key, facts in written.stages.items() if facts["kind"] == "score"][-1]
        store.verified_manifest(score)
        result = Result.from_json(read_object(score / "result.json"))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Unsound(f"DAMAGED  {folder}: {' '.join(str(error).split())}: do=report of its sweep writes it again") from error
    lineage = list(why.lines(why.lineage(folder, store)))
    found = Exported(folder.name, written.key, config, result, manifest, lineage, command)
    try:
        _write(found, model_folder(place), out)
    except OSError as error:
        raise Unsound(f"not written: {error.filename or out}: {error.strerror or error}") from error
    return [f"{folder.name}: {', '.join(sorted(path.name for path in out.iterdir()))}", f"model    {out}", f"card     {out / 'README.md'}"]


def _write(found: Exported, model: Path, out: Path) -> None:
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    try:
        shutil.copytree(model, part)
        path = part / "adapter_config.json"
        if path.exists() and (hub := _hub_base(found.config)):
            named = json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": hub}
            path.write_text(json.dumps(named, indent=1, sort_keys=True), "utf-8")
        (part / "README.md").write_text(card(found, adapter=path.exists()), encoding="utf-8")
        if out.exists():
            out.rmdir()  # the door saw that it is empty
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _of_policy(cell: str, stages: Mapping[str, Mapping[str, str]], store: Store) -> Manifest:
    """The stage that left what the cell was about: a reward model that chose among samples, else the policy that wrote."""
    for role in ("reward_model", "model"):
        for key, facts in stages.items():
            if facts["kind"] != "generate":
                continue
            try:
                source = store.verified_manifest(store.root / "generate" / key).inputs.get(role, {}).get("key", "")
                if source in stages:
                    return store.verified_manifest(store.root / stages[source]["kind"] / source)
            except ValueError as error:
                raise Unsound(f"DAMAGED  {error}: the same command makes it again") from error
    raise BadConfig([f"{cell}: nothing was trained for it, so there is no model of its own to export"])


def _command(key: str, results: Path) -> str | None:
    """What to type to get the first sweep that holds the cell."""
    for path in sorted((results / "sweeps").glob("*/plan.json")):
        with contextlib.suppress(BadFile, KeyError, TypeError):  # one that is damaged names no command
            plan = read_object(path)
            if "command" in plan and any(cell["key"] == key for cell in plan["cells"]):
                return str(plan["command"])
    return None


# The card -------------------------------------------------------------------------------------------------------------


def card(found: Exported, adapter: bool) -> str:
    """A model card in the hub's form."""
    header = yaml.safe_dump(_header(found, adapter), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{header}---", f"# {found.name}", _what(found, adapter), "## Numbers", _numbers(found.result), "## How it came to be"]
    parts += ["```\n" + "\n".join(found.lineage) + "\n```", "## Method and deviations", _method(found.method), "## Again", _again(found)]
    return "\n\n".join([*parts, "## Settings", "```yaml\n" + yaml.safe_dump(nameless(found.config), sort_keys=False) + "```"]) + "\n"


def _hub_base(config: Mapping[str, Any]) -> str | None:
    """The hub's name of the start model, where it was read from there."""
    model = config["model"]
    return model.get("hub") if not model.get("path") else None


def _header(found: Exported, adapter: bool) -> dict[str, Any]:
    data, metrics = found.config["data"], found.result.metrics
    reward = _chooses(found)
    task = "text-classification" if reward else "text-generation"
    header: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": task}
    header["tags"] = ["preference-alignment", found.method, *(["reward-model"] if reward else [])]
    header |= {"base_model": hub} if (hub := _hub_base(found.config)) else {}
    header |= {"datasets": [data["hub"]]} if data.get("hub") and not data.get("path") else {}
    values = [{"type": name, "value": value, "name": name} for name, value in metrics.items() if not name.endswith(NOT_NUMBERS)]
    about = {"name": f"{found.config['judge']['name']} on {data['name']}", "type": data.get("hub") or data["name"]}
    header["model-index"] = [{"name": found.name, "results": [{"task": {"type": task}, "dataset": about, "metrics": values}]}]
    return header


def _chooses(found: Exported) -> bool:
    return method_facts(found.method).chooses


def _what(found: Exported, adapter: bool) -> str:
    model, data = found.config["model"], found.config["data"]
    what = f"`{found.method}` from the start model of `{model.get('hub') or model['name']}` on `{data.get('hub') or data['name']}`"
    said = [f"Trained with {what}, seed {found.config['seed']}." if found.model.kind == "train" else f"The start model of {what}."]
    base = _hub_base(found.config) or f"the folder of {model['name']}"
    load = f"`PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)`, where BASE is {base}"
    said += [f"A LoRA adapter, loaded beside its base with PEFT: {load}."] if adapter else []
    if _chooses(found):
        said.append("A sequence classifier of one output: the reward model that chose the best of several samples of the start model.")
    if (control := method_facts(found.method).control) is not None:
        said.append(f"It is asked with its control token `{control}` after every prompt; numbers below are of that.")
    return " ".join(said)


def _numbers(result: Result) -> str:
    rows = ["| number | value | 95 % interval |", "|---|---|---|"]
    for name, value in result.metrics.items():
        if not name.endswith(NOT_NUMBERS):
            low, high = (result.metrics.get(f"{name}{end}") for end in ("_low", "_high"))
            rows.append(f"| {name} | {value:.6g} | {'' if low is None or high is None else f'{low:.6g} to {high:.6g}'} |")
    missing = [f"{name}: {reason}." for name, reason in result.missing.items()]
    note = "Rates are in [0, 1]; intervals are over prompts. Not measured is left out."
    return "\n\n".join(["\n".join(rows), " ".join([note, *missing])])


def _method(name: str) -> str:
    """What the method's file says of itself: paper, equation, deviations."""
    return inspect.getdoc(importlib.import_module(f"bench.methods.{name}")) or name


def _again(found: Exported) -> str:
    recorded = found.model.recorded
    packages = ", ".join(f"{name} {version}" for name, version in recorded.get("packages", {}).items())
    made = f"Made at revision `{recorded.get('revision', 'unknown')}` of bench on {recorded.get('device')}"
    made = f"{made}, Python {recorded.get('python')}: {packages}."
    how = f"    python -m bench {nameless_command(found.command)}" if found.command else "    python -m bench, with the settings below"
    return f"{how}\n\nmakes the cell `{found.key}` again, which is stage `{found.model.kind}/{found.model.key}`. {made}"

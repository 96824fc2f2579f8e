"""`do=export cell=KEY out=DIR`: writes a cell's trained model as a folder for `from_pretrained`, with a model
card.

The folder is that of the train stage in the store: weights (or an adapter for its base model) as safetensors,
and the tokenizer with its chat template and control tokens. The card's numbers, lineage, revision and
versions come from the store. A base model or dataset without a public name is described by its settings
alone.
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
from huggingface_hub import HfApi

from bench.cli.compose import BadConfig, CheckedCommand
from bench.commands import OK, push, why
from bench.commands.bundle import nameless, nameless_command
from bench.config import Export, SuiteJudge, judge_facts, method_facts, user_path
from bench.models.tokenize import model_folder
from bench.records import Result
from bench.store.store import Manifest, Store, Unsound
from bench.terminal import say
from bench.text_files import BadFile, read_object, read_yaml

NOT_NUMBERS = ("_low", "_high", "_se")  # ends of names that belong to another number


def main(opened: CheckedCommand) -> int:
    do, results = opened.session.do, opened.session.results_dir
    assert isinstance(do, Export)
    say("\n".join(export(do, results, Store(results / "store"))))
    return OK


@dataclass(frozen=True)
class Exported:
    """Content of a model card."""

    name: str
    key: str
    config: Mapping[str, Any]
    result: Result
    model: Manifest  # manifest of the stage that trained the model
    lineage: Sequence[str]
    command: str | None  # command of the cell's sweep; None where no report has been written
    licence: str | None = None  # of the base model, where it is to be uploaded and the hub names one

    @property
    def method(self) -> str:
        return str(self.config["method"]["name"])


def export(do: Export, results: Path, store: Store, api: HfApi | None = None) -> list[str]:
    """Write the folder, and upload it where that is wanted; returns lines about it, for the screen.

    Raises BadConfig if there is no model to export, Unsound if its stage is damaged or the folder cannot be
    written.
    """
    folder, out = why.find_cell(str(do.cell), results), user_path(str(do.out))
    written = why.read_cell(folder)
    if written.failed or not (folder / "result.json").exists():
        raise Unsound(
            f"{folder.name} has no numbers, and its card needs them: {written.failed or 'not run yet'}"
        )
    manifest = _of_policy(folder.name, written.stages, store)
    place = store.root / manifest.kind / manifest.key
    command = _command(written.key, results)
    if manifest.evicted:
        again = f"python -m bench {command} keep=weights" if command else "the same command with keep=weights"
        raise BadConfig(
            [
                f"{folder.name}: its weights were deleted (keep=...). To train it again, delete {place} and run {again}"
            ]
        )
    try:
        config = read_yaml(folder / "config.yaml")
        score = (
            store.root
            / "score"
            / [key for key, facts in written.stages.items() if facts["kind"] == "score"][-1]
        )
        store.verified_manifest(score)
        result = Result.from_json(read_object(score / "result.json"))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Unsound(
            f"DAMAGED  {folder}: {' '.join(str(error).split())}. Run do=report of its sweep to write it again"
        ) from error
    lineage = list(why.lines(why.lineage(folder, store)))
    page = _page(written.key, results) if do.push_page else None
    wanted = do.push or do.push_data or do.push_page
    api = (api or HfApi()) if wanted else None
    licence = push.licence_of(_hub_base(config), api) if api else None
    exported = Exported(folder.name, written.key, config, result, manifest, lineage, command, licence)
    try:
        _write(exported, model_folder(place), out)
    except OSError as error:
        raise Unsound(f"not written: {error.filename or out}: {error.strerror or error}") from error
    lines = [
        f"{folder.name}: {', '.join(sorted(path.name for path in out.iterdir()))}",
        f"model    {out}",
        f"card     {out / 'README.md'}",
    ]
    if api:
        about = _description(exported, adapter=(out / "adapter_config.json").exists())
        data = push.data_folder(written.stages, folder.name, about, store) if do.push_data else None
        try:
            lines += push.upload(do, out, data, page, api)
        finally:
            for made in filter(None, (data, page)):
                shutil.rmtree(made, ignore_errors=True)
    return lines


def _page(key: str, results: Path) -> Path:
    """A folder with the page of the first sweep that holds the cell. Raises BadConfig where it has none."""
    for path in sorted((results / "sweeps").glob("*/report.html")):
        with contextlib.suppress(BadFile, KeyError, TypeError):
            if any(cell["key"] == key for cell in read_object(path.with_name("plan.json"))["cells"]):
                return push.page_folder(path, path.parent.name)
    raise BadConfig(
        [f"no sweep in {results / 'sweeps'} has both this cell and a report.html: run do=report of it"]
    )


def _write(exported: Exported, model: Path, out: Path) -> None:
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    try:
        shutil.copytree(model, part)
        path = part / "adapter_config.json"
        if path.exists() and (hub := _hub_base(exported.config)):
            named = json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": hub}
            path.write_text(json.dumps(named, indent=1, sort_keys=True), "utf-8")
        (part / "README.md").write_text(card(exported, adapter=path.exists()), encoding="utf-8")
        if out.exists():
            out.rmdir()  # it is empty: this was checked before the command started
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _of_policy(cell: str, stages: Mapping[str, Mapping[str, str]], store: Store) -> Manifest:
    """Manifest of the stage that trained the cell's model: the reward model of best of n, else the policy."""
    for role in ("reward_model", "model"):
        for key, facts in stages.items():
            if facts["kind"] != "generate":
                continue
            try:
                source = (
                    store.verified_manifest(store.root / "generate" / key).inputs.get(role, {}).get("key", "")
                )
                if source in stages:
                    return store.verified_manifest(store.root / stages[source]["kind"] / source)
            except ValueError as error:
                raise Unsound(f"DAMAGED  {error}. Run its sweep again to compute it") from error
    raise BadConfig([f"{cell}: nothing was trained for it, so there is no model of its own to export"])


def _command(key: str, results: Path) -> str | None:
    """Command of the first sweep that holds the cell. None without one."""
    for path in sorted((results / "sweeps").glob("*/plan.json")):
        with contextlib.suppress(BadFile, KeyError, TypeError):  # a damaged plan names no command
            plan = read_object(path)
            if "command" in plan and any(cell["key"] == key for cell in plan["cells"]):
                return str(plan["command"])
    return None


# The card -------------------------------------------------------------------------------------------------------------


def card(exported: Exported, adapter: bool) -> str:
    """A model card in the hub's form."""
    header = yaml.safe_dump(_header(exported, adapter), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{header}---",
        f"# {exported.name}",
        _description(exported, adapter),
        "## Numbers",
        _numbers(exported.result),
        "## How it was made",
    ]
    parts += [
        "```\n" + "\n".join(exported.lineage) + "\n```",
        "## Method and deviations",
        _method(exported.method),
        "## Again",
        _command_section(exported),
    ]
    return (
        "\n\n".join(
            [
                *parts,
                "## Settings",
                "```yaml\n" + yaml.safe_dump(nameless(exported.config), sort_keys=False) + "```",
            ]
        )
        + "\n"
    )


def _hub_base(config: Mapping[str, Any]) -> str | None:
    """Name of the start model on the hub. None for one from a folder."""
    model = config["model"]
    return model.get("hub") if not model.get("path") else None


def _header(exported: Exported, adapter: bool) -> dict[str, Any]:
    data, metrics = exported.config["data"], exported.result.metrics
    reward = _exports_reward_model(exported)
    task = "text-classification" if reward else "text-generation"
    header: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": task}
    header["tags"] = ["preference-alignment", exported.method, *(["reward-model"] if reward else [])]
    header |= {"license": exported.licence} if exported.licence else {}
    header |= {"base_model": hub} if (hub := _hub_base(exported.config)) else {}
    header |= {"datasets": [data["hub"]]} if data.get("hub") and not data.get("path") else {}
    values = [
        {"type": name, "value": value, "name": name}
        for name, value in metrics.items()
        if not name.endswith(NOT_NUMBERS)
    ]
    judge = exported.config["judge"]
    judges = ", ".join(judge["judges"]) if judge_facts(judge) is SuiteJudge else judge["name"]
    about = {
        "name": f"{judges} on {data['name']}",
        "type": data.get("hub") or data["name"],
    }
    header["model-index"] = [
        {"name": exported.name, "results": [{"task": {"type": task}, "dataset": about, "metrics": values}]}
    ]
    return header


def _exports_reward_model(exported: Exported) -> bool:
    return method_facts(exported.method).chooses


def _description(exported: Exported, adapter: bool) -> str:
    model, data = exported.config["model"], exported.config["data"]
    recipe = f"`{exported.method}` from the start model of `{model.get('hub') or model['name']}` on `{data.get('hub') or data['name']}`"
    seed = exported.config["seed"]
    sentences = [
        f"Trained with {recipe}, seed {seed}."
        if exported.model.kind == "train"
        else f"The start model of {recipe}."
    ]
    base = _hub_base(exported.config) or f"the folder of {model['name']}"
    load = f"`PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)`, where BASE is {base}"
    sentences += (
        [f"A LoRA adapter, loaded with PEFT together with its base model: {load}."] if adapter else []
    )
    if _exports_reward_model(exported):
        sentences.append(
            "A sequence classifier with one output: the reward model that chose the best of several samples of the start model."
        )
    if (control := method_facts(exported.method).control) is not None:
        sentences.append(
            f"Put its control token `{control}` after every prompt; the numbers below were measured with it."
        )
    return " ".join(sentences)


def _numbers(result: Result) -> str:
    rows = ["| number | value | 95 % interval |", "|---|---|---|"]
    for name, value in result.metrics.items():
        if not name.endswith(NOT_NUMBERS):
            low, high = (result.metrics.get(f"{name}{end}") for end in ("_low", "_high"))
            rows.append(
                f"| {name} | {value:.6g} | {'' if low is None or high is None else f'{low:.6g} to {high:.6g}'} |"
            )
    missing = [f"{name}: {reason}." for name, reason in result.missing.items()]
    note = "Rates are in [0, 1]. Intervals are over prompts. Numbers that were not measured are left out."
    return "\n\n".join(["\n".join(rows), " ".join([note, *missing])])


def _method(name: str) -> str:
    """Docstring of the method's file: paper, equation, deviations."""
    return inspect.getdoc(importlib.import_module(f"bench.methods.{name}")) or name


def _command_section(exported: Exported) -> str:
    recorded = exported.model.recorded
    packages = ", ".join(f"{name} {version}" for name, version in recorded.get("packages", {}).items())
    made = f"Made at revision `{recorded.get('revision', 'unknown')}` of bench on {recorded.get('device')}"
    made = f"{made}, Python {recorded.get('python')}: {packages}."
    how = (
        f"    python -m bench {nameless_command(exported.command)}"
        if exported.command
        else "    python -m bench, with the settings below"
    )
    return f"{how}\n\ncomputes the cell `{exported.key}` again. The model is stage `{exported.model.kind}/{exported.model.key}`. {made}"

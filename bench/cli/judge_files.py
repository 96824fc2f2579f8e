"""Files of a judge's section: its model, prompts, items and calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.cli.folders import ADD_ONE, existing_file, model_folder, no_template
from bench.cli.sweep_files import Tree
from bench.config import FITTED, HELDOUT, RIVALS, Bounds, LanguageJudge, judge_facts
from bench.judges.asked.prices import price_of
from bench.judges.asked.prompts import SHIPPED_PROMPTS, prompts_of
from bench.judges.formats.alpaca_eval import read_calibration
from bench.judges.formats.items import HUB_ITEMS, N_HUB_ITEMS, hub_file, read_benchmark_items
from bench.models.hub import Unreachable
from bench.models.templates import read_template, try_template
from bench.store.keys import Source
from bench.text_files import BadFile


@dataclass(frozen=True)
class JudgeFiles:
    """Files that a judge reads."""

    prompts: Source | None
    model: Path | None
    files: Mapping[str, Path]  # items, references, baseline
    n_items: int
    calibration: Path | None = None


def judge_sections(place: str, judge: Any) -> Iterator[tuple[str, Tree]]:
    """(key, section) of a judge, of a suite's evaluations and of a jury's members."""
    if isinstance(judge, dict):
        yield place, judge
        if isinstance(members := judge.get("judges"), dict):
            for label, member in members.items():
                yield from judge_sections(f"{place}.judges.{label}", member)


def judge_identity(judge: Tree) -> str:
    """Identity of a judge's files; they are read once for all cells."""
    names = (
        "name",
        "annotator",
        "prompts",
        "items",
        "references",
        "baseline",
        "mode",
        "model",
        "server",
        "prices",
        "tokenizer",
    )
    return repr(
        [judge.get(name) for name in (*names, "calibration")] + [judge.get("budget_dollars") is not None]
    )


def judge_files_of(judge: Tree, bounds: Bounds, away: list[str] | None = None) -> JudgeFiles:
    """The files of a judge's section. Raises ValueError for the first file that cannot be used; the section
    may have other faults.

    A plan gives `away`: it takes the reason why the official items of the hub cannot be had, and the plan goes
    on with their recorded number."""
    judge_files = _judge_files(judge, bounds, away)
    given = judge.get("calibration")
    if given in (None, FITTED):
        return judge_files
    path = existing_file(given, "judge.calibration")
    items = (
        read_benchmark_items(judge_facts(judge).form_of(judge_files.files), judge_files.files)
        if judge_files.files and judge_files.files["items"] != HUB_ITEMS
        else []
    )
    n = len(items) or judge_files.n_items or judge["n_items"]
    read_calibration(path, items, n if isinstance(n, int) else None)
    return replace(judge_files, calibration=path)


def _as_labeller(judge: Tree) -> Tree:
    """A judge's section without the settings of an evaluation."""
    return (
        judge
        | dict.fromkeys(judge_facts(judge).item_files)
        | ({"calibration": None} if "calibration" in judge else {})
    )


def labeller_identity(judge: Tree) -> str:
    """Identity of a labelling judge's files."""
    return f"labeller {judge_identity(_as_labeller(judge))}"


def labeller_files(judge: Tree, bounds: Bounds) -> JudgeFiles:
    """The files of a judge that labels samples. Raises ValueError as judge_files_of does."""
    try:
        return _judge_files(_as_labeller(judge), bounds)
    except ValueError as error:
        raise ValueError(str(error).replace("judge.", "method.labelling_judge.")) from error


def _judge_files(judge: Tree, bounds: Bounds, away: list[str] | None = None) -> JudgeFiles:
    facts = judge_facts(judge)
    if not issubclass(facts, LanguageJudge):
        what = facts.classifier
        model = (
            model_folder(judge["model"], bounds, "judge.model", what)
            if what and judge["model"] != "???"
            else None
        )
        given = judge["items"] not in (None, HELDOUT)
        files = {"items": existing_file(judge["items"], "judge.items")} if given else {}
        return JudgeFiles(
            None, model, files, len(read_benchmark_items(facts.form_of(files), files)) if files else 0
        )
    own_file = None
    if prompts_name := judge.get("prompts"):
        shipped = SHIPPED_PROMPTS.get(judge["name"], {}).get(prompts_name)
        own_file = shipped or existing_file(prompts_name, "judge.prompts")
    prompts = Source(*prompts_of(judge["name"], own_file, str(judge.get("annotator"))))
    if (
        judge["budget_dollars"] is not None
        and judge["server"] == "endpoint"
        and price_of(judge["model"], judge["prices"], judge["base_url"]) is None
    ):
        raise ValueError(
            f"judge.budget_dollars needs a price of {judge['model']}, and {judge['prices'] or 'the price list of bench'} has none: "
            "set judge.prices to a file with its price"
        )
    price_of(judge["model"], judge["prices"], judge["base_url"])
    if judge["tokenizer"]:
        folder = existing_file(f"{judge['tokenizer']}/tokenizer.json", "judge.tokenizer").parent
        if (template := read_template(folder)) is not None:
            try_template(template, bounds.template_s)
    model = (
        model_folder(judge["model"], bounds, "judge.model")
        if judge["server"] != "endpoint" and judge["model"] != "???"
        else None
    )
    if model and (why := no_template(model, ADD_ONE)):
        raise ValueError(why)
    named = {role: judge[role] for role in facts.item_files if judge[role] not in (None, "", HELDOUT)}
    files = {
        role: _hub_file(away) if (role, text) == ("items", "hub") else existing_file(text, f"judge.{role}")
        for role, text in named.items()
    }
    if "items" not in files and files:
        raise ValueError(f"judge.{next(iter(files))} needs judge.items, which is not set")
    form = facts.form_of(files)
    try:
        items = read_benchmark_items(form, files) if files and files["items"] != HUB_ITEMS else []
    except BadFile as error:
        if form == judge["name"]:
            raise
        raise BadFile(
            f"{error}; Arena-Hard's question.jsonl needs judge.baseline, a model_answer file, which is not set"
        ) from error
    rivalled = judge.get("opponent") in RIVALS
    if judge.get("mode") == "pairwise" and files and "baseline" not in files and not rivalled:
        raise ValueError(
            "judge.mode=pairwise needs the opponent's answers: set judge.baseline to a FastChat model_answer file, or judge.opponent=start"
        )
    n_items = N_HUB_ITEMS if files.get("items") == HUB_ITEMS else len(items)
    return JudgeFiles(prompts, model, files, n_items)


def _hub_file(away: list[str] | None) -> Path:
    """AlpacaEval's official items; HUB_ITEMS where a plan (which gives `away`) cannot have them."""
    try:
        return hub_file()
    except Unreachable as error:
        if away is None:
            raise
        away.append(str(error))
        return HUB_ITEMS

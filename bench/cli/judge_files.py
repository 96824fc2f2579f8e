"""What a judge's section names on disk: its model, prompts, items and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cli.folders import ADD_ONE, a_file, model_folder, no_template
from bench.cli.messages import Tree
from bench.config import FITTED, Bounds, LanguageJudge, judge_facts
from bench.judges.asked.prices import price_of
from bench.judges.asked.prompts import prompts_of
from bench.judges.formats.alpaca_eval import read_calibration
from bench.judges.formats.items import hub_file, read_benchmark_items
from bench.models.templates import look, read_template
from bench.store.keys import Source
from bench.text_files import BadFile


@dataclass(frozen=True)
class JudgeFiles:
    """What a judge that is a model reads."""

    prompts: Source | None
    model: Path | None
    files: Mapping[str, Path]  # items, references, baseline
    n_items: int
    calibration: Path | None = None


def what_judge_reads(judge: Tree) -> str:
    """What the files of a judge depend on; they are read once for all cells."""
    names = ("name", "annotator", "prompts", "items", "references", "baseline", "mode", "model", "server", "prices", "tokenizer")
    return repr([judge.get(name) for name in (*names, "calibration")] + [judge.get("budget_dollars") is not None])


def judge_files_of(judge: Tree, bounds: Bounds) -> JudgeFiles:
    """The files of a judge's section, which may have other faults. Raises ValueError for the first that cannot be used."""
    found = _judge_files(judge, bounds)
    given = judge.get("calibration")
    if given in (None, FITTED):
        return found
    path = a_file(given, "judge.calibration")
    items = read_benchmark_items(judge_facts(judge).form_of(found.files), found.files) if found.files else []
    n = len(items) or judge["n_items"]
    read_calibration(path, items, n if isinstance(n, int) else None)
    return replace(found, calibration=path)


def _as_labeller(judge: Tree) -> Tree:
    """A judge's section without what it is asked about in an evaluation."""
    return judge | dict.fromkeys(judge_facts(judge).item_files) | ({"calibration": None} if "calibration" in judge else {})


def what_labeller_reads(judge: Tree) -> str:
    return f"labeller {what_judge_reads(_as_labeller(judge))}"


def labeller_files(judge: Tree, bounds: Bounds) -> JudgeFiles:
    try:
        return _judge_files(_as_labeller(judge), bounds)
    except ValueError as error:
        raise ValueError(str(error).replace("judge.", "method.labelling_judge.")) from error


def _judge_files(judge: Tree, bounds: Bounds) -> JudgeFiles:
    facts = judge_facts(judge)
    if not issubclass(facts, LanguageJudge):
        what = facts.classifier
        model = model_folder(judge["model"], bounds, "judge.model", what) if what and judge["model"] != "???" else None
        files = {"items": a_file(judge["items"], "judge.items")} if judge["items"] else {}
        return JudgeFiles(None, model, files, len(read_benchmark_items(facts.form_of(files), files)) if files else 0)
    own_file = a_file(judge["prompts"], "judge.prompts") if judge.get("prompts") else None
    prompts = Source(*prompts_of(judge["name"], own_file, str(judge.get("annotator"))))
    if judge["budget_dollars"] is not None and judge["server"] == "endpoint" and price_of(judge["model"], judge["prices"]) is None:
        raise ValueError(
            f"judge.budget_dollars needs a price of {judge['model']}, and {judge['prices'] or 'the price file of bench'} has none: "
            "give a file that names it as judge.prices"
        )
    price_of(judge["model"], judge["prices"])
    if judge["tokenizer"]:
        folder = a_file(f"{judge['tokenizer']}/tokenizer.json", "judge.tokenizer").parent
        if (template := read_template(folder)) is not None:
            look(template, bounds.template_s)
    model = model_folder(judge["model"], bounds, "judge.model") if judge["server"] != "endpoint" and judge["model"] != "???" else None
    if model and (why := no_template(model, ADD_ONE)):
        raise ValueError(why)
    named = {role: judge[role] for role in facts.item_files if judge[role]}
    files = {role: hub_file() if (role, text) == ("items", "hub") else a_file(text, f"judge.{role}") for role, text in named.items()}
    if "items" not in files and files:
        raise ValueError(f"judge.{next(iter(files))} goes with judge.items, which is not set")
    form = facts.form_of(files)
    try:
        items = read_benchmark_items(form, files) if files else []
    except BadFile as error:
        if form == judge["name"]:
            raise
        raise BadFile(f"{error}; Arena-Hard's question.jsonl goes with judge.baseline, a model_answer file, which is not set") from error
    if judge.get("mode") == "pairwise" and files and "baseline" not in files:
        raise ValueError("judge.mode=pairwise compares with a model's answers: name FastChat's file of them as judge.baseline")
    return JudgeFiles(prompts, model, files, len(items))

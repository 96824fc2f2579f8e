"""`do=plan`: prints the stages that a command would run, with time, tokens, memory and cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bench.cli.compose import CheckedCommand
from bench.commands import OK
from bench.commands.planned_sweep import sweep_of
from bench.config import PlanVerb, WorldData
from bench.config.errors import BadConfig
from bench.forecast import compute_table
from bench.forecast.compute_table import CELL_COLUMNS, STAGE_COLUMNS
from bench.forecast.compute_table import SizeReport as Sizes
from bench.forecast.judge_cost import JudgeCost, judge_costs, with_costs
from bench.forecast.power import power_lines
from bench.forecast.row_counts import data_lines
from bench.forecast.stage_time import StageForecast, estimates
from bench.planning.inputs import single
from bench.planning.judging import labels_samples
from bench.planning.to_do import Plan, make_plan
from bench.records import grouped
from bench.report import Sweep
from bench.runner.local_pool import pool_size
from bench.runner.progress_view import clock, makespan_s
from bench.store.keys import Stage
from bench.store.stage_settings import LanguageJudgeSettings
from bench.store.store import Store
from bench.terminal import Terminal, plain_table, say
from bench.text_files import BadFile


def main(opened: CheckedCommand) -> int:
    session = opened.session
    store = Store(session.results_dir / "store")
    sweep = sweep_of(opened)
    plan = make_plan(sweep.cells, store)
    costs = costs_of(plan, store)
    data = data_lines(sweep.cells, store)
    workers = pool_size(session.launcher, session.accelerate.gpus)
    assert isinstance(session.do, PlanVerb)
    if plan.to_do:
        print_plan(sweep, plan, with_costs(estimates(plan.to_do, store), costs), workers, costs)
        _print_lines("data", data.lines)
        _print_lines("apart", power_lines(sweep, session.results_dir / "sweeps" / sweep.name))
    else:
        cells = "its cell is" if len(sweep.cells) == 1 else f"all {len(sweep.cells)} cells are"
        say(f"{sweep.name}: nothing to do, {cells} finished; do=report prints the table")
    if plan.to_do or session.do.size != "auto":
        print_sizes(
            compute_table.report(
                sweep.cells, plan.to_do, store, session.hardware, session.keep, session.do.size
            )
        )
    for line in dict.fromkeys(opened.away):
        say(f"missing  {line}")
    if data.refusals:
        raise BadConfig(data.refusals)
    return OK


def costs_of(plan: Plan, store: Store) -> dict[Stage, JudgeCost]:
    """Costs of the judges by stage.

    Raises BadConfig for a file of completions without a completion for each item.
    """
    try:
        return judge_costs(plan.to_do, store)
    except BadFile as error:
        raise BadConfig(str(error).splitlines()) from error


def print_plan(
    sweep: Sweep,
    plan: Plan,
    forecast: Mapping[Stage, StageForecast],
    workers: int,
    costs: Mapping[Stage, JudgeCost],
) -> None:
    """Print cells, unique stages by kind, and forecasts of time, tokens and judge cost."""
    console = Terminal(soft_wrap=True, highlight=False)
    cells = plain_table(f"{sweep.name}: {len(sweep.cells)} cells", ("cell", "to do", "done"))
    to_do = set(plan.to_do)
    for cell in sweep.cells:
        n = sum(stage in to_do for stage in cell.stages)
        cells.add_row(cell.name, str(n), str(len(cell.stages) - n))
    console.print(cells)
    kinds = plain_table(
        "unique stages",
        ("kind", "done or not needed", "to do", "shared by cells", "seconds", "tokens at most"),
    )
    uses = Counter(stage for cell in sweep.cells for stage in cell.stages)
    for kind in dict.fromkeys(stage.kind for stage in uses):
        of_kind = [stage for stage in uses if stage.kind == kind]
        waiting = [stage for stage in of_kind if stage in to_do]
        kinds.add_row(
            kind,
            str(len(of_kind) - len(waiting)),
            str(len(waiting)),
            str(sum(uses[stage] > 1 for stage in of_kind)),
            _seconds([forecast[stage].seconds for stage in waiting]),
            f"{sum(forecast[stage].tokens for stage in waiting):,}",
        )
    console.print(kinds)
    for status in plan.statuses.values():
        if status.why:
            console.plain(status.why, "yellow")
    known = {stage: estimate.seconds for stage, estimate in forecast.items() if estimate.seconds is not None}
    unknown = len(forecast) - len(known)
    time_words = "no forecast: no similar stage has run here yet"
    if known or not forecast:
        time_words = f"about {clock(makespan_s(known, workers)).strip()} with {workers} at a time"
        time_words += (
            f", without {unknown} stages that have no forecast: no similar stage has run here"
            if unknown
            else ""
        )
    console.print(f"time     {time_words}")
    uncounted = (
        ", not counting rows of your file"
        if any(not isinstance(cell.cell.data, WorldData) for cell in sweep.cells)
        else ""
    )
    console.print(f"tokens   at most {sum(e.tokens for e in forecast.values()):,}{uncounted}")
    names = ", ".join(sorted({cell.cell.judge.name for cell in single(sweep.cells)}))
    of_labels = [cost for stage, cost in costs.items() if labels_samples(stage)]
    evaluating = {stage: cost for stage, cost in costs.items() if not labels_samples(stage)}
    asking = [stage for stage in plan.to_do if isinstance(stage.settings, LanguageJudgeSettings)]
    away = [stage for stage in asking if stage not in costs]
    counted = _cost_words(list(evaluating.values())) if evaluating or not away else "not counted"
    console.print(f"judge    {counted} ({names})")
    by_label = grouped((stage.label, cost) for stage, cost in evaluating.items())
    for label, some in by_label.items() if len(by_label) > 1 else ():  # evaluations, members of a jury
        console.print(f"         {label}: {_cost_words(some)}")
    if of_labels:
        console.print(f"labels   {_cost_words(of_labels)}")
    if away:
        text = f"{len(away)} stages that ask a judge are not counted: their prompts are not on this machine"
        console.print(f"         {text}")
    for source in dict.fromkeys("; ".join(cost.how) for cost in costs.values()):
        console.print(f"         counted from {source}")


def _print_lines(title: str, lines: Sequence[str]) -> None:
    """Print lines that belong together, the first one after their title."""
    console = Terminal(soft_wrap=True, highlight=False)
    for place, line in enumerate(lines):
        console.plain(f"{'' if place else title:<9}{line}")


def print_sizes(sizes: Sizes | None) -> None:
    """Print memory and compute of large models; nothing without a report."""
    console = Terminal(soft_wrap=True, highlight=False)
    tables = (
        {"work of models, to do": (STAGE_COLUMNS, sizes.stages), "by cell": (CELL_COLUMNS, sizes.cells)}
        if sizes
        else {}
    )
    for title, (columns, rows) in tables.items():
        table = plain_table(title, columns)
        for row in rows:
            table.add_row(*row)
        if rows:
            console.whole(table)
    _print_lines("size", sizes.lines if sizes else ())


def print_costs(plan: Plan, costs: Mapping[Stage, JudgeCost]) -> None:
    """Print the requests of an audit, one line a stage, and their cost."""
    console = Terminal(soft_wrap=True, highlight=False)
    table = plain_table(
        "requests to judges", ("judge", "about", "requests", "tokens sent", "tokens back", "$"), n_texts=2
    )
    for cell in plan.cells:
        for role in cell.roles.values():
            if cost := costs.get(role):
                dollars = "?" if cost.dollars is None else f"{cost.dollars:.2f}"
                numbers = (f"{n:,}" for n in (cost.requests, cost.prompt_tokens, cost.completion_tokens))
                table.add_row(cell.name, role.label, *numbers, dollars)
    if table.row_count:
        console.whole(table)
    names = ", ".join(sorted({cell.cell.judge.name for cell in single(plan.cells)}))
    console.print(f"judge    {_cost_words(list(costs.values()))} ({names})")
    for how in dict.fromkeys("; ".join(cost.how) for cost in costs.values()):
        console.print(f"         counted from {how}")
    spent: dict[tuple[str, float], float] = {}  # by judge, since each has its own budget
    for cell in plan.cells:
        if (budget := getattr(cell.cell.judge, "budget_dollars", None)) is not None:
            judge = cell.cell.judge.model_dump_json(), budget
            known = [
                cost.dollars for role in cell.roles.values() if (cost := costs.get(role)) and cost.dollars
            ]
            spent[judge] = spent.get(judge, 0.0) + sum(known)
    over = [budget for (_, budget), dollars in spent.items() if dollars > budget]
    if over:
        stops = f"This is more than judge.budget_dollars={min(over):g}. The command stops there (exit 4); raise it to continue."
        console.print(f"         {stops}", highlight=True)


def _cost_words(costs: Sequence[JudgeCost]) -> str:
    known = sum(cost.dollars for cost in costs if cost.dollars is not None)
    if not costs:
        return "$0.00"
    requests = sum(cost.requests for cost in costs)
    tokens = f"{sum(cost.prompt_tokens for cost in costs):,} + {sum(cost.completion_tokens for cost in costs):,} tokens"
    unknown = any(cost.dollars is None for cost in costs)
    dollars = f"${known:.2f}" if known or not unknown else "price unknown (set judge.prices)"
    return f"{dollars}{' and a model without a price' if known and unknown else ''}: {requests:,} requests, {tokens}"


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not values:
        return ""
    return "?" if not known else f"{sum(known):,.0f}" + ("+?" if len(known) < len(values) else "")

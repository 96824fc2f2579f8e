"""`do=audit`: writes a passport for every judge of the cells."""

from __future__ import annotations

from bench import report
from bench.cli.audit_files import audit_sources
from bench.cli.compose import CheckedCommand
from bench.commands import OK, OVER_BUDGET, SOME_FAILED
from bench.commands.plan import costs_of, print_costs
from bench.config import Audit, JuryJudge, user_path
from bench.forecast.judge_cost import with_costs
from bench.forecast.stage_time import estimates
from bench.planning.audits import plan_audit
from bench.planning.inputs import CellPlan, evaluated_sources
from bench.planning.judging import judge_key
from bench.planning.to_do import make_plan
from bench.report import passport
from bench.runner import launchers
from bench.runner.local_pool import pool_size
from bench.runner.preflight import check_keys, make_results
from bench.runner.progress_view import make_screen
from bench.runner.scheduler import failure_of, run_stages
from bench.store.keys import Stage
from bench.store.store import Store
from bench.terminal import say


def planned_audits(opened: CheckedCommand) -> dict[str, CellPlan]:
    """The audit of each judge of the cells and their evaluations, by the judge's key; a jury has none."""
    do = opened.session.do
    assert isinstance(do, Audit)
    files = audit_sources(do)
    audits: dict[str, CellPlan] = {}
    for cell, sources in zip(opened.cells, opened.sources, strict=True):
        for one, of_one in evaluated_sources(cell, sources).values():
            for manner in () if isinstance(one.judge, JuryJudge) else one.judge.gives:
                audit = plan_audit(one, of_one, do, files[manner], manner)
                audits.setdefault(judge_key(audit.roles["verdicts"]), audit)
    return audits


def main(opened: CheckedCommand) -> int:
    """Write a passport for every judge of the cells; returns the exit code.

    Verdicts that are in the store already are used, and their judges are not asked again.
    """
    do = opened.session.do
    assert isinstance(do, Audit)
    if not do.plan:
        make_results(opened.session.results_dir, store=True)
    store = Store(opened.session.results_dir / "store")
    cells = list(planned_audits(opened).values())
    sweep = report.Sweep("audit", opened.title, opened.command, cells)
    plan = make_plan(cells, store)
    costs = costs_of(plan, store)
    if do.plan or costs:
        print_costs(plan, costs)
    if do.plan:
        return OK
    check_keys(plan.to_do)
    launchers.check(opened.session.launcher, plan.to_do)
    forecast = with_costs(estimates(plan.to_do, store), costs)
    failures: dict[Stage, str] = {}
    screen = make_screen(
        sweep, plan, forecast, pool_size(opened.session.launcher, opened.session.accelerate.gpus)
    )
    with screen:
        over_budget = run_stages(opened.session, sweep, plan, store, screen, forecast, failures)
    chosen = [
        f"{name}={value}"
        for name, value in do.model_dump(exclude={"name", "plan", "out"}).items()
        if value is not None
    ]
    command = " ".join(filter(None, ["python -m bench do=audit", opened.command, *chosen]))
    whole = True
    for audit in cells:
        if reason := failure_of(audit, failures):
            say(f"FAILED   {audit.name}: {reason}")
        else:
            folder = user_path(do.out) if do.out else opened.session.results_dir / report.PASSPORTS
            root = folder if do.out else opened.session.results_dir
            whole &= passport.show(passport.read_passport(audit, store, command), root, folder)
    store.remove_leftovers()
    return OVER_BUDGET if over_budget else SOME_FAILED if failures or not whole else OK

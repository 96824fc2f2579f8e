"""Checks before any stage runs: keys, tasks, devices, and the results folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import secrets
from bench.cli.compose import BadConfig
from bench.config import Session
from bench.engines.lm_eval import faults
from bench.store.keys import Source, Stage
from bench.store.stage_settings import LanguageJudgeSettings, TaskSettings
from bench.training.devices import spread_faults


def make_results(results: Path, *, store: bool) -> None:
    """Make the results folder. Raises BadConfig where that is not possible."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        if store:
            _refuse_links(results)
            # It shows whether the folder can be written to: /proc cannot.
            (results / "store").mkdir(exist_ok=True)
    except OSError as error:
        why = f"cannot write to results={results} ({error.strerror}): set results=DIR or BENCH_RESULTS to another folder"
        raise BadConfig([why]) from error


def _refuse_links(results: Path) -> None:
    """Raise BadConfig where a folder that a run writes to is a link or a file."""
    for place in (results / name for name in ("store", "wandb", "jobs")):
        if place.is_symlink():
            raise BadConfig(
                [
                    f"{place} is a link, and nothing is written through one: move it away, or set results= to the folder that it points to"
                ]
            )
        if place.exists() and not place.is_dir():
            raise BadConfig([f"{place} is a file, and should be a folder: move it away, or set results=DIR"])


def check_keys(stages: Sequence[Stage]) -> None:
    """Raise BadConfig where a judge needs a key that the environment does not hold.

    This is checked before anything is trained.
    """
    askings = {
        stage.settings.asking
        for stage in stages
        if isinstance(stage.settings, LanguageJudgeSettings) and stage.settings.asking
    }
    problems = []
    for name, needed in sorted(
        {(asking.api_key_env, asking.base_url is None) for asking in askings if asking.server == "endpoint"}
    ):
        try:
            if secrets.key(name) is None and needed:
                problems.append(
                    f"the judge needs an API key: set the environment variable {name} (judge.api_key_env)"
                )
        except secrets.BadKey as error:
            problems.append(str(error))
    if problems:
        raise BadConfig(problems)


def check_tasks(stages: Sequence[Stage]) -> None:
    """Raise BadConfig for unknown tasks, and for tasks without their data.

    This is checked before anything is trained.
    """
    tasks_of: dict[tuple[tuple[str, ...], Path | None], None] = {}
    for stage in stages:
        if isinstance(stage.settings, TaskSettings):
            own = stage.inputs.get("tasks")
            tasks_of[stage.settings.tasks, own.path if isinstance(own, Source) else None] = None
    if problems := [problem for tasks, folder in tasks_of for problem in faults(tasks, folder)]:
        raise BadConfig(list(dict.fromkeys(problems)))


def check_devices(session: Session, stages: Sequence[Stage]) -> None:
    """Raise BadConfig where a training cannot be spread over the configured devices.

    This is checked before the start model is made.
    """
    if problems := spread_faults(session, stages):
        raise BadConfig(problems)

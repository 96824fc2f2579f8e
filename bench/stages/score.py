"""A cell's numbers as a file, computed by bench/scoring/."""

from __future__ import annotations

import json

from bench.records import Result
from bench.scoring.numbers import score
from bench.scoring.suite import joined
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import ScoreSettings, SuiteScoreSettings


def run(settings: ScoreSettings | SuiteScoreSettings, run: StageRun) -> Outcome:
    if isinstance(settings, SuiteScoreSettings):
        result = joined({label: Result.read(path / "result.json") for label, path in run.inputs.items()})
    else:
        result = score(settings, run.inputs)
    (run.out / "result.json").write_text(
        json.dumps(result.to_json(), indent=1, sort_keys=True, allow_nan=False), encoding="utf-8"
    )
    return Outcome({"metrics": len(result.metrics), "missing": len(result.missing)})

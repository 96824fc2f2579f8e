"""Loops as plans: what iterations share, who is whose reference, which pairs one trains on; and tiny real loops, resumed and explained."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from outer import outer
from safetensors.torch import load_file
from tiny import bench, copy_results, make_model, make_preferences, plans, smoke, smoke_cell, write_rows
from transformers import AutoModelForCausalLM

from bench import methods
from bench.cli.compose import BadConfig, CheckedCommand
from bench.commands import why
from bench.config import Cell, Dpo, IterativeDpo, Loop, SeedTraining, Spa, Spin, Training, Why
from bench.forecast.stage_time import token_bound
from bench.models.tokenize import load_tokenizer, model_folder, preference_ids
from bench.planning.cells import plan_cell
from bench.planning.inputs import CellPlan, Sources
from bench.planning.to_do import make_plan
from bench.records import Item, Labelled, Trust, read_jsonl, read_logps, read_rows
from bench.report.csv_rows import flat_rows
from bench.report.groups import pool
from bench.report.rows import Sweep, collect
from bench.report.tables import comparison_table
from bench.runner.cell_folders import write_cell
from bench.runner.worker import describe, run_stage
from bench.store import stage_settings
from bench.store.keys import Stage, keyed_settings
from bench.store.stage_settings import TrainSettings
from bench.store.store import Store

SMALL: dict[str, Any] = {
    "n_prompts": 24,
    "sample_temperature": 1.0,
    "sample_top_p": 1.0,
    "sample_max_new_tokens": 12,
    "pairs": "fresh",
    "batch_size": 4,
}
SEED = SeedTraining(beta=0.1, learning_rate=1e-3, num_train_epochs=1.0, batch_size=32)
REFINED: dict[str, Any] = {
    "alpha": 0.3,
    "distrusted": 0.3,
    "window": 8,
    "threshold": "pairs",
    "delay": 0.0,
    "decoupling": (0.5,),
}
JUDGE, MODEL = "judge@method.labelling_judge=alpaca_eval", "method.labelling_judge.model=m"


def planned(kind: type[Any], **settings: Any) -> CellPlan:
    """The smoke sweep's cell by a loop."""
    usual = smoke_cell("dpo", 0.1).cell
    fraction = settings.pop("fraction", 1.0)
    names = {"IterativeDpo": "iterative_dpo", "Spa": "spa", "Spin": "spin"}
    given = (
        usual.method.model_dump(include=set(Training.model_fields))
        | SMALL
        | {"learning_rate": 2e-3}
        | settings
    )
    data = usual.data.model_dump() | {"fraction": fraction}
    cell = usual.model_dump() | {"method": kind(name=names[kind.__name__], **given), "data": data}
    return plan_cell(Cell.model_validate(cell), Sources(), methods.chain)


def spa(iteration: int, **settings: Any) -> CellPlan:
    given = {
        "beta": 0.1,
        "seed_training": SEED,
        "judging_reference": "start",
        "length_penalty": 0.0,
        **REFINED,
    } | settings
    return planned(Spa, iteration=iteration, **given)


def iterative(iteration: int, **settings: Any) -> CellPlan:
    given: dict[str, Any] = {
        "beta": 0.1,
        "seed_training": SEED,
        "draws": 2,
        "labeller": "implicit",
        "judging_reference": "start",
    }
    given |= {
        "length_penalty": 0.0,
        "training_reference": "previous",
        "reward_learning_rate": 1e-3,
        "reward_fraction": None,
    }
    given |= {"labelling_judge": None}
    return planned(IterativeDpo, iteration=iteration, **given | settings)


def spin(iteration: int, **settings: Any) -> CellPlan:
    given: dict[str, Any] = {
        "loss": "spin",
        "betas": (0.1, 0.1, 0.1, 5.0),
        "learning_rate_factors": (1.0, 1.0, 0.2, 0.2),
    }
    return planned(Spin, iteration=iteration, **given | {"pairs": "two_latest"} | settings)


def labelled(cell: CellPlan) -> dict[str, Stage]:
    return {stage.label: stage for stage in cell.stages}


def source(stage: Stage, role: str) -> Stage:
    found = stage.inputs[role]
    assert isinstance(found, Stage)
    return found


# Plans ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [spa, iterative, spin])
def test_an_iteration_is_a_prefix_of_the_next(loop: Callable[..., CellPlan]) -> None:
    cells = [loop(t) for t in (1, 2, 3)]
    for shorter, longer in itertools.pairwise(cells):
        assert set(shorter.roles["train"].walk()) < set(longer.roles["train"].walk())
        assert shorter.key != longer.key
    assert [cell.name.split("-")[1] for cell in cells] == ["i1", "i2", "i3"]


def test_a_seed_training_is_the_stage_of_a_dpo_cell() -> None:
    """Iteration 0 of both loops is that cell, numbers and all."""
    dpo = smoke_cell("dpo", 0.1)
    assert isinstance(dpo.cell.method, Dpo) and dpo.cell.method.learning_rate == SEED.learning_rate
    assert spa(0).key == iterative(0).key == dpo.key
    assert labelled(spa(2))["seed policy (dpo)"] == dpo.roles["train"]


def test_without_a_seed_training_iteration_0_is_the_start_model() -> None:
    assert iterative(0, seed_training=None, labeller="gold").key == smoke_cell("start").key


def test_without_labelled_pairs_spa_holds_its_start_model_against_what_that_was_tuned_from() -> None:
    """Nothing is labelled for training, and the reference reads held-out rows alone."""
    without: dict[str, Any] = {"seed_training": None, "judging_reference": "base"}
    assert spa(0, fraction=0.0, **without).key == smoke_cell("start").key
    cell = spa(2, fraction=0.0, **without)
    stages = labelled(cell)
    first, second = (stages[f"iteration {t} labels (implicit)"] for t in (1, 2))
    assert [source(label, "reference_logps").inputs["model"] for label in (first, second)] == [
        stages["base model"]
    ] * 2
    written = [source(label, "policy_logps").inputs["model"] for label in (first, second)]
    assert written == [stages["start model"], stages["iteration 1 policy (spa)"]]
    assert not {"train samples", "train labels", "seed policy (dpo)"} & set(stages)
    assert stages["reference log-probs"].settings.splits == ("heldout",)  # type: ignore[attr-defined]
    whole = labelled(spa(2, **without))
    assert whole["iteration 2 policy (spa)"] == stages["iteration 2 policy (spa)"] and "train labels" in whole
    assert labelled(iterative(1, **without))["iteration 1 labels (implicit)"] == first


def test_two_loops_share_what_comes_before_they_part() -> None:
    """SPA and iterative DPO with implicit labels part at their first training; with other labels at the labels."""
    refined, plain, random = (
        labelled(cell) for cell in (spa(1), iterative(1), iterative(1, labeller="random"))
    )
    assert refined["iteration 1 pairs"] == plain["iteration 1 pairs"]
    assert refined["iteration 1 policy (spa)"] != plain["iteration 1 policy (iterative_dpo)"]
    assert random["iteration 1 samples"] == plain["iteration 1 samples"]
    assert random["iteration 1 pairs"] != plain["iteration 1 pairs"]


def test_who_is_whose_reference_in_spa() -> None:
    """methods.md, section 6: π_t from and against π_{t-1}, judged against the start model, always."""
    stages = labelled(spa(2))
    seed, first, second = (
        stages[f"{name}"]
        for name in ("seed policy (dpo)", "iteration 1 policy (spa)", "iteration 2 policy (spa)")
    )
    start = source(seed, "model")
    for before, trained, t in ((seed, first, 1), (first, second, 2)):
        assert trained.inputs["model"] == trained.inputs["reference_model"] == before
        assert source(trained, "reference_logps").inputs["model"] == before
        assert stages[f"iteration {t} samples"].inputs["model"] == before
        labels = stages[f"iteration {t} labels (implicit)"]
        assert source(labels, "policy_logps").inputs["model"] == before
        assert source(labels, "reference_logps").inputs["model"] == start
    judged = labelled(iterative(2, judging_reference="previous"))["iteration 2 labels (implicit)"]
    assert source(judged, "reference_logps").inputs["model"] == seed
    against_start = labelled(iterative(2, training_reference="start"))["iteration 2 policy (iterative_dpo)"]
    assert source(against_start, "reference_logps").inputs["model"] == start


@pytest.mark.parametrize("loop", [spa, iterative])
def test_a_length_penalty_moves_labels_and_no_key_where_it_is_0(loop: Callable[..., CellPlan]) -> None:
    plain, penalised = labelled(loop(1)), labelled(loop(1, length_penalty=0.01))
    moved = [name for name, stage in plain.items() if stage.key != penalised[name].key]
    assert moved[0] == "iteration 1 labels (implicit)"
    assert "length_penalty" not in keyed_settings(plain[moved[0]].settings)


def test_the_logits_of_the_reference_are_read_where_detection_is_decoupled() -> None:
    stages = labelled(spa(3, decoupling=(0.5, 0.25, 0.0)))
    trained = [stages[f"iteration {t} policy (spa)"] for t in (1, 2, 3)]
    assert [stage.settings.method.decoupling for stage in trained] == [0.5, 0.25, 0.0]  # type: ignore[attr-defined]
    assert ["reference_model" in stage.inputs for stage in trained] == [True, True, False]


@pytest.mark.parametrize(("pairs", "read"), [("fresh", "3"), ("two_latest", "23"), ("accumulated", "0123")])
def test_pairs_of_which_iterations(pairs: str, read: str) -> None:
    stages = labelled(iterative(3, pairs=pairs))
    names = {"0": "preferences"} | {f"{t}": f"iteration {t} labels (implicit)" for t in (1, 2, 3)}
    found = [source for _, source in sorted(stages["iteration 3 pairs"].inputs.items())]
    assert found == [stages[names[t]] for t in read]
    n = {"3": 24, "23": 48, "0123": 72 + 128}[read]
    assert token_bound(stages["iteration 3 policy (iterative_dpo)"]) == 2 * n * 192


def test_spin_is_dpo_on_its_pairs_with_the_policy_before_as_opponent() -> None:
    """On given pairs the very stage of DPO: nothing of SPIN is in a training but beta and rate by iteration."""
    stages = labelled(spin(3))
    betas, rates = [], []
    before = source(stages["iteration 0 policy (spin)"], "model")
    for t in range(4):
        trained = stages[f"iteration {t} policy (spin)"]
        settings = trained.settings
        assert isinstance(settings, TrainSettings) and isinstance(settings.method, Dpo)
        assert trained.inputs["model"] == source(trained, "reference_logps").inputs["model"] == before
        betas.append(settings.method.beta)
        rates.append(settings.method.learning_rate)
        before = trained
    assert betas == [0.1, 0.1, 0.1, 5.0]
    assert rates == pytest.approx([2e-3, 2e-3, 4e-4, 4e-4])
    names = [
        sorted(s.label for s in stages[f"iteration {t} pairs"].inputs.values() if isinstance(s, Stage))
        for t in range(3)
    ]
    assert names == [[f"iteration {i} labels (human)" for i in read] for read in ([0], [0, 1], [1, 2])]
    assert spin(3).name.startswith("spin-i3-beta5-") and spin(2).name.startswith("spin-i2-beta0.1-")
    control = labelled(spin(0, loss="sft"))["iteration 0 policy (spin)"]
    assert control.settings.method.name == "sft_chosen"  # type: ignore[attr-defined]
    assert control.inputs == labelled(spin(0))["iteration 0 policy (spin)"].inputs


def test_an_axis_of_iterations_is_typed_like_any_other() -> None:
    cells = plans("method=spa", "method.iteration=0,1", "data=world_constraints")
    assert [cell.name.rsplit("-", 1)[0] for cell in cells] == [
        "start-world_medium-s0",
        "spa-i0-beta0.1-world_medium-s0",
        "spa-i1-beta0.1-world_medium-s0",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("method=spin", "method.n_prompts=1500"),
            "iterations 0 to 3 of 1500 prompts each need 6000 demonstrations",
        ),
        (
            ("method=iterative_dpo", "method.labeller=implicit", "method.seed_training=null"),
            "without seed_training a start model is its own reference",
        ),
        (("method=spa", "method.seed_training=null"), "set judging_reference=base, got start"),
        (
            ("method=spa", "data.fraction=0"),
            "method=spa learns from labelled rows, got data.fraction=0; set method.seed_training=null",
        ),
        (("method=dpo", "data.fraction=0"), "method=dpo learns from labelled rows, got data.fraction=0"),
        (
            ("method=spa", "method.judging_reference=base", "model.start=base"),
            "a start model that was tuned from the base model",
        ),
        (("method=spa", "method.iteration=-1"), "method.iteration must be >= 0, got -1"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run(
    words: tuple[str, ...], said: str, problems: Callable[..., list[str]]
) -> None:
    assert said in "\n".join(problems(*words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((JUDGE, MODEL), "labelling_judge is only used with labeller=judge"),
        (
            ("method.labeller=gold,random", "method.length_penalty=0.01"),
            "only used with labeller=implicit, got labeller=gold, random",
        ),
        (
            ("method.judging_reference=previous",),
            "or set method.labeller=implicit (method.judging_reference=previous on the command line)",
        ),
        (("method.reward_fraction=0.5",), "method.reward_fraction is only used with labeller=reward_model"),
    ],
)
def test_what_no_labeller_of_a_command_reads_is_refused(
    words: tuple[str, ...], said: str, problems: Callable[..., list[str]]
) -> None:
    """A judge beside labeller=gold would be named and never asked. Beside a labeller that reads it the others may stand."""
    assert said in "\n".join(problems("method=iterative_dpo", *words))
    others = [word for word in words if not word.startswith(("method.labeller=", JUDGE, MODEL))]
    every = "method.labeller=gold,judge,implicit,reward_model"
    assert problems("method=iterative_dpo", every, JUDGE, MODEL, *others) == []


@outer
def test_a_loop_on_ones_own_data_needs_new_prompts(
    model_folder: Path, pairs_file: Path, tmp_path: Path, problems: Callable[..., list[str]]
) -> None:
    """Prompts that none of the data's are: a file of them, as many as the iterations ask for."""
    own = ("model=local", f"model.path={model_folder}", "data=local", f"data.path={pairs_file}", "judge=none")

    def said(*words: str) -> str:
        return "\n".join(problems(*own, *words))

    assert "method=spa needs new prompts in addition to data=local: set method.prompts=FILE" in said(
        "method=spa"
    )
    assert "method=spin needs demonstrations in addition to data=local" in said("method=spin")
    assert "labeller=gold knows the truth of the controlled world only" in said(
        "method=iterative_dpo", "method.prompts=x"
    )
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Question 3?"}\n{"prompt": "Another?"}\n{"prompt": "Another?"}\n')
    spa_on = ("method=spa", f"method.prompts={file}", "method.n_prompts=1")
    assert (
        "1 of the 2 prompts in" in (shared := said(*spa_on))
        and "first 'Question 3?' (row 1): remove them" in shared
    )
    file.write_text('{"prompt": "One more?"}\n{"prompt": "Another?"}\n{"prompt": "Another?"}\n')
    assert (
        "iterations 1 to 3 of 1 prompts each need 3 prompts, and " in (few := said(*spa_on))
        and "has 2 different ones" in few
    )
    assert said(*spa_on, "method.iteration=2") == ""
    assert "expected columns prompt and completion, or messages, got prompt" in said(
        "method=spin", f"method.prompts={file}", "method.n_prompts=1"
    )
    assert "judging_reference=base compares a policy with" in said(
        *spa_on, "method.judging_reference=base", "method.seed_training=null"
    )
    assert "model.base must be a folder of a causal LM, got nowhere" in said(*spa_on, "model.base=nowhere")
    assert "method.prompts is for data=local" in "\n".join(problems("method=spa", f"method.prompts={file}"))


@pytest.mark.parametrize("method", ["spa", "iterative_dpo", "spin", "self_rewarding"])
def test_a_pretrained_model_writes_samples_as_long_as_its_scale_lets_it(
    method: str, model_folder: Path, pairs_file: Path, tmp_path: Path, opened: Callable[..., CheckedCommand]
) -> None:
    """Not as short as the world's: those of 48 tokens would all be cut, and the longer, finished one would be the human's."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "One more?", "completion": "Yes."}])
    own = [
        f"model={model_folder}/",
        "data=local",
        f"data.path={pairs_file}",
        "method.n_prompts=1",
        "method.iteration=0",
    ]
    more = {
        "self_rewarding": ["method.new_prompts=self_instruct"],
        "iterative_dpo": ["method.labeller=implicit"],
    }.get(method, [])
    (cell,) = (
        cell
        for cell in opened(
            f"method={method}",
            *own,
            *more,
            *([] if method == "self_rewarding" else [f"method.prompts={prompts}"]),
        ).cells
        if isinstance(cell.method, Loop)
    )
    assert isinstance(cell.method, Loop) and cell.method.sample_max_new_tokens == 300


# Real ones, tiny ------------------------------------------------------------------------------------------------------


def run_missing(stages: list[Stage], store: Store) -> int:
    """Run what is not done of the stages, inputs first; how many that were."""
    to_do = [stage for stage in stages if store.status(stage).state != "done"]
    for stage in to_do:
        run_stage(describe(stage, store))
        store.invalidate(stage)
    return len(to_do)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the smoke sweep left, and SPA's first iteration on top."""
    found = Store(copy_results(smoke(), tmp_path_factory.mktemp("loop") / "results") / "store")
    run_missing(make_plan([spa(1)], found).to_do, found)
    return found


def labels_of(cell: CellPlan, store: Store, name: str) -> list[Labelled]:
    return list(read_jsonl(store.folder(labelled(cell)[name]) / "labels.jsonl", Labelled))


def test_prompts_of_iterations_are_disjoint_from_labelled_ones(store: Store) -> None:
    stages = labelled(spa(2))
    run_missing([stages["iteration 2 prompts"]], store)
    found = [
        {item.turns[0] for item in read_jsonl(store.folder(stages[name]) / "items.jsonl", Item)}
        for name in ("train prompts", "iteration 1 prompts", "iteration 2 prompts")
    ]
    assert [len(each) for each in found] == [128, 24, 24]
    assert len(set.union(*found)) == 176


def test_implicit_labels_are_the_sign_of_the_log_ratios(store: Store) -> None:
    """p = σ(0.1 [(π(y1) - π_start(y1)) - (π(y2) - π_start(y2))]), from the log-probs that the stages before left."""
    stages = labelled(spa(1))
    label = stages["iteration 1 labels (implicit)"]
    policy, reference = (
        read_logps(store.folder(source(label, f"{role}_logps"))) for role in ("policy", "reference")
    )
    rows = labels_of(spa(1), store, "iteration 1 labels (implicit)")
    assert len(rows) == 24 and len(policy) == 48
    for row in rows:
        first, second = (policy[name].logps - reference[name].logps for name in (row.id, f"{row.id}/1"))
        assert row.p_first == pytest.approx(1 / (1 + 2.718281828459045 ** (-0.1 * (first - second))))
        if row.first != row.second:
            assert row.first_preferred == (first > second)
    pairs = {row.id: row for row in read_rows(store.folder(stages["iteration 1 pairs"]) / "train.jsonl")}
    kept = [row for row in rows if row.first_preferred is not None]
    assert set(pairs) == {row.id for row in kept}
    for row in kept:
        assert pairs[row.id].chosen == (row.first if row.first_preferred else row.second)  # type: ignore[union-attr]


def test_without_smoothing_spa_is_iterative_dpo_with_implicit_labels_bit_for_bit(store: Store) -> None:
    refined, plain = spa(1, alpha=0.0, decoupling=(0.0,)).roles["train"], iterative(1).roles["train"]
    assert run_missing([*plain.walk(), refined], store) == 2  # the rest is shared
    weights = [
        (store.folder(stage) / "model" / "model.safetensors").read_bytes() for stage in (refined, plain)
    ]
    assert weights[0] == weights[1]
    curves = [
        [json.loads(line) for line in (store.folder(stage) / "history.jsonl").read_text().splitlines()]
        for stage in (refined, plain)
    ]
    assert any(row["spa/distrusted"] for row in curves[0])
    assert [
        {key: value for key, value in row.items() if not key.startswith("spa/")} for row in curves[0]
    ] == curves[1]
    smoothed = (store.folder(spa(1).roles["train"]) / "model" / "model.safetensors").read_bytes()
    assert smoothed != weights[0]


def test_what_the_noise_detector_said_is_held_against_the_truth(store: Store) -> None:
    """Of every pair that a step came to; precision and recall counted again from the files, label by label."""
    cell = spa(1)
    labels = {row.id: row.correct for row in labels_of(cell, store, "iteration 1 labels (implicit)")}
    trust = list(read_jsonl(store.folder(cell.roles["train"]) / "trust.jsonl", Trust))
    pairs = read_rows(store.folder(labelled(cell)["iteration 1 pairs"]) / "train.jsonl")
    assert sorted(row.id for row in trust) == sorted(row.id for row in pairs)  # one epoch, no delay
    history = [
        json.loads(line)
        for line in (store.folder(cell.roles["train"]) / "history.jsonl").read_text().splitlines()
    ]
    sizes = [4] * (len(history) - 1) + [len(pairs) - 4 * (len(history) - 1)]
    assert sum(row.distrusted for row in trust) == pytest.approx(
        sum(size * row["spa/distrusted"] for size, row in zip(sizes, history, strict=True))
    )
    found = json.loads((store.folder(cell.score) / "result.json").read_text())
    known = [correct for correct in labels.values() if correct is not None]
    assert found["metrics"]["label_accuracy"] == pytest.approx(sum(known) / len(known))
    wrong = [row for row in trust if labels[row.id] is False]
    distrusted = [row for row in trust if row.distrusted and labels[row.id] is not None]
    caught = [row for row in wrong if row.distrusted]
    for name, part, whole in (("noise_precision", caught, distrusted), ("noise_recall", caught, wrong)):
        if whole:
            assert found["metrics"][name] == pytest.approx(len(part) / len(whole)) and found["metrics"][
                f"{name}_n"
            ] == len(whole)
        else:
            assert name in found["missing"] and name not in found["metrics"]
    row = flat_rows(collect(Sweep("s", "", "", [cell]), store, {}))[0]
    assert row["label_accuracy"] == found["metrics"]["label_accuracy"] and "noise_share" in row


def test_every_round_moved_the_weights_and_a_fresh_model_with_them_gives_their_log_probs(
    store: Store,
) -> None:
    """Each training against the model it began from, and the log-probs that the next round took of it against a model loaded anew."""
    cell = spin(1)
    run_missing(list(cell.roles["train"].walk()), store)
    stages = labelled(cell)
    first, second = stages["iteration 0 policy (spin)"], stages["iteration 1 policy (spin)"]
    for trained in (first, second, spa(1).roles["train"]):
        before, after = (
            load_file(store.folder(s) / "model" / "model.safetensors")
            for s in (source(trained, "model"), trained)
        )
        assert all((after[name] - before[name]).abs().max() > 0 for name in after)
    pairs = read_rows(store.folder(stages["iteration 1 pairs"]) / "train.jsonl")[:6]
    stored = read_logps(store.folder(stages["iteration 1 reference log-probs"]))
    for stage, same in ((first, True), (source(first, "model"), False)):
        folder = model_folder(store.folder(stage))
        fresh, tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64),
            load_tokenizer(store.folder(stage)),
        )
        ours, theirs = [], []
        for row in pairs:
            ids = preference_ids(tokenizer, row, 192)["chosen"]
            with torch.no_grad():
                logps = torch.log_softmax(
                    fresh(input_ids=torch.tensor([ids.prompt + ids.completion])).logits[0], dim=-1
                )
            places = range(len(ids.prompt) - 1, len(ids.prompt) + len(ids.completion) - 1)
            ours.append(
                sum(logps[place, token].item() for place, token in zip(places, ids.completion, strict=True))
            )
            theirs.append(stored[f"train/{row.id}/chosen"].logps)
        assert (ours == pytest.approx(theirs, rel=1e-4)) == same


def test_spin_on_given_pairs_is_dpo(store: Store) -> None:
    """A DPO stage written out by hand, from and against the same model on the same pairs, is the very stage that SPIN trains with."""
    stages = labelled(spin(1))
    trained, before = stages["iteration 1 policy (spin)"], stages["iteration 0 policy (spin)"]
    usual = smoke_cell("dpo", 0.1).cell.method.model_dump() | {
        "batch_size": 4,
        "learning_rate": 2e-3,
        "beta": 0.1,
    }
    settings = TrainSettings(method=Dpo.model_validate(usual), max_length=192, dtype="float32", seed=0)
    pairs, reference = stages["iteration 1 pairs"], stages["iteration 1 reference log-probs"]
    assert reference.inputs == {"model": before, "preferences": pairs}
    assert (
        stage_settings.stage(
            "train", settings, {"model": before, "preferences": pairs, "reference_logps": reference}
        )
        == trained
    )
    run_missing(list(trained.walk()), store)
    first = json.loads((store.folder(trained) / "history.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # opponent and policy are one


def test_an_iteration_that_was_interrupted_goes_on_to_the_same_bytes(store: Store, tmp_path: Path) -> None:
    cell = spa(1)
    again = Store(Path(shutil.copytree(store.root, tmp_path / "store")))
    lost = [
        stage
        for label, stage in labelled(cell).items()
        if label.startswith("iteration 1") and "prompts" not in label
    ]
    for stage in lost[2:]:  # sampled and half judged
        shutil.rmtree(again.folder(stage))
    assert run_missing(list(cell.roles["train"].walk()), again) == len(lost) - 2
    for stage in lost:
        assert again.manifest(stage).digest == store.manifest(stage).digest


def test_spa_without_labelled_pairs_runs(store: Store) -> None:
    cell = spa(1, seed_training=None, judging_reference="base", fraction=0.0)
    run_missing(make_plan([cell], store).to_do, store)
    label = labelled(cell)["iteration 1 labels (implicit)"]
    policy, base = (
        read_logps(store.folder(source(label, f"{role}_logps"))) for role in ("policy", "reference")
    )
    for row in labels_of(cell, store, "iteration 1 labels (implicit)"):
        first, second = (policy[name].logps - base[name].logps for name in (row.id, f"{row.id}/1"))
        assert row.p_first == pytest.approx(1 / (1 + 2.718281828459045 ** (-0.1 * (first - second))))
    (row,) = collect(Sweep("s", "", "", [cell]), store, {})
    assert row.n_train == 0 and row.metrics["n_scored"] > 0 and "reward_accuracy" in row.metrics


def test_every_labeller_and_spin_run(store: Store) -> None:
    """Of three draws; labels of controls are what they say."""
    for labeller in ("gold", "reward_model", "shorter", "random"):
        cell = iterative(1, labeller=labeller, draws=3)
        name = f"iteration 1 labels ({labeller.replace('_', ' ')})"
        run_missing(list(labelled(cell)[name].walk()), store)
        counts = store.manifest(labelled(cell)[name]).counts
        assert counts["rows"] == 24 and counts["with_truth"] <= 24 - counts["ties"]
        if labeller == "shorter":
            for row in labels_of(cell, store, name):
                lengths = len(row.first.split()), len(row.second.split())
                assert row.first_preferred == (None if lengths[0] == lengths[1] else lengths[0] < lengths[1])
    second = spin(1)
    run_missing(list(second.roles["train"].walk()), store)
    assert store.manifest(second.roles["train"]).counts["rows"] == sum(
        store.manifest(labelled(second)[f"iteration {t} labels (human)"]).counts["rows"] for t in (0, 1)
    )
    items = read_jsonl(store.folder(labelled(second)["iteration 1 demonstrations"]) / "items.jsonl", Item)
    said = {item.id: (item.baseline or [])[0] for item in items}
    assert all(
        (row.first, row.first_preferred) == (said[row.id], True)
        for row in labels_of(second, store, "iteration 1 labels (human)")
    )


def test_tables_have_a_column_of_iterations(store: Store) -> None:
    rows = collect(Sweep("s", "", "", [spa(0), spa(1)]), store, {})
    assert [row["iteration"] for row in flat_rows(rows)] == [0, 1]
    table = comparison_table(pool(rows))
    assert [line[table.columns.index("iteration")] for line in table.rows] == ["0", "1"]
    assert table.columns.count("iteration") == 1


# do=why ---------------------------------------------------------------------------------------------------------------


def test_a_cells_lineage_says_who_made_labelled_and_trained_what(store: Store) -> None:
    cell = spa(1)
    write_cell(cell, store, store.root.parent, None)
    text = "\n".join(why.lines(why.lineage(store.root.parent / "cells" / cell.name, store)))
    assert text.startswith(cell.name)
    assert ": 48 samples of iteration 1 prompts, 2 each, written by seed policy (dpo)" in text
    counts = store.manifest(labelled(cell)["iteration 1 labels (implicit)"]).counts
    judged = "labelled by the implicit reward of seed policy (dpo) against start model: 24 pairs of iteration 1 samples, "
    right = f"{counts['ties']} ties, 0 unscored, {counts['correct']} of {counts['with_truth']} labels right"
    assert judged + right in text
    assert "spa from seed policy (dpo) on iteration 1 pairs, against seed policy (dpo): " in text
    looked_at = json.loads((store.folder(cell.score) / "result.json").read_text())["metrics"]["noise_share_n"]
    assert "; noise detector: " in text and f" of {looked_at} labels with a known truth distrusted" in text
    assert "evaluation" not in text
    shutil.rmtree(store.folder(labelled(cell)["iteration 1 pairs"]))
    broken = "\n".join(why.lines(why.lineage(store.root.parent / "cells" / cell.name, store)))
    assert "iteration 1 pairs (data/" in broken and "not run" in broken


@pytest.mark.parametrize("key", ["12345678", "1e234567", "0123abcd"])
def test_a_key_is_text_whatever_it_looks_like(key: str, opened: Callable[..., CheckedCommand]) -> None:
    do = opened("do=why", f"cell={key}").session.do
    assert isinstance(do, Why) and do.cell == key


def test_a_lineage_needs_one_cell_and_no_other_words(problems: Callable[..., list[str]]) -> None:
    assert problems("do=why") == [
        "do=why explains one cell: add cell=KEY, the key or name of a cell in table.csv"
    ]
    assert problems("do=why", "cell=0123abcd", "method=dpo") == [
        "cell=0123abcd is looked up in the results folder: leave out method=dpo"
    ]


def test_a_key_that_no_cell_or_several_have_is_said(store: Store, tmp_path: Path) -> None:
    for name, key in (("one-0123abcd", "0123abcd00000000"), ("two-0123ffff", "0123ffff00000000")):
        (tmp_path / "cells" / name).mkdir(parents=True)
        (tmp_path / "cells" / name / "stages.json").write_text(
            json.dumps({"key": key, "failed": None, "stages": {}})
        )
    for asked, said in (
        ("0123", "2 cells in .* have it: one-0123abcd, two-0123ffff"),
        ("ffff0000", "no cell in"),
        ("01", "no cell in"),
    ):
        with pytest.raises(BadConfig, match=said):
            why.explain(Why(name="why", cell=asked), tmp_path, store)
    why.explain(Why(name="why", cell="0123a"), tmp_path, store)
    why.explain(Why(name="why", cell="two-0123ffff"), tmp_path, store)


# On a user's own model and files --------------------------------------------------------------------------------------


@outer
def test_loops_run_on_the_users_own_model_pairs_and_prompts(tmp_path: Path) -> None:
    """SPA without labelled pairs against a base of one's own, implicit iterative DPO from a seed, SPIN on demonstrations."""
    model, base = make_model(tmp_path / "model"), make_model(tmp_path / "base", seed=1)
    data = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=True, n=24)
    asked = [
        {"prompt": [{"role": "user", "content": f"name {i} dogs"}], "completion": f"dog {i}"}
        for i in range(12)
    ]
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in asked])
    answered = [{**row, "completion": [{"role": "assistant", "content": row["completion"]}]} for row in asked]
    demonstrations = write_rows(tmp_path / "demonstrations.jsonl", answered)
    own = [
        f"model={model}/",
        "model.max_length=128",
        "data=local",
        f"data.path={data}",
        "data.heldout_fraction=0.3",
        "data.n_kl_prompts=2",
        "data.kl_max_new_tokens=8",
    ]
    own += [
        "judge=none",
        "judge.n_items=2",
        "judge.decoding.max_new_tokens=6",
        "method.n_prompts=6",
        "method.sample_max_new_tokens=6",
    ]
    own += [
        "method.num_train_epochs=1.0",
        "method.learning_rate=1e-3",
        "method.batch_size=2",
        "method.warmup_ratio=0",
    ]
    unlabelled = [
        "method.seed_training=null",
        "method.judging_reference=base",
        f"model.base={base}",
        "data.fraction=0",
    ]
    for words, who in (
        (["method=spa", "method.iteration=2", *unlabelled], "implicit"),
        (
            ["method=iterative_dpo", "method.labeller=implicit", "method.seed_training.num_train_epochs=1.0"],
            "implicit",
        ),
        (["method=spin", "method.iteration=1"], "human"),
    ):
        file = demonstrations if words[0] == "method=spin" else prompts
        words = [*own, *words, f"method.prompts={file}"]
        ran = bench(*words, results=tmp_path / "results")
        assert ran.code == 0, ran.err[-3000:] + ran.out
        stages = labelled(plans(*words)[-1])
        store = Store(tmp_path / "results" / "store")
        last = 2 if words[len(own)] == "method=spa" else 1
        rows = list(
            read_jsonl(store.folder(stages[f"iteration {last} labels ({who})"]) / "labels.jsonl", Labelled)
        )
        place = range(6, 12) if last == 2 or who == "human" else range(6)
        assert [row.prompt[0]["content"] for row in rows] == [f"name {i} dogs" for i in place]
        assert {row.correct for row in rows} == {None}  # whose truth is nobody's
        if who == "human":
            assert [(row.first, row.first_preferred) for row in rows] == [(f"dog {i}", True) for i in place]

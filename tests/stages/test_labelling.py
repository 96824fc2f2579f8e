"""Judges as labellers of loops, by the whole command: budget, resume and forecast as in an evaluation, local models, ratings, rewards from
a folder, a ranker that learns from more pairs than the seed; and the checks. What is trained before comes from the shared smoke run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from endpoint import Answer, Endpoint, Said, fair
from outer import outer
from tiny import CELL, Ran, bench, copy_results, make_model, make_preferences, plans, smoke, write_rows

from bench.records import Completion, Labelled, Verdict, read_jsonl
from bench.runner.worker import describe, run_stage
from bench.store.store import Store

LOOP = [word for word in CELL if not word.startswith("method")]
LOOP += [
    "method=iterative_dpo",
    "method.seed_training=null",
    "method.n_prompts=8",
    "method.sample_max_new_tokens=12",
]
LOOP += [
    "method.num_train_epochs=1.0",
    "method.batch_size=8",
    "judge=none",
    "judge.n_items=4",
    "judge.decoding.max_new_tokens=8",
]
ASKED = ["method.labeller=judge", "judge@method.labelling_judge=alpaca_eval"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Results that hold what the smoke run trained."""
    return copy_results(smoke(), tmp_path / "results", drop=("judge", "score", "generate"))


def files(results: Path, kind: str, name: str, record: type[Any]) -> list[Any]:
    return [
        row for path in sorted(results.glob(f"store/{kind}/*/{name}")) for row in read_jsonl(path, record)
    ]


def new_labels(ran: Ran) -> list[Labelled]:
    """Of the one label stage that the smoke run did not have."""
    old = {path.parent.name for path in smoke().results.glob("store/label/*/labels.jsonl")}
    (path,) = (path for path in ran.results.glob("store/label/*/labels.jsonl") if path.parent.name not in old)
    return list(read_jsonl(path, Labelled))


def why(results: Path) -> str:
    (cell,) = results.glob("cells/iterative_dpo-*")
    return bench("do=why", f"cell={cell.name}", results=results).out


@outer
def test_labels_of_a_judge_over_http_stop_at_their_budget_go_on_and_cost_what_was_forecast(
    endpoint: Endpoint, trained: Path, tmp_path: Path
) -> None:
    """Three samples of 8 prompts: up to 24 pairs, of which equal texts are not asked about. The endpoint prefers the longer."""
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "- {models: [some-judge], prompt: 1000.0, completion: 1000.0, date: 2026-01-01, source: made up}"
    )
    judge = [f"base_url={endpoint.url}", "model=some-judge", f"prices={prices}", "attempts=2"]
    words = [
        *LOOP,
        *ASKED,
        *(f"method.labelling_judge.{word}" for word in judge),
        "method.draws=3",
        "method.warmup_ratio=0",
    ]
    planned = bench(*words, "do=plan", results=trained)
    assert "24 requests" in planned.out and "samples of 12 tokens, the most allowed" in planned.out, (
        planned.err
    )
    assert endpoint.asked == []

    stopped = bench(*words, "method.labelling_judge.budget_dollars=3", results=trained)
    assert stopped.code == 4, stopped.err
    said = r"OVER BUDGET judge iteration 1 verdicts of some-judge .*of method\.labelling_judge\.budget_dollars=3 are spent"
    assert re.search(said, stopped.err)
    paid = len(endpoint.asked)
    assert 0 < paid < 20
    planned = bench(*words, "do=plan", results=trained)
    (n_forecast,) = re.findall(r"labels   \$[\d.]+: (\d+) requests", planned.out)
    assert "counted from the policy's samples" in planned.out

    endpoint.say = lambda body: (
        Said("neither") if len(endpoint.asked) == paid + 1 else fair(body)
    )  # one reply that nobody can read
    done = bench(*words, results=trained)
    assert done.code == 0, done.err + done.out
    assert len(endpoint.asked) == int(n_forecast)  # none twice
    verdicts = files(trained, "judge", "verdicts.jsonl", Verdict)
    assert len(verdicts) == 24 and sum(len(row.calls) for row in verdicts) == int(n_forecast)
    rows = new_labels(done)
    assert len(rows) == 8
    for row in rows:
        if row.first_preferred is not None and len(row.first) != len(row.second):
            assert row.first_preferred == (len(row.first) > len(row.second))
    ties = sum(row.first_preferred is None and row.unscored is None for row in rows)
    right = [row.correct for row in rows if row.correct is not None]
    told = why(trained)
    assert (
        f"labelled by some-judge (alpaca_eval), {n_forecast} asked (1 without a verdict): 8 pairs of iteration 1 samples, "
        in told
    )
    assert f"samples, {ties} ties, {sum(row.unscored is not None for row in rows)} unscored, " in told
    assert f"{sum(right)} of {len(right)} labels right" in told
    asked = len(endpoint.asked)
    endpoint.say = lambda body: Answer(500)
    again = bench(*words, "method.beta=0.3", results=trained)  # another training on the same labels
    assert again.code == 0 and len(endpoint.asked) == asked, again.err


# Labels of a user's own model and prompts, stage by stage ---------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, pairs and new prompts of a user's, and the results of all that labels them here."""
    room = tmp_path_factory.mktemp("own")
    make_model(room / "model")
    make_preferences(room / "pairs.jsonl", paired=True, messages=True, n=12)
    write_rows(
        room / "prompts.jsonl",
        [{"prompt": [{"role": "user", "content": f"name {i} dogs"}]} for i in range(6)],
    )
    return room


def labels(
    own: Path, *words: str
) -> tuple[list[Labelled], dict[str, list[Verdict]], dict[tuple[str, str], int]]:
    """(labels, verdicts by prompt, draws by prompt and text) of the first iteration from the model as it is."""
    usual = [
        f"model={own}/model",
        "model.max_length=128",
        "data=local",
        f"data.path={own}/pairs.jsonl",
        "judge=none",
        "data.fraction=0",
    ]
    usual += [
        "method=iterative_dpo",
        "method.seed_training=null",
        "method.n_prompts=6",
        "method.sample_max_new_tokens=6",
    ]
    stages = {
        stage.label: stage
        for stage in plans(*usual, f"method.prompts={own}/prompts.jsonl", *words)[-1].stages
    }
    (label,) = (stage for stage in stages.values() if stage.kind == "label")
    store = Store(own / "results" / "store")
    for stage in label.walk():
        if store.status(stage).state != "done":
            run_stage(describe(stage, store) | {"sharing": [stage.key], "server": None})
            store.invalidate(stage)
    verdicts: dict[str, list[Verdict]] = {}
    for stage in stages.values():
        if stage.kind == "judge":
            for verdict in read_jsonl(store.folder(stage) / "verdicts.jsonl", Verdict):
                verdicts.setdefault(verdict.item_id.split("/")[0], []).append(verdict)
    samples = read_jsonl(store.folder(stages["iteration 1 samples"]) / "completions.jsonl", Completion)
    return (
        list(read_jsonl(store.folder(label) / "labels.jsonl", Labelled)),
        verdicts,
        {(s.id, s.completions[0]): s.draw for s in samples},
    )


def test_a_local_model_labels_in_process(own: Path) -> None:
    model = make_model(own / "my-judge", max_positions=4096, heads=1)
    rows, verdicts, _ = labels(
        own, ASKED[0], "judge@method.labelling_judge=local", f"method.labelling_judge.model={model}"
    )
    assert len(rows) == 6
    for row in rows:
        (verdict,) = verdicts[row.id]
        assert {call.served for call in verdict.calls} == {"my-judge"}
        assert row.p_first == pytest.approx(verdict.preference)
        assert row.first_preferred == ((verdict.preference or 0.0) > 0.5)


def test_a_judge_that_rates_labels_by_its_ratings(own: Path, endpoint: Endpoint) -> None:
    """Each of four samples by itself; the endpoint's rating is a rule of what it is shown."""
    endpoint.say = lambda body: f"[[{1 + len(body['messages'][1]['content']) % 9}]]"
    judge = [
        ASKED[0],
        "judge@method.labelling_judge=mt_bench",
        f"method.labelling_judge.base_url={endpoint.url}",
    ]
    rows, verdicts, draws = labels(own, *judge, "method.labelling_judge.model=some-judge", "method.draws=4")
    assert any(row.first_preferred is not None for row in rows)
    for row in rows:
        ratings = {
            int(verdict.item_id.partition("/")[2] or 0): verdict.rating or 0.0 for verdict in verdicts[row.id]
        }
        assert len(ratings) == 4
        first, second = (ratings[draws[row.id, text]] for text in (row.first, row.second))
        if row.first_preferred is not None:
            assert (max(first, second), min(first, second)) == (max(ratings.values()), min(ratings.values()))
            assert row.first_preferred == (first > second)


def test_a_reward_model_from_a_folder_labels(own: Path) -> None:
    """Any sequence classifier of one output: here one of random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from bench.engines.reward import Scorer
    from bench.models.tokenize import row_ids

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(own / "model", num_labels=1).save_pretrained(
        own / "my-rewards"
    )
    AutoTokenizer.from_pretrained(own / "model").save_pretrained(own / "my-rewards")
    judge = [
        ASKED[0],
        "judge@method.labelling_judge=reward_model",
        f"method.labelling_judge.model={own}/my-rewards",
    ]
    rows, _, _ = labels(own, *judge)
    scorer = Scorer(own / "my-rewards", "float32", 1)
    for row in rows:
        first, second = (
            scorer.rewards([row_ids(scorer.tokenizer, row.prompt, text, None)])[0]
            for text in (row.first, row.second)
        )
        assert row.p_first == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-5)


def test_a_pairwise_ranker_labels(own: Path) -> None:
    """Any sequence classifier of one output that reads both samples, in both orders: here one of random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(own / "model", num_labels=1).save_pretrained(
        own / "my-ranker"
    )
    AutoTokenizer.from_pretrained(own / "model").save_pretrained(own / "my-ranker")
    judge = [
        ASKED[0],
        "judge@method.labelling_judge=pair_ranker",
        f"method.labelling_judge.model={own}/my-ranker",
    ]
    rows, verdicts, _ = labels(own, *judge)
    assert len(rows) == 6 and any(row.first_preferred is not None for row in rows)
    for row in rows:
        (verdict,) = verdicts[row.id]
        assert len(verdict.calls) == (0 if row.first == row.second else 2)
        assert row.p_first == pytest.approx(verdict.preference)
        assert row.first_preferred == (
            None if verdict.preference == 0.5 else (verdict.preference or 0.0) > 0.5
        )


def test_arena_hards_games_label(own: Path, endpoint: Endpoint) -> None:
    """Of three samples each two play both games; the endpoint calls the longer one the clear winner."""

    def say(body: Mapping[str, Any]) -> str:
        first, second = (
            len(
                re.search(
                    rf"=== Answer of assistant {letter} ===\n(.*?)\n=== end",
                    body["messages"][-1]["content"],
                    re.DOTALL,
                )[1]
            )  # type: ignore[index]
            for letter in "AB"
        )
        return "[[A=B]]" if first == second else "[[A>>B]]" if first > second else "[[B>>A]]"

    endpoint.say = say
    judge = [
        ASKED[0],
        "judge@method.labelling_judge=arena_hard",
        f"method.labelling_judge.base_url={endpoint.url}",
    ]
    rows, verdicts, draws = labels(own, *judge, "method.labelling_judge.model=game-judge", "method.draws=3")
    assert any(row.first_preferred is not None for row in rows)
    for row in rows:
        assert len(verdicts[row.id]) == 3
        texts = [text for item, text in draws if item == row.id]
        lengths = len(row.first), len(row.second)
        assert row.first_preferred == (None if lengths[0] == lengths[1] else lengths[0] > lengths[1])
        if row.first_preferred is not None:
            assert set(lengths) == {max(map(len, texts)), min(map(len, texts))}


# Keys and checks ----------------------------------------------------------------------------------------------------


def test_a_ranker_may_learn_from_more_pairs_than_the_seed() -> None:
    """SPA's external judge: the reward model sees all labelled pairs, the policy's seed a tenth of them."""
    words = ("method=iterative_dpo", "method.labeller=reward_model", "data.fraction=0.1")
    few, many = (
        {stage.label: stage for stage in plans(*words, *more)[-1].stages}
        for more in ((), ("method.reward_fraction=1.0",))
    )
    assert few["reward model"].inputs["preferences"] == few["preferences"]
    pairs = many["reward model"].inputs["preferences"]
    assert pairs == {stage.label: stage for stage in plans("method=dpo")[-1].stages}["preferences"]
    assert many["seed policy (dpo)"] == few["seed policy (dpo)"]
    assert many["iteration 1 samples"] == few["iteration 1 samples"]


PLANNED = ("method=iterative_dpo", *ASKED, "method.labelling_judge.model=m")


def test_what_moves_the_keys_of_labels(tmp_path: Path) -> None:
    """As of an evaluation's judge: who is asked and how moves them, how it is reached moves nothing, nor whose items it has elsewhere."""

    def verdicts(*words: str) -> str:
        (found,) = (
            s
            for s in plans(*PLANNED, *words)[-1].stages
            if s.kind == "judge" and s.label.startswith("iteration 1")
        )
        return found.key

    usual = verdicts()
    for same in (
        "base_url=http://127.0.0.1:1/v1",
        "concurrency=2",
        "n_items=7",
        "items=hub",
        "decoding.max_new_tokens=9",
    ):
        assert verdicts(f"method.labelling_judge.{same}") == usual
    for other in ("order=both", "annotator=chatgpt", "provider=other", "verdict.max_tokens=9"):
        assert verdicts(f"method.labelling_judge.{other}") != usual


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("method=iterative_dpo", "method.labeller=judge"),
            "labeller=judge needs a judge: add judge@method.labelling_judge=alpaca_eval",
        ),
        (
            ("method=iterative_dpo", *ASKED),
            "method.labelling_judge.model must be set: add method.labelling_judge.model=...",
        ),
        ((*PLANNED, "method.labelling_judge.annotator=gpt9"), "unknown annotator 'gpt9'"),
        (
            (*PLANNED, "method.labelling_judge.budget_dollars=5"),
            "method.labelling_judge.budget_dollars needs a price of m",
        ),
        (
            ("method=iterative_dpo", "judge@method.labelling_judge=gold"),
            "'arena_hard', 'reward_model', 'pair_ranker', got 'gold'",
        ),
        (
            ("method=iterative_dpo", "judge@method.labelling_judge=nobody"),
            "unknown judge@method.labelling_judge 'nobody'",
        ),
    ],
)
def test_a_wrong_labeller_is_said_before_anything_runs(
    problems: Callable[..., list[str]], words: tuple[str, ...], said: str
) -> None:
    assert said in "\n".join(problems(*words))


def test_a_missing_key_of_a_labeller_is_said_before_anything_is_trained(trained: Path) -> None:
    words = [
        *LOOP,
        *ASKED,
        "method.labelling_judge.model=m",
        "method.labelling_judge.api_key_env=NOT_SET_HERE",
    ]
    ran = bench(*words, results=trained)
    assert ran.code == 2 and "the environment variable NOT_SET_HERE" in ran.err


def test_one_sweep_may_hold_several_labellers() -> None:
    """The judge's section lies idle where another labels."""
    cells = plans(
        "method=iterative_dpo", "method.labeller=gold,judge", ASKED[1], "method.labelling_judge.model=m"
    )
    kinds = [
        [stage.label for stage in cell.stages if stage.kind == "label" and "iteration" in stage.label]
        for cell in cells
    ]
    assert kinds == [[], ["iteration 1 labels (gold)"], ["iteration 1 labels (judge)"]]

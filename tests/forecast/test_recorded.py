"""Plans without a network: what conf/ records of models and datasets stands in for what is not on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from outer import outer
from tiny import make_model

from bench.cli.compose import CheckedCommand, open_command
from bench.commands import plan
from bench.config.errors import BadConfig
from bench.models import recorded
from bench.models.model_size import read_shape

ROOT = Path(__file__).parent.parent.parent
OF_HUB = {
    path.stem: written["model"]["hub"]
    for path in sorted((ROOT / "conf" / "model").glob("*.yaml"))
    if (written := yaml.safe_load(path.read_text())).get("model", {}).get("hub")
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckedCommand]:
    """The door of a machine without a network and with nothing of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return lambda *words: open_command([*words, "do=plan", "tracker=none", f"results={tmp_path / 'results'}"])


@pytest.mark.parametrize("name", OF_HUB)
def test_recorded_sizes_give_the_recorded_number_of_parameters(name: str) -> None:
    sizes = recorded.sizes(OF_HUB[name])
    assert sizes is not None and read_shape(sizes).parameters == sizes["parameters"]


@outer
def test_every_model_and_dataset_is_planned_without_a_network(
    offline: Callable[..., CheckedCommand], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = offline(f"model={','.join(OF_HUB)}", "data=ultrafeedback_binarized", "method=dpo")
    assert plan.main(done) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, repo in OF_HUB.items():
        assert f"{name}: sizes as recorded in conf/model" in said
        assert f"{repo} could not be fetched from the hub (HF_HUB_OFFLINE is set" in said
    assert "61,135 train rows and 2,000 heldout rows as recorded in conf/" in said and "not sized" not in said
    assert not (tmp_path / "results").exists(), "no revision is invented"


def test_tokens_of_recorded_rows_are_an_upper_bound(
    offline: Callable[..., CheckedCommand], capsys: pytest.CaptureFixture[str]
) -> None:
    """DPO reads 61,135 pairs of 1,024 tokens once; SFT before it 207,865 conversations, a tenth of them."""
    words = ("scale=llama2_7b", "method=dpo", "sft.fraction=0.1")
    assert plan.main(offline(*words)) == 0
    rows = {line.split()[0]: line.split()[2] for line in capsys.readouterr().out.splitlines() if "," in line}
    assert rows["train"] == f"{61_135 * 2 * 1024:,}" and rows["sft"] == f"{round(20_786.5 * 1024):,}"


def test_rows_that_nobody_has_counted_are_named_and_not_guessed(
    offline: Callable[..., CheckedCommand], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(offline("model=mistral_7b_instruct", "data=nectar", "method=dpo")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "berkeley-nest/Nectar is not on this machine: the rows are not counted; what is dropped" in said
    assert (
        "not counted: berkeley-nest/Nectar is not on this machine, and conf/ records no number of its rows"
        in said
    )


def test_a_mixture_is_planned_by_the_recorded_rows_of_all_its_sources(
    offline: Callable[..., CheckedCommand], capsys: pytest.CaptureFixture[str]
) -> None:
    """HH 160,800 + SHP 348,718 + OASST1 84,437 train rows; 8,552 + 18,409 + 4,401 held out."""
    assert plan.main(offline("scale=archangel", "method=dpo")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "593,955 train rows and 31,362 heldout rows as recorded in conf/" in said
    assert "not counted" not in said


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("scale=zephyr_7b", "method=spa", "method.n_prompts=30000", "data.fraction=0.1"), "55,021"),
        (
            (
                "scale=zephyr_7b",
                "method=spin",
                "sft=ultrachat_200k",
                "method.prompts=sft",
                "method.n_prompts=300000",
            ),
            "207,865",
        ),
    ],
)
def test_more_prompts_than_recorded_rows_are_refused(
    offline: Callable[..., CheckedCommand], words: tuple[str, ...], left: str
) -> None:
    with pytest.raises(
        BadConfig, match=f"prompts without labels, and its recorded rows leave at most {left}"
    ):
        plan.main(offline(*words))


def test_the_official_items_are_planned_by_their_number(
    offline: Callable[..., CheckedCommand], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(offline("scale=zephyr_7b", "method=dpo", "judge=alpaca_eval_gpt4")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "alpaca_eval items: 805 as recorded; overlap with the train rows is not known" in said
    assert "61,135 train rows and 2,000 heldout rows as recorded in conf/" in said
    assert "missing judge.items=hub: tatsu-lab/alpaca_eval could not be fetched from the hub" in said


def test_a_model_of_ones_own_is_planned_without_the_conversations_of_the_hub(
    offline: Callable[..., CheckedCommand], capsys: pytest.CaptureFixture[str], model_folder: Path
) -> None:
    words = ("scale=llm", f"model={model_folder}", "sft=ultrachat_200k", "data=hh_rlhf", "method=dpo")
    assert plan.main(offline(*words)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "HuggingFaceH4/ultrachat_200k is not on this machine: at most 207,865 train rows" in said
    assert "Anthropic/hh-rlhf is not on this machine: at most 160,800 train rows" in said


def test_rows_of_ones_own_are_counted_without_the_judges_items(
    offline: Callable[..., CheckedCommand],
    capsys: pytest.CaptureFixture[str],
    pairs_file: Path,
    tmp_path: Path,
) -> None:
    words = (
        "scale=llm",
        f"model={make_model(tmp_path / 'own')}",
        "data=local",
        f"data.path={pairs_file}",
        "method=dpo",
    )
    assert plan.main(offline(*words, "judge=alpaca_eval_gpt4")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"local: [\d,]+ train rows of [\d,]+ prompts", said)
    assert "alpaca_eval items: 805 as recorded" in said


def test_a_model_that_conf_does_not_know_is_asked_for(
    offline: Callable[..., CheckedCommand], tmp_path: Path, problems: Callable[..., list[str]]
) -> None:
    words = ("model=hub", "model.hub=org/unheard-of", "data=ultrafeedback_binarized", "method=dpo", "do=plan")
    (problem,) = problems(*words, f"results={tmp_path}")
    assert "org/unheard-of could not be fetched from the hub" in problem and "set model.path" in problem


def test_the_config_counts_where_it_differs_from_the_record(
    offline: Callable[..., CheckedCommand],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (model_folder / "config.json").write_text(json.dumps({"model_type": "mistral", "num_hidden_layers": 16}))
    assert plan.main(offline("scale=zephyr_7b", "method=dpo", f"model.path={model_folder}")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "its config.json has other sizes than conf/model: num_hidden_layers 16 (recorded: 32)" in said


@pytest.mark.parametrize("words", [(), ("model.chat_template=tulu",)])
def test_a_plan_says_that_a_base_model_has_no_template(
    offline: Callable[..., CheckedCommand], capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert plan.main(offline("model=phi_2", "data=ultrafeedback_binarized", "method=dpo", *words)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "phi_2: its tokenizer has no chat template, as recorded in conf/model; prompts" in said
    ) is not bool(words)


def test_a_plan_says_where_completions_fill_the_models_positions(
    offline: Callable[..., CheckedCommand], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("scale=llama2_7b", "method=dpo", "judge=alpaca_eval_gpt4", "judge.decoding.max_new_tokens=4096")
    assert plan.main(offline(*words)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "llama2_7b: preference completions may write 4,096 tokens, and the model's config has 4,096 positions"
        in said
    )

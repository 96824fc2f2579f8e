"""Models by name: where they come from, what is locked, what is said when they cannot be had, whose code may run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

from published import data_words
from tiny import make_model, make_preferences, plans

from bench.cli.compose import CheckedCommand, open_command
from bench.forecast.row_counts import data_lines
from bench.models import hub
from bench.store.store import Store

Problems = Callable[..., list[str]]
ROOT = Path(__file__).parent.parent.parent
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub on a machine that asks nobody."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def put(cache: Path, model: Path, repo: str = "org/tiny", sha: str = SHA, main: bool = True) -> Path:
    """A model's folder as the hub's client keeps it."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(model, folder / "snapshots" / sha)
    (folder / "refs").mkdir()
    if main:
        (folder / "refs" / "main").write_text(sha)
    return folder / "snapshots" / sha


def test_a_model_of_the_hub_is_known_by_its_revision_and_read_from_the_cache(
    cache: Path, model_folder: Path, tmp_path: Path
) -> None:
    own = ("model=hub", "model.hub=org/tiny", f"model.revision={SHA}", f"results={tmp_path}")
    words = (*own, "data=world", "judge=gold", "method=dpo")
    there = put(cache, model_folder)
    done: CheckedCommand = open_command(words)
    assert done.cells[0].model.name == "tiny"
    source = done.sources[0].model
    assert source is not None
    assert (source.path, source.digest) == (there, f"hub:models/org/tiny@{SHA}")
    assert open_command([*words, "do=status"]).sources[0].model.key == source.key  # type: ignore[union-attr]  # reads nothing


def test_tokens_of_rows_are_counted_by_the_tokenizer_of_a_model_of_the_hub(
    cache: Path, tmp_path: Path
) -> None:
    put(cache, make_model(tmp_path / "model"))
    rows = make_preferences(tmp_path / "pairs.jsonl", paired=True, messages=True)
    own = ("model=hub", "model.hub=org/tiny", f"model.revision={SHA}", f"results={tmp_path}")
    lines = data_lines(
        plans(*own, "data=local", f"data.path={rows}", "method=dpo"), Store(tmp_path / "store")
    ).lines
    assert any(
        re.search(r"local: \d+ train rows of .* held out, about [\d,]+ tokens a pass", line) for line in lines
    ), lines


def test_what_is_locked_stays(cache: Path, model_folder: Path, tmp_path: Path) -> None:
    words = (
        "model=hub",
        "model.hub=org/tiny",
        "data=world",
        "judge=gold",
        "method=dpo",
        f"results={tmp_path}",
    )
    put(cache, model_folder)
    (tmp_path / hub.LOCK).write_text(
        json.dumps({"models/org/tiny": {"revision": SHA, "locked": "2026-01-01"}})
    )
    assert open_command(words).sources[0].model.digest == f"hub:models/org/tiny@{SHA}"  # type: ignore[union-attr]


def test_what_cannot_be_had_says_how_to_get_it_before_anything_is_spent(
    cache: Path, problems: Problems, tmp_path: Path
) -> None:
    (problem,) = problems("model=zephyr_7b_sft", "data=world", "method=dpo", f"results={tmp_path}")
    for part in (
        "alignment-handbook/zephyr-7b-sft-full could not be fetched from the hub (HF_HUB_OFFLINE is set and the cache does not have it)",
        "hf download alignment-handbook/zephyr-7b-sft-full --type model --revision ac6e600eefcce74f5e8bae1035d4f66019e93190",
        "to use a copy of its folder, set model.path",
    ):
        assert part in problem


def test_a_gated_model_names_the_licence_and_the_token(
    monkeypatch: pytest.MonkeyPatch, problems: Problems, tmp_path: Path
) -> None:
    """The hub's own refusal, as its client raises it for status 403 of a gated repository."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: object, **__: object) -> None:
        import httpx

        raise GatedRepoError(
            "403", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/x"))
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    (problem,) = problems("model=llama3_8b_instruct", "data=world", "do=plan", f"results={tmp_path}")
    assert "meta-llama/Meta-Llama-3-8B-Instruct is gated: accept its licence at https://" in problem
    assert "set HF_TOKEN, or run `hf auth login`" in problem


def test_only_safetensors_are_read_and_every_shard_must_be_there(cache: Path, model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_text("pickle")
    put(cache, model_folder)
    with pytest.raises(hub.NotThere, match=r"org/tiny could not be fetched|has no \*.safetensors"):
        hub.fetch_model("org/tiny", SHA, weights=True)
    assert hub.fetch_model("org/tiny", SHA, weights=False).is_dir()
    there = cache / "models--org--tiny" / "snapshots" / SHA
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (there / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}})
    )
    (there / shards[0]).write_text("")
    with pytest.raises(hub.NotThere):
        hub.fetch_model("org/tiny", SHA, weights=True)
    (there / shards[1]).write_text("")
    assert hub.fetch_model("org/tiny", SHA, weights=True) == there


def test_more_tokens_than_a_model_has_positions_are_refused(model_folder: Path, problems: Problems) -> None:
    (model_folder / "config.json").write_text('{"max_position_embeddings": 512}')
    asked = [f"model={model_folder}", "method=none", "data=world", "judge=gold"]
    (problem,) = problems(*asked, "model.max_length=1024")
    assert problem.startswith(
        f"model.max_length must be <= 512, the position limit of {model_folder}, got 1024"
    )
    assert problems(*asked, "model.max_length=512") == []
    assert problems(*asked) == []  # the default is cut to the positions


def test_a_name_of_the_hub_that_is_taken_for_a_folder_gets_a_hint(problems: Problems) -> None:
    (problem,) = problems("model=org/name", "data=world", "judge=gold", "method=dpo")
    assert "no such folder (for a model of the hub: model=hub model.hub=org/name)" in problem


def test_every_revision_that_is_written_down_is_a_whole_one() -> None:
    for path in (ROOT / "conf" / "model").glob("*.yaml"):
        revision = yaml.safe_load(path.read_text()).get("model", {}).get("revision")
        assert revision is None or re.fullmatch(r"[0-9a-f]{40}", revision), path


@pytest.mark.parametrize(
    "scale",
    ["zephyr_7b", "llama3_8b", "llama3_8b_instruct", "phi_2", "phi_3_medium", "archangel", "small_llm"],
)
def test_a_scale_brings_model_data_and_rates_to_any_sweep(
    scale: str, model_folder: Path, tmp_path: Path
) -> None:
    brought = yaml.safe_load((ROOT / "conf" / "scale" / f"{scale}.yaml").read_text())["brings"]
    data = data_words(tmp_path / "data", brought["data"])
    done = open_command(["+sweep=kto_beta", f"scale={scale}", f"model.path={model_folder}", *data, "do=plan"])
    assert len(done.cells) == 8
    assert {(cell.model.name, cell.data.name) for cell in done.cells} == {(brought["model"], brought["data"])}
    steps = {cell.method.batch_size * cell.method.gradient_accumulation_steps for cell in done.cells}  # type: ignore[union-attr]
    assert steps == {{"phi_2": 32, "phi_3_medium": 32, "archangel": 32, "small_llm": 64}.get(scale, 128)}
    own = open_command(
        [
            "method=dpo",
            f"scale={scale}",
            "model=local",
            f"model.path={model_folder}",
            *data,
            "do=plan",
        ]
    )
    assert own.cells[0].model.name == "local"  # what is asked for is not replaced


def test_code_of_a_model_of_the_hub_comes_with_it_and_is_looked_at_before_its_weights(
    cache: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put(cache, model_folder)
    (there / "config.json").write_text(
        json.dumps({"model_type": "unheard_of", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}})
    )
    asked = []
    monkeypatch.setattr(
        hub, "fetch", lambda kind, repo, at, patterns, also=(): asked.append(patterns) or there
    )
    monkeypatch.setattr(hub, "TRUSTED", allowed := cache / "trusted_code.yaml")
    empty = hashlib.sha256(b"").hexdigest()  # no file is no code that anybody has read
    allowed.write_text(yaml.safe_dump({"org/tiny": {"revision": SHA, "code": empty}}))
    with pytest.raises(ValueError, match="runs code of its own, but it has no Python file"):
        hub.fetch_model("org/tiny", SHA, weights=True)
    (there / "modeling_own.py").write_text("class Own: ...\n")
    with pytest.raises(
        ValueError, match=r"runs code of its own \(modeling_own.py\), which is not trusted"
    ) as error:
        hub.fetch_model("org/tiny", SHA, weights=True)
    assert ("config.json", "*.py") in asked and not any(
        "safetensors" in pattern for patterns in asked for pattern in patterns
    )
    code = re.search(r"code: ([0-9a-f]{64})", str(error.value))
    assert code
    allowed.write_text(yaml.safe_dump({"org/tiny": {"revision": SHA, "code": code[1]}}))
    assert hub.fetch_model("org/tiny", SHA, weights=True) == there
    assert ("config.json", "*.safetensors") in asked


def test_code_of_a_models_own_runs_only_when_it_is_named_with_a_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "unheard_of", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}})
    )
    (folder / "modeling_own.py").write_text("class Own: ...\n")
    allowed = tmp_path / "trusted_code.yaml"
    allowed.write_text("{}\n")
    monkeypatch.setattr(hub, "TRUSTED", allowed)
    with pytest.raises(
        ValueError,
        match=r"runs code of its own \(modeling_own.py\), which is not trusted: read the code, then name",
    ) as error:
        hub.trusts_code(folder)
    code = re.search(r"code: ([0-9a-f]{64})", str(error.value))
    assert code
    allowed.write_text(yaml.safe_dump({"org/own": {"code": code[1]}}))
    with pytest.raises(ValueError, match="not trusted"):  # no revision
        hub.trusts_code(folder)
    allowed.write_text(yaml.safe_dump({"org/own": {"revision": SHA, "code": code[1]}}))
    assert hub.trusts_code(folder)
    elsewhere = {"auto_map": {"AutoTokenizer": ["other/code--tokens.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(elsewhere))
    with pytest.raises(
        ValueError, match=r"tokenizer_config.json runs code of another repository .*other/code--tokens.Own"
    ):
        hub.trusts_code(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "modeling_own.py").write_text("class Own: evil = True\n")
    with pytest.raises(ValueError, match="not trusted"):
        hub.trusts_code(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {}}))
    assert not hub.trusts_code(folder)  # transformers has its own

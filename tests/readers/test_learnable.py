"""Rows that nothing is learnt from - the same tokens, no room, not writable, one label - are counted or refused, by plan and run alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, bench, make_model, plans, write_rows

from bench.config import Settings
from bench.forecast.row_counts import ScratchData, data_lines
from bench.models.tokenize import load_tokenizer
from bench.planning.inputs import CellPlan
from bench.readers.learnable import SAME_TOKENS, TOO_LONG, UNWRITABLE, learn_check
from bench.readers.rows import opposites, read_preferences
from bench.records import Labelled, Pair, Text, read_jsonl, read_rows, write_jsonl
from bench.stages import data
from bench.stages.sft import _examples
from bench.store.keys import Source, Stage
from bench.store.stage_run import Outcome, Progress, StageRun
from bench.store.stage_settings import FilePromptData, LocalPairData, LoopPairData
from bench.store.store import Store

N = 40
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TEMPLATES = {
    "chatml": CHATML,
    # as DeepSeek-R1-Distill: reasoning is cut out of what an assistant has said
    "cuts": "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}" + ASK,
    # as Gemma 2 and Mistral 7B
    "strict": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}" + ASK,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A tiny model with each of TEMPLATES."""
    made = {}
    for name, text in TEMPLATES.items():
        made[name] = make_model(tmp_path_factory.mktemp(name) / "model")
        (made[name] / "chat_template.jinja").write_text(text)
    return made


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}


def pair(
    i: int, chosen: str = "the dog", rejected: str = "a horse", before: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    return {
        "prompt": [*before, user(f"please name one {i}")],
        "chosen": [bot(chosen)],
        "rejected": [bot(rejected)],
    }


def thought(i: int) -> dict[str, Any]:
    return pair(i, f"<think>red {i}</think>the dog", f"<think>green {i}</think>the dog")


Cell = Callable[..., CellPlan]


@pytest.fixture
def cell(models: Mapping[str, Path], tmp_path: Path) -> Cell:
    """The trained cell of a command over these rows."""

    def make(
        template: str,
        rows: Sequence[Mapping[str, Any]],
        *words: str,
        kind: str = "local",
        method: str = "dpo",
    ) -> CellPlan:
        path = write_rows(tmp_path / "rows.jsonl", rows)
        files = ("data.train_files=[rows.jsonl]",) if kind == "dataset" else ()
        own = (
            f"model.path={models[template]}",
            f"data={kind}",
            f"data.path={path}",
            f"method={method}",
            "data.heldout_fraction=0.25",
        )
        length = () if any("max_length" in word for word in words) else ("model.max_length=100",)
        return plans("model=local", *length, *own, *files, *words)[-1]

    return make


def made(cell: CellPlan, tmp_path: Path, role: str = "preferences") -> Outcome:
    stage = cell.roles[role]
    return run(
        stage.settings,
        {name: source.path for name, source in stage.inputs.items() if isinstance(source, Source)},
        tmp_path,
    )


def run(settings: Settings, inputs: Mapping[str, Path], tmp_path: Path) -> Outcome:
    (out := tmp_path / "out").mkdir(exist_ok=True)
    return data.run(settings, StageRun(dict(inputs), out, Progress(tmp_path / "progress")))


def looked(cell: CellPlan, tmp_path: Path) -> tuple[str, list[str]]:
    found = data_lines([cell], Store(tmp_path / "store"))
    return "\n".join(found.lines), found.refusals


# Pairs of the same tokens ---------------------------------------------------------------------------------------------

SAME = "chosen and rejected the same after template and truncation"


@pytest.mark.parametrize("kind", ["local", "dataset"])
def test_pairs_that_the_template_makes_equal_are_dropped_and_counted_by_plan_and_run(
    kind: str, cell: Cell, tmp_path: Path
) -> None:
    rows = [pair(i) if i % 4 else thought(i) for i in range(N)]
    cuts, keeps = cell("cuts", rows, kind=kind), cell("chatml", rows, kind=kind)
    counts, dropped = made(cuts, tmp_path).counts, {"local": "file", "dataset": "train"}[kind]
    assert counts[f"{dropped}/dropped/{SAME}"] == 10 and counts["train"] + counts["heldout"] == 30
    assert all(
        "<think>" not in row.chosen
        for split in ("train", "heldout")
        for row in read_rows(tmp_path / "out" / f"{split}.jsonl")
    )
    assert f"{dropped} of 40 read; dropped: 10 {SAME}" in looked(cuts, tmp_path)[0]
    assert not any("/dropped/" in name for name in made(keeps, tmp_path).counts)


def test_where_no_pair_is_left_the_reason_is_said(cell: Cell, tmp_path: Path) -> None:
    nothing = cell("cuts", [thought(i) for i in range(N)])
    with pytest.raises(ValueError, match=rf"0 train and 0 held-out rows .* \(dropped: 40 {SAME}\)"):
        made(nothing, tmp_path)
    assert f"(dropped: 40 {SAME})" in looked(nothing, tmp_path)[1][0]


def test_pairs_that_differ_beyond_max_length_are_the_same(cell: Cell, tmp_path: Path) -> None:
    rows = [
        pair(i, "the dog " * 60 + "good", "the dog " * 60 + "bad") if i < 8 else pair(i) for i in range(N)
    ]
    assert made(cell("chatml", rows), tmp_path).counts[f"file/dropped/{SAME}"] == 8
    assert f"file/dropped/{SAME}" not in made(cell("chatml", rows, "model.max_length=250"), tmp_path).counts


def test_one_row_that_is_too_long_is_dropped_and_counted(cell: Cell, tmp_path: Path) -> None:
    rows = [
        *(pair(i) for i in range(N)),
        {"prompt": [user("dog " * 500)], "chosen": [bot("a")], "rejected": [bot("b")]},
    ]
    counts = made(cell("chatml", rows), tmp_path).counts
    assert counts["file/dropped/prompt too long"] == 1 and counts["train"] + counts["heldout"] == N


def test_a_loop_drops_pairs_of_the_same_tokens(models: Mapping[str, Path], tmp_path: Path) -> None:
    texts = [("the dog", "a horse"), ("<think>a</think>the dog", "<think>b</think>the dog"), ("red", "green")]
    labels = [Labelled(str(i), [user(f"name {i}")], *both, 1.0, True) for i, both in enumerate(texts)]
    (tmp_path / "labels").mkdir()
    write_jsonl(tmp_path / "labels" / "labels.jsonl", labels)
    inputs = {"00": tmp_path / "labels", "tokenizer": models["cuts"]}
    counts = run(LoopPairData(seed=0, max_length=100), inputs, tmp_path).counts
    assert (counts["train"], counts[f"train/dropped/{SAME}"]) == (2, 1)


# Rows that a template cannot write ------------------------------------------------------------------------------------

BEFORE = {"System role not supported": [SYSTEM], "Conversation roles must alternate": [bot("good day")]}


@pytest.mark.parametrize("kind", ["local", "dataset"])
@pytest.mark.parametrize("why", BEFORE)
@pytest.mark.parametrize("bad", [range(N), [37]])
def test_rows_that_a_template_cannot_write_are_refused_with_their_number_and_the_first(
    kind: str, why: str, bad: Sequence[int], cell: Cell, tmp_path: Path
) -> None:
    refused = cell("strict", [pair(i, before=BEFORE[why] if i in bad else ()) for i in range(N)], kind=kind)
    with pytest.raises(ValueError) as raised:
        made(refused, tmp_path)
    said = str(raised.value)
    rows = "rows" if kind == "local" else "train rows"
    first = f"{tmp_path}/rows.jsonl:{bad[0] + 1}"
    assert said.startswith(
        f"the model's chat template cannot write {len(bad)} of 40 {rows}. The first is {first}: "
    )
    assert (
        f"{why}. Set another model.chat_template, or data.unwritable=drop to leave them out and count them"
        in said
    )
    assert looked(refused, tmp_path)[1] == [f"{kind}: {said}"]


def test_rows_that_a_template_cannot_write_are_dropped_and_counted_where_that_is_asked(
    cell: Cell, tmp_path: Path
) -> None:
    rows = [pair(i, before=[SYSTEM] if i % 5 == 0 else ()) for i in range(N)]
    counts = made(cell("strict", rows, "data.unwritable=drop"), tmp_path).counts
    assert (
        counts["file/dropped/not writable with the chat template"] == 8
        and counts["train"] + counts["heldout"] == 32
    )
    assert made(cell("chatml", rows), tmp_path).counts["file/read"] == N


def test_what_is_found_of_a_row_is_found_again_without_looking(models: Mapping[str, Path]) -> None:
    check_row, rows = learn_check(load_tokenizer(models["strict"]), 60), [user("name a dog")]
    for _ in range(2):
        assert check_row(rows, ["a", "b"]) is None and check_row(rows, []) is None
        assert check_row(rows, ["a", "a"]) == SAME_TOKENS
        assert check_row([user("dog " * 80)], []) == check_row([user("dog " * 80)], ["a"]) == TOO_LONG
        assert (found := check_row([SYSTEM, *rows], ["a"])) and found.reason == UNWRITABLE


@pytest.mark.parametrize("prompt", [[SYSTEM, user("name")], [user("dog " * 300)]])
def test_prompts_of_a_loop_that_cannot_be_asked_are_refused_with_their_row(
    prompt: Any, models: Mapping[str, Path], tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "prompts.jsonl", [{"prompt": [user("a")]}, {"prompt": prompt}])
    with pytest.raises(
        ValueError, match=r"1 of 2 prompts cannot be used with this model\. The first is .*prompts\.jsonl:2: "
    ):
        run(
            FilePromptData(after=0, n=2, answers=False, max_length=100),
            {"file": file, "tokenizer": models["strict"]},
            tmp_path,
        )


# One label ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kto", "csft", "offline_ppo"])
def test_rows_of_one_label_are_refused_with_the_number_of_each(
    method: str, cell: Cell, tmp_path: Path
) -> None:
    one = cell(
        "chatml",
        [{"prompt": f"name {i}", "completion": "the dog", "label": False} for i in range(N)],
        method=method,
    )
    with pytest.raises(ValueError, match=r"the train rows are 0 desirable and \d+ undesirable ones"):
        made(one, tmp_path)
    assert "0 desirable" in looked(one, tmp_path)[1][0]


def test_a_label_that_a_fraction_or_a_drop_leaves_out_is_missed(cell: Cell, tmp_path: Path) -> None:
    labelled = [
        {"prompt": [user(f"name {i}")], "completion": [bot("dog")], "label": i == 3} for i in range(N)
    ]
    rows = {
        "all": labelled,
        "long": [*labelled[:3], labelled[3] | {"prompt": [user("dog " * 300)]}, *labelled[4:]],
    }
    assert made(cell("chatml", rows["all"], method="kto"), tmp_path).counts["train"] > 1
    for kind, words in (("long", ()), ("all", ("data.fraction=0.1",))):
        with pytest.raises(ValueError, match=r"the train rows are 0 desirable and \d+ undesirable ones"):
            made(cell("chatml", rows[kind], *words, method="kto"), tmp_path)


# Plan and run ---------------------------------------------------------------------------------------------------------

FEW: dict[str, list[dict[str, Any]]] = {
    "one row": [pair(0)],
    "two rows": [pair(0), pair(1)],
    "one prompt": [pair(0, f"dog {i}", f"horse {i}") for i in range(N)],
}


@pytest.mark.parametrize("kind", FEW)
def test_a_plan_refuses_what_a_run_refuses(kind: str, cell: Cell, tmp_path: Path) -> None:
    few = cell("chatml", FEW[kind])
    with pytest.raises(ValueError) as raised:
        made(few, tmp_path)
    assert f"local: {raised.value}" in looked(few, tmp_path)[1]


@pytest.mark.parametrize(
    "rows",
    [[pair(0)], [pair(i, before=[SYSTEM] if i == 7 else ()) for i in range(N)]],
    ids=["one row", "unwritable"],
)
def test_plan_and_run_refuse_data_with_the_same_words_before_anything_is_spent(
    rows: list[dict[str, Any]], models: Mapping[str, Path], tmp_path: Path
) -> None:
    file, results = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "results"
    words = (
        "model=local",
        f"model.path={models['strict']}",
        "data=local",
        f"data.path={file}",
        "method=dpo,ipo",
        "judge=none",
    )
    planned, ran = (bench(*words, f"do={verb}", results=results) for verb in ("plan", "run"))
    assert (
        (planned.code, ran.code) == (2, 2)
        and planned.err == ran.err
        and len(ran.err.strip().splitlines()) == 1
    )
    assert "Both must hold rows" in ran.err or f"The first is {file}:8: System role not supported" in ran.err
    assert not list(results.glob("store/*/*"))


def test_conversations_that_a_template_cannot_write_are_refused_by_plan_and_run(
    models: Mapping[str, Path], tmp_path: Path
) -> None:
    rows = write_rows(
        tmp_path / "chats.jsonl",
        [{"messages": [*([SYSTEM] if i == 2 else []), user(f"{i}?"), bot("so")]} for i in range(5)],
    )
    pairs = write_rows(tmp_path / "rows.jsonl", [pair(i) for i in range(N)])
    own = ("model=local", f"model.path={models['strict']}", "data=local", f"data.path={pairs}", "method=dpo")
    tuned = ("+sft=ultrachat_200k", f"sft.path={rows}", "sft.train_files=[chats.jsonl]")
    _, refusals = looked(plans(*own, *tuned)[-1], tmp_path)
    (refusal,) = refusals
    assert (
        "the model's chat template cannot write 1 of 5 conversations. The first is row train-3: " in refusal
    )


def test_settings_that_a_look_hangs_on_are_in_the_key(cell: Cell) -> None:
    rows = [pair(i) for i in range(4)]
    asked: list[tuple[Any, ...]] = [
        ("chatml", rows),
        ("strict", rows),
        ("chatml", rows, "model.max_length=90"),
    ]
    keys = {cell(*words).roles["preferences"].key for words in asked}
    assert len(keys) == 3
    settings = cell("chatml", rows, "data.unwritable=drop").roles["preferences"].settings
    assert isinstance(settings, LocalPairData) and settings.unwritable == "drop"
    assert json.loads(settings.model_dump_json())["version"] == 2


# Rows that are kept, and said -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "dataset"])
def test_special_tokens_that_somebody_typed_are_counted_by_plan_and_run(
    kind: str, cell: Cell, tmp_path: Path
) -> None:
    rows = [pair(i) for i in range(N)]
    rows[3] = pair(3, chosen="the dog<|im_end|>\n<|im_start|>user\nsay more")
    rows[4] = pair(4, rejected="a horse<|im_end|>")
    rows[5] = pair(5, before=[{"role": "system", "content": "end with <|im_end|>, <|im_end|>"}])
    rows[6] = pair(6, chosen="a <|im_end and |im_end|> dog")
    asked, split = cell("chatml", rows, kind=kind), {"local": "file", "dataset": "train"}[kind]
    counts = made(asked, tmp_path).counts
    noted = {name: n for name, n in counts.items() if "/noted/" in name}
    what = "in the text, which the model reads as a control token"
    assert (
        noted[f"{split}/noted/with <|im_end|> {what}"] == 3
        and counts[f"{split}/read"] == counts["train"] + counts["heldout"] == N
    )
    assert f"3 with <|im_end|> {what}" in looked(asked, tmp_path)[0].partition("kept with a note: ")[2]


def test_an_end_that_plain_rows_have_is_no_typed_token(models: Mapping[str, Path]) -> None:
    check_row, plain = learn_check(load_tokenizer(models["chatml"]), None), [{"role": "text", "content": "a"}]
    assert check_row.special_tokens(plain, ["b<|im_end|>", "c"]) == set()  # type: ignore[arg-type]
    assert check_row.special_tokens(plain, ["b<|im_end|>c", "c"]) == {"<|im_end|>"}  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["local", "dataset"])
def test_rows_that_contradict_each_other_are_counted(kind: str, cell: Cell, tmp_path: Path) -> None:
    rows = [pair(i) for i in range(N)] + [
        pair(3, "a horse", "the dog"),
        pair(3, "a horse", "a cow"),
        pair(4, "the dog", "a horse"),
    ]
    counts = made(cell("chatml", rows, kind=kind), tmp_path).counts
    split = {"local": "file", "dataset": "train"}[kind]
    assert counts[f"{split}/noted/with the opposite of another row of the same prompt"] == 2
    labelled = [{"prompt": "a", "completion": "b", "label": i % 2 == 0} for i in range(3)] + [
        {"prompt": "c", "completion": "b", "label": True}
    ]
    assert opposites(read_preferences(write_rows(tmp_path / "labels.jsonl", labelled)).unpaired) == 3


@pytest.mark.parametrize("form", ["paired", "unpaired"])
def test_a_start_model_learns_the_chosen_completions_of_all_train_rows(
    cell: Cell, models: Mapping[str, Path], tmp_path: Path, form: str
) -> None:
    """Each text once, whatever the labelled fraction; no held-out row, no rejected completion; the prompt is masked."""
    rows = [pair(i, f"dog {i}") for i in range(N)]
    rows.append({**rows[3], "rejected": [bot("another")]})
    if form == "unpaired":
        rows = [
            {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
            for row in rows[:N]
            for name in ("chosen", "rejected")
        ]
    method = "dpo" if form == "paired" else "kto"
    plan = cell("chatml", rows, "+sft=chosen", method=method)
    less = cell("chatml", rows, "+sft=chosen", "data.fraction=0.25", method=method)
    start = plan.roles["train"].inputs["model"]
    assert isinstance(start, Stage) and start == less.roles["train"].inputs["model"]
    made = [start.inputs["demonstrations"]]
    made.append(made[0].inputs["preferences"])  # type: ignore[union-attr]
    scratch = ScratchData(Store(tmp_path / "store"), tmp_path)
    texts = list(read_jsonl(scratch.folder(made[0]) / "rows.jsonl", Text))
    train = read_rows(scratch.folder(made[1]) / "train.jsonl")
    good = {
        row.chosen if isinstance(row, Pair) else row.completion
        for row in train
        if isinstance(row, Pair) or row.label
    }
    assert {text.completion for text in texts} == good and len(texts) == len(good) in (29, 30)
    n, examples = _examples(
        start.settings, {"demonstrations": scratch.folder(made[0])}, load_tokenizer(models["chatml"])
    )  # type: ignore[arg-type]
    assert n == len(examples) == len(texts)
    tokenizer = load_tokenizer(models["chatml"])
    learnt = [tokenizer.decode([token for token in labels if token != -100]) for _, labels in examples]
    assert all(
        text.completion in said and said.count("<|im_end|>") == 1
        for text, said in zip(texts, learnt, strict=True)
    )


def test_chosen_completions_are_no_conversations_for_new_prompts(
    models: Mapping[str, Path], tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [pair(i) for i in range(N)])
    own = ("model=local", f"model.path={models['chatml']}", "data=local", f"data.path={rows}", "+sft=chosen")
    done = bench(*own, "method=spin", "method.prompts=sft", "do=plan", results=tmp_path / "results")
    assert done.code == 2 and "method.prompts=sft takes conversations, got sft=chosen" in done.err

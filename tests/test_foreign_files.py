"""Readers of files that a person hands in, on generated files: a refusal that names the file, or values that stand in the file; never a
traceback of another kind, a value made of something else, or another value for another spelling of the same rows."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cli.folders import no_template
from bench.judges.asked.prices import read_prices
from bench.judges.asked.prompts import (
    OWN_GAME,
    OWN_PROMPTS,
    annotator,
    arena_hard_template,
    mt_bench_templates,
)
from bench.judges.formats import alpaca_eval, mt_bench
from bench.judges.formats.items import read_alpaca_eval, read_arena_hard, read_mt_bench
from bench.models.hub import read_config, trusts_code
from bench.models.model_config import positions
from bench.readers.completions_file import matched, read_written
from bench.records import Item, read_labels
from bench.text_files import BadFile, number, printable

TEXT = st.text(max_size=6)
NAME = st.text("abcü😀 _-.", min_size=1, max_size=4)
SAID = TEXT.map(lambda text: f"x{text}")  # an opponent that says nothing is refused
NUMBER = st.integers(0, 10**6)
ODD = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(-3, 11), st.just(10**400), TEXT, st.just("cut \ud83d"), st.lists(TEXT, max_size=2),
    st.builds(lambda text: {"content": text}, TEXT | st.none()), st.dictionaries(TEXT, TEXT, max_size=2),
    st.builds(lambda depth: json.loads("[" * depth + "]" * depth), st.integers(90, 120)),
)  # fmt: skip


class Found(NamedTuple):
    """What a reader made of its files: texts and numbers that must stand in them."""

    texts: list[str | None]
    numbers: list[float | None] = []


@dataclass(frozen=True)
class Reader:
    """`files`: good rows by the name of their file, which ends in what the file is; `read` is given the folder."""

    files: st.SearchStrategy[dict[str, Any]]
    read: Callable[[Path], Found]
    own: frozenset[str] = frozenset()  # texts that the reader itself may say


def of_items(items: Iterable[Item]) -> Found:
    return Found(
        [
            text
            for item in items
            for text in (*item.turns, *(item.baseline or ()), *(item.reference or ()), item.category)
        ]
    )


# Good rows ------------------------------------------------------------------------------------------------------------


@st.composite
def completions(draw: st.DrawFn) -> dict[str, Any]:
    form = draw(st.sampled_from(["prompt", "messages", "turns", "id", "outputs", "answers"]))
    asked = draw(st.lists(NAME, min_size=1, max_size=4, unique=True))
    rows: list[dict[str, Any]] = []
    for text in asked:
        written = draw(TEXT)
        system, user = {"role": "system", "content": draw(TEXT)}, {"role": "user", "content": text}
        rows.append(
            {
                "prompt": {"prompt": text, "completion": written},
                "messages": {"prompt": [system, user], "completion": written},
                "turns": {"turns": [text, "more"], "completions": [written, draw(TEXT)]},
                "id": {"id": text, "completions": [written]},
                "outputs": {"instruction": text, "output": written, "generator": "m"},
                "answers": {
                    "question_id": text,
                    "model_id": "m",
                    "choices": [{"index": 0, "turns": [written]}],
                },
            }[form]
        )
    return {draw(st.sampled_from(["c.jsonl", "c.json", "c.jsonl.gz"])): rows}


def read_completions(folder: Path) -> Found:
    rows = read_written(next(folder.glob("c.*")))
    matched(rows, [Item("a", None, ["a"]), Item("mt_bench-b", None, ["b"])])
    return Found(
        [
            text
            for row in rows
            for text in (*(row.turns or ()), *(text for _, text in row.messages or ()), *row.texts)
        ]
    )


@st.composite
def alpaca_items(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(
        st.lists(
            st.fixed_dictionaries({"instruction": TEXT, "output": SAID}, optional={"dataset": TEXT}),
            min_size=1,
            max_size=3,
        )
    )
    return {
        draw(st.sampled_from(["i.json", "i.json.gz"])): draw(
            st.sampled_from([rows, {"rows": rows, "dataset": "shared"}])
        )
    }


@st.composite
def alpaca_folder(draw: st.DrawFn) -> dict[str, Any]:
    asked = draw(st.lists(TEXT, min_size=1, max_size=4, unique=True))
    votes = st.none() | st.sampled_from([-1, 0, 1, 1.5, 2, float("nan")]) | st.floats(1, 2)
    names = {"generator_1": "base", "generator_2": "mine", "annotator": "judge"}
    texts = [(draw(TEXT), draw(TEXT)) for _ in asked]
    shown = [{"instruction": a, "output_1": b, "output_2": m} for a, (b, m) in zip(asked, texts, strict=True)]
    rows = [names | row | {"preference": draw(votes)} for row in shown]
    outputs = [
        {"instruction": a, "output": m, "generator": "mine"} for a, (_, m) in zip(asked, texts, strict=True)
    ]
    return {"annotations.json": rows, "outputs.json": outputs}


def read_alpaca_folder(folder: Path) -> Found:
    outputs = alpaca_eval.read_outputs(folder / "outputs.json")
    found = alpaca_eval.read_annotations(folder / "annotations.json", outputs)
    texts = [
        *outputs.texts.values(),
        outputs.model,
        found.model,
        found.baseline,
        found.annotator,
        *(v.category for v in found.verdicts),
    ]
    assert all(v.preference is None or 0 <= v.preference <= 1 for v in found.verdicts)
    assert all((v.preference is None) == (v.unscored is not None) for v in found.verdicts)
    return Found(texts, [None if v.preference is None else v.preference + 1 for v in found.verdicts])


@st.composite
def fastchat(draw: st.DrawFn) -> dict[str, Any]:
    numbers = draw(st.lists(st.integers(0, 200) | NAME, min_size=1, max_size=3, unique_by=str))
    turns = draw(st.integers(1, 2))
    texts = st.lists(TEXT, min_size=turns, max_size=turns)
    said = st.lists(SAID, min_size=turns, max_size=turns)
    wrap = draw(st.sampled_from([lambda text: text, lambda text: {"content": text, "token_len": 3}]))
    questions = [
        {"question_id": n, "category": draw(TEXT), "turns": list(map(wrap, draw(texts)))} for n in numbers
    ]
    files: dict[str, Any] = {"q.jsonl": questions}
    for name in ("a.jsonl", "r.jsonl.gz"):
        files[name] = [
            {
                "question_id": n,
                "model_id": "m",
                "choices": [{"index": 0, "turns": list(map(wrap, draw(said)))}],
            }
            for n in numbers
        ]
    return files


def read_fastchat(folder: Path) -> Found:
    return of_items(read_mt_bench(folder / "q.jsonl", folder / "r.jsonl.gz", folder / "a.jsonl"))


@st.composite
def arena(draw: st.DrawFn) -> dict[str, Any]:
    uids = draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
    answer = st.builds(lambda text, plain: text if plain else {"answer": text}, SAID, st.booleans())
    prompts = [draw(TEXT) for _ in uids]
    messages = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": draw(answer)}]
        for prompt in prompts
    ]
    return {
        "q.jsonl": [
            {"uid": uid, "category": draw(TEXT), "prompt": prompt}
            for uid, prompt in zip(uids, prompts, strict=True)
        ],
        "a.jsonl": [
            {"uid": uid, "model": "m", "messages": said} for uid, said in zip(uids, messages, strict=True)
        ],
    }


@st.composite
def judgements(draw: st.DrawFn) -> dict[str, Any]:
    judge = draw(st.sampled_from(["j", ["j", "single-v1"]]))
    common = {
        "question_id": draw(NUMBER | NAME),
        "judge": judge,
        "turn": draw(st.integers(1, 2)),
        "tstamp": 1.5,
    }
    single = {
        "model": "m",
        "score": draw(st.sampled_from([-1, 0, 1, 9.5, 10, 11])),
        "judgment": draw(TEXT),
        "user_prompt": draw(TEXT),
    }
    winner = st.sampled_from(["model_1", "model_2", "tie", "error"])
    pair = {
        "model_1": "m",
        "model_2": "n",
        "g1_winner": draw(winner),
        "g2_winner": draw(winner),
        "g1_judgment": draw(TEXT),
    }
    rows = [common | draw(st.sampled_from([single, pair]))]
    return {draw(st.sampled_from(["j.jsonl", "j.jsonl.gz"])): rows * draw(st.integers(1, 3))}


def read_judgements(folder: Path) -> Found:
    path = next(folder.glob("j.*"))
    texts: list[str | None] = []
    numbers: list[float | None] = []
    for row in mt_bench.read_judgements(path):
        if isinstance(row, mt_bench.Rated):
            texts += [
                row.model,
                row.verdict.judge,
                row.verdict.item_id,
                row.verdict.raw,
                row.user_prompt,
                row.prompt_name,
            ]
            numbers += [row.score, row.verdict.rating, row.tstamp, row.verdict.turn + 1]
            assert (row.verdict.rating is None) == (row.verdict.unscored is not None)
        else:
            texts += [
                *row.models,
                row.question,
                row.judge,
                *row.judgements,
                *row.user_prompts,
                row.prompt_name,
            ]
            numbers += [row.tstamp, row.turn + 1]
    try:
        mt_bench.read_judged(path)
    except ValueError as error:
        refused(error, folder)
    return Found(texts, numbers)


@st.composite
def labels(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(
        st.sampled_from([{"preference": draw(st.floats(0, 1))}, {"rating": draw(st.integers(1, 10))}])
    )
    return {
        "l.jsonl": [
            {"item_id": name} | kind for name in draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
        ]
    }


def read_people(folder: Path) -> Found:
    found = read_labels(folder / "l.jsonl")
    return Found(
        [label.item_id for label in found],
        [value for label in found for value in (label.preference, label.rating)],
    )


@st.composite
def prompts(draw: st.DrawFn) -> dict[str, Any]:
    rows = [json.loads(line) for line in OWN_PROMPTS.read_text(encoding="utf-8").splitlines()]
    game = yaml.safe_load(OWN_GAME.read_text(encoding="utf-8"))
    return {"p.jsonl": [row | {"system_prompt": draw(TEXT)} for row in rows], "g.yaml": game}


def read_prompts(folder: Path) -> Found:
    templates = mt_bench_templates(folder / "p.jsonl")
    game = arena_hard_template(folder / "g.yaml")
    assert all(isinstance(text, str) for _, text in game.messages)
    return Found([text for template in templates.values() for _, text in template.messages])


@st.composite
def annotators(draw: st.DrawFn) -> dict[str, Any]:
    kwargs = {
        "model_name": draw(NAME),
        "max_tokens": draw(st.integers(0, 99)),
        "temperature": draw(st.floats(0, 2)),
        "logprobs": True,
    }
    config = {
        "prompt_template": "mine/p.txt",
        "fn_completion_parser": "regex_parser",
        "completions_kwargs": kwargs,
    }
    config |= {"completion_parser_kwargs": {"outputs_to_match": {"1": draw(TEXT)}}}
    return {
        "configs.yaml": {"mine": config},
        "p.txt": f"Task: {draw(TEXT)} {{instruction}} {{output_1}} {{output_2}}",
    }


def read_annotator(folder: Path) -> Found:
    mine = folder / "mine"
    mine.mkdir(exist_ok=True)
    for path in (mine / "configs.yaml", mine / "p.txt"):
        path.write_bytes((folder / path.name).read_bytes())
    found = annotator(str(mine))
    numbers = [value for value in found.decoding.values() if number(value) not in (None, 0.7, 1.0, 2048)]
    return Found([found.model, found.parser], numbers)


@st.composite
def prices(draw: st.DrawFn) -> dict[str, Any]:
    dollars = st.floats(0, 100) | st.integers(0, 100)
    names = draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
    day = datetime.date(2026, 11, 25)
    rows = [
        {
            "models": [n],
            "prompt": draw(dollars),
            "completion": draw(dollars),
            "date": day,
            "source": draw(TEXT),
        }
        for n in names
    ]
    return {"p.yaml": rows}


def read_price_file(folder: Path) -> Found:
    found = read_prices(folder / "p.yaml")
    return Found(
        [text for row in found for text in (*row.models, row.source)],
        [n for row in found for n in (row.prompt, row.completion)],
    )


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    config = {"model_type": "llama", "max_position_embeddings": draw(NUMBER), "hidden_size": draw(NUMBER)}
    return {
        "config.json": config,
        "tokenizer_config.json": {"chat_template": draw(TEXT), "eos_token": "</s>"},
    }


def read_configs(folder: Path) -> Found:
    found = positions(read_config(folder))
    no_template(folder, "add one")
    trusts_code(folder)
    return Found([value for value in read_config(folder).values() if isinstance(value, str)], [found])


READERS = {
    "completions": Reader(completions(), read_completions),
    "alpaca_eval_items": Reader(
        alpaca_items(), lambda folder: of_items(read_alpaca_eval(next(folder.glob("i.*"))))
    ),
    "alpaca_eval_annotations": Reader(
        alpaca_folder(),
        read_alpaca_folder,
        frozenset({"(no generator)", "(no generator_1)", "(no generator_2)", "(no annotator)"}),
    ),
    "fastchat": Reader(fastchat(), read_fastchat),
    "arena_hard": Reader(
        arena(), lambda folder: of_items(read_arena_hard(folder / "q.jsonl", folder / "a.jsonl"))
    ),
    "judgements": Reader(judgements(), read_judgements, frozenset({"", "error"})),
    "labels": Reader(labels(), read_people),
    "prompts": Reader(prompts(), read_prompts),
    "annotators": Reader(annotators(), read_annotator, frozenset({"", "regex_parser"})),
    "prices": Reader(prices(), read_price_file),
    "configs": Reader(configs(), read_configs),
}


# Spelling and spoiling ------------------------------------------------------------------------------------------------


class Spelling(NamedTuple):
    """How the same rows may be written."""

    mark: bool
    end: str
    escaped: bool
    indent: int | None

    def write(self, path: Path, content: Any) -> None:
        text = self.text(path.name, content)
        path.write_bytes(
            packed(path, (b"\xef\xbb\xbf" if self.mark else b"") + text.encode("utf-8", "surrogatepass"))
        )

    def text(self, name: str, content: Any) -> str:
        if name.endswith(".txt"):
            return content
        if name.endswith(".yaml"):
            breaks = any(
                mark in str(leaf) for leaf in leaves(content) for mark in "\x85\u2028\u2029"
            )  # PyYAML folds what it writes there
            return yaml.safe_dump(content, allow_unicode=not (self.escaped or breaks)).replace(
                "\n", self.end[:2].replace("\n\n", "\n")
            )
        if ".jsonl" in name and isinstance(content, list):
            return "".join(
                json.dumps(row, ensure_ascii=self.escaped or halves(row)) + self.end for row in content
            )
        return json.dumps(content, ensure_ascii=self.escaped or halves(content), indent=self.indent).replace(
            "\n", self.end
        )


def packed(path: Path, content: bytes) -> bytes:
    return gzip.compress(content, 1) if path.suffix == ".gz" else content


def halves(content: Any) -> bool:
    return "\ud83d" in json.dumps(content, ensure_ascii=False)


SPELLINGS = st.builds(
    Spelling,
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    st.booleans(),
    st.sampled_from([None, 1]),
)
PLAIN = Spelling(False, "\n", True, None)


def parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a value."""
    if path:
        yield path
    for key, part in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from parts(part, (*path, key))


def spoilt(content: Any, path: Sequence[Any], how: str, odd: Any) -> Any:
    """A copy in which one part is another value, left out, or inside a list or an object."""
    if not path:
        return {"put": odd, "list": [content], "object": {"content": content}}[how]
    copy = dict(content) if isinstance(content, dict) else list(content)
    if len(path) == 1 and how == "out":
        del copy[path[0]]
    elif len(path) == 1 and how == "another":
        copy = copy | {f"{path[0]}x": odd} if isinstance(copy, dict) else [*copy, odd]
    else:
        inner = "put" if how in ("out", "another") and len(path) == 1 else how
        copy[path[0]] = spoilt(copy[path[0]], path[1:], inner, odd)
    return copy


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def as_written(path: Path) -> list[Any]:
    """What stands in a file, by the standard library alone."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    if path.suffix == ".txt":
        return [text]
    if path.suffix == ".yaml":
        return list(leaves(yaml.safe_load(text)))
    try:
        return list(leaves(json.loads(text)))
    except ValueError:
        # a mark may begin any line: files are put one after the other
        return list(
            leaves(
                [
                    json.loads(line.removeprefix("\ufeff"))
                    for line in re.split(r"\r\n|\r|\n", text)
                    if line.strip("\ufeff \t")
                ]
            )
        )


def refused(error: ValueError, folder: Path) -> None:
    """Whether a refusal is one: it names the file, and each of its lines can be shown."""
    assert str(folder) in str(error), error
    for line in str(error).split("\n"):
        assert line == printable(line), ascii(line)
    assert "\n" not in str(error) or str(error).count(str(folder)) > 1, error


def check(reader: Reader, folder: Path) -> None:
    """A refusal, or values that stand in the files."""
    try:
        found = reader.read(folder)
    except ValueError as error:
        assert not isinstance(error, UnicodeError) or isinstance(error, BadFile)
        return refused(error, folder)
    there = [leaf for path in folder.iterdir() if path.is_file() for leaf in as_written(path)]
    texts = {leaf for leaf in there if isinstance(leaf, str)} | {
        str(leaf) for leaf in there if type(leaf) is int
    }
    numbers = {float(leaf) for leaf in there if type(leaf) in (int, float) and number(leaf) is not None}
    numbers |= {1.5} if 0 in numbers else set()  # AlpacaEval's old draws
    for text in found.texts:
        assert text is None or text in texts | reader.own or text.strip() in {one.strip() for one in texts}, (
            repr(text)
        )
    for value in found.numbers:
        whole = type(value) is int and value in there  # of any length
        assert value is None or whole or any(math.isclose(value, one, abs_tol=1e-12) for one in numbers), (
            value
        )
    return None


def emptied(folder: Path) -> Path:
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=30)
@given(data=st.data())
def test_the_same_rows_are_the_same_however_they_are_spelt(
    name: str, folder: Path, data: st.DataObject
) -> None:
    reader = READERS[name]
    files, spelling = data.draw(reader.files), data.draw(SPELLINGS)
    found = []
    for how in (PLAIN, spelling):
        for file, content in files.items():
            how.write(emptied(folder) / file if file == next(iter(files)) else folder / file, content)
        found.append(reader.read(folder))
        check(reader, folder)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_spoilt_part_is_refused_or_read_as_it_stands(name: str, folder: Path, data: st.DataObject) -> None:
    reader = READERS[name]
    files, spelling = data.draw(reader.files), data.draw(SPELLINGS)
    for _ in range(data.draw(st.integers(1, 2))):
        file = data.draw(st.sampled_from(sorted(file for file in files if not file.endswith(".txt"))))
        path = data.draw(st.sampled_from([(), *parts(files[file])]))
        how = data.draw(st.sampled_from(["put", "list", "object", *(["out", "another"] if path else [])]))
        files[file] = spoilt(files[file], path, how, data.draw(ODD))
    emptied(folder)
    for file, content in files.items():
        spelling.write(folder / file, content)
    check(reader, folder)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=30)
@given(data=st.data())
def test_spoilt_bytes_are_refused_or_read_as_they_stand(name: str, folder: Path, data: st.DataObject) -> None:
    reader = READERS[name]
    files, spelling = data.draw(reader.files), data.draw(SPELLINGS)
    emptied(folder)
    for file, content in files.items():
        spelling.write(folder / file, content)
    path = folder / data.draw(st.sampled_from(sorted(files)))
    zipped = path.suffix == ".gz" and data.draw(st.booleans())  # spoilt inside, or as it lies there
    content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    place = data.draw(st.integers(0, len(content)))
    odd = [
        b"",
        b"\0",
        b"\xff",
        b"\r",
        b"\n",
        b'"',
        b"{",
        b"[",
        b",",
        b"\xef\xbb\xbf",
        b"\\ud83d",
        b"NaN",
        b"1e999",
    ]
    added = data.draw(st.sampled_from(odd))
    rest = data.draw(st.sampled_from([place, place + 1, len(content)]))
    content = content[:place] + added + content[rest:]
    if data.draw(st.integers(0, 9)) == 0:
        content = content.decode("utf-8", "replace").encode(
            data.draw(st.sampled_from(["utf-16", "utf-32", "utf-16-le"]))
        )
    path.write_bytes(packed(path, content) if zipped else content)
    check(reader, folder)


# Calibrations ---------------------------------------------------------------------------------------------------------

FIELDS = st.sampled_from(
    [
        "",
        "nan",
        "inf",
        "0,5",
        "1e999",
        "-1",
        "2",
        "0.5",
        "x",
        " ",
        "1_0",
        "0x1",
        "²",
        '"',
        "a,b",
        "\r\n",
        "\ufeff",
    ]
)


@settings(max_examples=30)
@given(data=st.data())
def test_a_calibration_is_refused_or_read_as_it_stands(folder: Path, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    head = ["model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
    unit = st.floats(0, 1)
    rows: list[list[str]] = [
        [model, repr(data.draw(unit)), str(k), repr(data.draw(unit)), repr(k / 7), "False"]
        for model in ("a", "b")
        for k in range(n)
    ]
    order = data.draw(st.permutations(range(len(head))))
    spoil = data.draw(st.integers(0, 2))
    for _ in range(spoil):
        rows[data.draw(st.integers(0, len(rows) - 1))][data.draw(st.integers(0, len(head) - 1))] = data.draw(
            FIELDS
        )
    out = io.StringIO(newline="")
    comma, end = data.draw(st.sampled_from([",", ",", ";", "\t"])), data.draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(out, delimiter=comma, lineterminator=end)
    writer.writerows([[row[k] for k in order] for row in [head, *rows]])
    content = (b"\xef\xbb\xbf" if data.draw(st.booleans()) else b"") + out.getvalue().encode()
    if data.draw(st.integers(0, 3)) == 0:
        cut = data.draw(st.integers(0, len(content)))
        content, spoil = content[:cut] + data.draw(st.sampled_from([b"", b'"', b"\0", b"\xff", b","])), 1
    path = emptied(folder) / "c.csv"
    path.write_bytes(content)
    items = [Item(f"item-{k}", None, [str(k)]) for k in range(n)]
    try:
        found = alpaca_eval.read_calibration(path, items)
    except ValueError as error:
        assert spoil or comma != ",", error
        assert "\n" not in str(error)
        return refused(error, folder)
    rows_of_file = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    by_index = [row for row in rows_of_file if (row["index"] or "").strip().isdecimal()]
    for k in range(n):
        mine = [row for row in by_index if int(row["index"]) == k]
        if f"item-{k}" in found.difficulty:
            known = found.difficulty[f"item-{k}"]  # rounded otherwise in another row, it is the same number
            assert all(
                math.isclose(float(row["instruction_difficulty"]), known, rel_tol=1e-5) for row in mine
            )
            votes = [
                (float(row["preference"]), float(row["std_delta_len"]))
                for row in mine
                if row["preference"].strip()
            ]
            assert [(gamed.preference, gamed.gap) for gamed in found.gamed.get(f"item-{k}", ())] == votes
            assert all(0 <= preference <= 1 for preference, _ in votes)
    return None

"""Records on disk: one dataclass per record, one JSON record per line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from bench import text_files
from bench.text_files import BadFile, id_text, number, printable, whole_number

R = TypeVar("R", bound="Record")
K = TypeVar("K")
V = TypeVar("V")
Named = TypeVar("Named", "Item", "Completion", "Labelled")

# Name of the count of turns, prompt and completion, with more tokens than the model has positions.
POSITIONS_PASSED = "positions_passed"
Message = Mapping[str, str]  # {"role": ..., "content": ...}, the form that chat templates read


@dataclass(frozen=True)
class Record:
    """A record that is written as one JSON object."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The record of a JSON object. Raises ValueError for an unknown field."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = set(row) - names
        if unknown:
            raise ValueError(f"unknown field {', '.join(sorted(unknown))}; known: {', '.join(sorted(names))}")
        return cls(**row)


@dataclass(frozen=True)
class Item(Record):
    """One prompt for the policies, of one or several turns.

    `turns`: the user's messages. A later turn follows the policy's own completions of the earlier turns.
    `context`: messages before the first turn (system prompt, earlier conversation).
    `plain`: the prompt is text without a chat template.
    `task`: the input of the controlled world's gold judge, one entry per turn; None elsewhere.
    `baseline`: the opponent's completion of each turn; None where there is no opponent.
    `reference`: correct answers that a judge is shown; None where there are none.
    """

    id: str
    category: str | None
    turns: list[str]
    task: list[dict[str, Any]] | None = None
    baseline: list[str] | None = None
    context: list[Message] = field(default_factory=list)
    plain: bool = False
    reference: list[str] | None = None

    @property
    def question(self) -> str:
        """The prompt as one text: its first turn, with the messages before it and their roles if it has some."""
        messages = [*self.context, {"role": "user", "content": self.turns[0]}] if self.context else []
        said = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)
        return said or self.turns[0]

    def to_json(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in super().to_json().items()
            if name != "reference" or value is not None
        }


@dataclass(frozen=True)
class Text(Record):
    """One supervised example. `prompt` is empty for plain text."""

    id: str
    prompt: list[Message]
    completion: str


@dataclass(frozen=True)
class Conversation(Record):
    """One supervised example of several turns, the last by the assistant.

    Training uses every assistant turn.
    """

    id: str
    messages: list[Message]


@dataclass(frozen=True)
class Pair(Record):
    """A preference pair.

    `mismatched_*`: a completion of another prompt. It estimates KTO's KL term at this prompt when `chosen`
    (or `rejected`) is the KTO row.
    """

    id: str
    prompt: list[Message]
    chosen: str
    rejected: str
    mismatched_chosen: str
    mismatched_rejected: str


@dataclass(frozen=True)
class Unpaired(Record):
    """One completion with a label; True is desirable. `mismatched` as in Pair."""

    id: str
    prompt: list[Message]
    completion: str
    label: bool
    mismatched: str


def completion_columns(row: Pair | Unpaired) -> tuple[str, ...]:
    """The names of a preference row's columns with completions, mismatched ones included."""
    if isinstance(row, Pair):
        return ("chosen", "rejected", "mismatched_chosen", "mismatched_rejected")
    return ("completion", "mismatched")


def own_completions(row: Pair | Unpaired) -> tuple[str, ...]:
    """The completions of a preference row's own prompt."""
    return (row.chosen, row.rejected) if isinstance(row, Pair) else (row.completion,)


@dataclass(frozen=True)
class Shared(Record):
    """A train row, by id, with the same prompt as an item of the judge.

    `how`: `exact` is word for word; `normalised` ignores case and spaces.
    """

    id: str
    how: str


@dataclass(frozen=True)
class Labelled(Record):
    """Two completions of a prompt and their label. `first_preferred` None is a tie.

    `p_first` in [0, 1]: the labeller's probability of preferring the first; None where the pair is unscored.
    `correct`: whether the label agrees with the truth; None where the truth is unknown or a tie.
    `unscored`: the reason why there is no label.
    """

    id: str
    prompt: list[Message]
    first: str
    second: str
    p_first: float | None
    first_preferred: bool | None
    correct: bool | None = None
    unscored: str | None = None


@dataclass(frozen=True)
class Trust(Record):
    """The verdict of a training's noise detector on a pair's label.

    `confidence` in [0, 1]: its probability that the label is right.
    """

    id: str
    distrusted: bool
    confidence: float


@dataclass(frozen=True)
class Completion(Record):
    """A policy's completions of an item: one text and one token count per turn. The count includes EOS.

    `finished[t]` is False where the text was cut at max_new_tokens. `draw` numbers several samples of a
    prompt. `ids`: the drawn tokens. Encoding the text again may give other tokens.
    """

    id: str
    turns: list[str]
    completions: list[str]
    n_tokens: list[int]
    finished: list[bool]
    draw: int = 0
    ids: list[list[int]] = field(default_factory=list)


def draw_name(completion: Completion) -> str:
    """The name of a sample among all draws: `id/draw`, or just `id` for draw 0."""
    return f"{completion.id}/{completion.draw}" if completion.draw else completion.id


def pair_name(first: Completion, second: Completion) -> str:
    """The name of two samples of a prompt that are judged against each other: `id/draw-draw`."""
    return f"{first.id}/{first.draw}-{second.draw}"


@dataclass(frozen=True)
class Logps(Record):
    """Summed log-probability (nats) of a completion given its prompt, and the number of tokens in the sum."""

    id: str
    logps: float
    n_tokens: int


@dataclass(frozen=True)
class Reward(Record):
    """A reward model's reward of a completion, in the model's own units."""

    id: str
    reward: float


@dataclass(frozen=True)
class Call(Record):
    """One request to a judge model, and its reply. Both orders of a pair are two calls."""

    model: str  # the name in the request
    served: str | None  # the name in the reply
    prompt_digest: str  # of the prompt template, without the item's texts
    parser: str  # name and version of the reply parser
    decoding: Mapping[str, Any]
    policy_first: bool | None = None  # the order in the prompt; None where there is no opponent
    preference: float | None = None  # for the policy, from this reply alone; None where it has none
    raw: str | None = None  # the whole reply
    top_logprobs: Mapping[str, float] | None = None  # of the deciding token, in nats
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    dollars: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Verdict(Record):
    """A judge's decision on one item: a preference, a rating, or unscored with its reason.

    `preference` in [0, 1]: the judge's confidence that the policy wins over the baseline; 0.5 is a tie.
    `rating`: 1 to 10. `unscored`: the reason why there is neither. Exactly one of the three is set.
    """

    item_id: str
    judge: str
    turn: int = 0
    category: str | None = None
    preference: float | None = None
    rating: float | None = None
    unscored: str | None = None
    raw: str | None = None  # the judge's whole reply
    policy_length: int | None = None  # in characters, as in AlpacaEval
    baseline_length: int | None = None
    details: Mapping[str, float] | None = None  # named parts of the judgement
    policy_digest: str | None = None  # `text_digest` of the judged texts
    baseline_digest: str | None = None
    calls: list[Call] = field(default_factory=list)  # its requests; empty for a judge that is a function

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults; most fields of most verdicts do not."""
        defaults = {
            f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(self)
        } | {"calls": []}
        return {name: value for name, value in super().to_json().items() if value != defaults[name]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return super().from_json({**row, "calls": [Call.from_json(call) for call in row.get("calls", ())]})

    def __post_init__(self) -> None:
        if (self.preference is not None) + (self.rating is not None) + (self.unscored is not None) != 1:
            raise ValueError(
                f"verdict on {self.item_id}: exactly one of preference, rating and unscored must be set"
            )
        if self.preference is not None and not 0 <= self.preference <= 1:
            raise ValueError(
                f"verdict on {self.item_id}: preference must be in [0, 1], got {self.preference}"
            )
        if self.rating is not None and not 1 <= self.rating <= 10:
            raise ValueError(f"verdict on {self.item_id}: rating must be in [1, 10], got {self.rating}")


@dataclass(frozen=True)
class HumanLabel(Record):
    """A person's label of an item: a preference, or a rating of one turn.

    `preference`: 1 for the policy's completion, 0 for the baseline's, 0.5 for a tie. `rating`: 1 to 10.
    """

    item_id: str
    preference: float | None = None
    rating: float | None = None
    turn: int = 0

    def __post_init__(self) -> None:
        if (self.preference is not None) + (self.rating is not None) != 1:
            raise ValueError(f"label of {self.item_id}: exactly one of preference and rating must be set")
        for name, low, high in (("preference", 0, 1), ("rating", 1, 10)):
            value = getattr(self, name)
            if value is not None and ((finite := number(value)) is None or not low <= finite <= high):
                raise ValueError(f"label of {self.item_id}: {name} must be in [{low}, {high}], got {value!r}")
        last = 0 if self.rating is None else 1
        allowed = "0 or 1" if last else "0, because a preference is for the whole item"
        if not 0 <= self.turn <= last:
            raise ValueError(f"label of {self.item_id}: turn must be {allowed}, got {self.turn}")


@dataclass(frozen=True)
class TaskResult(Record):
    """A metric of one task, in the task's own units.

    `value`: None where it is not finite, such as the perplexity of a broken model.
    `standard_error`: over its `n` documents; None where the metric has none.
    `asked`: digest of documents, prompts and correct answers; None for a group of tasks.
    `shown`: whether the config names the task, or a group of it that has no numbers of its own.
    """

    task: str
    metric: str
    value: float | None
    standard_error: float | None
    n: int
    higher_is_better: bool | None
    shots: int | None
    version: str | None  # of the task; None for some groups
    harness: str  # version of lm_eval
    asked: str | None
    shown: bool


def task_number(task: str, metric: str) -> str:
    """The name of a task's metric among a cell's metrics."""
    return f"tasks/{task}/{metric}"


@dataclass(frozen=True)
class TaskAnswer(Record):
    """One document of a task: its value for each metric. `how`: the way in which the reply was read."""

    task: str
    document: int
    how: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Result(Record):
    """A cell's metrics. A metric that was not measured is absent from `metrics`; `missing` has the reason.

    `calibration`: digest of the calibration that length control used; None without one.
    """

    metrics: dict[str, float]
    missing: dict[str, str]
    calibration: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in super().to_json().items()
            if name != "calibration" or value is not None
        }


def about_texts(policy: str | None, baseline: str | None = None) -> dict[str, Any]:
    """The lengths and digests of the judged texts, as fields of a verdict."""
    texts = {"policy": policy, "baseline": baseline}
    lengths = {f"{side}_length": None if text is None else len(text) for side, text in texts.items()}
    return lengths | {
        f"{side}_digest": None if text is None else text_digest(text) for side, text in texts.items()
    }


def preference_verdicts(folder: Path) -> list[Verdict]:
    """The verdicts in a judge's folder, one per item (see `over_turns`)."""
    return over_turns(read_verdicts(folder))


def over_turns(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """One verdict per item.

    Of several turns: the mean preference and the summed lengths of the scored turns.
    """
    by_item = grouped((verdict.item_id, verdict) for verdict in verdicts)
    return [turns[0] if len(turns) == 1 else _mean_turn(turns) for turns in by_item.values()]


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """The values of each key. Keys and values keep their order."""
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _mean_turn(turns: list[Verdict]) -> Verdict:
    scored = [verdict for verdict in turns if verdict.preference is not None]
    if not scored:
        return turns[0]
    preference = sum(verdict.preference for verdict in turns if verdict.preference is not None) / len(scored)
    lengths = {
        name: [getattr(verdict, name) for verdict in scored] for name in ("policy_length", "baseline_length")
    }
    summed: dict[str, Any] = {
        name: None if None in values else sum(values) for name, values in lengths.items()
    }
    return dataclasses.replace(scored[0], preference=preference, **summed)


def text_digest(text: str) -> str:
    """The digest of a judged text in a verdict: 16 hexadecimal digits of its sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_detections(training: Path, labels: Iterable[Path]) -> list[tuple[bool, bool]] | None:
    """(distrusted, mislabelled) of each pair with known truth that a training's noise detector checked.

    None without a detector. `labels`: folders of the label stages that the training's pairs come from.
    """
    if not (path := training / "trust.jsonl").exists():
        return None
    correct = {
        label.id: label.correct
        for folder in labels
        for label in read_jsonl(folder / "labels.jsonl", Labelled)
    }
    checked = [(trust.distrusted, correct.get(trust.id)) for trust in read_jsonl(path, Trust)]
    return [(distrusted, not right) for distrusted, right in checked if right is not None]


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(
                json.dumps(record.to_json(), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
            )


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of a file. Raises ValueError with file and line for a bad one."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield kind.from_json(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a {kind.__name__}: {error}") from error


def read_progress(path: Path) -> list[dict[str, float]]:
    """Curve of a running training so far; empty where there is none. A line that is being written is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError):
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_labels(path: Path) -> list[HumanLabel]:
    """A person's labels from a file, at most one per item and turn. Raises BadFile."""
    labels: list[HumanLabel] = []
    first: dict[tuple[str, int, bool], str] = {}
    for place, row in text_files.read_rows(path):
        try:
            item, turn = (
                id_text(row.get("item_id"), "item_id"),
                whole_number(row.get("turn", 0), "turn", 0, 10**6),
            )
            label = HumanLabel.from_json(row | {"item_id": item})
        except ValueError as error:
            raise BadFile(f"{place}: not a valid label: {printable(str(error))}") from error
        if (earlier := first.setdefault((item, turn, label.rating is None), place)) != place:
            raise BadFile(
                f"{place}: item {printable(item)} is labelled again, after {earlier}: expected one label per item and turn"
            )
        labels.append(label)
    return labels


def read_items(folder: Path) -> list[Item]:
    return list(read_jsonl(folder / "items.jsonl", Item))


def read_completions(folder: Path) -> list[Completion]:
    return list(read_jsonl(folder / "completions.jsonl", Completion))


def read_verdicts(folder: Path) -> list[Verdict]:
    return list(read_jsonl(folder / "verdicts.jsonl", Verdict))


def read_logps(folder: Path) -> dict[str, Logps]:
    """The log-probabilities of a logps stage, by row name."""
    return {row.id: row for row in read_jsonl(folder / "logps.jsonl", Logps)}


def read_rewards(folder: Path) -> dict[str, float]:
    """A reward model's rewards, by row name."""
    return {row.id: row.reward for row in read_jsonl(folder / "rewards.jsonl", Reward)}


def read_rows(path: Path) -> list[Pair] | list[Unpaired]:
    """The preference rows of a file, pairs or unpaired ones."""
    with path.open(encoding="utf-8") as file:
        paired = '"chosen"' in file.readline()
    return list(read_jsonl(path, Pair)) if paired else list(read_jsonl(path, Unpaired))


def by_id(records: Iterable[Named]) -> dict[str, Named]:
    """Records by id. Of equal ids the last one counts."""
    return {record.id: record for record in records}


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def size_words(size: float) -> str:
    """A size in bytes as text for people: `1.23 GB`, in powers of ten."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} bytes"

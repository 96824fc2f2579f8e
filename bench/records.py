"""Shapes on disk: one dataclass a record, JSONL with one record a line."""

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

Message = Mapping[str, str]  # {"role": ..., "content": ...}, as chat templates read it


@dataclass(frozen=True)
class Record:
    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = set(row) - names
        if unknown:
            raise ValueError(f"{cls.__name__} has no {', '.join(sorted(unknown))}; known: {', '.join(sorted(names))}")
        return cls(**row)


@dataclass(frozen=True)
class Item(Record):
    """One prompt to answer. `turns` are the user's; a later turn is asked after the policy's own earlier answers.

    `context`: messages before the first turn (system prompt, earlier conversation). `plain`: text without a chat template.
    `task` is what the controlled world's gold judge reads (one entry a turn), None elsewhere.
    `baseline`: the fixed opponent's completion of each turn, None where nobody is compared with. `reference`: right answers that a
    judge is shown, None where there are none.
    """

    id: str
    category: str | None
    turns: list[str]
    task: list[dict[str, Any]] | None = None
    baseline: list[str] | None = None
    context: list[Message] = field(default_factory=list)
    plain: bool = False
    reference: list[str] | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_json().items() if name != "reference" or value is not None}


@dataclass(frozen=True)
class Text(Record):
    """One supervised example: `prompt` is empty for plain text."""

    id: str
    prompt: list[Message]
    completion: str


@dataclass(frozen=True)
class Conversation(Record):
    """One supervised example of several turns, which ends in an answer: every answer is learnt from."""

    id: str
    messages: list[Message]


@dataclass(frozen=True)
class Pair(Record):
    """A preference. `mismatched_*`: a completion of another prompt, which estimates KTO's KL term at this prompt
    when `chosen` (or `rejected`) is the KTO row."""

    id: str
    prompt: list[Message]
    chosen: str
    rejected: str
    mismatched_chosen: str
    mismatched_rejected: str


@dataclass(frozen=True)
class Unpaired(Record):
    """One judged completion; label True is desirable."""

    id: str
    prompt: list[Message]
    completion: str
    label: bool
    mismatched: str


def completion_columns(row: Pair | Unpaired) -> tuple[str, ...]:
    """The columns of a preference row that hold completions of its prompt."""
    if isinstance(row, Pair):
        return ("chosen", "rejected", "mismatched_chosen", "mismatched_rejected")
    return ("completion", "mismatched")


def own_completions(row: Pair | Unpaired) -> tuple[str, ...]:
    """What answers a preference row's prompt."""
    return (row.chosen, row.rejected) if isinstance(row, Pair) else (row.completion,)


@dataclass(frozen=True)
class Shared(Record):
    """A train row, by id, that asks what one of the judge's items asks: word for word (exact), or but for case and spaces (normalised)."""

    id: str
    how: str


@dataclass(frozen=True)
class Labelled(Record):
    """Two completions of a prompt and what the labeller said; `first_preferred` None is a tie.

    `p_first` in [0, 1]: how likely the labeller was to prefer the first, None where it is `unscored` (the reason). `correct`: whether
    the label agrees with the truth, None where the truth is not known or is a tie.
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
    """What a noise detector said of a pair's label when training came to it; `confidence` in [0, 1]: how likely it held the label to be."""

    id: str
    distrusted: bool
    confidence: float


@dataclass(frozen=True)
class Completion(Record):
    """What a policy wrote for an item: one text and token count a turn, EOS included in the count.

    `finished[t]` is False where the text was cut at max_new_tokens. `draw` tells several samples of a prompt apart.
    `ids`: the tokens that were drawn, which encoding the text again need not give.
    """

    id: str
    turns: list[str]
    completions: list[str]
    n_tokens: list[int]
    finished: list[bool]
    draw: int = 0
    ids: list[list[int]] = field(default_factory=list)


def draw_name(completion: Completion) -> str:
    """What a sample is called among those of all draws; the first is called as its item."""
    return f"{completion.id}/{completion.draw}" if completion.draw else completion.id


def pair_name(first: Completion, second: Completion) -> str:
    """What two samples of a prompt are called where they are judged against each other."""
    return f"{first.id}/{first.draw}-{second.draw}"


@dataclass(frozen=True)
class Logps(Record):
    """Summed log-probability (nats) of a completion given its prompt, and the number of tokens in the sum."""

    id: str
    logps: float
    n_tokens: int


@dataclass(frozen=True)
class Reward(Record):
    """What a reward model gives a completion, in its own units."""

    id: str
    reward: float


@dataclass(frozen=True)
class Call(Record):
    """One request to a judging model and what came back. Both orders of a pair, or several judges, are several calls."""

    model: str  # as asked for
    served: str | None  # as the reply names it
    prompt_digest: str  # of the prompt's template, before the texts went in
    parser: str  # name and version of what reads the reply
    decoding: Mapping[str, Any]
    policy_first: bool | None = None  # order shown; None where there is no opponent
    preference: float | None = None  # for the policy, as this reply alone has it; None where it has none
    raw: str | None = None  # the reply, whole
    top_logprobs: Mapping[str, float] | None = None  # of the token that decides, in nats
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    dollars: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Verdict(Record):
    """What a judge decided on one item: a preference, a rating, or unscored with its reason.

    `preference` in [0, 1]: how sure the judge is that the policy wins over the baseline; 0.5 is a tie.
    `rating` 1 to 10. At most one of the two is set; both None means unscored and `unscored` says why.
    """

    item_id: str
    judge: str
    turn: int = 0
    category: str | None = None
    preference: float | None = None
    rating: float | None = None
    unscored: str | None = None
    raw: str | None = None  # what the judge said, whole
    policy_length: int | None = None  # characters, as AlpacaEval counts
    baseline_length: int | None = None
    details: Mapping[str, float] | None = None  # named parts of the judgement
    policy_digest: str | None = None  # of the texts that were judged (`text_digest`)
    baseline_digest: str | None = None
    calls: list[Call] = field(default_factory=list)  # the requests behind it; none where the judge is a function

    def to_json(self) -> dict[str, Any]:
        """What is set: most verdicts leave most fields at their defaults."""
        defaults = {f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(self)} | {"calls": []}
        return {name: value for name, value in super().to_json().items() if value != defaults[name]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return super().from_json({**row, "calls": [Call.from_json(call) for call in row.get("calls", ())]})

    def __post_init__(self) -> None:
        if (self.preference is not None) + (self.rating is not None) + (self.unscored is not None) != 1:
            raise ValueError(f"verdict on {self.item_id}: exactly one of preference, rating and unscored must be set")
        if self.preference is not None and not 0 <= self.preference <= 1:
            raise ValueError(f"verdict on {self.item_id}: preference must be in [0, 1], got {self.preference}")
        if self.rating is not None and not 1 <= self.rating <= 10:
            raise ValueError(f"verdict on {self.item_id}: rating must be in [1, 10], got {self.rating}")


@dataclass(frozen=True)
class HumanLabel(Record):
    """What a person says of an item: prefers the policy's completion (1), the baseline's (0), neither (0.5); or rates a turn, 1 to 10."""

    item_id: str
    preference: float | None = None
    rating: float | None = None
    turn: int = 0

    def __post_init__(self) -> None:
        if (self.preference is not None) + (self.rating is not None) != 1:
            raise ValueError(f"label of {self.item_id}: exactly one of preference and rating must be set")
        for name, low, high in (("preference", 0, 1), ("rating", 1, 10)):
            value = getattr(self, name)
            if value is not None and ((found := number(value)) is None or not low <= found <= high):
                raise ValueError(f"label of {self.item_id}: {name} must be in [{low}, {high}], got {value!r}")
        last = 0 if self.rating is None else 1
        if not 0 <= self.turn <= last:
            raise ValueError(
                f"label of {self.item_id}: turn must be {'0 or 1' if last else '0, a preference is of the whole item'}, got {self.turn}"
            )


@dataclass(frozen=True)
class TaskResult(Record):
    """A metric of one task, in the task's own units. `value`: None where it is no finite number, as the perplexity of a model that has
    come apart; `standard_error`: over its `n` documents, None where the metric has none; `asked`: digest of what was asked, None of a group
    of tasks; `shown`: it was asked for, or is a part of a group without numbers of its own."""

    task: str
    metric: str
    value: float | None
    standard_error: float | None
    n: int
    higher_is_better: bool | None
    shots: int | None
    version: str | None  # of the task; a group may have none
    harness: str  # version of lm_eval
    asked: str | None
    shown: bool


def task_number(task: str, metric: str) -> str:
    """How a cell's numbers call a metric of a task."""
    return f"tasks/{task}/{metric}"


@dataclass(frozen=True)
class TaskAnswer(Record):
    """A document of a task: its part of each metric, `how` the reply was read."""

    task: str
    document: int
    how: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Result(Record):
    """A cell's numbers. A metric that was not measured is absent from `metrics` and says why in `missing`. `calibration`: digest of
    what length control knew beforehand, None where it knew nothing."""

    metrics: dict[str, float]
    missing: dict[str, str]
    calibration: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_json().items() if name != "calibration" or value is not None}


def about_texts(policy: str | None, baseline: str | None = None) -> dict[str, Any]:
    """What a verdict holds of the texts that it is about: their lengths and digests."""
    texts = {"policy": policy, "baseline": baseline}
    lengths = {f"{side}_length": None if text is None else len(text) for side, text in texts.items()}
    return lengths | {f"{side}_digest": None if text is None else text_digest(text) for side, text in texts.items()}


def preference_verdicts(folder: Path) -> list[Verdict]:
    """One verdict an item: where turns were judged one by one, the mean and summed lengths of those that were scored."""
    return over_turns(read_verdicts(folder))


def over_turns(verdicts: Iterable[Verdict]) -> list[Verdict]:
    by_item = grouped((verdict.item_id, verdict) for verdict in verdicts)
    return [turns[0] if len(turns) == 1 else _mean_turn(turns) for turns in by_item.values()]


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """The values of each key, keys and values in the order in which they come."""
    found: dict[K, list[V]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def _mean_turn(turns: list[Verdict]) -> Verdict:
    scored = [verdict for verdict in turns if verdict.preference is not None]
    if not scored:
        return turns[0]
    preference = sum(verdict.preference for verdict in turns if verdict.preference is not None) / len(scored)
    lengths = {name: [getattr(verdict, name) for verdict in scored] for name in ("policy_length", "baseline_length")}
    summed: dict[str, Any] = {name: None if None in found else sum(found) for name, found in lengths.items()}
    return dataclasses.replace(scored[0], preference=preference, **summed)


def text_digest(text: str) -> str:
    """How verdicts name the text that was judged."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_detections(training: Path, labels: Iterable[Path]) -> list[tuple[bool, bool]] | None:
    """(distrusted, mislabelled) of each pair that a training's noise detector looked at and whose truth is known; None without a detector.

    `labels`: folders of the label stages that the training's pairs come from.
    """
    if not (path := training / "trust.jsonl").exists():
        return None
    correct = {label.id: label.correct for folder in labels for label in read_jsonl(folder / "labels.jsonl", Labelled)}
    looked_at = [(trust.distrusted, correct.get(trust.id)) for trust in read_jsonl(path, Trust)]
    return [(distrusted, not right) for distrusted, right in looked_at if right is not None]


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record.to_json(), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n")


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield kind.from_json(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a {kind.__name__}: {error}") from error


def read_labels(path: Path) -> list[HumanLabel]:
    """A person's file of labels, one of each item and turn. Raises BadFile."""
    labels: list[HumanLabel] = []
    first: dict[tuple[str, int, bool], str] = {}
    for place, row in text_files.read_rows(path):
        try:
            item, turn = id_text(row.get("item_id"), "item_id"), whole_number(row.get("turn", 0), "turn", 0, 10**6)
            label = HumanLabel.from_json(row | {"item_id": item})
        except ValueError as error:
            raise BadFile(f"{place}: not a HumanLabel: {printable(str(error))}") from error
        if (earlier := first.setdefault((item, turn, label.rating is None), place)) != place:
            raise BadFile(f"{place}: labels item {printable(item)} again, after {earlier}: one label of an item and turn is expected")
        labels.append(label)
    return labels


def read_items(folder: Path) -> list[Item]:
    return list(read_jsonl(folder / "items.jsonl", Item))


def read_completions(folder: Path) -> list[Completion]:
    return list(read_jsonl(folder / "completions.jsonl", Completion))


def read_verdicts(folder: Path) -> list[Verdict]:
    return list(read_jsonl(folder / "verdicts.jsonl", Verdict))


def read_logps(folder: Path) -> dict[str, Logps]:
    """A logps stage's sums by row name."""
    return {row.id: row for row in read_jsonl(folder / "logps.jsonl", Logps)}


def read_rewards(folder: Path) -> dict[str, float]:
    """A reward model's rewards by name."""
    return {row.id: row.reward for row in read_jsonl(folder / "rewards.jsonl", Reward)}


def read_rows(path: Path) -> list[Pair] | list[Unpaired]:
    """Preference rows of either form."""
    with path.open(encoding="utf-8") as file:
        paired = '"chosen"' in file.readline()
    return list(read_jsonl(path, Pair)) if paired else list(read_jsonl(path, Unpaired))


def by_id(records: Iterable[Named]) -> dict[str, Named]:
    """Records by their ids; of equal ids the last counts."""
    return {record.id: record for record in records}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))  # a large x of either sign is no overflow


def size_words(size: float) -> str:
    """Bytes for people, in powers of ten as disks are sold."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} bytes"

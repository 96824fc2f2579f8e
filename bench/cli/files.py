"""Files, folders and revisions that cells read from outside the store; each is checked once, and digested
when all is well."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from bench.cli import sweep_files as sweeps
from bench.cli.folders import (
    ADD_ONE,
    NAME_ONE,
    Templated,
    check_model,
    existing_file,
    model_folder,
    no_template,
    tasks_folder,
    template_file,
    with_template,
    with_usable_template,
)
from bench.cli.judge_files import (
    JudgeFiles,
    judge_files_of,
    judge_identity,
    judge_sections,
    labeller_files,
    labeller_identity,
)
from bench.cli.messages import SOURCES, Where, short
from bench.cli.sweep_files import Tree
from bench.config import (
    SFT_PROMPTS,
    Bounds,
    Cell,
    Conversations,
    DatasetData,
    Form,
    IterativeDpo,
    JuryJudge,
    LanguageJudge,
    LocalData,
    LocalModel,
    Loop,
    MixtureData,
    ModelJudge,
    ReadFrom,
    Sft,
    SuiteJudge,
    Written,
    is_loop,
    judge_facts,
    method_facts,
    misfits,
    prompts_needed,
    user_path,
)
from bench.judges.asked.replies import parser_version
from bench.judges.formats.items import HUB_ITEMS
from bench.models import hub, recorded
from bench.models.hub import read_config
from bench.models.model_config import has_position_table, positions
from bench.models.templates import read_template
from bench.models.token_counts import reads_alike, wrong_end
from bench.planning.inputs import JudgeSources, Sources
from bench.readers import Shown, check, find_files, shown_by
from bench.readers.completions_file import read_written
from bench.readers.prompts import read_prompts
from bench.readers.rows import read_preferences
from bench.records import Pair, Text, Unpaired
from bench.store.keys import Source, file_digest, hash_long, tree_digest, tree_stamp

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
Fetches = Literal["all", "not weights", "nothing"]
UNLOCKED = "newest"  # In place of a revision that a plan could not ask for; no result has such a key.


ANY = sys.maxsize
READING_JUDGES = (LanguageJudge, ModelJudge, JuryJudge, SuiteJudge)
NO_BOUNDS = Bounds(
    layers=ANY, width=ANY, heads=ANY, experts=ANY, vocabulary=ANY, positions=ANY, template_s=60
)  # For commands without valid bounds.


@dataclass
class Files:
    """Checks the files that cells name, each once; digests them when all is well."""

    problems: list[str]
    lock: Path = Path(hub.LOCK)  # file of the hub's locked revisions
    fetches: Fetches = "nothing"  # the part of the hub's files that the command reads
    bounds: Bounds = NO_BOUNDS
    away: list[str] = field(default_factory=list)  # why a plan has to do without models or rows of the hub
    _datasets: dict[str, tuple[Source, Shown] | None] = field(default_factory=dict)
    _models: dict[str, Path | None] = field(default_factory=dict)
    _hub_models: dict[str, Source | None] = field(default_factory=dict)
    _templates: dict[str, Source | None] = field(default_factory=dict)  # models by chat template
    _judges: dict[str, JudgeFiles | None] = field(default_factory=dict)
    _data: dict[str, tuple[Path, Shown] | None] = field(default_factory=dict)
    _written: dict[str, Path | None] = field(default_factory=dict)
    _prompts: dict[str, int | None] = field(default_factory=dict)
    _supervised: dict[str, int | None] = field(default_factory=dict)
    _tasks: dict[str, Path | None] = field(default_factory=dict)
    _digests: dict[Path, Source] = field(default_factory=dict)

    def check(self, cell: Tree, where: Where) -> None:
        """Report problems of a cell's files; the cell may have other faults. A default max_length above the
        model's position limit is lowered to that limit."""
        forgetting = cell["forgetting"] if isinstance(cell.get("forgetting"), dict) else {}
        model = _valid_section(LocalModel, cell["model"])
        key = "model.path" if model and model.path else "model.hub"
        source = self._model(model, where) if model else None
        base = None
        if model is not None and model.base is not None:
            read_base = partial(model_folder, bounds=self.bounds, key="model.base")
            base = self._read_once(self._models, model.base, read_base, where.of("model.base"))
        in_messages = self._rows(cell, where)
        if (
            model is not None and source is not None and source.path.is_dir()
        ):  # a command that reads nothing does not fetch
            if in_messages and (why := no_template(source.path, NAME_ONE)):
                self.problems.append(f"{why} ({where.of(key)})")
            if (
                forgetting.get("chat_template") is True
                and not in_messages
                and (why := no_template(source.path, NAME_ONE))
            ):
                self.problems.append(f"{why} ({where.of('forgetting.chat_template')})")
            places = positions(config := read_config(source.path))
            if places is not None and places < model.max_length and not where.is_given("model.max_length"):
                cell["model"]["max_length"] = places  # the length was a default
            elif places is not None and places < model.max_length:
                text = f"model.max_length must be <= {places}, the position limit of {source.path}, got {model.max_length}"
                self.problems.append(f"{text} ({where.of('model.max_length')})")
            if places is not None and has_position_table(config):
                self._check_new_tokens(cell, places, source.path, where)
            if base is not None:
                compared = (
                    isinstance(cell["method"], dict) and cell["method"].get("judging_reference") == "base"
                )
                way_out = f"set model.base to the model that it was tuned from ({where.of('model.base')})"
                templated = self._with_template_of(base, source.path) if compared else base
                if compared and not reads_alike(source.path, templated):
                    text = f"method.judging_reference=base compares log-probs of the same tokens, and {base}"
                    self.problems.append(
                        f"{text} reads an answer as other tokens than {source.path}: {way_out}"
                    )
                elif compared and (end := wrong_end(templated)):
                    text = f"method.judging_reference=base reads answers by the chat template of {source.path}, which ends"
                    add = f"add it to eos_token_id in {base / 'generation_config.json'}"
                    self.problems.append(
                        f"{text} them with {end!r}, no end token of {base}: {add}, or {way_out}"
                    )
        if isinstance(folder := forgetting.get("include_path"), str):
            self._read_once(self._tasks, folder, tasks_folder, where.of("forgetting.include_path"))
        if isinstance(method := cell["method"], dict) and method_facts(method) is Written:
            self._read_once(self._written, method["path"], _written_file, where.of(sweeps.COMPLETIONS))
        for place, section in judge_sections("judge", cell["judge"]):
            named = [section.get(role) for role in judge_facts(section).item_files]
            if named and "???" not in named:  # what is not set is reported elsewhere
                away = self.away if self.fetches == "not weights" else None
                read_files = partial(
                    self._judge_files, place, partial(judge_files_of, section, self.bounds, away)
                )
                self._read_once(self._judges, judge_identity(section), read_files, where.of(place))
        if isinstance(method, dict) and is_loop(method):
            self._check_loop(method, cell, where)
        labelling = (
            method.get("labelling_judge")
            if isinstance(method, dict) and method.get("labeller") == "judge"
            else None
        )
        if isinstance(labelling, dict) and judge_facts(labelling).item_files:
            what = labeller_identity(labelling)
            read_files = partial(
                self._judge_files, "method.labelling_judge", partial(labeller_files, labelling, self.bounds)
            )
            self._read_once(self._judges, what, read_files, where.of("method.labelling_judge"))

    def _check_loop(self, method: Tree, cell: Tree, where: Where) -> None:
        """Report problems of the files and model folders that a loop's settings name."""
        facts, data_file = method_facts(method), _local_path(cell["data"]) or ""
        prompts = method.get("prompts")
        if isinstance(prompts, str) and prompts != SFT_PROMPTS:
            identity = repr([facts.demonstrates, prompts, data_file])
            read = partial(_prompts_file, prompts, facts.demonstrates, data_file)
            n = self._read_once(self._prompts, identity, lambda _: read(), where.of("method.prompts"))
            needed = prompts_needed(method)
            if n is not None and needed is not None and needed.n > n:
                text = f"{needed.what} need {needed.n} prompts, and {prompts} has {n} different ones: add prompts or lower n_prompts"
                self.problems.append(f"{text} ({where.of('method.n_prompts')})")
        for name in facts.texts:
            if isinstance(file := method.get(name), str):
                read_rows = partial(_supervised_file, key=f"method.{name}")
                self._read_once(self._supervised, file, read_rows, where.of(f"method.{name}"))
        for name, what in facts.models.items():
            if isinstance(folder := method.get(name), str):
                place = where.of(f"method.{name}")
                read_folder = partial(model_folder, bounds=self.bounds, key=f"method.{name}", what=what)
                path = self._read_once(self._models, folder, read_folder, place)
                if path is not None and what == "a causal LM" and (why := no_template(path, ADD_ONE)):
                    self.problems.append(f"{why} ({place})")

    def _judge_files(self, place: str, read: Callable[[], JudgeFiles], _: str) -> JudgeFiles:
        """A judge's files; its model's chat template gets a fixed date. `place`: the section's key, for messages."""
        try:
            files = read()
        except ValueError as error:
            raise ValueError(re.sub(r"\bjudge\.", f"{place}.", str(error))) from error
        return replace(files, model=self._templated(files.model).folder) if files.model else files

    def _rows(self, cell: Tree, where: Where) -> bool:
        """Check the rows that a cell learns from. Returns whether they are messages, as far as the first rows
        show."""
        messages = isinstance(cell["data"], dict) and cell["data"].get("kind") == "world"
        if isinstance(method := cell["method"], dict):
            messages |= method_facts(method).asks_in_messages(method)
        if (path := _local_path(cell["data"])) is not None:
            read = self._read_once(self._data, path, _data_file, where.of("data.path"))
            form_misfits = misfits(cell | {"data": cell["data"] | {"form": read[1].form}}) if read else []
            of_form = ("data.form", "data.desirable_fraction", "data.undesirable_fraction")
            self.problems += [
                f"{text} ({where.of('data.path')})" for key, text in form_misfits if key in of_form
            ]
            messages |= read is not None and read[1].messages
        if (section := _valid_section(DatasetData, cell["data"])) is not None and section.kind == "dataset":
            seen = self._dataset(section, where.of("data.path" if section.path else "data.hub"), "data")
            self._check_form(cell, section.form or seen.form, where)
            messages |= seen.messages
        if (mixture := _valid_section(MixtureData, cell["data"])) is not None:
            shown = {
                label: self._dataset(
                    source,
                    where.of(f"{SOURCES}.{label}.{'path' if source.path else 'hub'}"),
                    f"{SOURCES}.{label}",
                )
                for label, source in mixture.sources.items()
            }
            forms = {of_source.form for of_source in shown.values()} - {None}
            if mixture.form is None and len(forms) > 1:
                words = ", ".join(f"{label} {of_source.form}" for label, of_source in shown.items())
                self.problems.append(
                    f"the sources of a mixture must be all paired or all unpaired, got {words}; "
                    f"set data.form=unpaired, for a method that learns from unpaired rows ({where.of(SOURCES)})"
                )
            self._check_form(cell, mixture.form or (forms.pop() if len(forms) == 1 else None), where)
            messages |= any(of_source.messages for of_source in shown.values())
        if (wanted := _valid_section(Sft, cell.get("sft"))) is not None:
            place = where.of("sft.path" if wanted.path else "sft.hub")
            messages |= self._dataset(wanted, place, "sft").messages
        return messages

    def _check_form(self, cell: Tree, form: Form | None, where: Where) -> None:
        """Report settings that do not fit the form of the rows."""
        form_misfits = misfits(cell | {"data": cell["data"] | {"form": form}})
        starts = ("data.form", "data.desirable")
        self.problems += [
            f"{text} ({where.of('data.form')})" for key, text in form_misfits if key.startswith(starts)
        ]

    def _model(self, section: LocalModel, where: Where | None = None) -> Source | None:
        """A model's folder with its digest, or a model of the hub with its revision; checked once. With
        another chat template, or a dated one, it is a folder of links next to the store."""
        key = "model.path" if section.path else "model.hub"
        source = self._own_source(section, where.of(key) if where else "")
        if source is None:
            return None
        place = where.of("model.chat_template" if section.chat_template else key) if where else ""
        identity = repr([section.path, _of_hub(section), section.chat_template, section.template_date])
        return self._read_once(
            self._templates, identity, lambda _: self._with_template(section, source), place
        )

    def _with_template(self, section: LocalModel, source: Source) -> Source:
        """A model with the chat template and date of its section. Raises ValueError for a template that
        cannot be used."""
        folder, digest, day = source.path, source.digest, None
        if folder.is_dir():
            folder, day = self._templated(folder, section.chat_template, section.template_date)
        elif section.hub and (
            cached := hub.cached("models", section.hub, digest.rsplit("@", 1)[-1])
        ):  # for a command that reads no model
            day = self._templated(cached, section.chat_template, section.template_date).day
        digest += (
            f", chat template {file_digest(template_file(section.chat_template))}"
            if section.chat_template
            else ""
        )
        digest += f", template date {day}" if day else ""
        return Source(folder, digest if source.digest else "")

    def _templated(self, folder: Path, chosen: str | None = None, day: str | None = None) -> Templated:
        return with_usable_template(folder, self.lock.parent / "models", self.bounds.template_s, chosen, day)

    def _with_template_of(self, base: Path, start: Path) -> Path:
        """A base model's folder with the chat template of the start model that was tuned from it, so that both
        read a completion as the same tokens."""
        template, own = (read_template(folder) if folder.is_dir() else None for folder in (start, base))
        if template is None or (own is not None and own.text == template.text):
            return base
        return with_template(base, template.text, self.lock.parent / "models")

    def _check_new_tokens(self, cell: Tree, places: int, folder: Path, where: Where) -> None:
        """Report completion lengths that alone exceed a model's table of positions."""
        method = cell["method"] if isinstance(cell.get("method"), dict) else {}
        lengths = {
            f"{place}.decoding.max_new_tokens": decoding.get("max_new_tokens")
            for place, section in judge_sections("judge", cell["judge"])
            if isinstance(decoding := section.get("decoding"), dict)
        } | {f"method.{name}": value for name, value in method.items() if name.endswith("max_new_tokens")}
        if isinstance(cell.get("data"), dict):
            lengths["data.kl_max_new_tokens"] = cell["data"].get("kl_max_new_tokens")
        for key, value in lengths.items():
            if isinstance(value, int) and value >= places:
                text = f"{key} must be < {places}, the position limit of {folder} for prompt and completion, got {value}"
                self.problems.append(f"{text} ({where.of(key)})")

    def _own_source(self, section: LocalModel, where: str) -> Source | None:
        if section.path == "???" or (
            section.path is None and section.hub in (None, "???")
        ):  # reported elsewhere
            return None
        if section.path is not None:
            weights = self.fetches != "not weights"
            folder = self._read_once(
                self._models, section.path, partial(model_folder, bounds=self.bounds, weights=weights), where
            )
            return Source(folder, "") if folder else None
        return self._read_once(self._hub_models, _of_hub(section), lambda _: self._hub_model(section), where)

    def _hub_model(self, section: LocalModel) -> Source:
        """A model of the hub. Its weights are fetched where the command reads them; a plan fetches its
        settings and tokenizer, which also shows whether the user has access.

        Raises ValueError where it cannot be fetched.
        """
        assert section.hub is not None
        at = section.revision
        try:
            at = at or hub.revision(self.lock, "models", section.hub)
            read = self.fetches != "nothing"
            path = (
                hub.fetch_model(section.hub, at, weights=self.fetches == "all") if read else Path(section.hub)
            )
        except hub.NotThere as error:
            planned = self.fetches == "not weights" and isinstance(error, hub.Unreachable)
            if not (planned and recorded.sizes(section.hub)):
                raise ValueError(f"{error}; to use a copy of its folder, set model.path") from error
            path = Path(section.hub)  # do=plan goes by the recorded sizes
            self.away.append(str(error))
        if path.is_dir():
            check_model(path, self.bounds, self.fetches == "all")
        return Source(path, f"hub:models/{section.hub}@{at or UNLOCKED}")

    def _dataset(self, section: ReadFrom | Sft, where: str, key: str) -> Shown:
        """A look at the rows of a public dataset, which is read once. `key` names the section, for messages."""
        if section.path is None and section.hub is None:  # reported by misfits
            return Shown(None, False)
        read = partial(_dataset, section, self.lock, self.fetches, self.away, key)
        dataset = self._read_once(self._datasets, _dataset_identity(section), lambda _: read(), where)
        return dataset[1] if dataset else Shown(None, False)

    def _read_once(
        self, known: dict[str, T | None], path: str, read: Callable[[str], T], where: str
    ) -> T | None:
        if path not in known:
            try:
                known[path] = read(path)
            except (OSError, ValueError) as error:
                known[path] = None
                self.problems.append(f"{error} ({where})")
        return known[path]

    def sources(self, cell: Cell) -> Sources:
        """Everything that a checked cell reads from outside the store."""
        local = cell.model if isinstance(cell.model, LocalModel) else None
        start = self._model(local) if local else None
        model = start.path if start and local and local.path else None
        of_hub = start if local and not local.path else None
        data = self._data[cell.data.path] if isinstance(cell.data, LocalData) else None
        written = self._written[cell.method.path] if isinstance(cell.method, Written) else None
        judge = self._judge(cell.judge) if isinstance(cell.judge, READING_JUDGES) else None
        labelling = None
        if (
            isinstance(cell.method, IterativeDpo)
            and cell.method.labeller == "judge"
            and cell.method.labelling_judge
        ):
            labelling = self._judge(cell.method.labelling_judge, labeller_identity)
        base = self._models[local.base] if local and local.base else None
        if base and start:
            base = self._with_template_of(base, start.path)
        own, rows, texts, before = (
            self._source(path) if path else None for path in (model, data[0] if data else None, written, base)
        )
        public, conversations = self._public(cell.data), self._public(cell.sft)
        of_mixture = cell.data.sources.items() if isinstance(cell.data, MixtureData) else ()
        mixture = {label: source for label, section in of_mixture if (source := self._public(section))}
        folder = cell.forgetting.include_path if cell.forgetting else None
        tasks = self._source(user_path(folder)) if folder else None
        return Sources(
            own or of_hub,
            rows or public,
            texts,
            judge,
            before,
            labelling,
            self._of_method(cell.method),
            conversations,
            tasks,
            mixture,
        )

    def _of_method(self, method: Any) -> dict[str, Source]:
        """Files and model folders that a loop's settings name, by setting."""
        if not isinstance(method, Loop):
            return {}
        named = {name: getattr(method, name) for name in ("prompts", *method.texts)}
        of_files = {
            name: text for name, text in named.items() if isinstance(text, str) and text != SFT_PROMPTS
        }
        folders = {name: self._models[text] for name in method.models if (text := getattr(method, name))}
        paths = {name: user_path(text) for name, text in of_files.items()}
        paths |= {name: self._templated(folder).folder for name, folder in folders.items() if folder}
        return {name: self._source(path) for name, path in paths.items()}

    def _public(self, section: Any) -> Source | None:
        dataset = self._datasets[_dataset_identity(section)] if isinstance(section, (ReadFrom, Sft)) else None
        return dataset[0] if dataset else None

    def _judge(
        self,
        judge: LanguageJudge | ModelJudge | JuryJudge | SuiteJudge,
        reads: Callable[[Tree], str] | None = None,
    ) -> JudgeSources:
        several = judge.judges.items() if isinstance(judge, JuryJudge | SuiteJudge) else ()
        members = {
            label: self._judge(member) for label, member in several if isinstance(member, READING_JUDGES)
        }
        if isinstance(judge, SuiteJudge):
            return JudgeSources(None, parser_version(), members=members)
        judge_files = self._judges[(reads or judge_identity)(judge.model_dump())]
        assert judge_files is not None
        files = {role: self._source(path) for role, path in judge_files.files.items()}
        model, calibration = (
            self._source(path) if path else None for path in (judge_files.model, judge_files.calibration)
        )
        return JudgeSources(
            judge_files.prompts, parser_version(), model, files, judge_files.n_items, calibration, members
        )

    def _source(self, path: Path) -> Source:
        if path == HUB_ITEMS:
            return Source(path, f"hub:datasets/{path}@{UNLOCKED}")
        if path not in self._digests:
            self._digests[path] = Source(path, stamp=tree_stamp(path), digest=tree_digest(path))
        return self._digests[path]


def _local_path(section: Any) -> str | None:
    """The path in a model or data section, where there is one."""
    path = section.get("path") if isinstance(section, dict) and section.get("kind") == "local" else None
    return path if isinstance(path, str) and path != "???" else None


def _of_hub(model: LocalModel) -> str:
    return f"{model.hub}@{model.revision}"


def _valid_section(record: type[M], section: Any) -> M | None:
    """A section as its record, or None; its problems are reported elsewhere."""
    try:
        return record.model_validate(section)
    except ValidationError:
        return None


def _dataset_identity(section: ReadFrom | Sft) -> str:
    """Identity of a public dataset's source; each source is read once for all cells."""
    names = ("hub", "revision", "path", "train_files", "heldout_files", "reading")
    return repr([getattr(section, name, None) for name in names])


def _dataset(
    section: ReadFrom | Sft, lock: Path, fetches: Fetches, away: list[str], key: str
) -> tuple[Source, Shown]:
    """A public dataset's source and a look at its rows. Raises ValueError where it cannot be fetched or read.

    A copy is identified by its files' content. A dataset of the hub is identified by its revision, so a
    command that reads no rows needs no files; a plan says what it cannot count without them.
    """
    reading = section.reading if isinstance(section, ReadFrom) else Conversations(reader="conversations")
    train, heldout = section.train_files, section.heldout_files if isinstance(section, ReadFrom) else ()
    if section.path is not None:
        path = user_path(section.path)
        if not path.exists():
            raise ValueError(
                f"{key}.path must be a copy of a dataset's folder or a file of it, got {section.path}: no such file or folder"
            )
        shown = check(path, reading, train, heldout)
        files = find_files(path, (*train, *heldout))
        digest = (
            file_digest(path)
            if path.is_file()
            else hash_long({str(f.relative_to(path)): file_digest(f) for f in files})
        )
        return Source(path, digest, tree_stamp(path)), shown
    assert section.hub is not None
    at = section.revision
    fetched: Path | None = None
    try:
        at = at or hub.revision(lock, "datasets", section.hub)
        if fetches != "nothing":
            fetched = hub.fetch("datasets", section.hub, at, (*train, *heldout))
    except hub.NotThere as error:
        if not (fetches == "not weights" and isinstance(error, hub.Unreachable)):
            raise ValueError(f"{error}; to use a copy of its folder, set {key}.path") from error
        away.append(str(error))
    shown = check(fetched, reading, train, heldout) if fetched else Shown(None, False)
    return Source(fetched or Path(section.hub), f"hub:datasets/{section.hub}@{at or UNLOCKED}"), shown


def _data_file(text: str) -> tuple[Path, Shown]:
    path = existing_file(text, "data.path", "a preference file")
    return path, shown_by(read_preferences(path).rows[0])


def _prompts_file(text: str, answered: bool, data: str) -> int:
    """Number of different prompts in a loop's file. Raises ValueError where the data have some too."""
    prompts = read_prompts(existing_file(text, "method.prompts"), answered).different()
    path = user_path(data)
    if not data or not path.is_file():
        return len(prompts)  # the data file is reported elsewhere
    known = {_contents(row) for row in read_preferences(path).rows}
    if shared := [row for row in prompts if _contents(row) in known]:
        first = f"{short(shared[0].prompt[-1]['content'])} (row {shared[0].id})"
        raise ValueError(
            f"{len(shared)} of the {len(prompts)} prompts in {text} are also in {data}, first {first}: remove them from one file"
        )
    return len(prompts)


def _supervised_file(text: str, key: str) -> int:
    """Number of supervised rows in a file."""
    return len(read_prompts(existing_file(text, key), with_completions=True).rows)


def _contents(row: Pair | Unpaired | Text) -> tuple[str, ...]:
    """The text of a prompt, as messages or as plain text."""
    return tuple(message["content"] for message in row.prompt)


def _written_file(text: str) -> Path:
    path = user_path(text)
    if not text or not path.is_file():
        raise ValueError(
            f"completions must be a file, got {text or 'nothing'}: {'a folder' if text and path.is_dir() else 'no such file'}"
        )
    read_written(path)
    return path

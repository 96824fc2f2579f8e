"""The door: composes every cell by Hydra's API and reports all that is wrong in one message, before torch is imported."""

from __future__ import annotations

import copy
import difflib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from bench import hub
from bench import sweep as sweeps
from bench.audit_files import human_manner, recorded_manner
from bench.config import (
    FITTED,
    LOOPS,
    Audit,
    Bundle,
    Cell,
    Conversations,
    DatasetData,
    Expectation,
    Export,
    Form,
    IterativeDpo,
    JuryJudge,
    LanguageJudge,
    LocalData,
    LocalModel,
    Loop,
    ModelJudge,
    NoJudge,
    Rescore,
    Scale,
    Session,
    Sft,
    Vllm,
    Why,
    Written,
    misfits,
)
from bench.judges.alpaca_eval import read_calibration
from bench.judges.items import hub_file, read_items
from bench.judges.prices import price_of
from bench.judges.prompts import OWN_GAME, OWN_PROMPTS, annotator, arena_hard_template, mt_bench_digest, mt_bench_templates
from bench.judges.replies import parser_version
from bench.plan import JudgeSources, Sources, judge_manners
from bench.preferences import read_preferences, read_prompts
from bench.readers import check, find_files
from bench.records import Pair, Text, Unpaired
from bench.store import Source, file_digest, hash_long, tree_digest, tree_stamp
from bench.sweep import CELL_GROUPS, SESSION_GROUPS, CommandLine, is_session
from bench.written import read_written

CELL_SECTIONS = tuple(Cell.model_fields)
SECTIONS = (*CELL_SECTIONS, "scale", "do", "tracker", "accelerate", "results", "keep", "hardware")
GROUPS = (*CELL_GROUPS, *SESSION_GROUPS)

BOUNDS = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="), "less_than": ("lt", "<"), "less_than_equal": ("le", "<=")}

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
Fetches = Literal["all", "not weights", "nothing"]
FETCHED: dict[str, Fetches] = {"run": "all", "audit": "all", "plan": "not weights"}  # from the hub, by verb
Tree = dict[str, Any]  # a composed config as plain containers, interpolations not resolved


class BadConfig(ValueError):
    """Everything that is wrong with a command, one line a problem."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Opened:
    """A command that may run."""

    session: Session
    sweep: str | None  # the file's name
    replaced: bool  # the command line changed the file's cells
    title: str  # the question that the file asks
    command: str  # the words that make these cells
    cells: list[Cell]
    sources: list[Sources]  # of each cell
    hydra: tuple[str, ...]  # words that are Hydra's own business
    expectations: tuple[Expectation, ...] = ()  # that the sweep file names
    axes: tuple[str, ...] = ()  # keys and groups that the cells differ in on purpose


def open_door(words: Sequence[str]) -> Opened:
    """Cells and session of a command; raises BadConfig with every problem."""
    command = sweeps.parse_command_line(words)
    sweeps.register_sweeps()
    with initialize_config_dir(str(sweeps.CONF), version_base="1.3"):
        return _Door(command, list(command.problems)).open()


@dataclass(frozen=True)
class _Where:
    """Where the settings of one point come from, for messages."""

    command: CommandLine
    sweep_file: str
    in_sweep: frozenset[str]  # keys that the sweep file sets, axes included
    choices: Mapping[str, str]  # of each group

    def is_given(self, key: str) -> bool:
        """Whether the command line or the sweep file sets it."""
        return any(_covers(given, key) for given in (*self.command.words, *self.in_sweep))

    def of(self, key: str) -> str:
        if word := next((word for given, word in self.command.words.items() if _covers(given, key)), None):
            return f"{word} on the command line"
        if any(_covers(written, key) or written.split(".")[0] == key for written in self.in_sweep):
            return f"{key} in {self.sweep_file}"
        section = key.split(".")[0]
        group = {"world": "data", "hydra": "hydra/launcher"}.get(section, section)
        if key.startswith("method.labelling_judge") and self.choices.get(sweeps.LABELLING_JUDGE):
            group = sweeps.LABELLING_JUDGE
        if group not in self.choices:
            return f"{key} in conf/config.yaml"
        return f"{group}={self.choices[group]}" if key == group else f"{key} of {group}={self.choices[group]}"


def _covers(given: str, key: str) -> bool:
    """Whether setting `given` sets `key`; the choice of a group sets no single value in it."""
    return key == given or (given not in GROUPS and key.startswith(f"{given}."))


@dataclass
class _Door:
    """One command on its way to cells; `problems` collects what is wrong with it."""

    command: CommandLine
    problems: list[str]
    sweep: str | None = None
    sweep_file: str = "the command line"
    in_sweep: frozenset[str] = frozenset()
    files: _Files = field(init=False)
    _composed: dict[tuple[str, ...], tuple[Tree, dict[str, str]] | None] = field(default_factory=dict)
    _known: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = _Files(self.problems)

    def open(self) -> Opened:
        self._choose_sweep()
        given = self._known_choices()
        if "model.path" in given and (folders := [value for value in given.get("model", []) if sweeps.is_path("model", value)]):
            self.problems.append(f"model={folders[0]} names the folder already: leave out {self.command.words['model.path']}")
        of_session = {key: values[0] for key, values in given.items() if is_session(key)}
        of_cells = {key: values for key, values in given.items() if not is_session(key)}
        base = self._point(of_session | {key: values[0] for key, values in of_cells.items() if key in GROUPS and len(values) == 1})
        grids = self._grids(base[0]) if base else []
        session = self._session(*base) if base else None
        if session:
            self.files.lock = session.results_dir / hub.LOCK
            self.files.fetches = FETCHED.get(session.do.name, "nothing")
        expectations = self._expectations(*base) if base else ()
        cells: dict[Cell, None] = {}
        asked = sweeps.points(grids, of_cells, of_sweep=self.sweep is not None)
        for point in asked:
            if (composed := self._point({**of_session, **point})) and (cell := self._cell(*composed)):
                cells[cell] = None
        if base and session and isinstance(session.do, Rescore):
            self._check_rescore(session.do, base[1])
        if base and session and isinstance(session.do, Audit):
            self._check_audit(session.do, list(cells), base[1])
        if session and isinstance(session.do, Why | Export):
            self._check_why(session.do)
        if base and session and isinstance(session.do, Export | Bundle):
            self._check_out(session.do, base[1])
        if base and session and session.do.name == "run" and session.launcher.name == "local":
            self._check_vllm(list(cells), base[1])
            self._check_gpu(list(cells), base[1])
        if self.problems or session is None:
            raise BadConfig(self.problems)
        title = sweeps.question(sweeps.sweep_path(self.sweep, self.command.folders)) if self.sweep else ""
        sources = [self.files.sources(cell) for cell in cells]
        self._refuse_copies(sources)
        words = self.command.cell_words
        hydra, axes = self.command.hydra, sweeps.varied(asked)
        return Opened(session, self.sweep, self.command.asks, title, words, list(cells), sources, hydra, expectations, axes)

    def _refuse_copies(self, sources: Sequence[Sources]) -> None:
        """Two files of completions with the same content would be one cell."""
        paths: dict[str, set[Path]] = {}
        for source in sources:
            if source.completions:
                paths.setdefault(source.completions.digest, set()).add(source.completions.path)
        if copies := [" and ".join(map(str, sorted(found))) for found in paths.values() if len(found) > 1]:
            raise BadConfig([f"{files} hold the same completions: leave out one" for files in copies])

    def _check_rescore(self, do: Rescore, where: _Where) -> None:
        """Files that exist and fit together; what is in them is seen when they are read."""
        judgements, foreign = Path(do.judgements or ".").expanduser(), do.judgements is not None
        files = {"reference_outputs": do.reference_outputs, "calibration": None if do.calibration == FITTED else do.calibration}
        if foreign and not judgements.exists():
            what = "a folder in AlpacaEval's layout or a file of FastChat's judgements (.jsonl)"
            self.problems.append(f"judgements must be {what}, got {do.judgements}: no such file or folder ({where.of('do.judgements')})")
        for name, path in files.items():
            if path is not None and not Path(path).expanduser().is_file():
                self.problems.append(f"{name} must be a file, got {path}: no such file ({where.of(f'do.{name}')})")
        for name in ("reference_outputs", "calibration"):
            if foreign and judgements.is_file() and getattr(do, name) is not None:
                self.problems.append(f"{name} is for AlpacaEval's verdicts, judgements={do.judgements} are FastChat's: leave it out")
        if foreign and (self.command.sweep or self.command.asks):
            self.problems.append(f"judgements={do.judgements} are rescored by themselves: leave out {self.command.cell_words}")
        if do.out is not None and (not (out := Path(do.out).expanduser()).parent.is_dir() or out.is_dir()):
            self.problems.append(f"out must be a CSV file in a folder that is there, got {do.out} ({where.of('do.out')})")

    def _check_audit(self, do: Audit, cells: Sequence[Cell], where: _Where) -> None:
        """Judges, what they judge, and files that can be read and are of their kind."""
        for cell in cells:
            judge, brings_items = cell.judge, getattr(cell.judge, "items", None) is not None
            if isinstance(judge, JuryJudge):
                self.problems.append(f"do=audit asks one judge, got judge=jury; audit its members one by one ({where.of('judge')})")
            elif isinstance(judge, NoJudge):
                self.problems.append(f"do=audit needs a judge, got judge=none ({where.of('judge')})")
            elif brings_items and not isinstance(cell.method, Written) and not isinstance(cell.model, LocalModel):
                text = f"do=audit of judge.items={getattr(judge, 'items', None)} needs answers to judge, got model={cell.model.name}"
                self.problems.append(f"{text}; add completions=FILE or model=DIR")
        for name, path, manner_of in (("human", do.human, human_manner), ("recorded", do.recorded, recorded_manner)):
            if path is None:
                continue
            try:
                manner = manner_of(Path(path).expanduser())
            except (OSError, ValueError) as error:
                self.problems.append(f"{error} ({where.of(f'do.{name}')})")
                continue
            judges = [cell.judge for cell in cells if not isinstance(cell.judge, NoJudge)]
            if strangers := sorted({judge.name for judge in judges if manner not in judge_manners(judge)}):
                other = "preferences" if manner == "rating" else "ratings"
                text = f"{name}={path} holds {manner}s, and judge={', '.join(strangers)} gives {other} here: name a file of those"
                self.problems.append(f"{text} ({where.of(f'do.{name}')})")

    def _check_vllm(self, cells: Sequence[Cell], where: _Where) -> None:
        """That vLLM is where it is to be run; another machine plans without it."""
        for python in {cell.engine.python for cell in cells if isinstance(cell.engine, Vllm)}:
            if python is None and importlib.util.find_spec("vllm") is None:
                how = "pip install -c constraints.txt -e '.[vllm]', or name the python of an environment that has it as engine.python"
                self.problems.append(f"engine=vllm needs vLLM, which is not installed here: {how} ({where.of('engine')})")
            elif python is not None and not os.access(python, os.X_OK):
                self.problems.append(f"engine.python must be a python that can be run, got {python} ({where.of('engine.python')})")

    def _check_gpu(self, cells: Sequence[Cell], where: _Where) -> None:
        """What needs a GPU and a package, before anything is loaded; another machine plans without them."""
        needed = {
            "adapter=qlora": (any(cell.adapter.name == "qlora" for cell in cells), "bitsandbytes", "adapter", "adapter=lora"),
            "model.attention=flash_attention_2": (
                any(getattr(cell.model, "attention", "") == "flash_attention_2" for cell in cells),
                "flash_attn",
                "model.attention",
                "model.attention=sdpa",
            ),
        }
        for what, (asked, package, key, way_out) in needed.items():
            if asked and not (Path("/dev/nvidia0").exists() and importlib.util.find_spec(package)):
                text = f"{what} needs a GPU and the package {package}, which are not both here: take {way_out}"
                self.problems.append(f"{text} ({where.of(key)})")

    def _check_out(self, do: Export | Bundle, where: _Where) -> None:
        """A new or empty folder, or an archive in a folder that is there."""
        out = Path(do.out or "").expanduser()
        taken = out.is_file() or (out.is_dir() and any(out.iterdir()))
        if isinstance(do, Export) and (not do.out or taken or not out.absolute().parent.is_dir()):
            self.problems.append(f"out must be a new or empty folder in one that is there, got {do.out} ({where.of('do.out')})")
        named = out.name.endswith(".tar.gz") and not out.is_dir()
        if isinstance(do, Bundle) and not (named and out.absolute().parent.is_dir()):
            self.problems.append(f"out must be an archive, FILE.tar.gz, in a folder that is there, got {do.out} ({where.of('do.out')})")

    def _check_why(self, do: Why | Export) -> None:
        if not do.cell:
            what = "exports" if isinstance(do, Export) else "explains"
            self.problems.append(f"do={do.name} {what} one cell: give its key or name, as in table.csv (do={do.name} cell=KEY)")
        if self.command.sweep or self.command.asks:
            self.problems.append(f"cell={do.cell} is looked up in the results folder: leave out {self.command.cell_words}")

    def _choose_sweep(self) -> None:
        """Take the sweep that is asked for; one that is unknown or broken is said, and the rest checked without it."""
        if (name := self.command.sweep) is None:
            return
        path = sweeps.sweep_path(name, self.command.folders)
        if not path.exists():
            self.problems.append(_unknown("sweep", name, self._options("sweep"), f"+sweep={name} on the command line"))
            return
        if path.parent != sweeps.SWEEPS and (sweeps.SWEEPS / path.name).exists():
            why = "is called like a sweep that comes with bench, and would write over its table: give it another name"
            self.problems.append(f"{path} {why}")
            return
        try:
            written = OmegaConf.to_container(sweeps.load_sweep(path))
        except sweeps.BadSweep as error:
            self.problems.append(str(error))
            return
        self.sweep, self.sweep_file = name, sweeps.sweep_label(path)
        self.in_sweep = frozenset(key for key, _ in _leaves(written))

    def _options(self, group: str) -> list[str]:
        """Choices of a group; `basic` is Hydra's own launcher, which bench does not use."""
        if group not in self._known:
            loader = GlobalHydra.instance().config_loader()
            found = loader.get_group_options(group.partition("@")[0], ObjectType.CONFIG, "config", self._hydra_words())
            self._known[group] = [name for name in found if name != "basic"]
        return self._known[group]

    def _hydra_words(self) -> list[str]:
        folders = ",".join(f"'file://{folder}'" for folder in self.command.folders)
        return [*self.command.hydra, *([f"hydra.searchpath=[{folders}]"] if folders else [])]

    def _known_choices(self) -> dict[str, list[Any]]:
        """What the command line sets, less unknown choices of groups, which are said, so that the rest can be checked."""
        given = {}
        for key, values in self.command.given.items():
            known = values
            if key in GROUPS:
                known = [value for value in values if value in self._options(key) or sweeps.is_path(key, value)]
                where = f"{self.command.words[key]} on the command line"
                self.problems += [_unknown(key, value, self._options(key), where) for value in values if value not in known]
            if known:
                given[key] = known
        return given

    def _grids(self, tree: Tree) -> list[sweeps.Grid]:
        """The sweep file's grids. Axes may be read from the scale preset by interpolation."""
        try:
            config = OmegaConf.create({key: tree[key] for key in ("axes", "grids", "scale") if key in tree})
            grids = sweeps.read_grids(OmegaConf.to_container(config, resolve=True), self.sweep_file)  # type: ignore[arg-type]
        except (sweeps.BadSweep, OmegaConfBaseException) as error:
            self.problems.append(_one_line(error))
            return [{}]
        self.in_sweep |= {key for grid in grids for key in grid}
        return grids

    def _expectations(self, tree: Tree, where: _Where) -> tuple[Expectation, ...]:
        written = tree.get("expect", [])
        if not isinstance(written, list) or not all(isinstance(item, dict) for item in written):
            self.problems.append(f"expect must be a list of `better:` and `worse:`, got {_short(written)} ({where.of('expect')})")
            return ()
        return tuple(found for item in written if (found := self._valid(Expectation, item, where, "expect")))

    def _point(self, point: sweeps.Point) -> tuple[Tree, _Where] | None:
        """The composed config of one point, and where it comes from; what cannot be set is said and left out."""
        point = sweeps.spelled_out(point)
        groups = {key: value for key, value in point.items() if key in GROUPS}
        unknown = [group for group, choice in groups.items() if choice not in self._options(group)]
        for group in unknown:
            self.problems.append(_unknown(group, groups[group], self._options(group), f"{group} in {self.sweep_file}"))
        if unknown or (composed := self._compose(groups)) is None:
            return None
        brought = {k: v for k, v in composed[0]["scale"]["brings"].items() if k not in groups} if "scale" in groups else {}
        if brought and (composed := self._compose(groups | brought)) is None:
            return None
        tree, where = copy.deepcopy(composed[0]), _Where(self.command, self.sweep_file, self.in_sweep, composed[1])
        if (file := point.pop(sweeps.COMPLETIONS, None)) is not None:  # whatever the sweep sets of models and methods
            tree["model"] = {"kind": "none", "name": "none"}
            tree["method"] = {"name": "completions", "path": str(file), "label": sweeps.as_name(Path(str(file)).stem)}
        later = {key: value for key, value in point.items() if key.startswith(f"{MEMBERS}.")}
        for key, value in point.items():
            if key not in GROUPS and key not in later and (problem := _set(tree, key, value, where)):
                self.problems.append(problem)
        self._seat_jury(tree.get("judge"), where)
        self.problems += [problem for key, value in later.items() if (problem := _set(tree, key, value, where))]
        return tree, where

    def _seat_jury(self, jury: Any, where: _Where) -> None:
        """Make each of a jury's members the whole section that its `judge: CHOICE` names, with what is set otherwise; what is asked is
        the jury's. What no member can be is said, and left for the record to refuse."""
        members = jury.get("judges") if isinstance(jury, dict) and jury.get("name") == "jury" else None
        if members == "???":
            return
        if members is not None and not isinstance(members, dict):
            what = "judges by label, {a: {judge: gold}, b: {judge: reward_model, model: DIR}}"
            self.problems.append(f"{MEMBERS} must be {what}, got {_short(members)} ({where.of(MEMBERS)})")
            jury["judges"] = "???"  # the one fault is said
            return
        if members:
            jury["judges"] = dict(members)  # what the command line holds is shared by all points
        for label, own in members.items() if members else ():
            place = f"{MEMBERS}.{label}"
            choice = own.get("judge") if isinstance(own, dict) else own
            if choice not in self._options("judge"):
                self.problems.append(_unknown("judge", choice, self._options("judge"), where.of(place)))
                own = {"judge": (choice := "gold")}  # stands in, so that the rest can be checked
            if (section := self._section("judge", str(choice))) is None:
                continue
            given = {key: value for key, value in own.items() if key != "judge"} if isinstance(own, dict) else {}
            if taken := [key for key in (*OF_THE_JURY, "calibration") if key in given]:
                self.problems.append(f"{place}.{taken[0]} is the jury's, whose members judge the same answers: set judge.{taken[0]}")
            asked = {key: jury[key] for key in OF_THE_JURY}
            if section.get("name") == "gold":
                of_gold = {key: asked[key] for key in ("n_items", "decoding")}
                asked = {"preference": {**section["preference"], **of_gold}, "rating": {**section["rating"], **of_gold}}
            elif "calibration" in section:
                asked["calibration"] = None  # of the table's number, which is the jury's
            jury["judges"][label] = _merged(_merged(section, given), asked)

    def _section(self, group: str, choice: str) -> Tree | None:
        """A choice of a group as its file has it, whatever the sweep sets of that group."""
        composed = self._compose({group: choice}, of_sweep=False)
        return copy.deepcopy(composed[0][group]) if composed else None

    def _compose(self, groups: Mapping[str, str], of_sweep: bool = True) -> tuple[Tree, dict[str, str]] | None:
        """(config, choice of each group), once per combination of choices: composing takes 0.1 s, a plain value nothing."""
        sweep = [f"+sweep={self.sweep}"] if self.sweep and of_sweep else []
        words = [*(f"{group}={choice}" for group, choice in sorted(groups.items())), *sweep, *self._hydra_words()]
        if (key := tuple(words)) not in self._composed:
            self._composed[key] = None
            try:
                config = compose("config", overrides=words, return_hydra_config=True)
            except Exception as error:  # Hydra's composing errors have no common class
                self.problems.append(f"cannot compose {' '.join(words)}: {_one_line(error)}")
            else:
                tree: Any = OmegaConf.to_container(config)
                hydra = tree.pop("hydra")
                self._composed[key] = tree | {"hydra": {"launcher": hydra["launcher"]}}, hydra["runtime"]["choices"]
        return self._composed[key]

    def _session(self, tree: Tree, where: _Where) -> Session | None:
        names = ("do", "tracker", "accelerate", "results", "keep", "hardware")
        sections = {key: tree[key] for key in names} | {"launcher": tree["hydra"]["launcher"]}
        plain = self._resolved(sections, where)
        return self._valid(Session, plain, where) if plain else None

    def _cell(self, tree: Tree, where: _Where) -> Cell | None:
        for key in sorted(tree.keys() - {*SECTIONS, "axes", "grids", "expect", "hydra"}):
            if key == "sweep":
                self.problems.append(f"{self.sweep_file} must begin with the line `# @package _global_`")
            else:
                self.problems.append(_unknown("section", key, SECTIONS, where.of(key)))
        plain = self._resolved({key: tree[key] for key in (*CELL_SECTIONS, "scale")}, where)
        if plain is None or self._valid(Scale, plain.pop("scale"), where, "scale") is None:
            return None
        self.files.check(plain, where)
        return self._valid(Cell, plain, where)

    def _resolved(self, tree: Tree, where: _Where) -> Tree | None:
        """A part of a composed config with its interpolations resolved."""
        try:
            return OmegaConf.to_container(OmegaConf.create(tree), resolve=True)  # type: ignore[return-value]
        except OmegaConfBaseException as error:
            key = error.full_key or "the config"
            self.problems.append(f"{key}: {str(error).splitlines()[0]} ({where.of(key)})")
            return None

    def _valid(self, record: type[M], plain: Tree, where: _Where, section: str = "") -> M | None:
        """The record that a part of the config makes, or None; all that is wrong with it is said."""
        missing = [key for key, value in _leaves(plain, section) if value == "???"]
        self.problems += [f"{key} must be set: add {key}=... ({where.of(key)})" for key in missing]
        try:
            return record.model_validate(plain)
        except ValidationError as error:
            details = error.errors()
        said = [text for detail in details for key, text in _in_words(detail, record, section, where) if key not in missing]
        if record is Cell and details[0]["loc"]:  # pydantic weighs sections together only when each is well by itself
            said += [f"{text} ({where.of(key)})" for key, text in misfits(plain)]
        self.problems += said
        return None


def _set(tree: Tree, key: str, value: Any, where: _Where) -> str | None:
    """Set a dotted key that is there; otherwise say what is known in its place."""
    *parents, name = key.split(".")
    section: Any = tree
    for depth, parent in enumerate(parents):
        if parent not in section:
            return _unknown("key", key, list(section), where.of(key), ".".join(parents[:depth]))
        section = section[parent]
        if not isinstance(section, dict):
            return f"{key} cannot be set: {'.'.join(parents[: depth + 1])} is {_short(section)} here ({where.of(key)})"
    if name not in section:
        return _unknown("key", key, list(section) if parents else CELL_SECTIONS, where.of(key), ".".join(parents))
    section[name] = _merged(section[name], value)
    return None


MEMBERS = "judge.judges"
OF_THE_JURY = ("items", "n_items", "decoding")


def _merged(old: Any, new: Any) -> Any:
    """As Hydra does it: sections are merged, everything else replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _merged(old.get(key), value) for key, value in new.items()}
    return new


# Words ---------------------------------------------------------------------------------------------------------------


def _in_words(detail: Mapping[str, Any], record: type[BaseModel], section: str, where: _Where) -> Iterator[tuple[str, str]]:
    """(key, what was expected, what came, where) of one pydantic error; several where a validator has found several."""
    path, siblings = _place(record, detail["loc"])
    if path[:1] == ["launcher"]:
        path = ["hydra", *path]
    path = [section, *path] if section else path
    key, kind, context = ".".join(path), detail["type"], detail.get("ctx", {})
    came = f"got {_short(detail['input'])} ({where.of(key)})"
    match kind:
        case "misfit":
            for name, text in context["found"]:
                yield key, f"{text} ({where.of('.'.join([*path, name]))})"
        case "extra_forbidden":
            yield key, _unknown("key", key, siblings, where.of(key), ".".join(path[:-1]))
        case "missing":
            yield key, f"{key} must be set: add {key}=... ({where.of(key)})"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            name, sign = BOUNDS[kind]
            bound = f"{context[name]:g}" if isinstance(context[name], float) else context[name]
            yield key, f"{key} must be {sign} {bound}, {came}"
        case "union_tag_invalid":
            tag = f"{key}.{context['discriminator'].strip(chr(39))}"
            yield key, f"{tag} must be one of {context['expected_tags']}, got {context['tag']!r} ({where.of(tag)})"
        case "string_pattern_mismatch":
            yield key, f"{key} must be a name of letters, digits, dots, +, - and _, {came}"
        case _:
            text = detail["msg"].removeprefix("Input should be ")
            text = f"{key}: {text}" if text == detail["msg"] else f"{key} must be {text}"
            values = detail["input"] if isinstance(detail["input"], list) else []
            yield key, f"{text}, {came}" + (f"; an axis is written {key}={','.join(map(str, values))}" if values else "")


def _place(record: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], list[str]]:
    """(path, names of the fields beside it) of pydantic's location, which tells a union's member apart by an extra part."""
    path: list[str] = []
    here: type[BaseModel] | None = record
    siblings = list(record.model_fields)
    members: dict[Any, type[BaseModel]] = {}
    by_name: dict[Any, type[BaseModel]] = {}  # members of a union that is a dict's values
    for part in location:
        if part in members:
            here, members = members[part], {}
            siblings = list(here.model_fields)
            continue
        if part in by_name and len(path) > 1:
            here, by_name = by_name[part], {}
            siblings = list(here.model_fields)
            continue
        path.append(str(part))
        if here is None or part not in (siblings := list(here.model_fields)):
            continue
        info = here.model_fields[str(part)]
        kinds = get_args(info.annotation) or (info.annotation,)
        if get_origin(info.annotation) is dict and get_origin(kinds[1]) is Annotated:  # by a name: a union, told apart in its turn
            union, mark = get_args(kinds[1])[:2]
            by_name = {name: kind for kind in get_args(union) for name in get_args(kind.model_fields[mark.discriminator].annotation)}
            here = None
            continue
        records = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if isinstance(tag := info.discriminator, str):
            members = {name: kind for kind in records for name in get_args(kind.model_fields[tag].annotation)}
        here = records[0] if len(records) == 1 else None
    return path, siblings


def _unknown(what: str, name: Any, known: Sequence[str], where: str, section: str = "") -> str:
    """`known`: names in `section`, where `name` is the whole dotted key."""
    prefix = f"{section}." if section else ""
    close = difflib.get_close_matches(str(name).removeprefix(prefix), known, n=1)
    hint = f"; did you mean {prefix}{close[0]}?" if close else ";"
    return f"unknown {what} {str(name)!r} ({where}){hint} known{f' in {section}' if section else ''}: {', '.join(sorted(known))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


# Files of the user ---------------------------------------------------------------------------------------------------


@dataclass
class _Files:
    """Checks the files that cells name, each once; digests them when all is well."""

    problems: list[str]
    lock: Path = Path(hub.LOCK)  # of the hub's revisions
    fetches: Fetches = "nothing"  # what the verb reads of what comes from the hub
    _datasets: dict[str, tuple[Source, Form | None] | None] = field(default_factory=dict)
    _models: dict[str, Path | None] = field(default_factory=dict)
    _hub_models: dict[str, Source | None] = field(default_factory=dict)
    _judges: dict[str, _JudgeFiles | None] = field(default_factory=dict)
    _data: dict[str, tuple[Path, Form] | None] = field(default_factory=dict)
    _written: dict[str, Path | None] = field(default_factory=dict)
    _prompts: dict[str, int | None] = field(default_factory=dict)
    _digests: dict[Path, Source] = field(default_factory=dict)

    def check(self, cell: Tree, where: _Where) -> None:
        """Say what is wrong with the files of a cell, which may have other faults. A length that a model has no positions for is cut to
        them where it is a default."""
        if (model := _valid_section(LocalModel, cell["model"])) is not None:
            key = "model.path" if model.path else "model.hub"
            source = self._model(model, where.of(key))
            if source and source.path.is_dir():  # a verb that reads nothing does not fetch
                if isinstance(cell["data"], dict) and cell["data"].get("kind") == "world" and (why := _no_template(source.path)):
                    self.problems.append(f"{why} ({where.of(key)})")
                places = _positions(source.path)
                if places is not None and places < model.max_length and not where.is_given("model.max_length"):
                    cell["model"]["max_length"] = places  # no length that anybody asked for
                elif places is not None and places < model.max_length:
                    text = f"model.max_length must be <= {places}, the positions of {source.path}, got {model.max_length}"
                    self.problems.append(f"{text} ({where.of('model.max_length')})")
                if model.base is not None:
                    self._once(self._models, model.base, partial(_base_folder, tuned=source.path), where.of("model.base"))
        if (path := _local_path(cell["data"])) is not None:
            read = self._once(self._data, path, _data_file, where.of("data.path"))
            found = misfits(cell | {"data": cell["data"] | {"form": read[1]}}) if read else []
            of_form = ("data.form", "data.desirable_fraction", "data.undesirable_fraction")
            self.problems += [f"{text} ({where.of('data.path')})" for key, text in found if key in of_form]
        if (section := _valid_section(DatasetData, cell["data"])) is not None and section.kind == "dataset":
            form = self._dataset(section, where.of("data.path" if section.path else "data.hub"))
            found = misfits(cell | {"data": cell["data"] | {"form": section.form or form}})
            self.problems += [f"{text} ({where.of('data.form')})" for key, text in found if key.startswith(("data.form", "data.desirable"))]
        if (wanted := _valid_section(Sft, cell.get("sft"))) is not None:
            self._dataset(wanted, where.of("sft.path" if wanted.path else "sft.hub"))
        if isinstance(method := cell["method"], dict) and method.get("name") == "completions":
            self._once(self._written, method["path"], _written_file, where.of(sweeps.COMPLETIONS))
        judge = cell["judge"] if isinstance(cell["judge"], dict) else {}
        jurors = judge.get("judges") if judge.get("name") == "jury" and isinstance(judge.get("judges"), dict) else {}
        for place, section in {"judge": judge, **{f"{MEMBERS}.{label}": member for label, member in (jurors or {}).items()}}.items():
            if isinstance(section, dict) and section.get("name") in JUDGE_FILES:
                self._once(self._judges, _what_judge_reads(section), partial(_judge_files_of, section), where.of(place))
        if isinstance(method, dict) and method.get("name") in LOOPS and isinstance(prompts := method.get("prompts"), str):
            beside = _local_path(cell["data"]) or ""
            read_once = partial(_prompts_file, answered=method["name"] == "spin", data=beside)
            n = self._once(self._prompts, _which_prompts(method, beside), lambda _: read_once(prompts), where.of("method.prompts"))
            if n is not None and (few := _too_few(method, n)):
                self.problems.append(f"{few} ({where.of('method.n_prompts')})")
        labelling = method.get("labelling_judge") if isinstance(method, dict) and method.get("labeller") == "judge" else None
        if isinstance(labelling, dict) and labelling.get("name") in JUDGE_FILES:
            what = _what_labeller_reads(labelling)
            self._once(self._judges, what, lambda _: _labeller_files(labelling), where.of("method.labelling_judge"))

    def _model(self, section: LocalModel, where: str) -> Source | None:
        """A folder, known by its content, or a model of the hub, known by its revision; looked at once."""
        if section.path == "???" or (section.path is None and section.hub in (None, "???")):  # said elsewhere
            return None
        if section.path is not None:
            weights = self.fetches != "not weights"
            folder = self._once(self._models, section.path, partial(_model_folder, weights=weights), where)
            return Source(folder, "") if folder else None
        return self._once(self._hub_models, _of_hub(section), lambda _: _hub_model(section, self.lock, self.fetches), where)

    def _dataset(self, section: DatasetData | Sft, where: str) -> Form | None:
        """Look at a public dataset once, and return the form of its rows where they show it."""
        if section.path is None and section.hub is None:  # said by misfits
            return None
        found = self._once(self._datasets, _what_is_read(section), lambda _: _dataset(section, self.lock, self.fetches != "nothing"), where)
        return found[1] if found else None

    def _once(self, known: dict[str, T | None], path: str, read: Callable[[str], T], where: str) -> T | None:
        if path not in known:
            try:
                known[path] = read(path)
            except (OSError, ValueError) as error:
                known[path] = None
                self.problems.append(f"{error} ({where})")
        return known[path]

    def sources(self, cell: Cell) -> Sources:
        """What a checked cell reads from outside the store."""
        local = cell.model if isinstance(cell.model, LocalModel) else None
        model = self._models[local.path] if local and local.path else None
        of_hub = self._hub_models[_of_hub(local)] if local and not local.path else None
        data = self._data[cell.data.path] if isinstance(cell.data, LocalData) else None
        written = self._written[cell.method.path] if isinstance(cell.method, Written) else None
        judge = self._judge(cell.judge) if isinstance(cell.judge, (LanguageJudge, ModelJudge, JuryJudge)) else None
        labelling = None
        if isinstance(cell.method, IterativeDpo) and cell.method.labeller == "judge" and cell.method.labelling_judge:
            labelling = self._judge(cell.method.labelling_judge, _what_labeller_reads)
        base = self._models[cell.model.base] if isinstance(cell.model, LocalModel) and cell.model.base else None
        own, rows, texts, before = (self._source(path) if path else None for path in (model, data[0] if data else None, written, base))
        file = cell.method.prompts if isinstance(cell.method, Loop) else None
        prompts = self._source(Path(file).expanduser().absolute()) if file else None
        public, conversations = self._public(cell.data), self._public(cell.sft)
        return Sources(own or of_hub, rows or public, texts, judge, before, labelling, prompts, conversations)

    def _public(self, section: Any) -> Source | None:
        found = self._datasets[_what_is_read(section)] if isinstance(section, (DatasetData, Sft)) else None
        return found[0] if found else None

    def _judge(self, judge: LanguageJudge | ModelJudge | JuryJudge, reads: Callable[[Tree], str] | None = None) -> JudgeSources:
        found = self._judges[(reads or _what_judge_reads)(judge.model_dump())]
        assert found is not None
        files = {role: self._source(path) for role, path in found.files.items()}
        model, calibration = (self._source(path) if path else None for path in (found.model, found.calibration))
        jurors = judge.judges.items() if isinstance(judge, JuryJudge) else ()
        members = {label: self._judge(member) for label, member in jurors if isinstance(member, (LanguageJudge, ModelJudge))}
        return JudgeSources(found.prompts, parser_version(), model, files, found.n_items, calibration, members)

    def _source(self, path: Path) -> Source:
        if path not in self._digests:
            self._digests[path] = Source(path, stamp=tree_stamp(path), digest=tree_digest(path))
        return self._digests[path]


@dataclass(frozen=True)
class _JudgeFiles:
    """What a judge that is a model reads."""

    prompts: Source | None
    model: Path | None
    files: Mapping[str, Path]  # items, references, baseline
    n_items: int
    calibration: Path | None = None


# By judge, the files that bring items.
JUDGE_FILES = {
    "alpaca_eval": ("items",),
    "mt_bench": ("items", "references", "baseline"),
    "arena_hard": ("items", "baseline"),
    "reward_model": ("items",),
    "pair_ranker": ("items",),
    "jury": ("items",),
}


def _what_judge_reads(judge: Tree) -> str:
    """What the files of a judge depend on; they are read once for all cells."""
    names = ("name", "annotator", "prompts", "items", "references", "baseline", "mode", "model", "server", "prices", "tokenizer")
    return repr([judge.get(name) for name in (*names, "calibration")] + [judge.get("budget_dollars") is not None])


CLASSIFIERS = {"reward_model": "a sequence classifier of one output", "pair_ranker": "PairRM, or a sequence classifier of one output"}


def _judge_files_of(judge: Tree, _: str) -> _JudgeFiles:
    """The files of a judge's section, which may have other faults. Raises ValueError for the first that cannot be used."""
    found = _judge_files(judge)
    given = judge.get("calibration")
    if given in (None, FITTED):
        return found
    path = _file(given, "judge.calibration")
    items = read_items("arena_hard" if "baseline" in found.files else "alpaca_eval", found.files) if found.files else []
    n = len(items) or judge["n_items"]
    read_calibration(path, items, n if isinstance(n, int) else None)
    return replace(found, calibration=path)


def _as_labeller(judge: Tree) -> Tree:
    """A judge's section without what it is asked about in an evaluation."""
    return judge | dict.fromkeys(JUDGE_FILES[judge["name"]]) | ({"calibration": None} if "calibration" in judge else {})


def _what_labeller_reads(judge: Tree) -> str:
    return f"labeller {_what_judge_reads(_as_labeller(judge))}"


def _labeller_files(judge: Tree) -> _JudgeFiles:
    try:
        return _judge_files(_as_labeller(judge))
    except ValueError as error:
        raise ValueError(str(error).replace("judge.", "method.labelling_judge.")) from error


def _judge_files(judge: Tree) -> _JudgeFiles:
    if judge["name"] == "jury" or judge["name"] in CLASSIFIERS:
        what = CLASSIFIERS.get(judge["name"])
        model = _model_folder(judge["model"], "judge.model", what) if what and judge["model"] != "???" else None
        files = {"items": _file(judge["items"], "judge.items")} if judge["items"] else {}
        return _JudgeFiles(None, model, files, len(read_items("alpaca_eval", files)) if files else 0)
    if judge["name"] == "arena_hard":
        path = _file(judge["prompts"], "judge.prompts") if judge["prompts"] else OWN_GAME
        prompts = Source(path, arena_hard_template(path).digest)
    elif judge["name"] == "alpaca_eval":
        found = annotator(str(judge["annotator"]))
        prompts = Source(found.folder, found.digest)
    else:
        path = _file(judge["prompts"], "judge.prompts") if judge["prompts"] else OWN_PROMPTS
        prompts = Source(path, mt_bench_digest(mt_bench_templates(path)))
    if judge["budget_dollars"] is not None and judge["server"] == "endpoint" and price_of(judge["model"], judge["prices"]) is None:
        raise ValueError(
            f"judge.budget_dollars needs a price of {judge['model']}, and {judge['prices'] or 'the price file of bench'} has none: "
            "give a file that names it as judge.prices"
        )
    price_of(judge["model"], judge["prices"])
    if judge["tokenizer"]:
        _file(f"{judge['tokenizer']}/tokenizer.json", "judge.tokenizer")
    model = _model_folder(judge["model"], "judge.model") if judge["server"] != "endpoint" and judge["model"] != "???" else None
    if model and (why := _no_template(model)):
        raise ValueError(why)
    named = {role: judge[role] for role in JUDGE_FILES[judge["name"]] if judge[role]}
    files = {role: hub_file() if (role, text) == ("items", "hub") else _file(text, f"judge.{role}") for role, text in named.items()}
    if "items" not in files and files:
        raise ValueError(f"judge.{next(iter(files))} goes with judge.items, which is not set")
    form = "alpaca_eval" if judge["name"] == "arena_hard" and "baseline" not in files else judge["name"]
    items = read_items(form, files) if files else []
    if judge.get("mode") == "pairwise" and files and "baseline" not in files:
        raise ValueError("judge.mode=pairwise compares with a model's answers: name FastChat's file of them as judge.baseline")
    return _JudgeFiles(prompts, model, files, len(items))


def _file(text: str, key: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"{key} must be a file, got {text}: {'a folder' if path.is_dir() else 'no such file'}")
    return path


def _local_path(section: Any) -> str | None:
    """The path that a model or data section names, where it names one."""
    path = section.get("path") if isinstance(section, dict) and section.get("kind") == "local" else None
    return path if isinstance(path, str) and path != "???" else None


def _model_folder(text: str, key: str = "model.path", what: str = "a causal LM", weights: bool = True) -> Path:
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        hint = "" if text.count("/") != 1 or text[:1] in "./~" else f" (of the hub: model=hub model.hub={text})"
        raise ValueError(f"{key} must be a folder of {what}, got {text}: no such folder{hint if key == 'model.path' else ''}")
    lying = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    for part, pattern in (("config.json", "config.json"), ("tokenizer files", "*token*"), ("*.safetensors", "*.safetensors")):
        if not list(folder.glob(pattern)) and (weights or "safetensors" not in part):
            wanted = f"{key} must hold config.json, a tokenizer and weights as safetensors"
            raise ValueError(f"{wanted}, got {text} without {part} (it holds {lying})")
    return folder


def _base_folder(text: str, tuned: Path) -> Path:
    """What a model was tuned from; it must be asked as the tuned one is."""
    folder = _model_folder(text, "model.base")
    if _no_template(tuned) is None and (why := _no_template(folder)):
        raise ValueError(f"{why}, the one in {tuned}")
    return folder
def _of_hub(model: LocalModel) -> str:
    return f"{model.hub}@{model.revision}"


def _hub_model(section: LocalModel, lock: Path, fetches: Fetches) -> Source:
    """A model of the hub: its weights where the verb reads them, for a plan its settings and tokenizer, which shows who may have them.

    Raises ValueError where it cannot be had.
    """
    assert section.hub is not None
    try:
        at = section.revision or hub.revision(lock, "models", section.hub)
        path = Path(section.hub) if fetches == "nothing" else hub.fetch_model(section.hub, at, weights=fetches == "all")
    except hub.NotThere as error:
        raise ValueError(f"{error}; a copy of its folder may be named as model.path") from error
    return Source(path, f"hub:models/{section.hub}@{at}")


def _positions(folder: Path) -> int | None:
    """Tokens that a model was made for, where its config says so."""
    try:
        found = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is no JSON: {error}") from error
    return found if isinstance(found, int) else None


def _no_template(folder: Path) -> str | None:
    """What is wrong with a model that is asked in messages and has no chat template."""
    config = folder / "tokenizer_config.json"
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json", "additional_chat_templates")):
        return None
    if config.exists() and json.loads(config.read_text()).get("chat_template"):
        return None
    return f"{folder} is asked in messages and its tokenizer has no chat template: add chat_template.jinja"


def _valid_section(record: type[M], section: Any) -> M | None:
    """A section as its record, or None: what is wrong with it is said elsewhere."""
    try:
        return record.model_validate(section)
    except ValidationError:
        return None


def _what_is_read(section: DatasetData | Sft) -> str:
    """What the source of a public dataset depends on; it is looked at once for all cells."""
    names = ("hub", "revision", "path", "train_files", "heldout_files", "reading")
    return repr([getattr(section, name, None) for name in names])


def _dataset(section: DatasetData | Sft, lock: Path, fetches: bool) -> tuple[Source, Form | None]:
    """A public dataset's source, and the form of its rows where they show it. Raises ValueError for one that cannot be had or read.

    A copy is known by its files' content; what comes from the hub by its revision, so that a verb that reads no rows needs no files.
    """
    reading = section.reading if isinstance(section, DatasetData) else Conversations(reader="conversations")
    train, heldout = section.train_files, section.heldout_files if isinstance(section, DatasetData) else ()
    key = "data" if isinstance(section, DatasetData) else "sft"
    if section.path is not None:
        path = Path(section.path).expanduser().absolute()
        if not path.exists():
            raise ValueError(f"{key}.path must be a copy of a dataset's folder or a file of it, got {section.path}: no such file or folder")
        form = check(path, reading, train, heldout)
        files = find_files(path, (*train, *heldout))
        digest = file_digest(path) if path.is_file() else hash_long({str(f.relative_to(path)): file_digest(f) for f in files})
        return Source(path, digest, tree_stamp(path)), form
    assert section.hub is not None
    try:
        at = section.revision or hub.revision(lock, "datasets", section.hub)
        if not fetches:
            return Source(Path(section.hub), f"hub:datasets/{section.hub}@{at}"), None
        path = hub.fetch("datasets", section.hub, at, (*train, *heldout))
    except hub.NotThere as error:
        raise ValueError(f"{error}; a copy of its folder may be named as {key}.path") from error
    return Source(path, f"hub:datasets/{section.hub}@{at}"), check(path, reading, train, heldout)


def _data_file(text: str) -> tuple[Path, Form]:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"data.path must be a preference file, got {text}: {'a folder' if path.is_dir() else 'no such file'}")
    return path, read_preferences(path).form


def _which_prompts(method: Tree, data: str) -> str:
    return repr([method["name"] == "spin", method["prompts"], data])


def _prompts_file(text: str, answered: bool, data: str) -> int:
    """How many different prompts a loop's file holds. Raises ValueError where some of them are in the data too."""
    found = read_prompts(_file(text, "method.prompts"), answered)
    path = Path(data).expanduser().absolute()
    if not data or not path.is_file():
        return len(found)  # the data are said elsewhere
    known = {_contents(row) for row in read_preferences(path).rows}
    if shared := [row for row in found if _contents(row) in known]:
        first = f"{_short(shared[0].prompt[-1]['content'])} (row {shared[0].id})"
        raise ValueError(f"{len(shared)} of the {len(found)} prompts in {text} are in {data} too, first {first}: leave them out of either")
    return len(found)


def _contents(row: Pair | Unpaired | Text) -> tuple[str, ...]:
    """What a prompt says, as messages or as plain text."""
    return tuple(message["content"] for message in row.prompt)


def _too_few(method: Tree, there: int) -> str | None:
    """What is wrong where a loop's iterations ask for more prompts than its file has."""
    iteration, n = method.get("iteration"), method.get("n_prompts")
    if not isinstance(iteration, int) or not isinstance(n, int):
        return None
    first = 0 if method["name"] == "spin" else 1
    needed = (iteration + 1 - first) * n
    if needed <= there:
        return None
    return f"iterations {first} to {iteration} of {n} prompts each need {needed}, and {method['prompts']} has {there} different ones"


def _written_file(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not text or not path.is_file():
        raise ValueError(f"completions must be a file, got {text or 'nothing'}: {'a folder' if text and path.is_dir() else 'no such file'}")
    read_written(path)
    return path

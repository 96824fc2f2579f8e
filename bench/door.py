"""The door: composes every cell by Hydra's API and reports all that is wrong in one message, before torch is imported."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from bench import sweep as sweeps
from bench.config import Cell, LocalData, LocalModel, Session
from bench.plan import Sources
from bench.preferences import BadRows, read_preferences
from bench.store import Source, tree_digest

CELL_KEYS = tuple(Cell.model_fields)
AXIS_GROUPS = ("scale", "data", "model", "method", "judge", "engine")
GROUPS = (*AXIS_GROUPS, "tracker", "do")
NOT_KEYED = ("do", "tracker", "results")


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


@dataclass
class _Composer:
    """Composes once per combination of group choices and puts plain values on top: 0.1 s a combination, not a cell."""

    command: sweeps.CommandLine
    searchpath: tuple[str, ...]
    cache: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)

    def compose(self, groups: Mapping[str, Any]) -> DictConfig:
        words = [f"{group}={choice}" for group, choice in groups.items()]
        if self.command.sweep:
            words.append(f"+sweep={self.command.sweep}")
        words += self.command.passed + self.searchpath
        if tuple(words) not in self.cache:
            self.cache[tuple(words)] = compose("config", overrides=words, return_hydra_config=True)
        return OmegaConf.create(OmegaConf.to_container(self.cache[tuple(words)], resolve=False))

    @staticmethod
    def options(group: str) -> list[str]:
        loader = GlobalHydra.instance().config_loader()
        return [name for name in loader.get_group_options(group, ObjectType.CONFIG) if name != "basic"]


@lru_cache(maxsize=1)
def open_door(words: tuple[str, ...]) -> Opened:
    """Cells and session of a command; raises BadConfig with every problem."""
    words, searchpath = _config_dirs(words)
    command = sweeps.parse_command_line(words)
    problems = list(command.problems)
    broken = sweeps.register_sweeps()
    with initialize_config_dir(str(sweeps.CONF), version_base="1.3"):
        composer = _Composer(command, searchpath)
        if command.sweep is not None:
            problems += _check_sweep_name(command.sweep, broken, composer, searchpath)
            if problems:
                raise BadConfig(problems)
        problems += _check_choices(command, composer)
        return _compose_cells(words, command, composer, problems)


def _config_dirs(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words less `--config-dir DIR` and Hydra's multirun flags (the door always sweeps), and the search path that they mean."""
    kept, folders = [], []
    iterator = iter(words)
    for word in iterator:
        if word in ("--config-dir", "-cd"):
            folders.append(next(iterator, ""))
        elif word.startswith("--config-dir="):
            folders.append(word.partition("=")[2])
        elif word not in ("-m", "--multirun"):
            kept.append(word)
    path = (f"hydra.searchpath=[{','.join(f'file://{Path(folder).absolute()}' for folder in folders)}]",) if folders else ()
    return tuple(kept), path


def _check_sweep_name(name: str, broken: Mapping[str, str], composer: _Composer, searchpath: Sequence[str]) -> list[str]:
    if name in broken:
        return [f"sweeps/{name}.yaml cannot be read: {broken[name]}"]
    known = composer.options("sweep")
    if name not in known and not searchpath:
        return [_unknown("sweep", name, known, f"+sweep={name} on the command line")]
    return []


def _check_choices(command: sweeps.CommandLine, composer: _Composer) -> list[str]:
    """Unknown group choices and things that are no axis; both leave the command so that the rest can be checked."""
    problems = []
    for group in GROUPS:
        known = composer.options(group)
        chosen = command.axes.get(group, [command.values[group]] if group in command.values else [])
        for choice in chosen:
            if choice not in known:
                problems.append(_unknown(group, choice, known, f"{group}={choice} on the command line"))
        good = [choice for choice in chosen if choice in known]
        if group in command.axes:
            command.axes[group] = good
        if not good:
            command.axes.pop(group, None)
            command.values.pop(group, None)
    for key in [key for key in command.axes if key.split(".")[0] in NOT_KEYED]:
        problems.append(f"{key} is no axis: it takes one value, got {len(command.axes.pop(key))} (command line)")
    for word in command.passed:
        if word.startswith("hydra/launcher=") and (choice := word.partition("=")[2]) not in composer.options("hydra/launcher"):
            problems.append(_unknown("hydra/launcher", choice, composer.options("hydra/launcher"), f"{word} on the command line"))
            raise BadConfig(problems)
    return problems


def _compose_cells(words: Sequence[str], command: sweeps.CommandLine, composer: _Composer, problems: list[str]) -> Opened:
    file = f"sweeps/{command.sweep}.yaml" if command.sweep else "the command line"
    fixed = {key: value for key, value in command.values.items() if key in GROUPS}
    try:
        base = OmegaConf.to_container(composer.compose(fixed), resolve=False)
        grids = sweeps.read_grids(base, file)  # type: ignore[arg-type]
    except (sweeps.BadSweep, OmegaConfBaseException) as error:
        raise BadConfig([*problems, str(error)]) from error
    except Exception as error:  # Hydra's composing errors have no common class
        raise BadConfig([*problems, f"cannot compose: {' '.join(str(error).split())}"]) from error
    in_file = {key for grid in grids for key in grid}
    grids = sweeps.replace_axes(grids, command, GROUPS)
    cells, sources = [], []
    session: Session | None = None
    for point in sweeps.unfold(grids):
        where = _Where(command, in_file, file, {**fixed, **{k: v for k, v in point.items() if k in GROUPS}})
        config = _apply(point, command, composer, where, problems)
        if config is None:
            continue
        session = session or _session(config, where, problems)
        if (cell := _cell(config, where, problems)) is not None and (found := _sources(cell, where, problems)) is not None:
            cells.append(cell)
            sources.append(found)
    if problems:
        raise BadConfig(problems)
    assert session is not None
    replaced = bool(set(command.axes) | {key for key in command.values if key.split(".")[0] not in NOT_KEYED})
    title = _title(command.sweep) if command.sweep else ""
    return Opened(session, command.sweep, replaced, title, _command(words), cells, sources)


@dataclass(frozen=True)
class _Where:
    """Where a setting comes from, for messages."""

    command: sweeps.CommandLine
    in_file: set[str]
    file: str
    groups: Mapping[str, Any]

    def of(self, key: str) -> str:
        for given in (*self.command.values, *self.command.axes):
            if key == given or key.startswith(f"{given}.") or given.startswith(f"{key}."):
                value = self.command.values.get(given, ",".join(map(str, self.command.axes.get(given, []))))
                return f"{given}={value} on the command line"
        if any(key == axis or axis.startswith(f"{key}.") for axis in self.in_file):
            return f"{key} in {self.file}"
        group = key.split(".")[0]
        return f"{key} in conf/{group}/{self.groups[group]}.yaml" if group in self.groups else f"{key} in the composed config"


def _apply(
    point: sweeps.Point, command: sweeps.CommandLine, composer: _Composer, where: _Where, problems: list[str]
) -> DictConfig | None:
    """The composed config of one point, or None when it cannot be composed; unknown keys are reported and left out."""
    groups = {key: value for key, value in {**command.values, **point}.items() if key in GROUPS}
    for group, choice in groups.items():
        if choice not in (known := composer.options(group)):
            problems.append(_unknown(group, choice, known, f"{group} in {where.file}"))
            return None
    try:
        config = composer.compose(groups)
    except Exception as error:
        problems.append(f"cannot compose {groups}: {' '.join(str(error).split())}")
        return None
    chosen = OmegaConf.to_container(config.hydra.runtime.choices)
    where.groups.update({k: chosen[k] for k in GROUPS if k in chosen})  # type: ignore[attr-defined, index, operator]
    for key, value in {**command.values, **point}.items():
        if key in GROUPS:
            continue
        try:
            parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
            exists = isinstance(parent, DictConfig) and key.rpartition(".")[2] in parent
        except OmegaConfBaseException:
            exists = False
        if not exists:
            known = sorted(map(str, parent)) if isinstance(parent, DictConfig) and "." in key else list(CELL_KEYS)
            problems.append(_unknown("key", key, [f"{key.rpartition('.')[0]}.{name}".lstrip(".") for name in known], where.of(key)))
            continue
        OmegaConf.update(config, key, value, merge=False)
    return config


def _plain(config: DictConfig, section: str, problems: list[str]) -> Any:
    try:
        value = config.get(section)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        problems.append(f"{section}: {' '.join(str(error).split())}")
        return None


def _cell(config: DictConfig, where: _Where, problems: list[str]) -> Cell | None:
    known = {*CELL_KEYS, *NOT_KEYED, "scale", "axes", "grids", "hydra"}
    for key in config:
        if key not in known:
            problems.append(_unknown("key", str(key), [*CELL_KEYS, *NOT_KEYED], where.of(str(key))))
    before = len(problems)
    sections = {key: _plain(config, key, problems) for key in CELL_KEYS}
    for key, value in _leaves(sections):
        if value == "???":
            problems.append(f"{key} must be set: add {key}=... ({where.of(key)})")
    if len(problems) > before:
        return None
    try:
        return Cell.model_validate(sections)
    except ValidationError as error:
        problems += [_translate(detail, where) for detail in error.errors()]
        return None


def _session(config: DictConfig, where: _Where, problems: list[str]) -> Session | None:
    sections = {key: _plain(config, key, problems) for key in ("do", "tracker", "results")}
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    try:
        return Session.model_validate({**sections, "launcher": launcher})
    except ValidationError as error:
        problems += [_translate(detail, where) for detail in error.errors()]
        return None


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _translate(detail: Mapping[str, Any], where: _Where) -> str:
    """One pydantic error in words: what was expected, what came, where."""
    tags = {"world", "local", "none", "dpo", "ipo", "kto", "gold", "wandb"}
    path = [str(part) for i, part in enumerate(detail["loc"]) if not (i == 1 and str(part) in tags)]
    key, kind, context = ".".join(path), detail["type"], detail.get("ctx", {})
    came = f"got {detail['input']!r} ({where.of(key)})"
    match kind:
        case "extra_forbidden":
            return f"unknown key {key!r} ({where.of(key)}){' for method ' + str(where.groups.get('method')) if path[0] == 'method' else ''}"
        case "missing":
            return f"{key} must be set ({where.of(key)})"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            sign = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="), "less_than": ("lt", "<"), "less_than_equal": ("le", "<=")}[kind]
            return f"{key} must be {sign[1]} {context[sign[0]]:g}, {came}"
        case "value_error":
            return f"{context['error']}" + (f" ({where.of(key)})" if key else "")
        case "literal_error":
            return f"{key} must be one of {context['expected']}, {came}"
        case "union_tag_invalid":
            return f"{key}.{context['discriminator'].strip(chr(39))} must be one of {context['expected_tags']}, got {context['tag']!r} ({where.of(key)})"
        case _:
            return f"{key}: {detail['msg'].removeprefix('Input ')}, {came}"


def _unknown(what: str, name: Any, known: Sequence[str], where: str) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown {what} {str(name)!r} ({where}){hint} known: {', '.join(known)}" if hint else f"unknown {what} {str(name)!r} ({where}); known: {', '.join(known)}"


def _command(words: Sequence[str]) -> str:
    """What to type to get the same cells: the words that change them, in their order."""
    return " ".join(word for word in words if not word.startswith(tuple(f"{key}{end}" for key in NOT_KEYED for end in "=.")) and not word.startswith("hydra"))


def _title(name: str) -> str:
    """The question on top of a sweep file: its first comment, up to the expectation."""
    path = sweeps.SWEEPS / f"{name}.yaml"
    if not path.exists():
        return ""
    lines = [line.lstrip("# ").rstrip() for line in path.read_text().splitlines() if line.startswith("#")]
    lines = [line for line in lines if not line.startswith("@package")]
    question = []
    for line in lines:
        if line.startswith(("Expected", "python -m")):
            break
        question.append(line.removeprefix("Question: "))
    return " ".join(question).strip()


# Files of the user ----------------------------------------------------------------------------------------------------


def _sources(cell: Cell, where: _Where, problems: list[str]) -> Sources | None:
    model = data = None
    try:
        if isinstance(cell.model, LocalModel):
            model = _model_source(cell.model.path)
        if isinstance(cell.data, LocalData):
            data = _data_source(cell.data.path)
            if data.form == "unpaired" and cell.method.name in ("dpo", "ipo"):
                problems.append(f"method={cell.method.name} learns from pairs, and {cell.data.path} holds unpaired rows: take method=kto")
                return None
            data = data.source
    except (OSError, BadRows, ValueError) as error:
        problems.append(f"{error} ({where.of('model.path' if model is None and isinstance(cell.model, LocalModel) else 'data.path')})")
        return None
    return Sources(model, data)


@lru_cache
def _model_source(path: str) -> Source:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(f"model.path must be a folder of a causal LM, got {path}: no such folder")
    if not (folder / "config.json").exists():
        raise ValueError(f"model.path must hold config.json, weights and a tokenizer, got {path} with {', '.join(sorted(p.name for p in folder.iterdir())[:5]) or 'nothing'}")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"model.path must hold its weights as safetensors, found none in {path}")
    return Source(folder, tree_digest(folder))


@dataclass(frozen=True)
class _DataSource:
    source: Source
    form: str


@lru_cache
def _data_source(path: str) -> _DataSource:
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise ValueError(f"data.path must be a preference file, got {path}: no such file")
    return _DataSource(Source(file, tree_digest(file)), read_preferences(file).form)

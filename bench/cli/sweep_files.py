"""Sweep files and command lines, unfolded to the settings of each point of the grid.

A sweep file holds `axes:` (a product) or `grids:` (a list of products, for axes that differ by method). On
the command line `key=a,b` is an axis too. A command-line axis or value replaces that key's axis in every
grid; a group choice (`method=kto`) that only some grids have keeps those grids only.

The parts `world:` and `real:` hold what else a sweep file may hold, for scales of that kind alone.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import os
import pickle
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from hydra._internal.core_plugins import structured_config_source
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse
from omegaconf.resolvers import oc

from bench import secrets
from bench.cli.words import CONF, SWEEPS, with_commands
from bench.config import (
    MAX_CELLS,
    METHODS,
    VERB_KEYS,
    Kind,
    Session,
    SuiteJudge,
    World,
    as_name,
    name_of,
    user_path,
)
from bench.text_files import parse_yaml, read_text

COMPLETIONS = "completions"  # Files of completions. They are cells of their own outside the grid, and no setting of a cell.
LABELLING_JUDGE = (
    "judge@method.labelling_judge"  # A labelling judge: a choice of conf/judge/ inside a method's section.
)
CELL_GROUPS = (
    "scale",
    "data",
    "model",
    "sft",
    "method",
    "judge",
    "engine",
    "adapter",
    "forgetting",
    LABELLING_JUDGE,
)
SESSION_GROUPS = ("do", "tracker", "accelerate", "hardware", "hydra/launcher")

Tree = dict[str, Any]  # A config as plain containers, with its interpolations unresolved.
Point = Mapping[str, Any]  # dotted key or group -> value
Grid = Mapping[str, Sequence[Any]]


class BadSweep(ValueError):
    """A sweep file with axes that cannot be read; the message names the file and the key."""


# Sections of the session: how a command runs. No cell has them.
SESSION = tuple(name for name in Session.model_fields if name != "launcher")


def is_session(key: str) -> bool:
    """Whether a key belongs to the session (how a command runs) and to no cell."""
    return key.split(".")[0].split("/")[0] in (*SESSION, "hydra")


@dataclass
class CommandLine:
    """The words after `python -m bench`, parsed."""

    sweeps: list[str] = field(default_factory=list)
    given: dict[str, list[Any]] = field(
        default_factory=dict
    )  # values by key or group: one, or more for an axis
    words: dict[str, str] = field(default_factory=dict)  # the typed word by key
    hydra: list[str] = field(default_factory=list)  # words for Hydra itself
    folders: list[Path] = field(default_factory=list)  # --config-dir
    problems: list[str] = field(default_factory=list)
    refused: list[str] = field(
        default_factory=list
    )  # words with a credential; only these are reported, since another message could repeat it
    max_cells: int = MAX_CELLS  # largest number of values of an axis

    @property
    def sweep(self) -> str | None:
        return self.sweeps[0] if len(self.sweeps) == 1 else None

    @property
    def sets_cells(self) -> bool:
        """Whether the command line sets anything of the cells."""
        return any(not is_session(key) for key in self.given)

    @property
    def cell_words(self) -> str:
        """The words that make the same cells."""
        sweep = [f"+sweep={self.sweep}"] if self.sweep else []
        folders = [f"--config-dir={folder}" for folder in self.folders]
        return shlex.join(
            [*folders, *sweep, *(word for key, word in self.words.items() if not is_session(key))]
        )


def _max_cells(words: Sequence[str]) -> int:
    """The command line's max_cells, known before any axis is read."""
    given = [word.removeprefix("max_cells=") for word in words if word.startswith("max_cells=")]
    return (
        int(given[0])
        if given and given[0].isascii() and given[0].isdecimal() and len(given[0]) < 10
        else MAX_CELLS
    )


def parse_command_line(words: Sequence[str]) -> CommandLine:
    """Parse Hydra's override grammar; a word that cannot be parsed becomes a problem, not an exception."""
    words, problems = with_commands(words)
    reading, parser, rest = (
        CommandLine(problems=problems, max_cells=_max_cells(words)),
        OverridesParser.create(),
        iter(words),
    )
    for word in rest:
        if word in ("--config-dir", "-cd"):
            _read_folder(next(rest, ""), reading)
        elif word.startswith("--config-dir="):
            _read_folder(word.partition("=")[2], reading)
        elif word not in ("-m", "--multirun"):  # every command is a sweep
            _read_override(word, parser, reading)
    if len(reading.sweeps) > 1:
        reading.problems.append(
            f"a command runs one sweep, got {', '.join(reading.sweeps)} (command line): run the command once for each"
        )
    return reading


def _read_folder(text: str, reading: CommandLine) -> None:
    folder = user_path(text)
    if text and folder.is_dir():
        reading.folders.append(folder)
    else:
        reading.problems.append(
            f"--config-dir must be a folder of configs, got {text or 'nothing'}: no such folder"
        )


def _read_override(word: str, parser: OverridesParser, reading: CommandLine) -> None:
    say = reading.problems.append
    if (n := word.count(",")) >= reading.max_cells:
        say(
            f"{word.partition('=')[0][:80]} has about {n + 1} values on the command line, more than max_cells={reading.max_cells} allows"
        )
        return
    try:
        override = parser.parse_override(word)
        values = _values(override, parser, reading.max_cells)
    except Exception as error:  # the grammar has its own errors
        given, _, value = word.partition("=")
        if why := secrets.refusal(given.lstrip("+~"), value):
            reading.refused.append(f"{why} (command line)")
            return
        if secrets.assigns_secret(value):
            what = "cannot be read and sets something named like a secret; settings are written into files"
            reading.refused.append(f"{given} {what}: {secrets.WAY_OUT} (command line)")
            return
        way_out = "expected key=value or key=a,b; quote a value with special characters: 'key=\"...\"'"
        say(f"cannot read {word!r} on the command line: {str(error).splitlines()[0]}; {way_out}")
        return
    key = override.get_key_element().lstrip("+~")
    if why := next(
        (why for value in [*values, word.partition("=")[2]] if (why := secrets.refusal(key, value))), None
    ):
        reading.refused.append(f"{why} (command line)")
        return
    key = f"do.{key}" if key in VERB_KEYS else key
    if key == "do.cell":
        values = [word.partition("=")[2]]  # a key can look like a number: 12345678, 1e234567
    if override.is_delete():
        say(f"cannot delete {key!r} ({word} on the command line): set another value instead")
    elif not values:
        say(f"{key} has no values ({word} on the command line): give it one value or more")
    elif key == "sweep":
        reading.sweeps += map(str, values)
    elif key == "hydra.mode" or key.startswith(("hydra/sweeper", "hydra.sweeper")):
        say(
            f"cannot set {key} ({word} on the command line): bench makes the cells of a command itself; leave this word out"
        )
    elif key.startswith(("hydra.", "hydra/")) and not key.startswith(("hydra/launcher", "hydra.launcher.")):
        reading.hydra.append(word)
    elif key in reading.given:
        say(f"{key} is given twice ({reading.words[key]} and {word} on the command line)")
    elif is_session(key) and len(values) > 1:
        say(
            f"{key} takes one value, since it cannot be an axis; got {len(values)} ({word} on the command line)"
        )
    else:
        reading.given[key], reading.words[key] = values, word


def _values(override: Override, parser: OverridesParser, most: int) -> list[Any]:
    if override.is_delete():
        return []
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_range_sweep():
        if (n := _range_length(override.value())) > most:  # type: ignore[arg-type]
            raise ValueError(f"it is a range of {n} values, more than max_cells={most} allows")
        return list(override.sweep_iterator())
    if not override.is_choice_sweep() or isinstance(override.value(), Glob):
        raise ValueError("an axis must list its values, such as a,b,c")
    encoded = override.sweep_iterator(transformer=Transformer.encode)
    return [parser.parse_override(f"key={value}").value() for value in encoded]


def _range_length(values: RangeSweep) -> int:
    """Number of values in a range; none is made. Raises ValueError for a range without an end."""
    ends = (values.start or 0, values.stop or 0, values.step)
    if not all(math.isfinite(end) for end in ends) or not values.step:
        raise ValueError(f"a range from {ends[0]} to {ends[1]} in steps of {ends[2]} has no end")
    start, stop, step = (Decimal(end) for end in ends)
    return max(0, math.ceil((stop - start) / step))


# Sweep files ---------------------------------------------------------------------------------------------------------


def load_sweep(path: Path) -> DictConfig:
    """A sweep file as it is written. Raises BadSweep where it cannot be read."""
    try:
        node = load_own(path) if path.parent == SWEEPS else load_foreign(path)
    except Exception as error:  # errors of YAML, OmegaConf and the file system
        reason = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise BadSweep(f"{sweep_label(path)} cannot be read: {reason}") from error
    node = with_evaluations(node)
    if not isinstance(node, DictConfig):
        raise BadSweep(
            f"{sweep_label(path)} cannot be read: expected sections by name (axes, grids, ...), got a list"
        )
    written = OmegaConf.to_container(node)
    _check_values(written, "", sweep_label(path))
    if why := secrets.refusal("", written):
        raise BadSweep(f"{sweep_label(path)}: {why}")
    return node


def with_evaluations(node: Any) -> Any:
    """A sweep file with its top-level `judge: [a, b]`, the evaluations of every cell, as an axis of one value."""
    written = OmegaConf.to_container(node) if isinstance(node, DictConfig) else {}
    if not isinstance(written, dict) or not isinstance(judges := written.get("judge"), list):
        return node
    del written["judge"]
    grids = written["grids"] if isinstance(written.get("grids"), list) else [written.setdefault("axes", {})]
    for grid in grids:
        if isinstance(grid, dict):
            grid.setdefault("judge", [judges])
    return OmegaConf.create(written)


def load_foreign(path: Path) -> Any:
    """A YAML file of the user's as OmegaConf's node. Raises BadFile for one whose aliases expand to too many
    values, which OmegaConf would expand."""
    content = read_text(path)
    parse_yaml(content, str(path))
    return OmegaConf.load(io.StringIO(content))


AXES, EXPECT = ("axes", "grids"), "expect"


@dataclass(frozen=True)
class Parts:
    """A sweep file's keys for every scale, and those of its parts, for scales of one kind."""

    common: Tree = field(default_factory=dict)
    of_kind: Mapping[str, Tree] = field(default_factory=dict)  # world, real: where the file has such a part

    def keys(self, kind: str) -> frozenset[str]:
        """Dotted keys that the file sets for scales of this kind."""
        return frozenset(key for part in (self.common, self.of_kind.get(kind, {})) for key, _ in leaves(part))

    def merged(self, tree: Tree, kind: str) -> Tree:
        """A composed config with the file's keys over it, and the part of `kind` over them. A part's axes or
        grids replace the file's; its expectations are added."""
        part, world = self.of_kind.get(kind, {}), tree.get("world")
        tree = {key: value for key, value in tree.items() if key != "real" or not isinstance(value, dict)}
        if isinstance(world, dict) and "world" in self.of_kind:  # Hydra merged the whole of a user's file
            tree["world"] = {key: world[key] for key in world if key not in self.of_kind["world"]} or None
        tree = merged(tree, self.common)
        if any(key in part for key in AXES):
            tree = {key: value for key, value in tree.items() if key not in AXES}
        if EXPECT in part and isinstance(tree.get(EXPECT), list) and isinstance(part[EXPECT], list):
            part = part | {EXPECT: [*tree[EXPECT], *part[EXPECT]]}
        return merged(tree, part)

    def choices(self) -> dict[str, list[str]]:
        """Choices of groups in the axes for every scale, where no interpolation gives them."""
        grids = self.common.get("grids") or [self.common.get("axes")]
        choices: dict[str, list[str]] = {}
        for grid in grids if isinstance(grids, list) else []:
            for key in grid.keys() & set(CELL_GROUPS) if isinstance(grid, dict) else ():
                some = grid[key] if isinstance(grid[key], list) else [grid[key]]
                choices.setdefault(key, []).extend(c for c in some if isinstance(c, str) and "${" not in c)
        return choices

    def lacking(self, kind: str, scale: str, where: str) -> str | None:
        """Why the file has nothing to run at scales of this kind; None if it has."""
        axes = {other for other, part in self.of_kind.items() if any(key in part for key in AXES)}
        if not axes or kind in axes or any(key in self.common for key in AXES):
            return None
        if kind == "real":
            return f"{where} is only about the controlled world, got scale={scale}: use scale=world"
        return f"{where} is only about pretrained models, got scale={scale}: use one of their scales, such as scale=zephyr_7b"


def parts_of(written: Tree, where: str) -> Parts:
    """A sweep file's keys by part. `world:` with settings of the world's section alone is that section. Raises
    BadSweep for a part that is no section."""
    of_kind: dict[str, Tree] = {}
    for kind in get_args(Kind):
        part = written.get(kind)
        if kind == "world" and isinstance(part, dict):
            part = {key: value for key, value in part.items() if key not in World.model_fields} or None
        if part is not None and not isinstance(part, dict):
            raise BadSweep(f"{where}: {kind} must hold sections for scales of that kind, got {part!r:.80}")
        if part:
            of_kind[kind] = part
    taken = of_kind.get("world", {})
    common = {key: value for key, value in written.items() if key not in (*get_args(Kind), "defaults")}
    if isinstance(world := written.get("world"), dict) and (
        rest := {k: world[k] for k in world if k not in taken}
    ):
        common["world"] = rest
    return Parts(common, of_kind)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in nested sections."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def merged(old: Any, new: Any) -> Any:
    """The new value over the old one as Hydra does it: sections are merged, other values are replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merged(old.get(key), value) for key, value in new.items()}
    return new


class ForeignConfigs(FileConfigSource):
    """Hydra's source of config files in `--config-dir`; each file is checked before Hydra reads it."""

    @staticmethod
    def scheme() -> str:
        return "foreign"

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path) / self._normalize_file_name(config_path)
        if not path.exists():
            raise ConfigLoadError(f"Config not found : {path}")
        header = ConfigSource._get_header_dict(read_text(path)[:512])
        return ConfigResult(
            config=with_evaluations(load_foreign(path))
            if path.parent.name == "sweep"
            else load_foreign(path),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=header,
        )


RECORDED = {"model": "sizes", "data": "rows", "sft": "rows"}  # Records in config files that are no settings.


class OwnConfigs(FileConfigSource):
    """Hydra's source of bench's own config files, without their records that are no settings. A method's file
    holds its learning rates as `rates` and further settings as `by_scale`, by scale; here they become the
    scales' `learning_rate` and `settings`, by method, so that adding a method touches no scale file and a
    sweep can set all rates of a scale in one place."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path) / self._normalize_file_name(config_path)
        if Path(self.path) != CONF or not path.exists():
            return super().load_config(config_path)
        status = path.stat()
        return pickle.loads(_own_config(self.provider, path, (status.st_mtime_ns, status.st_size)))  # type: ignore[no-any-return]


@cache
def _own_config(provider: str, path: Path, _version: tuple[int, int]) -> bytes:
    """One of our config files as Hydra takes it, read once in each version. Pickled, because Hydra changes what
    it is given; a copy by pickle takes a tenth of the time of a deep copy."""
    config = load_own(path)
    if isinstance(config, DictConfig):
        for name in OF_SCALES if path.parent.name == "method" else ():
            config.pop(name, None)
        if what := RECORDED.get(path.parent.name):
            config.pop(what, None)
        if path.parent.name == "scale":
            of_methods = {field: _of_methods(name).get(path.stem, {}) for name, field in OF_SCALES.items()}
            config = OmegaConf.merge(of_methods, config)
    header = ConfigSource._get_header_dict(path.read_text(encoding="utf-8")[:512])
    return pickle.dumps(ConfigResult(provider, f"{OwnConfigs.scheme()}://{CONF}", config, header))


class HydraConfigs(ImportlibResourcesConfigSource):
    """Hydra's source of its own config files; each is read once."""

    def load_config(self, config_path: str) -> ConfigResult:
        if self.path != "hydra.conf":
            return super().load_config(config_path)
        if config_path not in _OF_HYDRA:
            _OF_HYDRA[config_path] = pickle.dumps(super().load_config(config_path))
        return pickle.loads(_OF_HYDRA[config_path])  # type: ignore[no-any-return]


_OF_HYDRA: dict[str, bytes] = {}


class StructuredConfigSource(structured_config_source.StructuredConfigSource):
    """Hydra's source of registered configs, under the name that Hydra looks for. Hydra copies its sources for
    each composition and list of options; this one never changes, so it needs no copy of all sweeps."""

    def __deepcopy__(self, _: dict[int, Any]) -> StructuredConfigSource:
        return self


# OmegaConf's loader over libyaml's parser: 15 times as fast, with errors in other words.
_OMEGA = get_yaml_loader()
_FAST = type("_FastLoader", (yaml.CSafeLoader, _OMEGA), {}) if yaml.__with_libyaml__ else _OMEGA


def load_own(path: Path) -> Any:
    """One of our YAML files as OmegaConf's node. Errors are OmegaConf's own."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _FAST)
    except (yaml.YAMLError, ValueError):
        return OmegaConf.load(path)
    return OmegaConf.create({} if content is None else content)


OF_SCALES = {
    "rates": "learning_rate",
    "by_scale": "settings",
}  # Sections of a method's file: fields of a scale.


@cache
def _of_methods(section: str) -> dict[str, dict[str, Any]]:
    """A section of the methods' files by scale and method; methods are in the order of tables."""
    order = [*METHODS, *sorted(path.stem for path in (CONF / "method").glob("*.yaml"))]
    by_scale: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(order):
        path = CONF / "method" / f"{name}.yaml"
        config: Any = OmegaConf.to_container(load_own(path)) if path.exists() else {}
        for scale, value in config.get(section, {}).items():
            by_scale.setdefault(scale, {})[name] = value
    return by_scale


def _check_values(value: Any, key: str, where: str) -> None:
    """Raises BadSweep for a resolver (`${oc.env:...}`), since it could read things that another person's file
    does not show. `${scale.seeds}`, the name of a setting, is allowed."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_values(item, f"{key}.{name}" if key else str(name), where)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, key, where)
    elif isinstance(value, str) and "${" in value:
        try:
            resolves = _resolves(parse(value))
        except GrammarParseError as error:
            raise BadSweep(f"{where}: {key} cannot be read: {' '.join(str(error).split())}") from error
        if resolves:
            way_out = "a sweep file must not read the environment or anything else outside it: write the value itself"
            raise BadSweep(
                f"{where}: {key} must be a value or the name of a setting (${{scale.seeds}}), got {value}; {way_out}"
            )


def _resolves(tree: Any) -> bool:
    """Whether a parsed interpolation calls a resolver anywhere in it."""
    if isinstance(tree, OmegaConfGrammarParser.InterpolationResolverContext):
        return True
    return any(_resolves(child) for child in getattr(tree, "children", None) or ())


def resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """A config with its interpolations expanded. Raises BadSweep for interpolations that contain themselves
    or expand to more than MAX_WRITTEN_OUT characters, and OmegaConf's own errors for unknown names."""
    _written_out(tree, "", tree, {})
    try:
        return _filled(tree, tree)  # type: ignore[no-any-return]
    except LookupError:
        return OmegaConf.to_container(OmegaConf.create(tree), resolve=True)  # type: ignore[return-value]


_NAMED = re.compile(r"\$\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}")


def _filled(value: Any, tree: dict[str, Any]) -> Any:
    """A value with each `${name.of.a.setting}` replaced, as OmegaConf does it, in a twentieth of its time. Raises
    LookupError for any other interpolation, and for a setting without a value."""
    if isinstance(value, dict):
        return {key: _filled(part, tree) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, tree) for part in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    name = _NAMED.fullmatch(value)
    target = _at(tree, name[1]) if name else None
    if target is None or target == "???":
        raise LookupError(value)
    return _filled(target, tree)


MAX_WRITTEN_OUT = 1_000_000
_REFERENCE = re.compile(r"\$\{\s*(\.*)([^${}:\s]*)\s*\}")
_NESTED = re.compile(r"\$\{[^:{}]*\$\{")


def _written_out(value: Any, key: str, tree: dict[str, Any], sizes: dict[str, int | None]) -> int:
    """Length in characters of a value with its interpolations expanded; each value is measured once."""
    if key in sizes:
        if (known := sizes[key]) is None:
            raise BadSweep(f"{key}: an interpolation (${{...}}) leads back to itself: write the value itself")
        return known
    sizes[key] = None
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        size = 1 + sum(
            _written_out(part, f"{key}.{name}" if key else str(name), tree, sizes) for name, part in parts
        )
    else:
        size = len(str(value))
        if isinstance(value, str) and _NESTED.search(value):
            raise BadSweep(
                f"{key} must be a value or the name of a setting (${{scale.seeds}}), got {value[:80]}: write the value itself"
            )
        for dots, name in _REFERENCE.findall(value) if isinstance(value, str) else ():
            above = key.split(".")[: -len(dots)] if dots else []
            place = ".".join([*above, *re.findall(r"[^.\[\]]+", name)])
            if (target := _at(tree, place)) is not None:
                size += _written_out(target, place, tree, sizes)
    if size > MAX_WRITTEN_OUT:
        raise BadSweep(
            f"{key}: its interpolations expand to more than {MAX_WRITTEN_OUT:,} characters: write the value itself"
        )
    sizes[key] = size
    return size


def _at(tree: Any, place: str) -> Any:
    """The value at a dotted place; None where there is none."""
    for name in place.split("."):
        if isinstance(tree, list) and name.isdecimal() and int(name) < len(tree):
            tree = tree[int(name)]
        elif isinstance(tree, dict) and name in tree:
            tree = tree[name]
        else:
            return None
    return tree


def _read_environment(name: str, *default: Any) -> Any:
    """The resolver `${oc.env:NAME}`, for folders in the user's own config files. Raises ValueError for a
    variable that holds a secret."""
    if secrets.is_secret_variable(name) or secrets.holders(os.environ.get(name, "")):
        raise ValueError(
            f"the environment variable {name} is secret, and settings are written into files: a config must not read it"
        )
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _read_environment, replace=True)


@functools.cache
def register_sources() -> None:
    """Make Hydra read our config files and the folders of `--config-dir` through our sources."""
    Plugins.instance()  # registers Hydra's own sources, before ours
    SourcesRegistry.instance().register(ForeignConfigs)
    for source in (
        OwnConfigs,
        HydraConfigs,
        StructuredConfigSource,
    ):  # in place of Hydra's own; other files are read as ever
        SourcesRegistry.instance().types[source.scheme()] = source


@functools.cache
def register_sweeps(name: str | None = None) -> None:
    """Make our sweep files options of Hydra's group `sweep`: only the named one where it exists, since Hydra
    copies every registered file many times. A broken file is left out."""
    register_sources()
    paths = sorted(SWEEPS.glob("*.yaml"))
    for path in [path for path in paths if path.stem == name] or paths:
        with contextlib.suppress(BadSweep):  # reported when the command names it
            ConfigStore.instance().store(
                group="sweep", name=path.stem, node=load_sweep(path), package="_global_", provider=path.name
            )


def sweep_path(name: str, folders: Sequence[Path]) -> Path:
    """The file of a sweep: the user's (`--config-dir`), else ours."""
    own = (folder / "sweep" / f"{name}.yaml" for folder in folders)
    return next((path for path in own if path.exists()), SWEEPS / f"{name}.yaml")


def sweep_label(path: Path) -> str:
    """The name of a sweep file in messages."""
    return f"sweeps/{path.name}" if path.parent == SWEEPS else str(path)


def question(path: Path) -> str:
    """The question of a sweep file: its first comment, up to the expectation."""
    words = []
    for line in read_text(path).split("\n"):
        text = line.lstrip("#").strip()
        if not line.startswith("#") or text.startswith(("Expected", "python -m")):
            break
        if not text.startswith("@package"):
            words.append(text.removeprefix("Question:").strip())
    return secrets.shown(" ".join(words).strip())


def read_grids(config: Mapping[str, Any], where: str) -> list[Grid]:
    """The grids of a composed sweep file. Raises BadSweep where `axes` or `grids` are not lists of values by
    key."""
    axes, grids = config.get("axes"), config.get("grids")
    if axes is not None and grids is not None:
        raise BadSweep(
            f"{where}: a sweep has either axes or grids, got both: put the common axes into each grid"
        )
    if grids is None:
        grids = [{} if axes is None else axes]
    if not isinstance(grids, list) or not grids or not all(isinstance(grid, Mapping) for grid in grids):
        raise BadSweep(
            f"{where}: grids must be a list of sections with `key: [values]`, and axes one such section"
        )
    return [{str(key): _as_list(value, str(key), where) for key, value in grid.items()} for grid in grids]


def _as_list(value: Any, key: str, where: str) -> list[Any]:
    if is_session(key):
        raise BadSweep(
            f"{where}: {key!r} cannot be an axis, because it sets how a command runs and changes no cell: set it on the command line"
        )
    if isinstance(value, Mapping):
        raise BadSweep(
            f"{where}: axis {key!r} must be a list of values; write nested keys with dots (method.beta)"
        )
    if value is None or value == []:
        raise BadSweep(f"{where}: axis {key!r} has no values: list one or more")
    return value if isinstance(value, list) else [value]


# Unfolding -----------------------------------------------------------------------------------------------------------


def replace_axes(grids: Sequence[Grid], given: Mapping[str, Sequence[Any]]) -> list[Grid]:
    """The grids with the command line's axes and values in place of the file's.

    A group choice keeps the grids that have it, also with a folder (`model=NAME:DIR`); a choice that no grid
    has is combined with the axes of all grids.
    """
    replaced: list[Grid] = [dict(grid) for grid in grids]
    for key, values in given.items():
        picked: list[Grid] = []
        if key in CELL_GROUPS and len(replaced) > 1:
            picked = [
                {**grid, key: kept}
                for grid in replaced
                if (kept := [v for own in grid.get(key, []) for v in values if own in (v, choice_of(key, v))])
            ]
        others = [v for v in values if not any(v in grid[key] for grid in picked)]
        replaced = picked + ([{**grid, key: others} for grid in replaced] if others else [])
    return replaced


def varied(all_points: Sequence[Point]) -> tuple[str, ...]:
    """Keys that differ between a command's points on purpose: with different values, or set for some points
    only. Files of completions do not count, since they set nothing of a training."""
    cells = [point for point in all_points if COMPLETIONS not in point]
    keys = dict.fromkeys(key for point in cells for key in point)
    return tuple(key for key in keys if len({repr(point.get(key, "as composed")) for point in cells}) > 1)


def points(grids: Sequence[Grid], given: Mapping[str, Sequence[Any]], *, of_sweep: bool) -> list[Point]:
    """Every point of a command: the grids with the command line's axes, plus each file of `completions=`.

    Such a file is judged as the grids' cells are, once for each of their data, scales and judges. Without a
    sweep, and where the command sets no method or model, the files are the only points.
    """
    return [point for grid in _grids_of(grids, given, of_sweep=of_sweep) for point in unfold(grid)]


def n_points(grids: Sequence[Grid], given: Mapping[str, Sequence[Any]], *, of_sweep: bool) -> int:
    """Number of points of a command, counted before any is made; equal points count twice."""
    return sum(
        math.prod(map(len, grid.values()))
        for grids_of_one in _grids_of(grids, given, of_sweep=of_sweep)
        for grid in grids_of_one
    )


def _grids_of(
    grids: Sequence[Grid], given: Mapping[str, Sequence[Any]], *, of_sweep: bool
) -> list[list[Grid]]:
    """The grids to unfold together, and a separate list for the files of completions."""
    files = given.get(COMPLETIONS, [])
    given = {key: values for key, values in given.items() if key != COMPLETIONS}
    replaced = replace_axes(grids, given)
    unfolds_grids = of_sweep or any(key.split(".")[0] in ("method", "model") for key in given)
    together = [replaced] if unfolds_grids or not files else []
    if files:
        file_grid: dict[str, list[Any]] = {COMPLETIONS: list(files)}
        for key, values in [(key, values) for grid in replaced for key, values in grid.items()]:
            if (
                key.split(".")[0] in ("judge", "world", "scale")
                or key == "data"
                or (key.startswith("data.") and key in given)
            ):
                file_grid[key] = list(
                    {repr(value): value for value in [*file_grid.get(key, []), *values]}.values()
                )  # sections have no hash
        together.append([file_grid])
    return together


def is_path(group: str, value: Any) -> bool:
    """Whether a group's choice is a model's folder, with a slash: `model=DIR` is short for model=local
    model.path=DIR, and `model=NAME:DIR` for model=NAME model.path=DIR."""
    return group == "model" and isinstance(value, str) and ("/" in value or value.startswith("~"))


NAMED_FOLDER = re.compile(r"(\w+):(.+)")  # model=NAME:DIR


def choice_of(group: str, value: Any) -> Any:
    """A group's choice without the folder that `model=NAME:DIR` gives it."""
    named = NAMED_FOLDER.fullmatch(value) if is_path(group, value) else None
    return named[1] if named else value


def full_point(point: Point) -> dict[str, Any]:
    """A point with the short forms `model=DIR`, `model=NAME:DIR` and `judge=[a,b]` expanded to settings of a cell. Raises
    BadSweep for a list of judges that names one twice, or none."""
    full: dict[str, Any] = {}
    for key, value in point.items():
        if key == "judge" and isinstance(value, list):
            full |= full_point(_evaluations(value, point.get("judge.judges")))
        elif key == "judge.judges" and key in full:  # it was read with the list
            continue
        elif is_path(key, value) and (named := NAMED_FOLDER.fullmatch(value)):
            full |= {"model": named[1], "model.path": named[2]}
        elif is_path(key, value):
            full |= {"model": "local", "model.path": value}
            full.setdefault("model.name", as_name(user_path(value).name))
        elif key == "model.hub" and isinstance(value, str):
            full["model.hub"] = value
            if point.get("model") == "hub":
                full.setdefault("model.name", as_name(value.rpartition("/")[2]))
        elif key != "model.path" or not is_path(
            "model", point.get("model")
        ):  # a command with both is refused elsewhere
            full[key] = value
    return full


def _evaluations(judges: list[Any], settings: Any) -> Point:
    """A cell with several evaluations, each with the name of its judge as its label, and their own settings."""
    if not judges:
        raise BadSweep("judge must be a list of one judge or more, got an empty list")
    if twice := [judge for n, judge in enumerate(judges) if judge in judges[:n]]:
        way_out = "judge=suite 'judge.judges={a: {judge: NAME}, b: {judge: NAME}}'"
        raise BadSweep(
            f"judge must be a list of different judges, got {twice[0]} twice; to use it twice, give labels: {way_out}"
        )
    if len(judges) == 1 and settings is None:
        return {"judge": judges[0]}
    by_label: dict[str, Any] = {str(judge): {"judge": judge} for judge in judges}
    for label, own in settings.items() if isinstance(settings, dict) else ():
        by_label[label] = by_label.get(label, {}) | own if isinstance(own, dict) else own
    return {"judge": name_of(SuiteJudge), "judge.judges": by_label}


def unfold(grids: Sequence[Grid]) -> list[Point]:
    """Every point of every grid, in the order of the file, each once."""
    points: dict[str, Point] = {}
    for grid in grids:
        for combination in itertools.product(*grid.values()):
            point = dict(zip(grid, combination, strict=True))
            points.setdefault(repr(sorted(point.items(), key=lambda item: item[0])), point)
    return list(points.values())

"""Sweep files and the command line to settings of cells: which values each point of the grid sets.

A sweep file holds `axes:` (a product) or `grids:` (a list of products, for axes that differ by method). On the command line
`key=a,b` is an axis too. A command-line axis or value replaces that key's axis in every grid; a group choice (`method=kto`)
that only some grids make picks those grids.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from omegaconf import OmegaConf

ROOT = Path(__file__).parent
CONF = next(path for path in (ROOT / "_conf", ROOT.parent / "conf") if path.is_dir())
SWEEPS = next(path for path in (ROOT / "_sweeps", ROOT.parent / "sweeps") if path.is_dir())

Point = Mapping[str, Any]  # dotted key or group -> value
Grid = Mapping[str, Sequence[Any]]


class BadSweep(ValueError):
    """A sweep file whose axes cannot be read; the message says where."""


@dataclass(frozen=True)
class CommandLine:
    """The words after `python -m bench`, sorted by what they do."""

    sweep: str | None = None
    axes: dict[str, list[Any]] = field(default_factory=dict)  # `key=a,b`
    values: dict[str, Any] = field(default_factory=dict)  # `key=a`
    added: frozenset[str] = frozenset()  # keys written with + or ++
    passed: tuple[str, ...] = ()  # hydra.* and hydra/*: Hydra's own business
    problems: tuple[str, ...] = ()


def parse_command_line(words: Sequence[str]) -> CommandLine:
    """Read Hydra's override grammar; what cannot be read becomes a problem, not an exception."""
    axes: dict[str, list[Any]] = {}
    values: dict[str, Any] = {}
    added, passed, problems, sweeps = set(), [], [], []
    parser = OverridesParser.create()
    for word in words:
        try:
            override = parser.parse_override(word)
        except Exception as error:  # the grammar raises its own family of errors
            problems.append(f"cannot read {word!r} on the command line: {str(error).splitlines()[0]}; expected key=value or key=a,b")
            continue
        key = override.get_key_element().lstrip("+~")
        if key.startswith("hydra"):
            passed.append(word)
        elif key == "sweep":
            sweeps.append(str(override.value_or_choice) if hasattr(override, "value_or_choice") else word.split("=", 1)[-1])
        elif override.is_delete():
            problems.append(f"cannot delete {key!r} ({word} on the command line): set another value instead")
        else:
            if override.is_add() or override.is_force_add():
                added.add(key)
            if override.is_sweep_override():
                axes[key] = _choices(override, key, parser)
            else:
                values[key] = override.value()
    if len(sweeps) > 1 or any("," in name for name in sweeps):
        problems.append(f"one sweep at a time, got {', '.join(sweeps)} (command line): run the command once for each")
    return CommandLine(sweeps[0] if sweeps else None, axes, values, frozenset(added), tuple(passed), tuple(problems))


def _choices(override: Override, key: str, parser: OverridesParser) -> list[Any]:
    encoded = override.sweep_iterator(transformer=Transformer.encode)
    return [parser.parse_override(f"{key}={value}").value() for value in encoded]


def register_sweeps(folder: Path = SWEEPS) -> dict[str, str]:
    """Make each file of the folder an option of Hydra's group `sweep`; returns name -> reason of the files that are broken."""
    broken = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            node = OmegaConf.load(path)
        except Exception as error:  # YAML's and OmegaConf's: one broken file must not break the others
            broken[path.stem] = " ".join(str(error).split())
            continue
        ConfigStore.instance().store(group="sweep", name=path.stem, node=node, package="_global_", provider=f"sweeps/{path.name}")
    return broken


def read_grids(config: Mapping[str, Any], where: str) -> list[Grid]:
    """The grids of a composed sweep file; BadSweep when `axes` and `grids` are not lists of values by key."""
    axes, grids = config.get("axes"), config.get("grids")
    if axes is not None and grids is not None:
        raise BadSweep(f"{where}: axes and grids exclude each other; put common axes into each grid")
    if grids is None:
        grids = [axes or {}]
    if not isinstance(grids, list) or not all(isinstance(grid, Mapping) for grid in grids):
        raise BadSweep(f"{where}: grids must be a list of `key: [values]` sections, axes one such section")
    return [{str(key): _as_list(value, key, where) for key, value in grid.items()} for grid in grids]


def _as_list(value: Any, key: str, where: str) -> list[Any]:
    if isinstance(value, Mapping):
        raise BadSweep(f"{where}: axis {key!r} must be a list of values; write nested keys with dots (method.beta)")
    values = value if isinstance(value, list) else [value]
    if not values:
        raise BadSweep(f"{where}: axis {key!r} has no values")
    return values


def replace_axes(grids: Sequence[Grid], command: CommandLine, groups: Sequence[str]) -> list[Grid]:
    """Command-line axes and values over those of the file; a group choice picks the grids that make it, if any does."""
    replaced: list[Grid] = [dict(grid) for grid in grids]
    given = {**{key: [value] for key, value in command.values.items()}, **command.axes}
    for key, values in given.items():
        picked = [{**grid, key: kept} for grid in replaced if (kept := [v for v in grid.get(key, []) if v in values])]
        if key in groups and picked and len(replaced) > 1:
            missing = [v for v in values if not any(v in grid[key] for grid in picked)]
            replaced = picked + ([{**picked[0], key: missing}] if missing else [])
        elif key in command.axes or any(key in grid for grid in replaced):
            replaced = [{**grid, key: values} for grid in replaced]
    return replaced


def unfold(grids: Sequence[Grid]) -> list[Point]:
    """Every point of every grid, in the order of the file, each once."""
    points: dict[str, Point] = {}
    for grid in grids:
        for combination in itertools.product(*grid.values()):
            point = dict(zip(grid, combination, strict=True))
            points.setdefault(repr(sorted(point.items(), key=lambda item: item[0])), point)
    return list(points.values())

"""Composes every cell of a command by Hydra's API, and reports all problems in one message, before torch is
imported."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from bench import papers, secrets
from bench.cli import sweep_files as sweeps
from bench.cli.checks import problems_of
from bench.cli.files import Fetches, Files
from bench.cli.messages import GROUPS, MEMBERS, SOURCES, Where, in_words, one_line, short, unknown
from bench.cli.sweep_files import CELL_GROUPS, SESSION, CommandLine, Tree, is_session, leaves, merged
from bench.cli.words import CONF, SWEEPS
from bench.cli.words import choices as choices_of
from bench.config import (
    HELDOUT,
    MAX_CELLS,
    NAME_WORDS,
    Cell,
    Expectation,
    GoldJudge,
    IterativeDpo,
    Kind,
    MixtureSource,
    PublicRows,
    Scale,
    Session,
    SuiteJudge,
    Written,
    as_name,
    is_name,
    judge_facts,
    method_facts,
    misfits,
    name_of,
    unread,
)
from bench.config.errors import BadConfig
from bench.models import hub
from bench.planning.inputs import Sources

CELL_SECTIONS = tuple(Cell.model_fields)
SECTIONS = (*CELL_SECTIONS, "scale", *SESSION)
OF_THE_JURY = ("items", "n_items", "opponent", "decoding")
OF_A_BENCHMARK = ("items", "references", "baseline", "prompts")  # Files that no two evaluations share.
FETCHED: dict[str, Fetches] = {
    "run": "all",
    "audit": "all",
    "plan": "not weights",
}  # What each command fetches from the hub.
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class CheckedCommand:
    """A command that passed all checks: its session, its cells and the files they read."""

    session: Session
    sweep: str | None  # name of its file
    replaced: bool  # True: the command line changed the file's cells
    title: str  # the question in the file
    command: str  # words that make these cells
    cells: list[Cell]
    sources: list[Sources]  # one for each cell
    expectations: tuple[Expectation, ...] = ()  # from the sweep file
    axes: tuple[str, ...] = ()  # keys and groups that differ between the cells on purpose
    away: tuple[str, ...] = ()  # why a plan has to do without models or rows of the hub
    partly: tuple[str, ...] = ()  # settings of the command line that some methods of the sweep lack
    published: Tree = field(default_factory=dict)  # the sweep file's part of that name, see papers.beside


def open_command(words: Sequence[str]) -> CheckedCommand:
    """Cells and session of a command; raises BadConfig with all problems."""
    command = sweeps.parse_command_line(words)
    if command.refused:
        raise BadConfig(command.refused)
    sweeps.register_sources()
    if command.sweep is not None:
        sweeps.register_sweeps(command.sweep)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return _Opening(command, list(command.problems)).checked()


@dataclass
class _Opening:
    """The checks of one command; `problems` collects every fault."""

    command: CommandLine
    problems: list[str]
    sweep: str | None = None
    sweep_file: str = "the command line"
    in_sweep: frozenset[str] = frozenset()
    parts: sweeps.Parts = field(default_factory=sweeps.Parts)
    files: Files = field(init=False)
    _had: set[str] = field(default_factory=set)  # method's keys of the command line that a point has
    _lacking: dict[str, dict[str, str]] = field(default_factory=dict)  # the others: problem by method
    _kinds: dict[str, str] = field(default_factory=dict)  # the first scale of each kind: world, real
    _of_scale: dict[str, dict[str, list[Any]]] = field(
        default_factory=dict
    )  # by scale: the axis's values with it
    _composed: dict[tuple[str, ...], tuple[Tree, dict[str, str]] | None] = field(default_factory=dict)
    _known: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = Files(self.problems)

    def checked(self) -> CheckedCommand:
        self._choose_sweep()
        given = self._known_choices()
        if "model.path" in given and (
            folders := [value for value in given.get("model", []) if sweeps.is_path("model", value)]
        ):
            self.problems.append(
                f"model={folders[0]} already names the folder: leave out {self.command.words['model.path']}"
            )
        of_session = {key: values[0] for key, values in given.items() if is_session(key)}
        of_cells = {key: values for key, values in given.items() if not is_session(key)}
        bases = self._bases(of_session, of_cells)
        base = next(iter(bases), None)
        grids = self._grids(bases)
        session = self._session(*base) if base else None
        if session and session.results_problem:
            self.problems.append(session.results_problem)
        elif session:
            self.files.lock = session.results_dir / hub.LOCK
            self.files.fetches = FETCHED.get(session.do.name, "nothing")
            self.files.bounds = session.bounds
        expectations = self._expectations(*base) if base else ()
        published = self._published(*base) if base else {}
        cells: dict[Cell, None] = {}
        cell_points = self._cell_points(grids, of_cells, session.max_cells if session else MAX_CELLS)
        for point in cell_points:
            if (composed := self._point({**of_session, **point})) is None:
                continue
            if sweeps.COMPLETIONS not in point and not self._of_one_kind(*composed):
                break
            if cell := self._cell(*composed):
                cells[cell] = None
        for key, lacking in self._lacking.items():  # a sweep's methods differ in their settings
            if key not in self._had and lacking:
                self._report(next(iter(lacking.values())))
        if base:
            misfits_of_loops = unread(
                [cell.method for cell in cells if isinstance(cell.method, IterativeDpo)]
            )
            self.problems += [f"{text} ({base[1].of(key)})" for key, text in misfits_of_loops]
        if base and session:
            self.problems += problems_of(session, list(cells), self.command, base[1])
        if self.problems or session is None:
            raise BadConfig(self.problems)
        title = sweeps.question(sweeps.sweep_path(self.sweep, self.command.folders)) if self.sweep else ""
        sources = [self.files.sources(cell) for cell in cells]
        self._refuse_copies(sources)
        words = self.command.cell_words
        axes = sweeps.varied(cell_points)
        return CheckedCommand(
            session,
            self.sweep,
            self.command.sets_cells,
            title,
            words,
            list(cells),
            sources,
            expectations,
            axes,
            tuple(self.files.away),
            published=published,
            partly=self._partly(),
        )

    def _cell_points(
        self, grids: Sequence[sweeps.Grid], given: Mapping[str, Sequence[Any]], most: int
    ) -> list[sweeps.Point]:
        """The points of the command; an empty list where there are too many."""
        of_sweep = self.sweep is not None
        if (n := sweeps.n_points(grids, given, of_sweep=of_sweep)) > most:
            self.problems.append(
                f"{n} cells are more than max_cells={most}: leave out values of axes, or set max_cells={n}"
            )
            return []
        points = sweeps.points(grids, given, of_sweep=of_sweep)
        for key in ("model.path", "model.hub"):
            models: dict[str, dict[str, None]] = {}
            for point in points:
                full = sweeps.full_point({name: point[name] for name in point if name.startswith("model")})
                name = full.get("model", self._brought(point).get("model"))
                if key in full and isinstance(name, str):
                    models.setdefault(str(full[key]), {})[name] = None
            for value, names in models.items():
                if len(names) > 1:
                    own = ",".join(f"{name}:DIR{n}" for n, name in enumerate(names, 1))
                    self.problems.append(
                        f"{key}={value} would be one model under {len(names)} names ({', '.join(names)}): name each one's "
                        f"folder instead, model={own}"
                    )
                    return []
        return points

    def _partly(self) -> tuple[str, ...]:
        """The settings of the command line that do not reach every cell."""
        return tuple(
            f"{self.command.words[key]} changes no cell of {', '.join(lacking)}: no such setting there"
            for key, lacking in self._lacking.items()
            if lacking
        )

    def _refuse_copies(self, sources: Sequence[Sources]) -> None:
        """Refuse two files of completions with the same content, since they would be one cell."""
        paths: dict[str, set[Path]] = {}
        for source in sources:
            if source.completions:
                paths.setdefault(source.completions.digest, set()).add(source.completions.path)
        if copies := [" and ".join(map(str, sorted(copied))) for copied in paths.values() if len(copied) > 1]:
            raise BadConfig([f"{files} hold the same completions: leave out one" for files in copies])

    def _choose_sweep(self) -> None:
        """Choose the sweep that the command names; an unknown or broken one is reported, and the rest is
        checked without it."""
        if (name := self.command.sweep) is None:
            return
        if not is_name(name):
            self.problems.append(
                f"sweep must be {NAME_WORDS}, got {short(name)} (+sweep= on the command line)"
            )
            return
        path = sweeps.sweep_path(name, self.command.folders)
        if not path.exists():
            self.problems.append(
                unknown("sweep", name, self._options("sweep"), f"+sweep={name} on the command line")
            )
            return
        if path.parent != SWEEPS and (SWEEPS / path.name).exists():
            why = (
                "has the name of a sweep that comes with bench and would overwrite its table: rename the file"
            )
            self.problems.append(f"{path} {why}")
            return
        try:
            written: Any = OmegaConf.to_container(sweeps.load_sweep(path))
            self.parts = sweeps.parts_of(written, sweeps.sweep_label(path))
        except sweeps.BadSweep as error:
            self.problems.append(str(error))
            return
        self.sweep, self.sweep_file = name, sweeps.sweep_label(path)

    def _options(self, group: str) -> list[str]:
        """Choices of a group; `basic`, Hydra's own launcher, is left out because bench does not use it."""
        if group not in self._known:
            name = group.partition("@")[0]
            if group in CELL_GROUPS and not self._hydra_words():  # all of them are files of ours
                self._known[group] = choices_of(name)
            else:
                loader = GlobalHydra.instance().config_loader()
                names = loader.get_group_options(name, ObjectType.CONFIG, "config", self._hydra_words())
                self._known[group] = [one for one in names if one != "basic"]
        return self._known[group]

    def _hydra_words(self) -> list[str]:
        folders = ",".join(
            f"'{sweeps.ForeignConfigs.scheme()}://{folder}'" for folder in self.command.folders
        )
        return [*self.command.hydra, *([f"hydra.searchpath=[{folders}]"] if folders else [])]

    def _known_choices(self) -> dict[str, list[Any]]:
        """Values that the command line sets. Unknown choices of groups are reported and left out, so the rest
        can be checked."""
        given = {}
        for key, values in self.command.given.items():
            known = values
            if key in GROUPS:
                where = f"{self.command.words[key]} on the command line"
                strange = {
                    repr(value): [one for one in _choices(key, value) if not self._is_choice(key, one)]
                    for value in values
                }
                known = [value for value in values if not strange[repr(value)]]
                self.problems += [
                    unknown(key, one, self._options(key), where) for some in strange.values() for one in some
                ]
            if known:
                given[key] = known
        return given

    def _is_choice(self, group: str, choice: Any) -> bool:
        return choice in self._options(group) or sweeps.is_path(group, choice)

    def _bases(
        self, of_session: Mapping[str, Any], of_cells: Mapping[str, Sequence[Any]]
    ) -> list[tuple[Tree, Where]]:
        """The command as composed without its axes, once for each of its scales, which models can bring."""
        chosen = {
            key: values[0]
            for key, values in of_cells.items()
            if key in GROUPS
            and len(values) == 1
            and (key != sweeps.LABELLING_JUDGE or "method" in of_cells)  # the sweep may name its method
        }
        own = self.parts.choices()
        axes = (
            {key: values}
            for key in ("scale", "model")
            for values in (of_cells.get(key), own.get(key, [])[:1])
            if values
        )
        bases: dict[str, tuple[Tree, Where]] = {}
        for key, values in next(axes, {"model": [None]}).items():
            for value in values:
                if base := self._point({**of_session, **chosen} | ({key: value} if value else {})):
                    scale = base[1].choices["scale"]
                    bases.setdefault(scale, base)
                    self._of_scale.setdefault(scale, {}).setdefault(key, []).append(value)
        return list(bases.values())

    def _of_one_kind(self, tree: Tree, where: Where) -> bool:
        """Whether a scale is of the same kind as the command's others; it is reported."""
        brought = "" if where.is_given("scale") else f" (with model={where.choices['model']})"
        self._kinds.setdefault(str(tree["scale"].get("kind")), f"scale={where.choices['scale']}{brought}")
        if len(self._kinds) == 1:
            return True
        of_world, of_real = (self._kinds[kind] for kind in get_args(Kind))
        self._report(
            f"{of_world} is for the controlled world, and {of_real} for pretrained models: run one command for each"
        )
        return False

    def _grids(self, bases: Sequence[tuple[Tree, Where]]) -> list[sweeps.Grid]:
        """The sweep file's grids. An axis may read the scale preset by interpolation, so they are read for
        each of the command's scales."""
        several = len(bases) > 1 or self.parts.of_kind
        if several and not all(self._of_one_kind(*base) for base in bases):
            return []
        grids: list[sweeps.Grid] = []
        for tree, where in bases:
            kind, scale = str(tree["scale"].get("kind")), where.choices["scale"]
            if lacking := self.parts.lacking(kind, scale, self.sweep_file):
                self.problems.append(lacking)
                return []
            try:
                config = sweeps.resolved(
                    {key: tree[key] for key in ("axes", "grids", "scale") if key in tree}
                )
                own = sweeps.read_grids(config, self.sweep_file)
            except (sweeps.BadSweep, OmegaConfBaseException) as error:
                self.problems.append(one_line(error))
                return [{}]
            grids += sweeps.replace_axes(own, self._of_scale[scale]) if len(bases) > 1 else own
        self.in_sweep |= {key for grid in grids for key in grid}
        return self._with_models(grids)

    def _with_models(self, grids: list[sweeps.Grid]) -> list[sweeps.Grid]:
        """The grids with the models that their scales bring, where the command gives each one's folder
        (model=NAME:DIR), so that each goes to its own scale."""
        alone = [
            {**grid, "scale": [scale], "model": [self._brought({"scale": scale}).get("model")]}
            if "model" not in grid
            else grid
            for grid in grids
            for scale in (grid.get("scale", [None]) if "model" not in grid else [None])
        ]
        named = {sweeps.choice_of("model", value) for value in self.command.given.get("model", [])}
        named -= {*self.command.given.get("model", [])}
        return alone if named and {model for grid in alone for model in grid["model"]} <= named else grids

    def _expectations(self, tree: Tree, where: Where) -> tuple[Expectation, ...]:
        """Expectations of the sweep file, as records."""
        written = tree.get("expect", [])
        if not isinstance(written, list) or not all(isinstance(item, dict) for item in written):
            self.problems.append(
                f"expect must be a list of `better:` and `worse:`, got {short(written)} ({where.of('expect')})"
            )
            return ()
        return tuple(
            expectation
            for item in written
            if (expectation := self._valid(Expectation, item, where, "expect"))
        )

    def _published(self, tree: Tree, where: Where) -> Tree:
        """The sweep file's part on published tables, as written."""
        written = tree.get("published") or {}
        _, problems = papers.beside(written)
        self.problems += [f"{problem} ({where.of('published')})" for problem in problems]
        return {} if problems else written

    def _point(self, point: sweeps.Point) -> tuple[Tree, Where] | None:
        """The composed config of one point and the places its values come from; values that cannot be set are
        reported and left out."""
        given = point
        try:
            point = sweeps.full_point(point)
        except sweeps.BadSweep as error:
            self.problems.append(f"{error} ({self.command.words.get('judge', self.sweep_file)})")
            return None
        groups = {key: value for key, value in point.items() if key in GROUPS}
        strange = [group for group, choice in groups.items() if choice not in self._options(group)]
        for group in strange:
            self.problems.append(
                unknown(group, groups[group], self._options(group), f"{group} in {self.sweep_file}")
            )
        if strange or (composed := self._compose({**self._brought(groups), **groups})) is None:
            return None
        tree, choices = copy.deepcopy(composed[0]), composed[1]
        kind = str(tree["scale"].get("kind"))
        tree = self.parts.merged(tree, kind)
        if isinstance(judges := tree.get("judge"), list):  # a part's evaluations of every cell
            if "judge" not in groups:
                return self._point({"judge": judges, **given})
            tree["judge"] = self._section("judge", groups["judge"])
        where = Where(self.command, self.sweep_file, self.in_sweep | self.parts.keys(kind), choices)
        if (
            file := point.pop(sweeps.COMPLETIONS, None)
        ) is not None:  # in place of the sweep's models and methods
            tree["model"] = {"kind": "none", "name": "none"}
            tree["method"] = {
                "name": name_of(Written),
                "path": str(file),
                "label": as_name(Path(str(file)).stem),
            }
        of_sources = {key: value for key, value in point.items() if key.startswith(f"{SOURCES}.")}
        of_judges = (
            {key: value for key, value in point.items() if key.startswith("judge.")}
            if judge_facts(tree.get("judge")).of_several
            else {}
        )
        later = of_judges | of_sources
        for key, value in point.items():
            if key in GROUPS or key in later:
                continue
            problem, methods = _set(tree, key, value, where), self._lacking.setdefault(key, {})
            if problem and self.sweep and key in self.command.given and _of_another_method(tree, key):
                methods[tree["method"]["name"]] = problem
            elif problem:
                self._report(problem)
            else:
                self._had.add(key)
        self._fill_mixture(tree.get("data"), where)
        self.problems += [why for key, value in of_sources.items() if (why := _set(tree, key, value, where))]
        if judge_facts(tree.get("judge")).of_several:
            self._fill_judges(tree, tree["judge"], "judge", of_judges, where)
        else:
            self._fit_answers(tree, tree.get("judge"), "judge", where)
        return tree, where

    def _brought(self, groups: Mapping[str, Any]) -> Mapping[str, str]:
        """Choices of model and data that the scale of these choices brings."""
        scale = groups.get("scale")
        preset = self._section("scale", scale) if scale in self._options("scale") else None
        return preset["brings"] if preset else {}

    def _in_toy_world(self, tree: Tree, where: Where) -> str | None:
        """Why a scale of pretrained models must not be used with what is left of the controlled world; None
        where the command line chose it."""
        left = {
            group: tree[group]["name"] + f" ({where.of(group)})" * (group in where.in_sweep)
            for group in ("model", "data")
            if tree["scale"].get("kind") == "real"
            and group not in self.command.given
            and isinstance(tree[group], dict)
            and tree[group].get("kind") == "world"
        }
        if not left:
            return None
        ways = {"model": "model=DIR", "data": "data=local data.path=FILE, or another of conf/data"}
        has = " and ".join(f"{group}={name}" for group, name in left.items())
        text = f"scale={where.choices['scale']} is for pretrained models, and {has} for the controlled world"
        return f"{text}: add {' and '.join(ways[group] for group in left)}"

    def _report(self, problem: str) -> None:
        """Report a problem that many points may share; what is known there may differ between them."""
        what = problem.partition("; ")[0]
        if all(known.partition("; ")[0] != what for known in self.problems):
            self.problems.append(problem)

    def _fill_judges(self, tree: Tree, judge: Tree, place: str, given: Tree, where: Where) -> None:
        """Fill the members of the jury, or the evaluations of the suite, at `place`, and set the given keys.

        A suite's own keys go to every evaluation that has them; an evaluation's own key wins.
        """
        suite, members = judge_facts(judge) is SuiteJudge, f"{place}.judges"
        of_members = {key: value for key, value in given.items() if key.startswith(f"{members}.")}
        shared = {key: judge.pop(key) for key in judge.keys() - SuiteJudge.model_fields} if suite else {}
        for key, value in given.items():
            if suite and key != members and key not in of_members:
                shared[key.removeprefix(f"{place}.")] = value
            elif key not in of_members and (problem := _set(tree, key, value, where)):
                self.problems.append(problem)
        if not suite:
            self._fit_answers(tree, judge, place, where)
        self._fill_members(judge, members, shared, where)
        filled = judge["judges"] if isinstance(judge["judges"], dict) else {}
        for label, section in filled.items():
            start = f"{members}.{label}."
            own = {key: of_members.pop(key) for key in list(of_members) if key.startswith(start)}
            if judge_facts(section).of_several:
                self._fill_judges(tree, section, start.removesuffix("."), own, where)
            else:
                self.problems += [why for key, value in own.items() if (why := _set(tree, key, value, where))]
                if suite:
                    self._fit_answers(tree, section, start.removesuffix("."), where)
        self.problems += [why for key, value in of_members.items() if (why := _set(tree, key, value, where))]

    def _fit_answers(self, tree: Tree, judge: Any, place: str, where: Where) -> None:
        """Give the world's own prompts the world's decoding, at any scale, and report a user's items that would
        be answered in the world's length. A length that was set is left alone."""
        decoding = judge.get("decoding") if isinstance(judge, dict) else None
        if not isinstance(decoding, dict) or not OF_BENCHMARK.match(str(decoding.get("max_new_tokens"))):
            return
        in_world = isinstance(tree["data"], dict) and tree["data"].get("kind") == "world"
        if judge.get("items") is None or (in_world and judge["items"] == HELDOUT):
            if in_world:
                judge["decoding"] = {
                    key: OF_BENCHMARK.sub(r"\1world}", value) if isinstance(value, str) else value
                    for key, value in decoding.items()
                }
            return
        if judge["items"] == "???":  # reported elsewhere
            return
        tokens = tree["scale"]["judged_tokens"]
        n = tokens[decoding["max_new_tokens"].rpartition(".")[2].removesuffix("}")]
        method = tree.get("method")
        if n > tokens["world"] or (isinstance(method, dict) and method_facts(method) is Written):
            return
        own = judge_facts(judge).answer_tokens
        self.problems.append(
            f"{place}.items={judge['items']} would be answered in {n} tokens, the controlled world's length "
            f"({where.of('scale')}), and its benchmark's answers have up to {own}: take scale=llm or a scale of your "
            f"model, or set {place}.decoding.max_new_tokens={own}"
        )

    def _fill_members(self, judge: Tree, place: str, shared: Tree, where: Where) -> None:
        """Replace each member by the whole section of its `judge: CHOICE` with the member's own settings. A
        member that cannot be is reported, and the record refuses it later.

        `shared`: settings that a suite gives to all its evaluations. A jury gives its items and decoding.
        """
        members = judge.get("judges")
        if members == "???":
            return
        if members is not None and not isinstance(members, dict):
            what = "judges by label, {a: {judge: gold}, b: {judge: reward_model, model: DIR}}"
            self.problems.append(f"{place} must be {what}, got {short(members)} ({where.of(place)})")
            judge["judges"] = "???"  # one report is enough
            return
        suite, unused = judge_facts(judge) is SuiteJudge, dict(shared)
        # Copied, because all points share the command line's value.
        judge["judges"] = self._spliced(members or {}) if suite else dict(members or {})
        for label, own in judge["judges"].items():
            key = f"{place}.{label}"
            choice = own.get("judge") if isinstance(own, dict) else own
            if choice not in self._options("judge"):
                at = where.of(key if where.is_given(key) else "judge")
                self.problems.append(unknown("judge", choice, self._options("judge"), at))
                own = {"judge": (choice := name_of(GoldJudge))}  # a stand-in, so that the rest can be checked
            if (section := self._section("judge", str(choice))) is None:
                continue
            settings = (
                {name: value for name, value in own.items() if name != "judge"}
                if isinstance(own, dict)
                else {}
            )
            if suite:
                for name, value in shared.items():
                    if name not in OF_A_BENCHMARK and _set(section, name, value, where) is None:
                        unused.pop(name, None)
                judge["judges"][label] = merged(section, settings)
            else:
                judge["judges"][label] = self._member(judge, section, settings, key)
        for name in unused if suite else ():
            self.problems.append(_unshared(name, judge["judges"], where))

    def _spliced(self, members: Tree) -> Tree:
        """The evaluations of a suite; those of a suite among them stand in its place."""
        spliced: Tree = {}
        for label, own in members.items():
            choice = own.get("judge") if isinstance(own, dict) and len(own) == 1 else own
            inner = self._section("judge", choice) if choice in self._options("judge") else None
            if inner is None or judge_facts(inner) is not SuiteJudge or not isinstance(inner["judges"], dict):
                spliced[label] = own
                continue
            shared = {key: inner[key] for key in inner.keys() - SuiteJudge.model_fields}
            spliced |= {name: shared | one for name, one in inner["judges"].items() if name not in members}
        return spliced

    def _member(self, jury: Tree, section: Tree, settings: Tree, place: str) -> Tree:
        """The section of a jury's member, with the items and decoding of the jury."""
        if taken := [key for key in (*OF_THE_JURY, "calibration") if key in settings]:
            self.problems.append(
                f"{place}.{taken[0]} cannot differ between members, who judge the same completions: "
                f"set {place.rpartition('.judges.')[0]}.{taken[0]} instead"
            )
        shared = {key: jury[key] for key in OF_THE_JURY}
        if judge_facts(section) is GoldJudge:
            of_gold = {key: shared[key] for key in ("n_items", "decoding")}
            shared = {
                "preference": {**section["preference"], **of_gold},
                "rating": {**section["rating"], **of_gold},
            }
        elif "calibration" in section:
            shared["calibration"] = None  # the table's number is the jury's
        return merged(merged(section, settings), shared)

    def _fill_mixture(self, mixture: Any, where: Where) -> None:
        """Replace each source of a mixture by the source's part of its `data: CHOICE` with the source's own
        settings. A source that cannot be is reported and left out."""
        sources = mixture.get("sources") if isinstance(mixture, dict) else None
        if sources in (None, "???"):
            return
        if not isinstance(sources, dict):
            what = "datasets by label, {a: {data: shp, cap: 1000}, b: {data: oasst1}}"
            self.problems.append(f"{SOURCES} must be {what}, got {short(sources)} ({where.of(SOURCES)})")
            mixture["sources"] = "???"  # one report is enough
            return
        mixture["sources"] = {}
        for label, own in sources.items():
            place = f"{SOURCES}.{label}"
            given = (
                {key: value for key, value in own.items() if key != "data"} if isinstance(own, dict) else {}
            )
            choice = own.get("data") if isinstance(own, dict) else own
            section = self._section("data", str(choice)) if choice in self._options("data") else None
            if (
                section is not None and section["kind"] == "local"
            ):  # the same rows, by the reader of TRL's forms
                section = self._section("data", "dataset")
            if section is not None and isinstance(section.get("sources"), dict):
                parts = ", ".join(str(one["data"]) for one in section["sources"].values())
                text = f"{place} must be one dataset, got the mixture {choice}: name its sources, {parts}"
                self.problems.append(f"{text} ({where.of(place)})")
                continue
            if section is None or section["kind"] != "dataset":
                known = [name for name in self._options("data") if not name.startswith(("world", "mixture"))]
                self.problems.append(unknown("source", choice, known, where.of(place)))
                continue
            if taken := [key for key in PublicRows.model_fields if key != "name" and key in given]:
                self.problems.append(
                    f"{place}.{taken[0]} cannot differ between the sources of a mixture: set data.{taken[0]} instead ({where.of(place)})"
                )
            own_fields = MixtureSource.model_fields.keys() & section.keys()
            empty = {"weight": None, "cap": None} | {key: section[key] for key in own_fields}
            mixture["sources"][label] = merged(empty, given)

    def _section(self, group: str, choice: str) -> Tree | None:
        """A choice of a group as in its file, without the sweep's changes."""
        composed = self._compose({group: choice}, of_sweep=False)
        return copy.deepcopy(composed[0][group]) if composed else None

    def _compose(
        self, groups: Mapping[str, str], of_sweep: bool = True
    ) -> tuple[Tree, dict[str, str]] | None:
        """(config, choice of each group), composed once for each combination of choices. Composing takes 0.1
        s, setting a value no time. A sweep of ours is merged afterwards, so that sweeps share compositions."""
        further = self._hydra_words()
        if of_sweep and further and self.sweep:  # the sweep may be a user's
            further = [f"+sweep={self.sweep}", *further]
        words = (*(f"{group}={choice}" for group, choice in sorted(groups.items())), *further)
        if words not in self._composed:
            self._composed[words] = None
            try:
                self._composed[words] = _composed.__wrapped__(words) if further else _of_parts(groups)
            except Exception as error:  # Hydra's errors have no common class
                self.problems.append(f"cannot compose {' '.join(words)}: {one_line(error)}")
        return self._composed[words]

    def _session(self, tree: Tree, where: Where) -> Session | None:
        sections = {key: tree[key] for key in SESSION} | {"launcher": tree["hydra"]["launcher"]}
        plain = self._resolved(sections, where)
        return self._valid(Session, plain, where) if plain and not self._has_credentials(plain) else None

    def _has_credentials(self, plain: Tree) -> bool:
        """Whether settings of a config file hold a credential; it is reported. A judge's key is secret from
        here on."""
        for key, value in leaves(plain):
            if key.rpartition(".")[2] == "api_key_env" and isinstance(value, str):
                secrets.register_variable(value)
        if why := secrets.refusal("", plain):
            self.problems.append(why)
        return why is not None

    def _of_hub_in_world(self, tree: Tree, where: Where) -> str | None:
        """Why the controlled world's rates must not train a pretrained model of the hub; None for others."""
        model = tree["model"]
        if tree["scale"].get("kind") != "world" or not model.get("hub") or model.get("path"):
            return None
        text = f"scale={where.choices['scale']} has the rates of the controlled world's tiny models, and"
        way_out = "leave scale out, or take a scale of pretrained models (scale=llm)"
        return f"{text} model={where.choices['model']} is one of the hub: {way_out}"

    def _cell(self, tree: Tree, where: Where) -> Cell | None:
        """The cell of a composed config, or None; all its problems are reported."""
        if why := self._of_hub_in_world(tree, where):
            self._report(why)
            return None
        if why := self._in_toy_world(tree, where):
            self._report(why)
            if tree["model"].get("kind") == "world":
                return None  # its other faults come of the same
        for key in sorted(tree.keys() - {*SECTIONS, "axes", "grids", "expect", "published", "hydra"}):
            if key == "sweep":
                self.problems.append(f"{self.sweep_file} must begin with the line `# @package _global_`")
            else:
                self.problems.append(unknown("section", key, SECTIONS, where.of(key)))
        plain = self._resolved({key: tree[key] for key in (*CELL_SECTIONS, "scale")}, where)
        if plain is None or self._valid(Scale, plain.pop("scale"), where, "scale") is None:
            return None
        if self._has_credentials(plain):
            return None
        self.files.check(plain, where)
        return self._valid(Cell, plain, where)

    def _resolved(self, tree: Tree, where: Where) -> Tree | None:
        """A part of a composed config with its interpolations resolved."""
        try:
            return sweeps.resolved(tree)
        except sweeps.BadSweep as error:
            self.problems.append(f"{error} ({where.of(str(error).partition(':')[0].partition(' ')[0])})")
            return None
        except OmegaConfBaseException as error:
            key = error.full_key or "the config"
            self.problems.append(f"{key}: {str(error).splitlines()[0]} ({where.of(key)})")
            return None

    def _valid(self, record: type[M], plain: Tree, where: Where, section: str = "") -> M | None:
        """The record of a part of the config, or None; all its problems are reported."""
        missing = [key for key, value in leaves(plain, section) if value == "???"]
        self.problems += [f"{key} must be set: add {key}=... ({where.of(key)})" for key in _to_set(missing)]
        try:
            return record.model_validate(plain)
        except ValidationError as error:
            details = error.errors()
        problems = [
            text
            for detail in details
            for key, text in in_words(detail, record, section, where)
            if key not in missing
        ]
        if (
            record is Cell and details[0]["loc"]
        ):  # pydantic runs the check across sections only when each section is valid
            problems += [f"{text} ({where.of(key)})" for key, text in misfits(plain)]
        self.problems += problems
        return None


OF_BENCHMARK = re.compile(r"(\$\{scale\.judged_\w+\.)\w+\}")  # a decoding that the scale gives, by benchmark


def _choices(group: str, value: Any) -> list[Any]:
    """The choices of a group in one value: several evaluations are a list."""
    return value if group == "judge" and isinstance(value, list) else [value]


def _to_set(keys: Sequence[str]) -> list[str]:
    """The keys to set for missing ones: one that several evaluations of a suite lack is set for all."""
    lacking: dict[str, list[str]] = {}
    for key in keys:
        name = key.removeprefix(f"{MEMBERS}.").partition(".")[2] if key.startswith(f"{MEMBERS}.") else ""
        shared = name and "." not in name and name not in OF_A_BENCHMARK
        lacking.setdefault(f"judge.{name}" if shared else key, []).append(key)
    return [key if len(some) > 1 else some[0] for key, some in lacking.items()]


def _unshared(name: str, judges: Tree, where: Where) -> str:
    """The problem of a setting that a suite cannot give to its evaluations."""
    key = f"judge.{name}"
    if name in OF_A_BENCHMARK:
        owner = next(
            (label for label, section in judges.items() if name in section), next(iter(judges), "LABEL")
        )
        own = f"{MEMBERS}.{owner}.{name}"
        return (
            f"{key} cannot be set for all evaluations, because each has its own: set {own} ({where.of(key)})"
        )
    known = sorted({key for section in judges.values() for key in section})
    return unknown("key", key, known, where.of(key), "judge")


def _of_parts(groups: Mapping[str, str]) -> tuple[Tree, dict[str, str]]:
    """(config, choice of each group) of our own config files. A method's file sets the method's section alone,
    so that the others are composed without it."""

    def of(some: Mapping[str, str]) -> tuple[Tree, dict[str, str]]:
        return _composed(tuple(f"{group}={choice}" for group, choice in sorted(some.items())))

    if "method" not in groups or sweeps.LABELLING_JUDGE in groups:
        return of(groups)
    tree, choices = of({group: choice for group, choice in groups.items() if group != "method"})
    method, its_choices = of({"method": groups["method"]})
    own = {group: choice for group, choice in its_choices.items() if "method" in group}
    return tree | {"method": method["method"]}, choices | own


def _of_another_method(tree: Tree, key: str) -> bool:
    """Whether a key is a method's, and the tree's method has no such setting."""
    section, _, name = key.partition(".")
    return section == "method" and isinstance(tree[section], dict) and name.split(".")[0] not in tree[section]


@cache
def _composed(words: tuple[str, ...]) -> tuple[Tree, dict[str, str]]:
    """(config, choice of each group) of words for Hydra."""
    tree: Any = OmegaConf.to_container(compose("config", overrides=list(words), return_hydra_config=True))
    hydra = tree.pop("hydra")
    return tree | {"hydra": {"launcher": hydra["launcher"]}}, hydra["runtime"]["choices"]


def _set(tree: Tree, key: str, value: Any, where: Where) -> str | None:
    """Set a dotted key that exists. Returns a problem, with the known keys, for any other."""
    *parents, name = key.split(".")
    section: Any = tree
    for depth, parent in enumerate(parents):
        if parent not in section:
            return unknown("key", key, list(section), where.of(key), ".".join(parents[:depth]))
        section = section[parent]
        if not isinstance(section, dict):
            return f"{key} cannot be set: {'.'.join(parents[: depth + 1])} is {short(section)} here ({where.of(key)})"
    if name not in section:
        inside = [
            f"{part}.{key}"
            for part in CELL_SECTIONS
            if not parents and isinstance(tree.get(part), dict) and key in tree[part]
        ]
        return unknown(
            "key",
            key,
            list(section) if parents else CELL_SECTIONS,
            where.of(key),
            ".".join(parents),
            meant=inside,
        )
    section[name] = merged(section[name], value)
    return None

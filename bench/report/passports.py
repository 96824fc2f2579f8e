"""Lines on the passports of a sweep's judges: a summary of each, or the command that makes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.config import GoldJudge, JuryJudge
from bench.planning.inputs import CellPlan
from bench.planning.judging import judge_key, judge_name
from bench.report.rows import Sweep
from bench.store.keys import Stage
from bench.store.stage_settings import member_label
from bench.text_files import BadFile, read_object

PASSPORTS = "judges"  # Their folder in the results folder.
# Statistics in the summary, where they were measured.
SUMMARISED = {"flip_rate": "flip rate", "noise_sd": "noise sd", "failure_rate": "unreadable replies"}


def passport_lines(sweep: Sweep, results: Path, *, link: bool = False) -> list[str]:
    """One line per judge and manner of verdict, in the order of the sweep.

    `link` writes the passport as a Markdown link relative to the sweep's folder.
    """
    passports = dict(_read(results / PASSPORTS))
    lines: dict[str, str] = {}
    unaudited: dict[str, list[str]] = {}  # Names of judges by the command that audits them.
    of_sweep = " ".join(filter(None, ("python -m bench", sweep.command, "do=audit")))
    for cell, place, role, verdicts in _judged(sweep.cells):
        judge, label = cell.cell.judge, member_label(role)
        key = judge_key(verdicts)
        if (isinstance(judge, JuryJudge) and label is None) or key in lines:
            continue  # A jury has no passport; its members have.
        member = judge.judges[label] if isinstance(judge, JuryJudge) and label else None
        name = judge_name(member or judge, "rating" if role.startswith("rating") else "preference")
        lines[key] = ""
        if (passport := passports.get(key)) is not None:
            folder, content = passport
            page = (
                f"[passport.html](../../{PASSPORTS}/{folder.name}/passport.html)"
                if link
                else f"{folder}/passport.html"
            )
            lines[key] = f"The audit of {name} found {_summary(content)}. All numbers: {page}"
        elif isinstance(member or judge, GoldJudge):
            lines[key] = f"{name} is the ground truth of the controlled world and needs no audit."
        elif member is not None and not isinstance(member, GoldJudge):
            own = f"judge={member.name} judge.model={member.model}"
            others = f"(and the other settings of {place}.judges.{label})"
            unaudited[f"python -m bench do=audit {own} {others}"] = [name]
        else:
            unaudited.setdefault(of_sweep, []).append(name)
    return [
        *filter(None, lines.values()),
        *(
            f"{name} has not been audited. To measure its faults, run: {command}"
            if len(names) == 1
            else f"{', '.join(names)} have not been audited. To measure their faults, run: {command}"
            for command, names in unaudited.items()
            for name in names[:1]
        ),
    ]


def _judged(cells: Sequence[CellPlan]) -> Iterator[tuple[CellPlan, str, str, Stage]]:
    """(cell with one judge, key of that judge's section, role, verdicts) of every judge stage."""
    for cell in cells:
        for label, one in (cell.evaluations or {"": cell}).items():
            for role, verdicts in one.roles.items():
                if role.endswith("_verdicts"):
                    yield one, f"judge.judges.{label}" if label else "judge", role, verdicts


def _read(folder: Path) -> list[tuple[str, tuple[Path, Mapping[str, Any]]]]:
    passports: list[tuple[str, tuple[Path, Mapping[str, Any]]]] = []
    for path in sorted(folder.glob("*/passport.json")):
        # A damaged passport counts as none.
        with contextlib.suppress(BadFile, KeyError, TypeError, AttributeError):
            content = read_object(path)
            _summary(content)
            passports.append((str(content.get("key")), (path.parent, content)))
    return passports


def _summary(passport: Mapping[str, Any]) -> str:
    """Number of faults, then statistics and canaries in brackets. Raises KeyError for a damaged passport."""
    n = len(passport["faults"])
    details = []
    for name, words in SUMMARISED.items():
        if "value" in (number := passport["statistics"].get(name, {})):
            details.append(
                f"{words} {number['value']:.2f}"
                if name == "noise_sd"
                else f"{words} {100 * number['value']:.1f} %"
            )
    bound = 0.0 if passport["manner"] == "rating" else 0.5
    measured = [n for n in passport["canaries"].values() if "value" in n]
    lost = sum((n["value"] if n["high"] is None else n["high"]) < bound for n in measured)
    details.append(f"{lost} of {len(measured)} canaries lose, all must")
    return f"{n or 'no'} fault{'s' * (n != 1)} ({', '.join(details)})"

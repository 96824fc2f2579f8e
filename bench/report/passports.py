"""Which of a sweep's judges have a passport, and what it says; how to have one made where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.config import GoldJudge, JuryJudge
from bench.planning.judging import judge_key, judge_name
from bench.report.rows import Sweep
from bench.store.stage_settings import member_label
from bench.text_files import BadFile, read_object

PASSPORTS = "judges"  # folder of the results that holds them
SAID = {"flip_rate": "flip rate", "noise_sd": "noise sd", "failure_rate": "unreadable"}  # of each, where it was measured


def passport_lines(sweep: Sweep, results: Path, *, link: bool = False) -> list[str]:
    """A line a judge and manner of verdict, in the order of the sweep. `link`: as Markdown, from the sweep's folder."""
    passports = dict(_read(results / PASSPORTS))
    lines: dict[str, str] = {}
    for cell in sweep.cells:
        for role, verdicts in cell.roles.items():
            judge, label = cell.cell.judge, member_label(role)
            if not role.endswith("_verdicts") or (isinstance(judge, JuryJudge) and label is None) or (key := judge_key(verdicts)) in lines:
                continue  # a jury has no passport, its members have
            member = judge.judges[label] if isinstance(judge, JuryJudge) and label else None
            name = judge_name(member or judge, "rating" if role.startswith("rating") else "preference")
            if (found := passports.get(key)) is not None:
                page = f"[passport](../../{PASSPORTS}/{found[0].name}/passport.html)" if link else f"passport: {found[0]}/passport.html"
                lines[key] = f"Judge {name}: {_words(found[1])}; {page}"
            elif isinstance(member or judge, GoldJudge):
                lines[key] = f"Judge {name}: the truth of the controlled world, which needs no audit"
            else:
                command = " ".join(filter(None, ("python -m bench", sweep.command, "do=audit")))
                if member is not None and not isinstance(member, GoldJudge):
                    own = [f"judge={member.name}", f"judge.model={member.model}"]
                    command = f"python -m bench do=audit {' '.join(own)} and what else judge.judges.{label} sets"
                lines[key] = f"Judge {name}: not audited yet; to measure its faults: {command}"
    return list(lines.values())


def _read(folder: Path) -> list[tuple[str, tuple[Path, Mapping[str, Any]]]]:
    found: list[tuple[str, tuple[Path, Mapping[str, Any]]]] = []
    for path in sorted(folder.glob("*/passport.json")):
        with contextlib.suppress(BadFile, KeyError, TypeError, AttributeError):  # one that is damaged is none
            content = read_object(path)
            _words(content)
            found.append((str(content.get("key")), (path.parent, content)))
    return found


def _words(passport: Mapping[str, Any]) -> str:
    n = len(passport["faults"])
    said = [f"{n} fault{'s' * (n != 1)} found" if n else "no fault found"]
    for name, words in SAID.items():
        if "value" in (number := passport["statistics"].get(name, {})):
            said.append(f"{words} {number['value']:.2f}" if name == "noise_sd" else f"{words} {100 * number['value']:.1f} %")
    bound = 0.0 if passport["manner"] == "rating" else 0.5
    measured = [n for n in passport["canaries"].values() if "value" in n]
    lost = sum((n["value"] if n["high"] is None else n["high"]) < bound for n in measured)
    return ", ".join([*said, f"{lost} of {len(measured)} canaries lose"])

r"""What a paper takes over: the table as a LaTeX float, a paragraph on the experiment, and its references.

table.tex needs the packages booktabs, siunitx, threeparttable and adjustbox; methods.tex cites references.bib,
which needs url. Numbers stand in siunitx columns, intervals and marks beside them. Every other character is
escaped, so that a name never becomes a command.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from bench.config import Cell, NoMethod, SuiteJudge
from bench.records import grouped
from bench.report.groups import method_name
from bench.report.rows import Sweep
from bench.report.tables import EXPLAINED_IN, FAIRNESS, HOW_TO_READ, MISSING, Table, for_paper

BEST, DAGGER = "*", "†"
# A number of the table, its interval, and the marks behind it.
NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)( \[[^\]]*\])?((?: .*)?)")
BOLD = "The best value is bold where every other row is significantly lower (5 %, corrected)."
LIGATURE = re.compile(r"([-,'])(?=\1)")  # Two of these would become another sign.
ESCAPES = {
    **{letter: rf"\{letter}" for letter in "%&_#{}$"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "≈": r"$\approx$",
    "*": r"$^{*}$",
    "†": r"$^{\dagger}$",
    "π": r"$\pi$",
    "σ": r"$\sigma$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    "…": r"\ldots{}",
}


def escaped(text: str) -> str:
    """Text as LaTeX shows it. A character that pdfLaTeX's fonts lack is written by its number, as in U+4E2D."""
    return LIGATURE.sub(r"\1{}", "".join(map(_escaped, text)))


def _escaped(letter: str) -> str:
    if letter in ESCAPES:
        return ESCAPES[letter]
    if letter.isspace() or not letter.isprintable():
        return " "
    # Latin letters and usual punctuation are in every font encoding; inputenc knows them.
    return letter if ord(letter) < 0x180 or letter in "–—‘’“”" else f"U+{ord(letter):04X}"


# The table ------------------------------------------------------------------------------------------------------------


def chosen_columns(table: Table, wanted: Sequence[str]) -> tuple[Table, list[str]]:
    """The table with the wanted columns in their order, and the words that name none of them.

    A word names every column that begins with it, whatever the case, in every evaluation.
    """
    kept, unknown = list[int](), list[str]()
    for word in wanted:
        start = word.strip().casefold()
        whole = [k for k, column in enumerate(table.columns) if column.casefold() == start]
        found = whole or [
            k for k, column in enumerate(table.columns) if _begins(table.placed(column)[1].casefold(), start)
        ]
        kept += [k for k in found if k not in kept]
        unknown += [] if found else [word]
    kept = kept or list(range(len(table.columns)))
    rows = [[row[k] for k in kept] for row in table.rows]
    return replace(table, columns=[table.columns[k] for k in kept], rows=rows), unknown


def _begins(name: str, start: str) -> bool:
    return name.startswith(start) and not name[len(start) :][:1].isalnum()


def unknown_columns(table: Table, sweep: Sweep) -> list[str]:
    """One line for each wanted column that the table lacks."""
    return [
        f"columns: no column of this table begins with {word!r}; its columns: {', '.join(table.columns)}"
        for word in chosen_columns(table, sweep.columns or ())[1]
    ]


def latex(table: Table, sweep: Sweep) -> str:
    """A float with caption, label and notes. With several evaluations a second one has their details.

    Lines on judges, fairness and findings stand before it as comments, for the text of the paper.
    """
    chosen = chosen_columns(table, sweep.columns)[0] if sweep.columns else table
    lines = [r"% \usepackage{booktabs,siunitx,threeparttable,adjustbox}"]
    for heading, notes in table.notes.items():
        lines += [f"% {heading}", *(f"% - {' '.join(note.split())}" for note in notes)]
    parts = [chosen] if sweep.columns else for_paper(chosen)
    for number, part in enumerate(parts, 1):
        lines += _float(part, sweep, f"-{number}" if number > 1 else "")
    return "\n".join([*lines, ""])


def _float(table: Table, sweep: Sweep, ending: str) -> list[str]:
    by_column = [_column(list(texts)) for texts in zip(*table.rows, strict=True)]
    bold = any(cell.startswith(r"\bfseries") for _, cells in by_column for cell in cells)
    starred = any("$^{*}$" in cell for _, cells in by_column for cell in cells)
    spec = "".join(layout for layout, _ in by_column)
    heads = [
        rf"\multicolumn{{2}}{{c}}{{{escaped(name)}}}"
        if layout.endswith("l") and layout != "l"
        else rf"{{{escaped(name)}}}"
        for (layout, _), name in zip(by_column, (table.placed(c)[1] for c in table.columns), strict=True)
    ]
    notes = [note for note in table.notes.get(HOW_TO_READ, ()) if note != EXPLAINED_IN]
    notes = [note for note in notes if starred or not note.startswith(f"A {BEST} marks")]
    notes += [note for note in table.notes.get(FAIRNESS, ()) if note.startswith(DAGGER)]
    return [
        "",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escaped(sweep.title)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', sweep.name)}{ending}}}",
        r"\sisetup{text-series-to-math=true, retain-explicit-plus=true}",
        r"\begin{adjustbox}{max width=\textwidth}",
        r"\begin{threeparttable}",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        *_labels(table, by_column),
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in zip(*(cells for _, cells in by_column), strict=True)),
        r"\bottomrule",
        r"\end{tabular}",
        *_table_notes([*table.above, *notes, *([BOLD] if bold else [])]),
        r"\end{threeparttable}",
        r"\end{adjustbox}",
        r"\end{table}",
    ]


def _table_notes(lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    items = (rf"\item {escaped(line)}" for line in lines)
    return [r"\begin{tablenotes}[flushleft]\footnotesize", *items, r"\end{tablenotes}"]


def _column(texts: Sequence[str]) -> tuple[str, list[str]]:
    """(layout, cells) of a column: siunitx for numbers, with a second column for intervals and marks; else text."""
    numbers = [NUMBER.fullmatch(text) for text in texts]
    if not any(numbers) or not all(
        number or text in ("", MISSING) or text.startswith("<")
        for number, text in zip(numbers, texts, strict=True)
    ):
        return "l", [escaped(text) if text != MISSING else "--" for text in texts]
    starred = [k for k, text in enumerate(texts) if BEST in text.split()]
    best = starred[0] if len(starred) == 1 and len([one for one in numbers if one]) > 1 else None
    beside = any(one and (one[2] or (one[3] and k != best)) for k, one in enumerate(numbers))
    cells = []
    for k, (number, text) in enumerate(zip(numbers, texts, strict=True)):
        if number is None:
            cells.append(f"{{{escaped(text) if text != MISSING else '--'}}}" + (" &" if beside else ""))
            continue
        value, interval, marks = number[1], (number[2] or "").strip(), number[3]
        marks = marks.replace(f" {BEST}", "", 1) if k == best else marks
        # In math a minus is a minus, and a bracket cannot be the option of the line end before it.
        tail = (f"${interval}$" if interval else "") + escaped(marks)
        cells.append((r"\bfseries " if k == best else "") + value + (f" & {tail.strip()}" if beside else ""))
    values = [one[1] for one in numbers if one]
    sign = "+" if any(value[0] in "+-" for value in values) else ""
    whole = max(len(value.lstrip("+-").partition(".")[0]) for value in values)
    digits = max(len(value.partition(".")[2]) for value in values)
    form = f"S[table-format={sign}{whole}{f'.{digits}' if digits else ''}]"
    return (rf"{form}@{{\,}}l" if beside else form), cells


def _labels(table: Table, columns: Sequence[tuple[str, Any]]) -> list[str]:
    """A line with the labels of the evaluations over their columns, and the rules under it."""
    if not table.evaluations:
        return []
    widths = [2 if layout.endswith("l") and layout != "l" else 1 for layout, _ in columns]
    heads, rules, place = [], [], 1
    placed = [(table.placed(column)[0], width) for column, width in zip(table.columns, widths, strict=True)]
    for label, some in itertools.groupby(placed, lambda one: one[0]):
        n = sum(width for _, width in some)
        heads.append(rf"\multicolumn{{{n}}}{{c}}{{{escaped(label)}}}")
        rules += [rf"\cmidrule(lr){{{place}-{place + n - 1}}}"] if label else []
        place += n
    return [" & ".join(heads) + r" \\", " ".join(rules)]


# The experiment -------------------------------------------------------------------------------------------------------


def works(cells: Iterable[Cell]) -> tuple[dict[str, str], dict[str, str]]:
    """(BibTeX entries of the papers, of the hub's models and data) that the cells use, by key."""
    cells = list(cells)
    known = {
        match[1]: match[0]
        for match in re.finditer(r"^@\w+\{([^,]+),.*$", _file("references.bib"), re.MULTILINE)
    }
    keys = dict.fromkeys(key for cell in cells for key in (*cell.method.cites, *_judge_keys(cell)))
    hubs = dict.fromkeys(
        hub for cell in cells for hub in (*_hubs(cell.model), *_hubs(cell.data, "datasets/"))
    )
    return {key: known[key] for key in keys}, {hub_key(hub): _hub_entry(hub) for hub in hubs}


def _judge_keys(cell: Cell) -> list[str]:
    judges = getattr(cell.judge, "judges", {}).values()
    return [key for judge in (cell.judge, *judges) for key in judge.cites]


def _hubs(section: Any, kind: str = "") -> list[str]:
    hub = getattr(section, "hub", None)
    return [f"{kind}{hub}"] if hub and not getattr(section, "path", None) else []


def hub_key(hub: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", hub.removeprefix("datasets/").lower()).strip("-")


def _hub_entry(hub: str) -> str:
    owner, _, name = hub.removeprefix("datasets/").partition("/")
    what = "Dataset" if hub.startswith("datasets/") else "Model"
    return (
        f"@misc{{{hub_key(hub)}, author = {{{{{escaped(owner)}}}}}, title = {{{{{escaped(name)}}}}}, "
        f"note = {{{what} on the Hugging Face hub}}, howpublished = {{\\url{{https://huggingface.co/{hub}}}}}}}"
    )


def _file(name: str) -> str:
    return (resources.files("bench.papers") / name).read_text(encoding="utf-8")


def references(sweep: Sweep) -> str:
    """references.bib: papers of methods and judges, then models and data of the hub."""
    papers, hubs = works(plan.cell for plan in sweep.cells)
    return "\n".join([*papers.values(), *hubs.values(), ""])


def methods(sweep: Sweep) -> str:
    """methods.tex: a paragraph on models, data, trainings and judging, from the settings alone."""
    cells = [plan.cell for plan in sweep.cells]
    trained = [cell for cell in cells if not isinstance(cell.method, NoMethod)]
    sentences = [
        f"We start from {_listed(_cited(cell.model.name, _hubs(cell.model)) for cell in cells)} "
        f"and train on {_listed(_cited(cell.data.name, _hubs(cell.data, 'datasets/')) for cell in trained or cells)}."
    ]
    by_method = grouped((method_name(cell), cell) for cell in trained)
    named = [
        _cited(name, (), some[0].method.cites)
        + _values(", beta", (getattr(c.method, "beta", None) for c in some))
        for name, some in by_method.items()
    ]
    if named:
        sentences.append(f"The methods are {_listed(named)}.")
    by_training = grouped((_training(some), escaped(name)) for name, some in by_method.items())
    sentences += [f"Training of {_listed(names)}: {words}." for words, names in by_training.items() if words]
    fractions = {cell.data.fraction for cell in trained}
    if fractions - {1.0}:
        sentences.append(f"{_values('Shares of the labels', fractions)}.")
    judges = dict.fromkeys(_judge_words(cell) for cell in cells)
    sentences.append(f"Completions are judged by {_listed(judges)}.")
    seeds = sorted({cell.seed for cell in cells})
    sentences.append(
        f"There are {len(seeds)} seeds ({', '.join(map(str, seeds))}); each redraws the start model's SFT, labels, data order and sampling."
        if len(seeds) > 1
        else f"There is one seed ({seeds[0]}), so intervals say nothing about another training."
    )
    sentences.append(
        "Differences to the start model are paired by seed and prompt; their p-values are two-sided and corrected by Holm's method."
    )
    return "\n".join([f"% python -m bench {' '.join(sweep.command.split())}", *sentences, ""])


TRAINING = {
    "peak learning rate": "learning_rate",
    "epochs": "num_train_epochs",
    "rows a pass": "batch_size",
    "passes a step": "gradient_accumulation_steps",
    "optimizer": "optimizer",
    "schedule": "lr_scheduler_type",
    "warm-up share": "warmup_ratio",
    "weight decay": "weight_decay",
    "gradient norm at most": "max_grad_norm",
}


def _training(cells: Sequence[Cell]) -> str:
    """The settings of one method's trainings in words."""
    words = (
        _values(label, (getattr(cell.method, key, None) for cell in cells)) for label, key in TRAINING.items()
    )
    return ", ".join(filter(None, words))


def _judge_words(cell: Cell) -> str:
    judge = cell.judge
    if isinstance(judge, SuiteJudge):
        return _listed(_cited(f"{label} ({one.name})", (), one.cites) for label, one in judge.judges.items())
    model = getattr(judge, "model", None)
    return _cited(f"{judge.name}{f' ({model})' if isinstance(model, str) else ''}", (), judge.cites)


def _cited(name: str, hubs: Sequence[str], keys: Sequence[str] = ()) -> str:
    keys = [*keys, *map(hub_key, hubs)]
    return escaped(name) + (rf"~\cite{{{','.join(keys)}}}" if keys else "")


def _listed(words: Iterable[str]) -> str:
    some = list(dict.fromkeys(words))
    return some[0] if len(some) == 1 else f"{', '.join(some[:-1])} and {some[-1]}"


def _values(label: str, values: Iterable[Any]) -> str:
    """A label with its different values, such as `, beta 0.1 and 0.3`; empty where there are none."""
    some = dict.fromkeys(
        f"{value:g}" if isinstance(value, float) else str(value) for value in values if value is not None
    )
    return f"{label} {_listed(map(escaped, some))}" if some else ""

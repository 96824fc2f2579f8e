"""Charts of the page as Vega-Lite specs, made with Altair. Each chart embeds its numbers.

Rates are in percent, as in the table. Error bars are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.planning.inputs import CellPlan
from bench.records import grouped, read_progress
from bench.report import figures
from bench.report.analysis import Analysis
from bench.report.findings import read_curve
from bench.report.groups import Group, line_names
from bench.store.store import Store
from bench.training.training_record import TrainFacts

if TYPE_CHECKING:
    import altair as alt

# Most points of a training curve, and of all curves together, which share the page's size.
POINTS, ALL_POINTS = 150, 2500
# Metric -> (label, factor). Those of a table come first.
OUTCOMES = {
    "win_rate": ("win rate, %", 100),
    "lc_win_rate": ("LC win rate, %", 100),
    "equal_length_win_rate": ("equal-length, %", 100),
    "rating": ("rating, 1 to 10", 1),
    "reward_accuracy": ("reward accuracy, %", 100),
    "reward_margin": ("reward margin", 1),
    "shift_chosen": ("change of chosen completions, nats a token", 1),
    "shift_rejected": ("change of rejected completions, nats a token", 1),
    "kl": ("KL to the start model, nats", 1),
    "mean_length": ("length, characters", 1),
    "repetition": ("repetition, %", 100),
}
CURVES = {
    "loss": "loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "rewards/chosen": "reward of chosen completions",
    "rewards/rejected": "reward of rejected completions",
    "kl": "the loss's own KL (KTO: z0)",
    "entropy": "entropy, nats a token",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}


def charts(analysis: Analysis) -> list[dict[str, Any]]:
    """Every chart with something to show: `title`, `about` and `spec`."""
    pooled, made = analysis.pooled, list[dict[str, Any]]()
    for label, part in pooled.parts.items():
        by_judge = grouped((group.cell.judge, group) for group in part.groups)
        for judge, groups in by_judge.items():
            names = [*([label] if label else []), *([judge.name] if len(by_judge) > 1 else [])]
            of = f" ({', '.join(names)})" if names else ""
            made += _outcomes(groups, pooled.varied, of)
    curves = training_records(analysis)
    if curves:
        made.append(_curves(curves))
    return made


def _outcomes(groups: Sequence[Group], varied: Sequence[str], of: str) -> list[dict[str, Any]]:
    metrics = [name for name in OUTCOMES if any(group.pooled(name) for group in groups)]
    judged = [group for group in groups if any(group.pooled(name) for name in metrics)]
    made = []
    for axis in (*figures.AXES, figures.KL, LENGTH):
        names = line_names({group.key: group.cell for group in judged}, varied, axis.about)
        records = [_record(group, names[group.key], axis, metrics) for group in judged]
        scattered = axis in (figures.KL, LENGTH)
        placed = [record for record in records if record["x"] is not None]
        if len({record["x"] for record in placed}) < 2 or (
            not scattered
            and not any(
                len({r["x"] for r in records if r["line"] == line and r["x"] is not None}) > 1
                for line in {record["line"] for record in placed}
            )
        ):
            continue
        levels = [record for record in records if record["x"] is None]
        shown = [name for name in metrics if name != axis.name]
        over = (
            f"against {axis.label.partition(',')[0]}" if scattered else f"over {axis.label.partition(',')[0]}"
        )
        made.append({
            "title": f"Outcomes {over}{of}",
            "about": "Bars are 95 % intervals." + (" Rows without a value on this axis are dashed lines." if levels else ""),
            "spec": _outcome_spec(placed, levels, axis, shown, lines=not scattered),
        })  # fmt: skip
    return made


LENGTH = figures.Axis(
    "mean_length",
    "mean length, characters",
    lambda g: p.mean if (p := g.pooled("mean_length")) else None,
    figures.KL.about,
)


def _record(group: Group, line: str, axis: figures.Axis, metrics: Sequence[str]) -> dict[str, Any]:
    """A group as a record of a chart: its row, line, place on the axis, and numbers with their ends."""
    x = axis.value(group)
    scattered = axis in (figures.KL, LENGTH)
    record: dict[str, Any] = {"row": group.number, "name": group.name, "line": line}
    record["x"] = x if scattered or group.is_trained else None
    for name in metrics:
        if (pooled := group.pooled(name)) is not None:
            factor, ends = OUTCOMES[name][1], group.interval(name)
            low, high = ends or (pooled.mean, pooled.mean)
            record |= {
                name: round(factor * pooled.mean, 4),
                f"{name}_low": round(factor * low, 4),
                f"{name}_high": round(factor * high, 4),
            }
    return record


def _outcome_spec(
    placed: Sequence[Mapping[str, Any]],
    levels: Sequence[Mapping[str, Any]],
    axis: figures.Axis,
    metrics: Sequence[str],
    *,
    lines: bool,
) -> dict[str, Any]:
    import altair as alt

    chosen = _choice("metric", {name: OUTCOMES[name][0] for name in metrics})
    picked = alt.selection_point(fields=["line"], bind="legend")
    scale = alt.Scale(type="log") if axis.log else alt.Scale(zero=False, nice=True)
    ticks = sorted({record["x"] for record in placed})
    x = alt.X(
        "x:Q",
        title=axis.label,
        scale=scale,
        axis=alt.Axis(values=ticks, format="~g", grid=False) if lines and len(ticks) < 12 else alt.Axis(),
    )
    colour = _colour([*placed, *levels])
    faded = alt.condition(picked, alt.value(1), alt.value(0.12))
    tips = [
        alt.Tooltip("row:Q", title="row"),
        alt.Tooltip("name:N", title="setting"),
        alt.Tooltip("x:Q", title=axis.label, format=".3~g"),
        alt.Tooltip("value:Q", title="value", format=".2f"),
        alt.Tooltip("low:Q", title="95 % from", format=".2f"),
        alt.Tooltip("high:Q", title="to", format=".2f"),
    ]
    numbers = {"value": "datum[metric]", "low": "datum[metric + '_low']", "high": "datum[metric + '_high']"}

    def of(records: Sequence[Mapping[str, Any]]) -> alt.Chart:
        known = alt.Chart(alt.Data(values=list(records))).transform_calculate(**numbers)
        return known.transform_filter("isValid(datum.value)")

    base = of(placed).encode(x=x, color=colour, opacity=faded)
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, nice=True))
    layers = [base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title=None), y2="high:Q")]
    if lines:
        layers.append(base.mark_line(strokeWidth=1.5).encode(y=y))
    layers.append(
        base.mark_point(filled=True, size=70, opacity=1).encode(
            y=y, shape=_shape([*placed, *levels]), tooltip=tips
        )
    )
    if not lines:
        layers.append(base.mark_text(align="left", dx=7, dy=-6, fontSize=10).encode(y=y, text="row:Q"))
    if levels:
        level = of(levels).encode(color=colour, opacity=faded)
        layers.append(
            level.mark_rule(strokeDash=[6, 4], strokeWidth=1.5).encode(y=y, tooltip=tips[:2] + tips[3:])
        )
    return _spec(alt.layer(*layers).add_params(chosen, picked))


def _choice(name: str, labels: Mapping[str, str]) -> alt.Parameter:
    """A list from which the reader chooses what is drawn."""
    import altair as alt

    bound = alt.binding_select(options=list(labels), labels=list(labels.values()), name="shows ")
    return alt.param(name, value=next(iter(labels)), bind=bound)


# Readable on white and on black. The start model is grey.
PALETTE = (*figures.COLOURS[:6], "#9467bd", "#8c564b")
GREY = "#8a8f94"


def _colour(records: Sequence[Mapping[str, Any]]) -> alt.Color:
    import altair as alt

    domain = _domain(records)
    colours = iter(range(len(domain)))
    shown = [GREY if line.split()[0] == "start" else PALETTE[next(colours) % len(PALETTE)] for line in domain]
    return alt.Color("line:N", scale=alt.Scale(domain=domain, range=shown), legend=_legend())


def _legend() -> alt.Legend:
    import altair as alt

    return alt.Legend(title=None, orient="bottom", columns=3, labelLimit=220, symbolLimit=60)


def _domain(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of lines in the order of their first rows."""
    return list(dict.fromkeys(record["line"] for record in sorted(records, key=lambda one: one["row"])))


SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


def _shape(records: Sequence[Mapping[str, Any]]) -> alt.Shape:
    import altair as alt

    domain = _domain(records)
    shapes = [SHAPES[k % len(SHAPES)] for k in range(len(domain))]
    return alt.Shape("line:N", scale=alt.Scale(domain=domain, range=shapes), legend=_legend())


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.properties(width="container", height=260).to_dict()
    del spec["config"]  # The page sets colours and fonts.
    return spec


# Training curves ------------------------------------------------------------------------------------------------------


def training_records(analysis: Analysis) -> list[dict[str, Any]]:
    """Points of every cell's training curve, at most POINTS for each; also of trainings that run now.

    `examples` counts the preference rows seen, since methods of pairs and of single completions take steps of
    different size; None where the number of rows is not known. `step` counts steps.
    """
    most = max(20, min(POINTS, ALL_POINTS // max(1, len(analysis.rows))))
    return [
        {"row": group.number, "line": group.name, "cell": row.cell.key[:8], "seed": row.cell.cell.seed}
        | point
        for group in analysis.pooled.groups
        for row in group.rows
        for point in _points(row.cell, analysis.store, most)
    ]


def _points(cell: CellPlan, store: Store, most: int) -> Iterator[dict[str, Any]]:
    """Means of each metric over some steps, at the last of them; `most` points."""
    train = cell.roles.get("train")
    if train is None:
        return
    curve = read_curve(cell, store) or read_progress(store.sidecar(train, "progress.jsonl"))
    facts, data = store.folder(train) / "facts.json", None
    if (preferences := cell.roles.get("preferences")) is not None:
        data = store.status(preferences).manifest
    rows_a_step = TrainFacts.read(facts).batch_rows if facts.is_file() else None
    n_rows = data.counts.get("train") if data else None
    every = -(-len(curve) // most) or 1
    for k in range(0, len(curve), every):
        some = curve[k : k + every]
        step, epoch = some[-1].get("step", k + len(some)), some[-1].get("epoch")
        point: dict[str, Any] = {"step": step, "examples": None}
        if rows_a_step is not None:
            point["examples"] = step * rows_a_step
        elif epoch is not None and n_rows is not None:
            point["examples"] = round(epoch * n_rows, 1)
        for name in CURVES:
            if values := [one[name] for one in some if name in one]:
                point[name] = float(f"{sum(values) / len(values):.4g}")
        yield point


def _curves(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import altair as alt

    counted = all(record["examples"] is not None for record in records)
    metrics = {name: label for name, label in CURVES.items() if any(name in record for record in records)}
    chosen = _choice("metric", metrics)
    picked = alt.selection_point(fields=["line"], bind="legend")
    across = alt.X(
        "examples:Q" if counted else "step:Q", title="preference rows seen" if counted else "optimizer steps"
    )
    tips = [
        alt.Tooltip("line:N", title="setting"),
        alt.Tooltip("seed:Q", title="seed"),
        alt.Tooltip("step:Q", title="step"),
        alt.Tooltip("value:Q", title="value", format=".4~g"),
    ]
    spec = _spec(
        alt.Chart(alt.Data(values=list(records)))
        .transform_calculate(value="datum[metric]")
        .transform_filter("isValid(datum.value)")
        .mark_line(strokeWidth=1.5, clip=True)
        .encode(
            x=across,
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            color=_colour(records),
            detail="cell:N",
            opacity=alt.condition(picked, alt.value(0.9), alt.value(0.08)),
            tooltip=tips,
        )
        .add_params(chosen, picked, alt.selection_interval(bind="scales", zoom="wheel![event.shiftKey]"))
    )
    about = "Each line is one training. Click a name in the legend to see it alone; drag to move, hold Shift and scroll to zoom."
    if not counted:
        about += " Some stored trainings do not say how many rows a step has, so steps are drawn, which differ in size between methods."
    return {"title": "Training curves", "about": about, "spec": spec}

"""Findings in plain words from a cell's curve and numbers, such as displacement, drift or collapse.

A finding is a measured number beyond a threshold. The thresholds are conventions, set before any result was
seen; a comment gives the reason for each. A finding says where to look, not that something is wrong. A number
that was not measured gives no finding.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from bench.config import HELDOUT, MAX_CUT, Cell, GoldJudge, NoMethod, SuiteJudge, Written, method_facts
from bench.judges.asked.journal import JOURNAL_DROPPED
from bench.planning.inputs import CellPlan
from bench.readers.learnable import AS_CONTROL
from bench.readers.rows import OPPOSITE, OTHER_PROMPT
from bench.records import POSITIONS_PASSED, grouped
from bench.report.groups import Group, row_words
from bench.report.rows import CellRow
from bench.store.keys import Stage
from bench.store.stage_settings import TrainSettings
from bench.store.store import Store

Curve = Sequence[Mapping[str, float]]
Metrics = Mapping[str, float]
Severity = Literal["warning", "note"]

# Fall of chosen completions, in nats a token: each token is a tenth less likely, since exp(-0.1) is 0.905. A
# convention: Razin et al. 2024 (likelihood displacement) and Pal et al. 2024 (Smaug) count any fall.
DISPLACEMENT_NATS = 0.1
# Ratio of mean length to the start model's; its inverse is the limit for shorter completions. A convention.
LENGTH_RATIO = 1.25
# Rise of the share of repeated word 3-grams over the start model's. A convention: one more 3-gram in ten is a
# repetition.
REPETITION_RISE = 0.1
# Share of distinct 3-grams among all 3-grams, relative to the start model's share. A convention: half.
DISTINCT_RATIO = 0.5
# Entropy of the policy's next token on training completions: last tenth of the steps relative to the first.
# Half or double counts. A convention.
ENTROPY_RATIO = 0.5
# Best-of-n sampling has a KL of log n - (n - 1)/n nats to the sampled model (Stiennon et al. 2020, appendix
# G.3). 10 nats are the best of 60 000 samples.
KL_NATS = 10.0
KL_NONE = 0.01  # Nats a completion. A run that learns anything reaches some tenths.
# Share of the steps on which KTO's reference point z0 is clamped at 0 and has no effect. A convention: most
# of them. This is not a fault by itself: the authors accept z0 = 0 where the start model learnt from the same
# data.
Z0_SHARE = 0.5
Z0_ZERO_NATS = 1e-6
# Standard errors that a difference must exceed (95 %, two-sided).
Z = 1.96
# Relative deviation of the first step's loss from the method's known first loss. Rounding in bfloat16 moves
# it by some thousandths.
START_LOSS_SHARE = 0.05
FEWEST_STEPS = 10  # A tenth of a shorter curve would be less than one step.


@dataclass(frozen=True)
class Finding:
    """One number beyond its threshold. `says` is a sentence with the numbers; `threshold` includes its unit.

    `value`, in `unit`, is the number shown under the table.
    """

    name: str
    says: str
    value: float
    unit: str
    threshold: str
    severity: Severity
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """Inputs of the checks: the training's curve, and metrics of the cell and its start model (same seed)."""

    curve: Curve
    metrics: Metrics
    start: Metrics
    method: str = ""
    start_loss: float | None = None  # Loss that the first step must have. None where it is not known.
    noted: Mapping[str, int] = field(default_factory=dict)  # Counts of `noted_rows`.
    max_cut: float = MAX_CUT  # Share of completions that may be cut (max_cut of the command).
    # Longest answer in tokens: ours, and the benchmark's. None where ours is as long.
    answer_tokens: tuple[int, int] | None = None
    evaluations: Mapping[str, Evidence] = field(default_factory=dict)  # By label, where a cell has several.

    def both(self, name: str) -> tuple[float | None, float | None]:
        """(the cell's, the start model's) value of a metric."""
        return self.metrics.get(name), self.start.get(name)


def find(evidence: Evidence) -> list[Finding]:
    """Every finding, in a fixed order. Findings of one evaluation are named LABEL/NAME."""
    parts = evidence.evaluations or {"": evidence}
    return [
        replace(finding, name=f"{label}/{finding.name}", says=f"{label}: {finding.says}")
        if label
        else finding
        for check in CHECKS
        for label, part in (parts.items() if check in OF_EVALUATIONS else (("", evidence),))
        if (finding := check(part)) is not None
    ]


# Log-probabilities of held-out completions ------------------------------------------------------------------------------


def displacement(e: Evidence) -> Finding | None:
    shift, high = e.metrics.get("shift_chosen"), e.metrics.get("shift_chosen_high")
    if shift is None or high is None or shift > -DISPLACEMENT_NATS or high >= 0:
        return None
    rejected = e.metrics.get("shift_rejected")
    interval = f"[{e.metrics['shift_chosen_low']:+.2f}, {high:+.2f}]"
    says = f"Chosen completions became less likely: {shift:+.2f} nats a token on held-out rows {interval}"
    return Finding(
        "displacement",
        f"{says}{'' if rejected is None else f'; rejected ones {rejected:+.2f}'}.",
        shift,
        "nats a token",
        f"fell by {DISPLACEMENT_NATS:g} nats a token and beyond its 95 % interval",
        "warning",
        _numbers(e.metrics, "shift_chosen", "shift_chosen_low", "shift_chosen_high", "shift_rejected"),
    )


def margin_from_rejected(e: Evidence) -> Finding | None:
    """A positive margin although chosen completions fell, because rejected ones fell faster.

    The falls are shifts per token; the margin is that of held-out rewards.
    """
    needed = ("reward_margin", "reward_margin_low", "shift_chosen", "shift_chosen_high", "shift_rejected")
    if any(name not in e.metrics for name in needed):
        return None
    m = e.metrics
    if m["reward_margin_low"] <= 0 or m["shift_chosen_high"] >= 0 or m["shift_rejected"] >= m["shift_chosen"]:
        return None
    says = f"The margin grows only because rejected completions fell faster: {m['shift_chosen']:+.2f} nats a token chosen, "
    return Finding(
        "margin from rejected",
        f"{says}{m['shift_rejected']:+.2f} rejected; margin of rewards {m['reward_margin']:+.2f}.",
        m["shift_rejected"],
        "nats a token",
        "chosen below 0 and margin above 0, both beyond their 95 % intervals",
        "note",
        _numbers(m, *needed),
    )


def nothing_learnt(e: Evidence) -> Finding | None:
    """A held-out ranking that is not shown to be better than chance, or a loss that did not move.

    Log-probabilities that moved show that something else was learnt. Methods that learn from chosen
    completions alone (SFT) rank nothing: chosen completions that became likelier are their success, and no
    finding.
    """
    if e.metrics.get("shift_chosen_low", -1.0) > 0:
        return None
    for name, words in (
        ("reward_accuracy", "Held-out reward accuracy"),
        ("reward_auc", "Held-out reward AUC"),
    ):
        value, low = e.metrics.get(name), e.metrics.get(f"{name}_low")
        if value is None or low is None:
            continue
        if low > 0.5:
            return None
        high = e.metrics[f"{name}_high"]
        numbers = _numbers(e.metrics, name, f"{name}_n", f"{name}_low", f"{name}_high")
        rows = f" on {e.metrics[f'{name}_n']:.0f} rows" if f"{name}_n" in e.metrics else ""
        measured = f"{words} is {100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]{rows}"
        if high < 0.5:
            threshold = "95 % interval below 50 %"
            return Finding(
                "ranks wrongly",
                f"{measured}, below 50 %.",
                100 * value,
                "% right",
                threshold,
                "warning",
                numbers,
            )
        shifts = {
            side: (e.metrics.get(f"shift_{side}_low"), e.metrics.get(f"shift_{side}_high"))
            for side in ("chosen", "rejected")
        }
        moved = [
            side
            for side, (lower, upper) in shifts.items()
            if lower is not None and upper is not None and (lower > 0 or upper < 0)
        ]
        called = "ranking not learnt" if moved else "nothing learnt"
        says = f"{measured}, not shown to be above 50 %" + (
            f"; log-probs of {' and '.join(moved)} completions moved" if moved else ""
        )
        return Finding(
            called, f"{says}.", 100 * value, "% right", "95 % interval reaches 50 %", "warning", numbers
        )
    if (ends := _ends(e.curve, "loss")) is None or abs(ends.last - ends.first) > Z * ends.error:
        return None
    says = f"The loss did not move: {ends.first:.4g} in the first tenth of the steps, {ends.last:.4g} in the last tenth"
    numbers = {"first": ends.first, "last": ends.last}
    threshold = f"moved by less than {Z:g} standard errors"
    return Finding(
        "nothing learnt", f"{says}.", ends.last - ends.first, "of loss", threshold, "warning", numbers
    )


# What the policy writes -------------------------------------------------------------------------------------------------


def length_drift(e: Evidence) -> Finding | None:
    """A mean length far from the start model's, beyond chance.

    A single completion has no standard error and gives no finding.
    """
    ours, theirs = e.both("mean_length")
    our_error, their_error = e.both("mean_length_se")
    if ours is None or not theirs or our_error is None or their_error is None:
        return None
    ratio = ours / theirs
    error = (our_error**2 + their_error**2) ** 0.5
    if 1 / LENGTH_RATIO < ratio < LENGTH_RATIO or abs(ours - theirs) <= Z * error:
        return None
    says = f"Completions are {ratio:.2f} times as long as the start model's: {ours:.1f} characters against {theirs:.1f}."
    threshold = (
        f"ratio above {LENGTH_RATIO:g} or below {1 / LENGTH_RATIO:g}, and beyond {Z:g} standard errors"
    )
    numbers = {"mean_length": ours, "start_mean_length": theirs, "ratio": ratio}
    return Finding("length drift", says, ratio, "times the start model's", threshold, "warning", numbers)


def repetition(e: Evidence) -> Finding | None:
    ours, theirs = e.both("repetition")
    distinct, start_distinct = e.both("distinct")
    within = ours is not None and theirs is not None and ours - theirs >= REPETITION_RISE
    length, start_length = e.both("mean_length")
    # Longer texts have a smaller share of distinct 3-grams without repeating themselves.
    as_long = length is not None and start_length is not None and length <= LENGTH_RATIO * start_length
    across = (
        distinct is not None
        and bool(start_distinct)
        and distinct / start_distinct <= DISTINCT_RATIO  # type: ignore[operator]
        and as_long
    )
    if not (within or across):
        return None
    shares = []
    if within:
        assert ours is not None and theirs is not None
        shares.append(
            f"{100 * ours:.1f} % of a completion's 3-grams repeat earlier ones (start model {100 * theirs:.1f} %)"
        )
    if across:
        assert distinct is not None and start_distinct is not None
        shares.append(
            f"{100 * distinct:.1f} % of all 3-grams are distinct (start model {100 * start_distinct:.1f} %)"
        )
    return Finding(
        "repetition collapse",
        f"The policy repeats itself: {'; '.join(shares)}.",
        100 * ours if within else 100 * distinct,  # type: ignore[operator]
        "% repeated" if within else "% distinct",
        f"repeated share up by {100 * REPETITION_RISE:g} points, or distinct share at most {DISTINCT_RATIO:g} times the start model's",
        "warning",
        _numbers(e.metrics, "repetition", "distinct")
        | _numbers(e.start, "repetition", "distinct", prefix="start_"),
    )


def unfinished(e: Evidence) -> Finding | None:
    ours, theirs = e.both("unfinished")
    if ours is None or ours <= e.max_cut:
        return None
    start = "" if theirs is None else f" (start model {100 * theirs:.1f} %)"
    says = f"{100 * ours:.1f} % of the completions are cut at max_new_tokens{start}"
    numbers = _numbers(e.metrics, "unfinished") | _numbers(e.start, "unfinished", prefix="start_")
    return Finding(
        "completions cut", f"{says}.", 100 * ours, "%", f"more than {100 * e.max_cut:g} %", "warning", numbers
    )


def short_answers(e: Evidence) -> Finding | None:
    """Answers that were given fewer tokens than their benchmark gives."""
    if e.answer_tokens is None:
        return None
    ours, theirs = e.answer_tokens
    says = (
        f"An answer may have {ours} tokens, and its benchmark gives {theirs} (judge.decoding.max_new_tokens)."
    )
    numbers = {"max_new_tokens": float(ours), "benchmark": float(theirs)}
    return Finding("short answers", says, ours, "tokens", f"fewer than {theirs} tokens", "note", numbers)


def kl_blow_up(e: Evidence) -> Finding | None:
    kl = e.metrics.get("kl")
    if kl is None or kl <= KL_NATS:
        return None
    says = f"The KL to the start model is {kl:.1f} nats a completion, more than choosing the best of 60 000 samples gives."
    return Finding(
        "KL blow-up",
        says,
        kl,
        "nats",
        f"more than {KL_NATS:g} nats",
        "warning",
        _numbers(e.metrics, "kl", "kl_se"),
    )


def not_moved(e: Evidence) -> Finding | None:
    """A KL near 0: the policy writes like the start model, even if its rewards moved."""
    kl = e.metrics.get("kl")
    if kl is None or not e.curve or abs(kl) >= KL_NONE or method_facts(e.method).chooses:
        return None
    says = f"The policy writes like the start model: its KL is {kl:.2g} nats a completion. Raise the learning rate, the steps or the rows."
    return Finding(
        "not moved",
        says,
        kl,
        "nats",
        f"less than {KL_NONE:g} nats",
        "warning",
        _numbers(e.metrics, "kl", "kl_se"),
    )


# The curve --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ends:
    """Means of the first and the last tenth of a curve, with the standard error of their difference."""

    first: float
    last: float
    error: float


def _ends(curve: Curve, name: str) -> Ends | None:
    values = [row[name] for row in curve if name in row]
    if len(values) < FEWEST_STEPS:
        return None
    n = len(values) // 10
    first, last = values[:n], values[-n:]
    # A tenth of one step has no variance of its own, so the variance of all steps is used.
    spreads = [
        statistics.variance(part) / n if n > 1 else statistics.variance(values) for part in (first, last)
    ]
    return Ends(statistics.fmean(first), statistics.fmean(last), sum(spreads) ** 0.5)


def entropy_moved(e: Evidence) -> Finding | None:
    """Entropy that halved (collapse to a few words) or doubled (noise)."""
    ends = _ends(e.curve, "entropy")
    if ends is None or ends.first <= 0 or ENTROPY_RATIO < ends.last / ends.first < 1 / ENTROPY_RATIO:
        return None
    if abs(ends.last - ends.first) <= Z * ends.error:
        # Each batch holds completions of similar length, and short completions have another entropy.
        return None
    name, moved = ("collapse", "fell") if ends.last < ends.first else ("blow-up", "rose")
    says = f"Entropy on training completions {moved} from {ends.first:.2f} to {ends.last:.2f} nats a token (first, last tenth of steps)."
    threshold = f"at most {ENTROPY_RATIO:g} or at least {1 / ENTROPY_RATIO:g} times the first tenth's, and beyond {Z:g} standard errors"
    return Finding(
        f"entropy {name}",
        says,
        ends.last,
        "nats a token",
        threshold,
        "warning",
        {"first": ends.first, "last": ends.last},
    )


def z0_at_zero(e: Evidence) -> Finding | None:
    """KTO's reference point z0, the column `kl` of its curve, at 0 on most steps.

    Other methods' `kl` is another number.
    """
    values = [row["kl"] for row in e.curve if "kl" in row]
    if not method_facts(e.method).curve_has_z0 or not values:
        return None
    share = sum(value <= Z0_ZERO_NATS for value in values) / len(values)
    if share <= Z0_SHARE:
        return None
    says = f"KTO's reference point z0 is 0 on {100 * share:.0f} % of {len(values)} steps: completions are compared with 0 there."
    threshold = f"more than {100 * Z0_SHARE:g} % of the steps"
    return Finding(
        "z0 at 0",
        says,
        100 * share,
        "% of the steps",
        threshold,
        "note",
        {"share": share, "steps": len(values)},
    )


def wrong_start(e: Evidence) -> Finding | None:
    """A first loss unlike the method's known one: the reference's log-probs are not the start model's."""
    first = next((row["loss"] for row in e.curve if row.get("step") == 1 and "loss" in row), None)
    if first is None or e.start_loss is None or abs(first - e.start_loss) <= START_LOSS_SHARE * e.start_loss:
        return None
    says = f"The loss of the first step is {first:.4f}, but before anything is learnt it must be {e.start_loss:.4f}. The reference's "
    says += "log-probabilities are not the start model's on these tokens (another model, template, date or precision). This cell was "
    says += "trained against a wrong reference, and its rewards, margins and shifts are measured from it."
    threshold = f"more than {100 * START_LOSS_SHARE:g} % from the method's own start"
    return Finding(
        "start loss",
        says,
        first,
        "at the first step",
        threshold,
        "warning",
        {"first": first, "expected": e.start_loss},
    )


# Rows of the data ---------------------------------------------------------------------------------------------------------


def control_tokens(e: Evidence) -> Finding | None:
    says = "rows hold a special token as text. It was trained on as the control token itself, and can end or begin a turn"
    return _of_data(e, AS_CONTROL, "special tokens in the text", says)


def opposite_rows(e: Evidence) -> Finding | None:
    return _of_data(e, OPPOSITE, "opposite rows", "rows contradict another row of the same prompt")


def other_prompts(e: Evidence) -> Finding | None:
    says = "rows have a prompt that differs from their messages; the messages were trained on"
    return _of_data(e, OTHER_PROMPT, "prompt differs from messages", says)


def dropped_replies(e: Evidence) -> Finding | None:
    if not (n := e.noted.get(JOURNAL_DROPPED, 0)):
        return None
    says = f"{n:,} lines or replies of the judge's journal were dropped and requested again, because they were damaged, of another "
    says += "version, of another served model, or without log-probs. The stage's log names them."
    return Finding("dropped replies", says, n, "replies", "1 reply or more", "note", {"dropped": n})


def positions_passed(e: Evidence) -> Finding | None:
    if not (n := e.noted.get(POSITIONS_PASSED, 0)):
        return None
    says = f"{n:,} turns, prompt and completion, have more tokens than the model's config has positions: what comes after them is "
    says += "outside what the model was trained on. Lower judge.decoding.max_new_tokens."
    return Finding("positions passed", says, n, "turns", "1 turn or more", "warning", {"passed": n})


def _of_data(e: Evidence, end: str, name: str, says: str) -> Finding | None:
    noted = {reason: n for reason, n in e.noted.items() if reason.endswith(end)}
    if not noted:
        return None
    some = (
        f" ({', '.join(f'{n:,} {reason}' for reason, n in noted.items())})"
        if len(noted) > 1 or end == AS_CONTROL
        else ""
    )
    return Finding(
        name,
        f"{sum(noted.values()):,} {says}{some}.",
        sum(noted.values()),
        "rows",
        "1 row or more",
        "warning",
        dict(noted),
    )


CHECKS: tuple[Callable[[Evidence], Finding | None], ...] = (
    wrong_start,
    nothing_learnt,
    displacement,
    margin_from_rejected,
    kl_blow_up,
    not_moved,
    length_drift,
    repetition,
    entropy_moved,
    unfinished,
    short_answers,
    z0_at_zero,
    control_tokens,
    opposite_rows,
    other_prompts,
    dropped_replies,
    positions_passed,
)
# Each evaluation has its own.
OF_EVALUATIONS = (length_drift, repetition, unfinished, dropped_replies, positions_passed)


def _numbers(metrics: Metrics, *names: str, prefix: str = "") -> dict[str, float]:
    return {prefix + name: metrics[name] for name in names if name in metrics}


# From rows to words -----------------------------------------------------------------------------------------------------

NONE = "no finding"


def read_curve(cell: CellPlan, store: Store) -> Curve:
    """Curve of a cell's training, one row per logged step. Empty where there is none."""
    train = cell.roles.get("train")
    if not store.is_done(train) or not (path := store.folder(train) / "history.jsonl").exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def known_start(cell: CellPlan) -> float | None:
    """Loss that a cell's first training step must have.

    None where its method has no known first loss, or the policy does not start from its reference.
    """
    train = cell.roles.get("train")
    if train is None or not isinstance(train.settings, TrainSettings):
        return None
    logps = train.inputs["reference_logps"]
    assert isinstance(logps, Stage)
    same = train.inputs["model"].key == logps.inputs["model"].key
    goes_on_with_dropout = (
        "base" in train.inputs and train.settings.adapter is not None and train.settings.adapter.dropout > 0
    )
    return train.settings.method.start_loss() if same and not goes_on_with_dropout else None


def of_rows(rows: Sequence[CellRow], store: Store, max_cut: float = MAX_CUT) -> dict[str, list[Finding]]:
    """Findings by cell key, for every row with numbers.

    Start models have only findings that compare with no start model.
    """
    starts = {
        (row.group_key, row.cell.cell.seed): row for row in rows if isinstance(row.cell.cell.method, NoMethod)
    }

    def evidence(row: CellRow, start: CellRow | None) -> Evidence:
        method = row.cell.cell.method
        noted = noted_rows(row.cell, store, trained=method.trains)
        parts = {
            label: evidence(part, start.evaluations.get(label) if start else None)
            for label, part in row.evaluations.items()
        }
        curve = read_curve(row.cell, store)
        metrics = start.metrics if start else {}
        return Evidence(
            curve,
            row.metrics,
            metrics,
            method.name,
            known_start(row.cell),
            noted,
            max_cut,
            None if parts else _shorter_answers(row.cell.cell),
            parts,
        )

    return {
        row.cell.key: find(
            evidence(
                row, starts.get((row.start_key, row.cell.cell.seed)) if row.cell.cell.method.trains else None
            )
        )
        for row in rows
        if row.done
    }


def _shorter_answers(cell: Cell) -> tuple[int, int] | None:
    """(our longest answer, the benchmark's) in tokens, where ours to a benchmark's items is shorter."""
    judge = cell.judge
    if (
        isinstance(cell.method, Written)
        or getattr(judge, "items", None) in (None, HELDOUT)
        or judge.answer_tokens is None
    ):
        return None
    assert not isinstance(judge, GoldJudge | SuiteJudge)  # The world's items are in no file.
    ours = judge.decoding.max_new_tokens
    return (ours, judge.answer_tokens) if ours < judge.answer_tokens else None


def noted_rows(cell: CellPlan, store: Store, *, trained: bool) -> dict[str, int]:
    """Counts of rows with a note by reason, of replies dropped from judges' journals, and of turns that passed
    the model's positions.

    Rows are the train and held-out rows of a `trained` cell.
    """
    stage = cell.roles.get("preferences") if trained else None
    manifest = store.status(stage).manifest if stage is not None else None
    counts: Counter[str] = Counter()
    for name, n in manifest.counts.items() if manifest else ():
        _, is_noted, reason = name.partition("/noted/")
        counts.update({reason: n} if is_noted else {})
    ends = {"_verdicts": JOURNAL_DROPPED, "_completions": POSITIONS_PASSED}
    for role, made in cell.roles.items():
        for end, name in ends.items():
            if role.endswith(end) and (manifest := store.status(made).manifest) and name in manifest.counts:
                counts[name] += manifest.counts[name]
    return dict(counts)


def lines(groups: Sequence[Group], of_cell: Mapping[str, Sequence[Finding]]) -> list[str]:
    """One line per finding with its rows and range of numbers, then one line with rows without findings."""
    quiet: list[int] = []
    by_name: dict[str, list[tuple[Group, list[Finding], int]]] = {}
    for group in groups:
        rows = [row for row in group.rows if row.cell.key in of_cell]
        all_of_it = [finding for row in rows for finding in of_cell[row.cell.key]]
        for name in dict.fromkeys(finding.name for finding in all_of_it):
            by_name.setdefault(name, []).append((group, [f for f in all_of_it if f.name == name], len(rows)))
        if rows and group.is_trained and not all_of_it:
            quiet.append(group.number)
    named = [_in_short(name, having) for name, having in by_name.items()]
    return named + (
        [f"{row_words(quiet).capitalize()} {'has' if len(quiet) == 1 else 'have'} {NONE}."] if quiet else []
    )


def _in_short(name: str, having: Sequence[tuple[Group, Sequence[Finding], int]]) -> str:
    """One line, such as `Rows 2 to 4 (2 of 3 seeds) have the finding 'displacement' (-0.13 nats a token).`"""
    values = sorted(finding.value for _, same, _ in having for finding in same)
    span = " to ".join(dict.fromkeys(f"{value:.3g}" for value in (values[0], values[-1])))
    by_seeds = grouped(
        (f" ({len(same)} of {n} seeds)" if len(same) < n else "", group.number) for group, same, n in having
    )
    where = ", ".join(f"{row_words(rows)}{seeds}" for seeds, rows in by_seeds.items())
    have = "has" if len(having) == 1 else "have"
    return f"{where[0].upper()}{where[1:]} {have} the finding '{name}' ({span} {having[0][1][0].unit})."


def markdown(title: str, rows: Sequence[CellRow], of_cell: Mapping[str, Sequence[Finding]]) -> str:
    """findings.md: every finding of every cell with its numbers and threshold."""
    opening = "Findings from the curves and numbers of each cell. `bench/report/findings.py` gives the reason for each threshold."
    parts = [f"# {title}", "", opening, ""]
    for row in rows:
        parts += [f"## {row.cell.name}", ""]
        if row.cell.key not in of_cell:
            parts += [f"- No numbers: {row.failed or 'not run yet'}", ""]
            continue
        parts += [
            f"- **{f.name}** ({f.severity}): {f.says} Threshold: {f.threshold}."
            for f in of_cell[row.cell.key]
        ] or [f"- {NONE}"]
        parts.append("")
    return "\n".join(parts)


def to_json(findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    return (asdict(finding) for finding in findings)

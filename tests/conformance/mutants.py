"""Mutants of losses.py - a sign, a mean for a sum, a clamp dropped, chosen for rejected ... - held against the conformance checks.

    python tests/conformance/mutants.py

prints how many were killed, by kind of change, and the survivors; its exit code is 1 when there is one.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

from bench.config import RefinedDpo, Trained, by_name
from bench.conformance.checks import Bench, quick_checks
from bench.training import losses

KINDS = by_name(*get_args(Trained), RefinedDpo)
PAIRED = ("dpo", "cdpo", "ipo_summed", "slic", "simpo", "orpo", "cpo", "kto_pair", "sft_chosen")
OURS = (*PAIRED, "csft", "offline_ppo", "spa")
PPO = (
    "TokenLogps",
    "token_mean",
    "_next",
    "_discounted",
    "terminal_rewards",
    "future_rewards",
    "generalized_advantages",
    "whitened",
)
PPO += ("clipped_policy_loss", "PpoLoss")
USED_BY = {
    "log_odds": ("orpo",),
    "dpo_sft": ("dpo",),
    "pair_logps": PAIRED,
    "PairLogps": PAIRED,
}  # a loss of its own name otherwise
USED_BY |= dict.fromkeys(("refined_dpo", "extrapolated_logps"), ("spa",))
USED_BY |= dict.fromkeys(PPO, ("offline_ppo",))
SUMS = {"policy_chosen_logps", "policy_rejected_logps", "policy_chosen_mean", "policy_rejected_mean"}
POLICY = SUMS | {"delta", "policy_logps", "ratio"}  # what gradients flow through
OPERATORS: dict[type[ast.operator], tuple[str, ast.operator]] = {
    ast.Add: ("sign", ast.Sub()),
    ast.Sub: ("sign", ast.Add()),
    ast.Mult: ("division for product", ast.Div()),
    ast.Div: ("product for division", ast.Mult()),
    ast.Pow: ("product for power", ast.Mult()),
}


CANNOT_RUN = "cannot run"


class Mutant(NamedTuple):
    function: str
    change: str
    name: str  # with line and what stands there now
    source: str


def make_mutants(source: str) -> Iterator[Mutant]:
    """Every single change of every kind, in every function and property."""
    for top in ast.parse(source).body:
        if not isinstance(top, (ast.FunctionDef, ast.ClassDef)):
            continue
        for place in range(sum(1 for _ in ast.walk(top))):
            changes = len(list(_changes(list(ast.walk(top))[place])))
            for which in range(changes):
                tree = ast.parse(source)
                function = next(node for node in tree.body if getattr(node, "name", None) == top.name)
                node = list(ast.walk(function))[place]
                before = ast.unparse(node)
                change, new = list(_changes(node))[which]
                tree = _Replace(node, new).visit(tree)
                name = (
                    f"{top.name}, line {getattr(node, 'lineno', 0)}: {change}: {before} -> {ast.unparse(new)}"
                )
                yield Mutant(top.name, change, name, ast.unparse(ast.fix_missing_locations(tree)))


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What may stand in a node's place, and how that change is called."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "sign", operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            change, other = OPERATORS[type(op)]
            yield change, ast.BinOp(left, other, right)
            yield "term dropped", left
            yield "term dropped", right
        case ast.Call(func=ast.Attribute(value=value, attr="mean" | "sum" as attr) as func):
            other = "sum" if attr == "mean" else "mean"
            argument = value if attr == "mean" else _call(value, "float")
            yield (
                f"{other} for {attr}",
                ast.Call(ast.Attribute(argument, other, func.ctx), node.args, node.keywords),
            )
            if attr == "mean":
                yield "detached", _call(node, "detach")
        case ast.Call(func=ast.Attribute(value=value, attr="clamp")):
            yield "clamp dropped", value
            yield "detached", _call(node, "detach")
        case ast.Call(
            func=ast.Attribute(attr="relu" | "sigmoid" | "expm1" | "log" | "rsqrt")
            | ast.Name(id="logsigmoid")
        ):
            yield (
                "clamp dropped" if ast.unparse(node.func).endswith("relu") else "function dropped",
                node.args[0],
            )
        case ast.Call(func=ast.Attribute(value=value, attr="exp" | "detach" as attr)):
            yield "detach dropped" if attr == "detach" else "function dropped", value
        case ast.Call(func=ast.Name(id="whitened" | "_next" | "_discounted" as name), args=[argument, *_]):
            yield "whitening dropped" if name == "whitened" else "function dropped", argument
        case ast.Call(func=ast.Attribute(value=value, attr="maximum") as func):
            yield (
                "minimum for maximum",
                ast.Call(ast.Attribute(value, "minimum", func.ctx), node.args, node.keywords),
            )
        case ast.Call(func=ast.Attribute(attr="where"), args=[label, yes, no]):
            yield "desirable for undesirable", ast.Call(node.func, [label, no, yes], node.keywords)
        case ast.Attribute(attr=attr, ctx=ast.Load()) if (
            other := _other_side(attr)
        ) != attr or attr in POLICY:
            if other != attr:
                change = (
                    "policy for reference"
                    if {attr, other} == {"policy_logps", "ref_logps"}
                    else "chosen for rejected"
                )
                yield change, ast.Attribute(node.value, other, node.ctx)
            if attr in POLICY:
                yield "detached", _call(node, "detach")
        case ast.Name(id="policy_logps", ctx=ast.Load()):
            yield "detached", _call(node, "detach")
        case ast.Name(id=name, ctx=ast.Load()) if (other := _other_side(name)) != name:
            yield "chosen for rejected", ast.Name(other, node.ctx)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            yield "number", ast.Constant(value + 1)


def _other_side(name: str) -> str:
    """The name of the other completion; where a name has no completion, of the other model."""
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    if swapped.keys().isdisjoint(name.split("_")):
        swapped = {"policy": "ref", "ref": "policy"}
    return "_".join(swapped.get(part, part) for part in name.split("_"))


def _call(value: ast.expr, name: str) -> ast.Call:
    return ast.Call(ast.Attribute(copy.deepcopy(value), name, ast.Load()), [], [])


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().visit(node)


@contextlib.contextmanager
def _in_place(mutant: Mutant) -> Iterator[None]:
    """The running module's functions are the mutant's."""
    module = types.ModuleType("bench.training.losses")
    exec(compile(mutant.source, f"<{mutant.name}>", "exec"), vars(module))
    before = dict(vars(losses))
    vars(losses).update({name: value for name, value in vars(module).items() if not name.startswith("__")})
    try:
        yield
    finally:
        vars(losses).clear()
        vars(losses).update(before)


def killed(mutant: Mutant, bench: Bench) -> str | None:
    """The check that fails, or CANNOT_RUN; None for a survivor."""
    with _in_place(mutant):
        for name in USED_BY.get(mutant.function, (mutant.function,)):
            try:
                for check in quick_checks(bench, KINDS[name]):
                    if not check.passed:
                        return check.name
            except Exception:  # whatever: it computes no loss
                return CANNOT_RUN
    return None


def main() -> int:
    bench = Bench()
    try:
        for name in OURS:
            for check in quick_checks(bench, KINDS[name]):
                if not check.passed:
                    raise AssertionError(f"{name}: {check.name} fails without a mutant")
        found = [
            (mutant, killed(mutant, bench)) for mutant in make_mutants(Path(losses.__file__).read_text())
        ]
    finally:
        bench.close()
    changes, by = Counter(mutant.change for mutant, _ in found), Counter(check for _, check in found if check)
    dead = Counter(mutant.change for mutant, check in found if check)
    for change in sorted(changes):
        print(f"{change:24}{dead[change]:4} of {changes[change]:4} killed")
    print("by " + ", ".join(f"{check} {n}" for check, n in by.most_common()))
    print(f"{dead.total()} of {len(found)} mutants of losses.py killed")
    for mutant, check in found:
        if not check:
            print(f"survived: {mutant.name}")
    return 1 if dead.total() < len(found) else 0


if __name__ == "__main__":
    sys.exit(main())

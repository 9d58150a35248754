"""Which rules of the exact passes are proved for every size, and under which side conditions.

    python bench/proof_rules.py --out bench/results/proof_rules.md [--only NAME]

bench/proof_rules.txt has a small application of every law, with every size that the rule does not
fix a symbol. The rule alone is applied by the pass's own driver, and `graphopt.proving` says what
is known of the difference: *proved* with symbolic sizes is proved for all of them. Where a size is
a number, the rule must refuse with a symbol in its place, or the case is not general enough: the
bench tries it. Exit code 1 if a rule has no application, or a size is a number needlessly.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
from graphopt.passes.clean import branches, constants, dead, duplicates, functions, traces
from graphopt.passes.clean.clean import RULES
from graphopt.passes.fold import dimensions
from graphopt.passes.fold.evaluated import Allowance
from graphopt.passes.fold.fold import fold_constants
from graphopt.passes.fuse.fuse import Fuse
from graphopt.passes.fuse.joined_products import join_products
from graphopt.passes.fuse.layout.transposes import meet_transposes
from proof_rule_cases import Case, built, cases, constant

from graphopt import Context
from graphopt.proving.numbering import numbered
from graphopt.proving.regions import check
from graphopt.proving.windows import Verdict, Window, windows_of
from graphopt.rewriting.driver import apply_rules
from graphopt.target import ONNX

CASES = Path(__file__).with_suffix(".txt")
#: A runtime's own operators, and what it computes slowly.
RUNTIME = dataclasses.replace(
    ONNX,
    joins_products=True,
    operators=frozenset(
        f"com.microsoft:{name}"
        for name in """BiasGelu FastGelu FusedConv FusedGemm FusedMatMul Gelu MultiHeadAttention
        QuickGelu SkipLayerNormalization SkipSimplifiedLayerNormalization""".split()  # noqa: SIM905
    ),
)
SLOW = frozenset(("SkipLayerNormalization", "ReduceMean[1,rows,columns]"))
TARGETS = {
    "onnx": ONNX,
    "runtime": RUNTIME,
    "slow": dataclasses.replace(RUNTIME, slow=SLOW),
    "old": dataclasses.replace(RUNTIME, opset=19),
}
Run = Callable[[ir.Model, Context], int]


def kinds_of_edits() -> dict[str, tuple[str, Run, str]]:
    """Every rule and kind of edit by name: its pass, how it runs alone, what it says it does."""
    found: dict[str, tuple[str, Run, str]] = {}

    def rules(where: str, given: Any) -> None:
        for one in given:
            rule = one() if isinstance(one, type) else one
            name = rule.name or type(rule).__name__
            said = (type(rule).__doc__ or "").strip().split("\n")[0]
            found[name] = where, lambda m, c, rule=rule: apply_rules(m, c, (rule,)), said

    rules("clean", RULES)
    rules("fold", (dimensions.ReshapeTarget, dimensions.ExpandTarget, dimensions.JoinedSizes))
    rules("fuse", (*Fuse.rules, *Fuse.last))
    for where, run, *names in (
        ("clean", functions.inline_functions, "InlineFunction"),
        ("clean", traces.drop_traces, "StackTraces"),
        ("clean", constants.lift_constants, "LiftConstants"),
        ("clean", dead.remove_unused, "DeadNode", "DeadOutput", "UnusedInitializer"),
        ("clean", dead.remove_unused, "UnusedFunction"),
        ("clean", branches.resolve_branches, "ConstantIf"),
        ("clean", branches.unroll_loops, "UnrollLoop"),
        ("clean", duplicates.merge_initializers, "MergeInitializers"),
        ("clean", duplicates.merge_nodes, "MergeNodes"),
        ("fold", lambda m, c: fold_constants(m, c, Allowance(m)), "FoldConstant"),
        ("fold", dimensions._share_sizes, "ShareSizes"),
        ("fold", dimensions._read_sizes_directly, "ReadSizes"),
        ("fuse", meet_transposes, "MeetTransposes"),
        ("fuse", join_products, "JoinProducts"),
    ):
        found.update({n: (where, run, (run.__doc__ or "").split("\n")[0]) for n in names})
    return found


def judged(case: Case, run: Run) -> tuple[str, str]:
    """(verdict, means) of one application; ("none", why) if the rule does nothing."""
    model = built(case)
    before = model.clone()
    ctx = Context(model, target=TARGETS[case.target], pass_name="rule")
    edits = run(model, ctx)
    if not edits:
        reasons = [r.reason for r in ctx.refusals]
        return "none", reasons[0] if reasons else "the rule does not match"
    if case.rule not in {e.rule for e in ctx.edits}:
        return "none", f"only {sorted({e.rule for e in ctx.edits})}"
    reasons: list[str] = []

    def asked(window: Window) -> tuple[Verdict, str]:
        reasons.append(window.means)
        return check(window)

    found = windows_of(numbered(before), model, asked)
    verdicts = {w.verdict for w in found.windows}
    if found.open:
        return ("refuted" if "refuted" in verdicts else "assumed"), "; ".join(
            dict.fromkeys(reasons)
        )
    if "checked" in verdicts:
        return "checked", reasons[0]
    return "proved", "normal form" if verdicts else "congruence"


def conditions(case: Case) -> str:
    """What the application fixes: numbers among sizes, constants, the opset."""
    fixed = [f"{n}[{','.join(dims)}]" for _, n, dims in case.inputs if any(map(str.isdigit, dims))]
    names = [n for n in sorted(set(re.findall(r"\w+", case.body))) if constant(n) is not None]
    values = [n for n in names if n[:2] in ("s_", "k_", "i_", "b_")]
    stored = [n for n in names if n not in values]
    shown = [str(constant(n).tolist()) for n in values]
    parts = [", ".join(fixed)] if fixed else []
    parts += ["constants " + ", ".join(dict.fromkeys(shown))] if shown else []
    shapes = [str(list(constant(n).shape)) for n in stored]
    parts += ["stored " + ", ".join(dict.fromkeys(shapes))] if stored else []
    parts += [f"target {case.target}"] if case.target != "onnx" else []
    return "; ".join(parts)


def examined(case: Case, run: Run) -> tuple[str, str, str]:
    """(verdict, means, ranks) over all its ranks; the weakest counts."""
    order = ("proved", "checked", "assumed", "refuted", "none")
    results = {r: judged(case.at(r), run) for r in case.ranks}
    fits = {r: v for r, v in results.items() if v[0] != "none"}
    if not fits:
        return (*next(iter(results.values())), "")
    verdict, means = max(fits.values(), key=lambda v: order.index(v[0]))
    if len(case.ranks) > 1:
        return verdict, means, f"{min(fits)} to {max(fits)}"
    return verdict, means, ", ".join(dict.fromkeys(str(len(d)) for _, _, d in case.inputs))


def needless(case: Case, run: Run) -> list[str]:
    """Sizes that are numbers although the rule would apply with a symbol."""
    found = []
    for where, freed in case.freed():
        try:
            verdict, _ = judged(freed, run)
        except Exception:  # the graph is none with another size there
            continue
        if verdict == "proved":
            found.append(where)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="one rule")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    known = kinds_of_edits()
    every = [c for c in cases(CASES.read_text()) if args.only in (None, c.rule)]
    wrong = [n for n in known if not args.only and n not in {c.rule for c in every}]
    rows, totals = [], collections.Counter()
    for case in every:
        where, run, _ = known[case.rule]
        try:
            if case.reason:
                verdict, means, ranks = "no rewrite", case.reason, ""
            else:
                verdict, means, ranks = examined(case, run)
        except Exception as error:
            verdict, means, ranks = "none", f"{type(error).__name__}: {error}", ""
        general = verdict == "proved" and needless(case, run)
        if verdict == "none" or general:
            wrong.append(f"{case.rule}: {case.law}: {general or means}")
        totals[verdict, "stored" in conditions(case)] += 1
        cells = (where, case.rule, case.law, ranks, verdict, means, conditions(case))
        rows.append("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
        print(rows[-1], flush=True)
    proved = totals["proved", False], totals["proved", True]
    lines = [
        "# Rules proved for every size",
        "",
        f"`python bench/proof_rules.py`: {len(every)} laws of {len({c.rule for c in every})} rules "
        f"and kinds of edits of clean, fold and fuse. {sum(proved)} are proved with every size a "
        f"symbol that the rule itself does not fix, {proved[0]} of them whatever is stored, and "
        f"{proved[1]} beside stored tensors, whose own sizes are those of the case. The others: "
        + (", ".join(f"{n} {v}" for (v, _), n in totals.items() if v != "proved") or "none")
        + ".",
        "",
        "| pass | rule | law | ranks | verdict | by | sizes, constants and targets that it needs |",
        "|" + "---|" * 7,
        *rows,
    ]
    print("\n".join(lines[2:4]))
    for one in wrong:
        print("wrong:", one)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

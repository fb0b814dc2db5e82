"""Plans that mix families: layers of one and of another in turn around one residual, each with its own cache groups."""
from __future__ import annotations

from dataclasses import fields, replace

from pyruntime import plan as p
from pyruntime.models import gemma3, llama, mamba2

SHARED = ("x", "logits")     # slots of both


def hybrid(first: p.Plan, second: p.Plan) -> p.Plan:
    """Layer by layer: one of the first plan's, one of the second's, and what is left. Embedding and head are the first's."""
    parts = [_renamed(first, "a."), _renamed(second, "b.", ropes=len(first.ropes))]
    assert first.vocab == second.vocab and first.width == second.width
    layers = [_layers(part) for part in parts]
    ops: list[p.Op] = [parts[0].ops[0]]
    cuts = [0]
    for i in range(max(map(len, layers))):
        for some in layers:
            if i < len(some):
                cuts += [len(ops)] if len(ops) > 1 else []
                ops += some[i]
    ops += parts[0].ops[-2:]
    used = {getattr(op, f.name) for op in ops for f in fields(op)}
    return replace(
        first, ops=tuple(ops), cuts=tuple(cuts), slots=tuple(dict.fromkeys(s for part in parts for s in part.slots)),
        weights=tuple(w for part in parts for w in part.weights if w.name in used),
        groups=tuple(g for part in parts for g in part.groups), ropes=first.ropes + second.ropes)


def _layers(plan: p.Plan) -> list[tuple[p.Op, ...]]:
    starts = [1, *plan.cuts[1:], len(plan.ops) - 2]
    return [plan.ops[a:b] for a, b in zip(starts, starts[1:], strict=False)]


def _renamed(plan: p.Plan, prefix: str, ropes: int = 0) -> p.Plan:
    """Slots, weights and groups under names of their own, rope tables behind `ropes` others."""
    names = {thing.name: prefix + thing.name for things in (plan.slots, plan.weights, plan.groups) for thing in things
             if thing.name not in SHARED}

    def op_of(op: p.Op) -> p.Op:
        changes = {f.name: names[value] for f in fields(op) if isinstance(value := getattr(op, f.name), str) and value in names}
        if isinstance(op, p.RopeKV) and op.rope is not None:
            changes["rope"] = op.rope + ropes
        return replace(op, **changes)

    def named(things: tuple) -> tuple:
        return tuple(replace(thing, name=names.get(thing.name, thing.name)) for thing in things)

    return replace(plan, ops=tuple(map(op_of, plan.ops)), slots=named(plan.slots), weights=named(plan.weights),
                   groups=named(plan.groups))


def mamba_and_llama(**cache: str) -> p.Plan:
    """Three layers of states and two of pages."""
    return hybrid(mamba2.plan(mamba2.tiny(layers=3, context=160)), llama.plan(llama.tiny(width=48, context=160, **cache)))


def mamba_and_gemma(window: int = 19, **cache: str) -> p.Plan:
    """States, pages of a window, and pages of everything in one plan."""
    return hybrid(mamba2.plan(mamba2.tiny(context=160)), gemma3.plan(gemma3.tiny(width=48, window=window, context=160, **cache)))

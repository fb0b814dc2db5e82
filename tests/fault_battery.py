"""The properties every deliberate fault is put before, small and quick; run by test_faults in a process of its own.

`python fault_battery.py [number ...]` prints a JSON line a fault: {"fault": number, "caught": what failed, or null}.
Fault 0 is none.
"""
from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import cycle

import numpy as np
import torch
from backend_compare import PAGES, ROWS, compare, schedule, some_roles
from faults import FAULTS
from reference_models import native_backend, random_values, stored
from sampling_cases import equals_the_book, random_row, rows_of, run, sampler

from pyruntime import plan as p
from pyruntime.backends.torch import TorchBackend
from pyruntime.bench.work import matrices
from pyruntime.config import Experts, Latent
from pyruntime.errors import FieldInvalid
from pyruntime.models import deepseek_v2, gemma3, gpt2, llama, mamba2
from pyruntime.quant import FORMATS
from pyruntime.types import Batch

#: config fields, the matrices' formats in turn, what the ops get besides
MODELS = {
    "q8_0": (dict(eps=1e-3, qkv_bias=True, rope_interleaved=True), "Q8_0", dict(window=5)),
    "q4_1": (dict(eps=1e-3, heads=3, kv_heads=3, head_dim=32, rope_interleaved=False, k_format="f32", v_format="q8_0"),
             "Q4_1", {}),
    "q4_0": (dict(heads=4, kv_heads=2, head_dim=24, qk_norm=True, tied=False), "Q4_0", dict(softcap=2.0, scale=0.75)),
    "k": (dict(width=256, hidden=256, heads=2, kv_heads=1, head_dim=128, layers=1), "Q4_K Q5_K Q6_K", {}),
    "level": (dict(width=256, hidden=256, heads=2, kv_heads=1, head_dim=128, layers=1), "Q5_K", dict(level=True)),
    "few bits": (dict(width=256, hidden=256, heads=2, kv_heads=1, head_dim=128, layers=1),
                 "Q8_0 Q2_K Q3_K IQ4_XS NVFP4 MXFP4 F8_E4M3 F8_E5M2", {}),
    "f16": (dict(width=41, hidden=37, heads=2, kv_heads=2, head_dim=10, rope_dims=6), "F16", dict(sharp=30.0)),
    "gemma": (dict(eps=1e-3, period=2, window=5), "Q8_0", dict(family=gemma3)),
    "gpt2": (dict(eps=1e-3, kv_heads=4), "Q8_0", dict(family=gpt2)),
    "latent": (dict(eps=1e-3, heads=34, kv_heads=None, head_dim=None, latent=Latent(32, 32, 32, 20, 16, 1e-3),
                    experts=Experts(8, 3, 32, 32, 0, True, True, 4, 2, 2, True, 1.5)), "Q8_0", dict(family=deepseek_v2)),
    "pairs": (dict(width=160, heads=3, kv_heads=1, head_dim=32), "BF16 F16", dict(paths=("a16_bf16", "a16"))),
    "bytes": (dict(width=256, hidden=256, heads=2, kv_heads=1, head_dim=128, layers=1), "Q8_0 Q4_K Q2_K Q6_K Q4_0 BF16",
              dict(paths=("a8", "a16"))),
    "level bytes": (dict(width=256, hidden=256, heads=2, kv_heads=1, head_dim=128, layers=1), "Q5_K",
                    dict(level=True, paths=("a8", "a16"))),
    "mixed": (dict(heads=3, kv_heads=1, head_dim=32), "Q4_1", dict(paths=("bf16", "a16"))),
    "mamba": (dict(eps=1e-3, heads=6, head_dim=20, groups=2, numbers=12, dt_min=0.5, dt_max=1.0), "Q8_0", dict(family=mamba2)),
    "large": (dict(width=32, hidden=32, heads=2, kv_heads=1, head_dim=8, layers=1), "BF16", dict(values=2e5)),
}


@cache
def model(name: str):
    """(plan, weights packed, weights in blocks)."""
    fields, format, more = MODELS[name]
    family = more.get("family", llama)
    usual = dict(layers=2, width=96, vocab=61) | ({} if family is mamba2 else dict(hidden=96, heads=4, kv_heads=2, head_dim=24))
    plan = family.plan(family.tiny(**{key: value for key, value in {**usual, **fields}.items() if value is not None}))
    values = random_values(plan, 5)
    if more.get("level"):   # every product at its largest: activations of one size, weights at the top of their range
        rng = np.random.default_rng(6)
        for w in plan.weights:
            top = np.full((w.rows, w.k), 1.0 / w.k) if w.k else np.ones(w.rows)
            values[w.name] = (top * (rng.random(top.shape) < 0.95) if w.k and w.rows != plan.vocab else top).astype(np.float32)
    for key in values:
        if key.endswith("attn_v.weight"):
            values[key] *= more.get("values", 1)
    plan = replace(plan, ops=tuple(
        replace(op, window=more.get("window", op.window), softcap=more.get("softcap", 0.0), scale=op.scale * more.get("sharp", 1))
        if isinstance(op, p.Attention) else replace(op, scale=more.get("scale", 1.0)) if isinstance(op, p.LinearAdd) else op
        for op in plan.ops))
    matrices = [w for w in plan.weights if w.k]
    formats = {w.name: f if w.k % FORMATS[f].BLOCK_WEIGHTS == 0 else "F32" for w, f in zip(matrices, cycle(format.split()))}
    return plan, stored(plan, values, formats), stored(plan, values, formats, low_memory=True)


def pair(name: str, isa: str):
    """(native, reference) of one model."""
    plan, packed, blocks = model(name)
    paths = MODELS[name][2].get("paths", ("a16", "a16"))
    return native_backend(plan, packed, pages=PAGES, max_tokens=320, max_rows=ROWS, threads=1, isa=isa, paths=paths), \
        TorchBackend(plan, blocks, pages=PAGES, max_tokens=320, max_rows=ROWS, dtype=torch.float64, paths=paths)


def ops(name: str) -> Callable[[str], None]:
    """Every op within its bound; two rounds, so that pages are used again."""
    def check(isa: str) -> None:
        native, ref = pair(name, isa)
        rng = np.random.default_rng(1)
        for lengths in ((39, 5, 18), (7, 34)):
            for batch in schedule(native.plan, rng, lengths=lengths):
                batch = replace(batch, roles=some_roles(rng, len(batch.tokens)))
                compare(native.plan, model(name)[2], native, ref, batch)
    check.__name__ = f"ops {name}"
    return check


def long_context(isa: str) -> None:
    """Enough pages for several attention splits, and tokens whose best page comes late; the page copied half way."""
    native, ref = pair("f16", isa)
    ids, table = np.random.default_rng(2).integers(0, 61, 316), list(range(20, 0, -1))
    for at, n in ((0, 300), *((at, 1) for at in range(300, 316))):
        compare(native.plan, model("f16")[2], native, ref, Batch.build([(ids[at:at + n], at, at)], tables=[[table]]))
        for backend in (native, ref):
            backend.copy_page(0, table[18], 22)
        table[18] = 22 if table[18] != 22 else 23


def equal_experts(isa: str) -> None:
    """Among experts of equal choices the first are chosen."""
    plan, packed, _ = model("latent")
    plan = replace(plan, ops=tuple(replace(op, bias=None, groups=1, groups_kept=1) if isinstance(op, p.Route) else op
                                   for op in plan.ops))
    native, at = native_backend(plan, packed, pages=PAGES, threads=1, isa=isa), next(
        i for i, op in enumerate(plan.ops) if isinstance(op, p.Route))
    batch = Batch.build([(list(range(20)), 0, 0)], tables=[[[3, 4]]])
    native.run(batch, 0, at)
    native.slot("router")[:] = 1
    native.run(batch, at, at + 1)
    assert np.array_equal(native.slot("routes.0")[:, :3], np.tile([0, 1, 2], (20, 1)))


def experts_read_once(isa: str) -> None:
    """However many tokens chose them; with the bits of steps of few."""
    plan, packed, _ = model("latent")
    native = native_backend(plan, packed, pages=PAGES, max_tokens=320, threads=1, isa=isa, paths=("a16", "a16"))
    last = next(i for i, op in enumerate(plan.ops) if isinstance(op, p.EachLinear) and op.routes)
    experts, ids, out = plan.ops[last - 1], np.arange(320) % 61, []
    assert isinstance(experts, p.Experts)
    for n in (40, 320):
        native.clock(True)
        for at in range(0, 320, n):
            batch = Batch.build([(ids[at:at + n], 0, 0)], tables=[[list(range(20))]])
            native.run(batch, 0, 1)
            native.run(batch, last - 3, last + 1)
            out.append(native.slot(plan.ops[last].out).copy())
    chosen = np.bincount(native.slot("routes.0")[:, :3].astype(int).ravel(), minlength=8)
    size = sum(packed[name].nbytes for name in (experts.gate, experts.up)) // 8
    assert chosen.max() > 64 and native.weights_read()[last - 1] == (chosen > 0).sum() * size
    assert np.array_equal(np.concatenate(out[:-1]), out[-1])


def weights_read_once(isa: str) -> None:
    """By tokens of two paths together."""
    plan, packed, _ = model("pairs")
    native = native_backend(plan, packed, pages=PAGES, threads=1, isa=isa, paths=MODELS["pairs"][2]["paths"])
    native.clock(True)
    native.run(Batch.build([(list(range(20)), 0, 0)], tables=[[[3, 4]]], roles=np.uint8([0, 1] * 10)), 0, len(plan.ops) - 2)
    assert native.weights_read().sum() == sum(packed[name].nbytes for op in plan.ops[:-2] for name in matrices(op))


def copied_pages(isa: str) -> None:
    """A sequence goes on from copied pages as from its own."""
    native, _ = pair("q8_0", isa)
    native.run(Batch.build([(list(range(20)), 0, 0), ([1] * 12, 30, 0)], tables=[[[3, 4], [6]]]))
    native.copy_page(0, 4, 6)
    out = []
    for table in ([3, 4], [3, 6]):
        native.run(Batch.build([([9], 20, 20)], tables=[[table]]))
        out.append(native.slot("logits").copy())
    assert np.array_equal(*out)


def reused_pages(isa: str) -> None:
    """What a page held for another sequence is not seen past the new one's end."""
    native, ref = pair("f16", isa)
    for ids, table in ((range(16), [3]), (range(20), [5, 3])):
        compare(native.plan, model("f16")[2], native, ref, Batch.build([(list(ids), 0, 0)], tables=[[table]]))


def gone_pages(isa: str) -> None:
    """A page is refused as gone while a token of the step sees its last slot."""
    native, _ = pair("gemma", isa)
    local = next(i for i, g in enumerate(native.plan.groups) if g.window)
    tables = [[[-1, 2]] if i == local else [[1, 2]] for i in range(len(native.plan.groups))]
    try:
        native.run(Batch.build([([1], 19, 19)], tables=tables))
    except FieldInvalid:
        return
    raise AssertionError("a page in sight was taken as gone")


def states(isa: str) -> None:
    """A state goes on from where it is alone, and back to a snapshot no longer than asked."""
    native, _ = pair("mamba", isa)
    native.run(Batch.build([(list(range(9)), 0, 0)], tables=[[[0]]] * 2))
    native.copy_page(0, 0, 1)
    try:
        native.run(Batch.build([([1], 8, 8)], tables=[[[0]]] * 2))
    except FieldInvalid:
        pass
    else:
        raise AssertionError("a state went on from another place")
    native.run(Batch.build([([1], 9, 9)], tables=[[[0]]] * 2))
    assert native.state_truncate(0, 0, 8, (1,)) == 0


def sampling(isa: str) -> None:
    """Native equals the book on random rows."""
    for seed in range(100):
        equals_the_book(random_row(np.random.default_rng(seed)))


def streams(isa: str) -> None:
    """Every part of the key moves the draw: 16 positions and 16 seeds of equal lower half all give other tokens."""
    backend = sampler("native", 4096, rows=16)
    for fields in (dict(position=np.arange(16)), dict(seed=np.arange(16, dtype=np.uint64) << np.uint64(32))):
        assert len(set(run(backend, np.zeros((16, 4096), np.float32), rows_of(16, **fields))["token"].tolist())) > 12


def top_p(isa: str) -> None:
    """The published figure: two tokens survive 0.9, both are drawn."""
    backend, x = sampler("native", 10, rows=200), np.float32([5, 3, 2, 1.5, 1, 0.5, 0, -0.5, -1, -2])
    drawn = run(backend, np.tile(x, (200, 1)), rows_of(200, top_p=0.9, position=np.arange(200)))["token"]
    assert set(drawn.tolist()) == {0, 1}


def penalties(isa: str) -> None:
    """What was generated is told from what was given."""
    backend = sampler("native", 4)
    backend.history_extend(0, np.array([0, 0, 1]), False)
    backend.history_extend(0, np.array([2]), True)
    out = [int(run(backend, np.float32([[3, 2.5, 2.9, 0]]), rows_of(temperature=0, history=0, **f))["token"][0])
           for f in (dict(frequency=1.0), dict(presence=1.0), dict(repetition=1.1))]
    assert out == [0, 0, 0]


PROPERTIES = [streams, penalties, top_p, copied_pages, equal_experts, experts_read_once, weights_read_once, reused_pages,
              gone_pages, states, *(ops(name) for name in MODELS), long_context, sampling]


def battery(isa: str) -> str | None:
    """The first property that fails and how, or None."""
    for check in PROPERTIES:
        try:
            check(isa)
        except AssertionError as error:
            return f"{check.__name__}: {str(error).splitlines()[0][:200] if str(error) else 'differs'}"
    return None


def main(numbers: list[int]) -> None:
    """The battery under each fault number."""
    from pyruntime._core import _engine

    torch.set_num_threads(1)
    which = ctypes.c_int.in_dll(ctypes.CDLL(_engine.__file__), "rt_fault")
    here = [name for name, missing in _engine.isas() if not missing]
    for n in numbers or range(len(FAULTS) + 1):
        isa = (FAULTS[n - 1].isa if n else "") or ("avx2" if "avx2" in here else "scalar")
        if isa not in here:
            print(json.dumps({"fault": n, "caught": f"skipped: this CPU has no {isa}"}), flush=True)
            continue
        which.value = n
        print(json.dumps({"fault": n, "caught": battery(isa)}), flush=True)


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]])

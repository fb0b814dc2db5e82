"""Random weights and page tables for tests that compare backends."""
from __future__ import annotations

import numpy as np

from pyruntime import quant
from pyruntime.plan import PAGE_TOKENS, Plan
from pyruntime.weights import Weights, from_blocks


def random_values(plan: Plan, seed: int) -> dict[str, np.ndarray]:
    """f32 values for every weight of a plan, scaled so that residuals and logits have a spread of about 1 or more.

    Matrices keep a unit input at unit size, norms scatter around 1, the embedding is large enough for logits std >= 1.
    """
    rng = np.random.default_rng(seed)
    values = {}
    for w in plan.weights:
        x = rng.standard_normal((w.rows, w.k) if w.k else (w.rows,)).astype(np.float32)
        if not w.k:
            x = -np.exp(0.5 * x) if w.name.endswith("ssm_a") else 0.3 * x if w.name.endswith(".bias") else 1 + 0.2 * x
        else:
            x *= 2.0 / np.sqrt(w.k) if w.rows == plan.vocab else 1.2 / np.sqrt(w.k)
        values[w.name] = x.astype(np.float32)
    return values


def stored(plan: Plan, values: dict[str, np.ndarray], formats: dict[str, str] | None = None, *,
           low_memory: bool = False) -> Weights:
    """Weights of `values`, each matrix rounded to its format (F32 where none is named)."""
    chosen = {w.name: (formats or {}).get(w.name, "F32") if w.k else "F32" for w in plan.weights}
    blocks = {name: (format, quant.FORMATS[format].quantize(values[name])) for name, format in chosen.items()}
    return from_blocks(plan.weights, blocks, low_memory=low_memory, threads=1)


def random_weights(plan: Plan, seed: int) -> Weights:
    """Random f32 weights, unpacked."""
    return stored(plan, random_values(plan, seed), low_memory=True)


def tables_of(lengths: list[int], pages: int, rng: np.random.Generator) -> list[list[int]]:
    """Disjoint random page tables long enough for each length."""
    order = rng.permutation(pages).tolist()
    return [[order.pop() for _ in range(-(-n // PAGE_TOKENS))] for n in lengths]


def native_backend(plan: Plan, weights: Weights | dict, **options):
    """A native backend; weights {} for a plan that has none."""
    from pyruntime.backends.native import NativeBackend

    return NativeBackend(plan, weights or [], **options)


def page_values(format: str, part: int, data: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """f32 [head_dim][16] of K (part 0) or [16][head_dim] of V as a page holds them."""
    if format != "q8_0":
        return quant.FORMATS[format.upper()].dequantize(data, shape)
    scales = data[:shape[part]].view(np.float16).astype(np.float32)
    q = data[2 * len(scales):].view(np.int8).astype(np.float32).reshape(shape)
    return q * (scales.reshape(-1, PAGE_TOKENS).repeat(32, 0) if part == 0 else scales.reshape(PAGE_TOKENS, -1).repeat(32, 1))


class Pages:
    """K and V of a native backend's pages as f64 arrays."""

    def __init__(self, native) -> None:
        self.native, self.plan = native, native.plan

    def read(self, group: int, page: int, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """(K, V) [PAGE_TOKENS][kv_heads][head_dim] of one layer; of a latent group V is the first numbers of K."""
        g = self.plan.groups[group]
        if g.kind == "latent":
            data = self.native.page(group, page).reshape(g.layers, -1)[layer]
            rows = page_values(g.k_format, 1, data, (PAGE_TOKENS, g.head_dim)).astype(np.float64)[:, None]
            return rows, rows[..., : g.width]
        data, at, out = self.native.page(group, page), 0, ([], [])
        for here in range(g.layers):
            for _ in range(g.kv_heads):
                for part, format, shape in ((0, g.k_format, (g.head_dim, PAGE_TOKENS)),
                                            (1, g.v_format, (PAGE_TOKENS, g.head_dim))):
                    twin = quant.FORMATS[format.upper()]
                    n = g.head_dim // twin.BLOCK_WEIGHTS * PAGE_TOKENS * twin.BLOCK_BYTES
                    if here == layer:
                        values = page_values(format, part, data[at:at + n], shape).astype(np.float64)
                        out[part].append(values.T if part == 0 else values)
                    at += n
        return np.stack(out[0], 1), np.stack(out[1], 1)

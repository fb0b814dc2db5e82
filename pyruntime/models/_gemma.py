"""What Gemma 2 and 3 share: the plan, local and global layers with norms on both sides of every block; a checkpoint's names."""
from __future__ import annotations

import math

from ..config import LAYERS_MAX, Metadata, ModelConfig
from ..errors import ModelInvalid
from ..plan import (
    Activation,
    Attention,
    CacheGroup,
    Embed,
    Gated,
    Linear,
    Logits,
    NormAdd,
    NormLinear,
    Plan,
    Rope,
    RopeKV,
    Sample,
    Slot,
    Weight,
)
from ..recipe import Recipe, Taken

GROUPS = {True: "local", False: "global"}


def pattern(layers: int, period: int) -> tuple[bool, ...]:
    """Which layers are local: all but every `period`-th."""
    return tuple(bool((i + 1) % period) for i in range(layers))


def listed(meta: Metadata, key: str, layers: int, period: int) -> tuple[bool, ...]:
    """Which layers are local: as a GGUF file lists them, a truth value each, or by its period as a number, else by ours."""
    value = meta.values.get(key, period)
    if isinstance(value, int) and not isinstance(value, bool):
        return pattern(layers, meta.integer(key, 1, LAYERS_MAX, period))
    flags = list(value) if hasattr(value, "__len__") and not isinstance(value, str) else []  # type: ignore[call-overload]
    if len(flags) != layers or not {bool(f) == f for f in flags} <= {True}:
        raise ModelInvalid(f"{meta.file}: metadata '{key}' must be a number or {layers} truth values, one a layer")
    return tuple(bool(f) for f in flags)


def layer_types(meta: Metadata, layers: int, period: int) -> tuple[bool, ...]:
    """Which layers are local: as config.json lists them, else by the period."""
    if meta.values.get("layer_types") is None:
        return pattern(layers, period)
    kinds = meta.choices("layer_types", {"sliding_attention": "local", "full_attention": "global"}, layers)
    return tuple(kind == "local" for kind in kinds)


def hf_weights(config: ModelConfig) -> dict[str, Recipe]:
    """Where each of the plan's weights stands in a checkpoint."""
    outside = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight", "output.weight": "lm_head.weight"}
    parts = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
             "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
             "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}

    def there(name: str) -> str:
        if name in outside:
            return outside[name]
        _, layer, part, kind = name.split(".")
        return f"layers.{layer}.{parts[part]}.{kind}"

    return {w.name: Taken(there(w.name), plus=0.0 if w.k else 1.0) for w in plan(config).weights}


def plan(config: ModelConfig) -> Plan:
    """The op list: eight ops a layer around the residual slot `x`; `y` is a block's output before its norm.

    Local and global layers are two cache groups: pages behind the window of the local ones are given back."""
    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    weights = [Weight("token_embd.weight", c.vocab, c.width)]
    ops: list = [Embed("x", "token_embd.weight", scale=math.sqrt(c.width))]
    cuts = [0]
    local = c.local or (False,) * c.layers
    at = {True: 0, False: 0}           # layers each group has so far
    turns = {True: _frequencies(c.local_rope_theta, c.head_dim, 1.0),
             False: _frequencies(c.rope_theta, c.head_dim, c.rope_scaling.factor)}
    kinds = [kind for kind in (True, False) if kind in local]

    def need(name: str, rows: int, k: int = 0) -> str:
        weights.append(Weight(name, rows, k))
        return name

    for i, is_local in enumerate(local):
        b, group, layer = f"blk.{i}.", GROUPS[is_local], at[is_local]
        at[is_local] += 1
        if i:
            cuts.append(len(ops))
        ops += [
            NormLinear("x", "qkv", norm=need(b + "attn_norm.weight", c.width), w0=need(b + "attn_q.weight", q, c.width),
                       w1=need(b + "attn_k.weight", kv, c.width), w2=need(b + "attn_v.weight", kv, c.width), eps=c.eps),
            RopeKV("qkv", group, layer=layer, heads=c.heads, rope=kinds.index(is_local), eps=c.eps,
                   q_norm=need(b + "attn_q_norm.weight", c.head_dim) if c.qk_norm else None,
                   k_norm=need(b + "attn_k_norm.weight", c.head_dim) if c.qk_norm else None),
            Attention("qkv", "mixed", group, layer=layer, heads=c.heads, scale=c.query_scale or 1.0 / math.sqrt(c.head_dim),
                      window=c.window if is_local else 0, softcap=c.score_softcap),
            Linear("mixed", "y", need(b + "attn_output.weight", c.width, q)),
            NormAdd("y", "x", need(b + "post_attention_norm.weight", c.width), eps=c.eps),
            Gated("x", "hidden", norm=need(b + "ffn_norm.weight", c.width), gate=need(b + "ffn_gate.weight", c.hidden, c.width),
                  up=need(b + "ffn_up.weight", c.hidden, c.width), activation=Activation[c.activation.upper()], eps=c.eps),
            Linear("hidden", "y", need(b + "ffn_down.weight", c.width, c.hidden)),
            NormAdd("y", "x", need(b + "post_ffw_norm.weight", c.width), eps=c.eps),
        ]
    head = "token_embd.weight" if c.tied else need("output.weight", c.vocab, c.width)
    ops += [Logits("x", "logits", norm=need("output_norm.weight", c.width), weight=head, eps=c.eps, softcap=c.final_softcap),
            Sample("logits")]
    return Plan(
        ops=tuple(ops),
        slots=(Slot("x", c.width), Slot("qkv", q + 2 * kv), Slot("mixed", q), Slot("y", c.width), Slot("hidden", c.hidden),
               Slot("logits", c.vocab, per_row=True)),
        weights=tuple(weights),
        groups=tuple(CacheGroup(GROUPS[kind], at[kind], c.kv_heads, c.head_dim, k_format=c.k_format, v_format=c.v_format,
                                window=c.window if kind else 0)
                     for kind in kinds),
        ropes=tuple(Rope(turns[kind], c.rope_interleaved) for kind in kinds),
        vocab=c.vocab, context=c.context, width=c.width, cuts=tuple(cuts),
    )


def _frequencies(theta: float, dims: int, factor: float) -> tuple[float, ...]:
    """theta^(-2i/d) / factor for each pair."""
    return tuple(theta ** (-2.0 * i / dims) / factor for i in range(dims // 2))

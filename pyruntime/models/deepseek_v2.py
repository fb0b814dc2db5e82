"""DeepSeek V2 and V3, GLM-4 MoE Lite: latent attention over compressed keys and values, mixtures of experts beside shared ones
(DeepSeek-AI 2024).

Attention is computed in latent space: W_uk takes each head's query there, W_uv takes its result back, and neither keys nor
values of any head exist. What a token keeps is its normed latent and one rotated key. GGUF files hold W_uk turned
(attn_k_b) and W_uv (attn_v_b); checkpoints hold both, head by head, in kv_b_proj. Rotated pairs are interleaved in both.

V2 chooses by softmax, of groups by their best expert; the others by sigmoids plus a bias, of groups by their two best.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..config import (
    CONTEXT_MAX,
    HEADS_MAX,
    LAYERS_MAX,
    VOCAB_MAX,
    WIDTH_MAX,
    Experts,
    Latent,
    Metadata,
    ModelConfig,
    RopeScaling,
    embedding_rows,
)
from ..errors import ModelInvalid
from ..plan import (
    Activation,
    Attention,
    CacheGroup,
    EachLinear,
    Embed,
    Gated,
    LatentKV,
    LinearAdd,
    Logits,
    NormLinear,
    Op,
    Plan,
    Rope,
    Route,
    RoutedAdd,
    Sample,
    Scoring,
    Slot,
    Weight,
)
from ..plan import Experts as ExpertsOp
from ..recipe import ACTIVATIONS, Recipe, Taken, rope, yarn_factors, yarn_mscale
from .llama import inverse_frequencies

ARCHITECTURES = ("deepseek2",)
MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
HF_PREFIXES = ("model.",)
#: Rotary buffers; the head of a tied model; the layers of V3 and of GLM-4 that predict a second token, which no config tells
HF_SKIPPED = ("layers.*.self_attn.rotary_emb.inv_freq", "lm_head.weight", "layers.61.*", "layers.47.*")
CONFIG_TENSORS: tuple[str, ...] = ()
EXPERTS_MAX, RANK_MAX = 2048, 1 << 14


def from_gguf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]], vector: Callable[[str], Sequence[float]]) -> ModelConfig:
    """Config from GGUF metadata and the tensors' shapes ([rows, k] order).

    Newer files describe the cache (`key_length` is what a token keeps) and the heads apart (`key_length_mla`)."""
    a = "deepseek2"
    heads = meta.integer(f"{a}.attention.head_count", 1, HEADS_MAX)
    turned = meta.integer(f"{a}.rope.dimension_count", 2, 1024)
    keys = meta.integer(f"{a}.attention.key_length_mla", turned + 1, 1024, meta.integer(f"{a}.attention.key_length", 1, RANK_MAX))
    values = meta.integer(f"{a}.attention.value_length_mla", 1, 1024, meta.integer(f"{a}.attention.value_length", 1, RANK_MAX))
    eps = meta.real(f"{a}.attention.layer_norm_rms_epsilon", 0.0, 1.0, 1e-6)
    latent = Latent(rank=meta.integer(f"{a}.attention.kv_lora_rank", 1, RANK_MAX), rope=turned, keys=keys - turned, values=values,
                    q_rank=meta.integer(f"{a}.attention.q_lora_rank", 0, RANK_MAX, 0), eps=eps)
    theta, scaling, sharper = meta.real(f"{a}.rope.freq_base", 1.0, 1e12, 1e4), RopeScaling(), 1.0
    kind = meta.text(f"{a}.rope.scaling.type", "none")
    if kind == "yarn":
        factor = meta.real(f"{a}.rope.scaling.factor", 1.0, 1e4)
        trained = meta.integer(f"{a}.rope.scaling.original_context_length", 1, CONTEXT_MAX)
        scaling = RopeScaling("factors", factor, yarn_factors(
            turned, theta, factor, trained, meta.real(f"{a}.rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
            meta.real(f"{a}.rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0)))
        sharper = yarn_mscale(factor, 10 * meta.real(f"{a}.rope.scaling.yarn_log_multiplier", 0.0, 1e1, 0.0))
    elif kind != "none":
        raise ModelInvalid(f"{meta.file}: rotary scaling '{kind}' is not supported; known: none, yarn")
    layers = meta.integer(f"{a}.block_count", 1, LAYERS_MAX)
    return _checked(meta, ModelConfig(
        family="deepseek_v2", layers=layers, width=meta.integer(f"{a}.embedding_length", 1, WIDTH_MAX), heads=heads, kv_heads=1,
        head_dim=latent.rank + turned, hidden=meta.integer(f"{a}.feed_forward_length", 1, WIDTH_MAX * 8),
        vocab=embedding_rows(tensors, meta.file), context=meta.integer(f"{a}.context_length", 1, CONTEXT_MAX), eps=eps,
        rope_theta=theta, rope_dims=turned, rope_scaling=scaling, tied="output.weight" not in tensors,
        query_scale=keys**-0.5 * sharper**2, latent=latent, experts=_gguf_experts(meta, layers, tensors)))


def _gguf_experts(meta: Metadata, layers: int, tensors: Mapping[str, tuple[int, ...]]) -> Experts | None:
    a = "deepseek2"
    count = meta.integer(f"{a}.expert_count", 0, EXPERTS_MAX, 0)
    dense = meta.integer(f"{a}.leading_dense_block_count", 0, layers, 0)
    if count == 0 or dense == layers:
        return None
    hidden = meta.integer(f"{a}.expert_feed_forward_length", 1, WIDTH_MAX)
    gating = meta.integer(f"{a}.expert_gating_func", 0, 2, 1)    # 0: not said
    groups = meta.integer(f"{a}.expert_group_count", 0, count, 1) or 1
    return Experts(
        count, meta.integer(f"{a}.expert_used_count", 1, count), hidden,
        shared=hidden * meta.integer(f"{a}.expert_shared_count", 0, 1024, 0), dense=dense, sigmoid=gating == 2,
        biased=f"blk.{dense}.exp_probs_b.bias" in tensors, groups=groups,
        groups_kept=meta.integer(f"{a}.expert_group_used_count", 0, groups, groups) or groups, group_best=2 if gating == 2 else 1,
        normalize=meta.flag(f"{a}.expert_weights_norm", False), scale=meta.real(f"{a}.expert_weights_scale", 0.0, 1e3, 1.0) or 1.0)


def gguf_older(config: ModelConfig) -> dict[str, Taken]:
    """Files from before attn_k_b and attn_v_b hold both as a checkpoint does."""
    return {f"blk.{i}.attn_{half}_b.weight": taken for i in range(config.layers)
            for half, taken in _halves(config, f"blk.{i}.attn_kv_b.weight").items()}


def _halves(config: ModelConfig, tensor: str) -> dict[str, Taken]:
    """W_uk turned and W_uv, out of the matrix that holds a head's rows of both behind each other."""
    latent = config.latent
    assert latent is not None
    block = latent.keys + latent.values
    return {"k": Taken(tensor, rows=(0, latent.keys), every=block, turn=True),
            "v": Taken(tensor, rows=(latent.keys, block), every=block)}


#: What `transformers` takes a config.json to mean where it says nothing.
_USUAL: dict[str, object] = {
    "attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "tie_word_embeddings": False, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "rms_norm_eps": 1e-6,
    "moe_layer_freq": 1, "rope_interleave": True}
USUAL: Mapping[str, Mapping[str, object]] = {
    "deepseek_v2": _USUAL | {
        "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 102400,
        "max_position_embeddings": 2048, "first_k_dense_replace": 0, "n_routed_experts": 64, "moe_intermediate_size": 1407,
        "n_shared_experts": 2, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": False},
    "deepseek_v3": _USUAL | {
        "num_hidden_layers": 61, "num_attention_heads": 128, "hidden_size": 7168, "intermediate_size": 18432, "vocab_size": 129280,
        "max_position_embeddings": 4096, "first_k_dense_replace": 3, "n_routed_experts": 256, "moe_intermediate_size": 2048,
        "n_shared_experts": 1, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "routed_scaling_factor": 2.5,
        "norm_topk_prob": True},
    "glm4_moe_lite": _USUAL | {
        "num_hidden_layers": 47, "num_attention_heads": 20, "hidden_size": 2048, "intermediate_size": 10240, "vocab_size": 154880,
        "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256,
        "n_routed_experts": 64, "moe_intermediate_size": 1536, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
        "num_experts_per_tok": 4, "routed_scaling_factor": 1.8, "norm_topk_prob": True},
}


def from_hf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Config from config.json. What it leaves out is as in `transformers`."""
    kind = meta.choice("model_type", {name: name for name in MODEL_TYPES})
    no_rank = "q_lora_rank" in meta.values and meta.values["q_lora_rank"] is None    # said to be none, unlike one left out
    meta = Metadata({**USUAL[kind], **{key: value for key, value in meta.values.items() if value is not None}}, meta.file)
    for name in ("attention_bias", "mlp_bias"):
        if meta.flag(name):
            raise ModelInvalid(f"{meta.file}: metadata '{name}' is set; that is not supported")
    layers = meta.integer("num_hidden_layers", 1, LAYERS_MAX)
    heads = meta.integer("num_attention_heads", 1, HEADS_MAX)
    meta.integer("num_key_value_heads", heads, heads, heads)
    turned = meta.integer("qk_rope_head_dim", 2, 1024)
    latent = Latent(rank=meta.integer("kv_lora_rank", 1, RANK_MAX), rope=turned,
                    q_rank=0 if no_rank else meta.integer("q_lora_rank", 1, RANK_MAX),
                    keys=meta.integer("qk_nope_head_dim", 1, 1024), values=meta.integer("v_head_dim", 1, 1024))
    theta, scaling = rope(meta, turned)
    parameters = meta.inside("rope_parameters" if meta.inside("rope_parameters").values else "rope_scaling")
    parameters.real("partial_rotary_factor", 1.0, 1.0, 1.0)
    sharper = yarn_mscale(scaling.factor, parameters.real("mscale_all_dim", 0.0, 1e2, 0.0)) if scaling.kind != "none" else 1.0
    return _checked(meta, ModelConfig(
        family="deepseek_v2", layers=layers, width=meta.integer("hidden_size", 1, WIDTH_MAX), heads=heads, kv_heads=1,
        head_dim=latent.rank + turned, hidden=meta.integer("intermediate_size", 1, WIDTH_MAX * 8),
        vocab=meta.integer("vocab_size", 1, VOCAB_MAX), context=meta.integer("max_position_embeddings", 1, CONTEXT_MAX),
        eps=meta.real("rms_norm_eps", 0.0, 1.0), rope_theta=theta, rope_dims=turned,
        rope_interleaved=kind == "deepseek_v2" or meta.flag("rope_interleave"), rope_scaling=scaling,
        tied=meta.flag("tie_word_embeddings"), activation=meta.choice("hidden_act", ACTIVATIONS),
        query_scale=(latent.keys + turned) ** -0.5 * sharper**2, latent=latent, experts=_experts(meta, kind, layers)))


def _experts(meta: Metadata, kind: str, layers: int) -> Experts | None:
    """V2: softmax; of groups, where they limit, by their best expert. Others: sigmoids and a bias; of groups by their two best."""
    second = kind == "deepseek_v2"
    meta.integer("moe_layer_freq", 1, 1)
    dense = _dense(meta, layers) if kind == "glm4_moe_lite" else meta.integer("first_k_dense_replace", 0, LAYERS_MAX)
    if dense >= layers:
        return None
    scoring = "softmax" if second else "sigmoid"
    meta.choice("scoring_func", {scoring: scoring}, scoring)
    methods = {"greedy": "", "group_limited_greedy": "groups"} if second else {"noaux_tc": "groups"}
    limited = meta.choice("topk_method", methods, next(iter(methods)))
    if second and meta.flag("norm_topk_prob"):
        raise ModelInvalid(f"{meta.file}: metadata 'norm_topk_prob' is set; DeepSeek V2's weights are scaled, never normalized")
    count, hidden = meta.integer("n_routed_experts", 1, EXPERTS_MAX), meta.integer("moe_intermediate_size", 1, WIDTH_MAX)
    groups = meta.integer("n_group", 1, count) if limited else 1
    return Experts(
        count, meta.integer("num_experts_per_tok", 1, count), hidden, shared=hidden * meta.integer("n_shared_experts", 0, 1024),
        dense=dense, sigmoid=not second, biased=not second, groups=groups,
        groups_kept=meta.integer("topk_group", 1, groups) if limited else 1, group_best=1 if second else 2,
        normalize=meta.flag("norm_topk_prob"), scale=meta.real("routed_scaling_factor", 0.0, 1e3))


def _dense(meta: Metadata, layers: int) -> int:
    """How many layers of GLM-4's list are dense: they come first."""
    if "mlp_layer_types" not in meta.values:
        return 1
    kinds = meta.choices("mlp_layer_types", {"dense": "dense", "sparse": "sparse"}, layers)
    dense = kinds.count("dense")
    if "sparse" in kinds[:dense]:
        raise ModelInvalid(f"{meta.file}: metadata 'mlp_layer_types' has dense layers behind mixtures; that is not supported")
    return dense


def _checked(meta: Metadata, config: ModelConfig) -> ModelConfig:
    """What no single number shows: shapes that the ops take, groups that experts divide into."""
    latent, e = config.latent, config.experts
    assert latent is not None
    for what, number in (("latent", latent.rank), ("value", latent.values), ("expert", e.hidden if e else 16),
                         ("residual", config.width if e else 16)):
        if number % 16:
            raise ModelInvalid(f"{meta.file}: a {what} has {number} numbers; it must be a multiple of 16")
    if latent.rope % 2:
        raise ModelInvalid(f"{meta.file}: {latent.rope} numbers of a head are rotated; it must be an even number")
    if e and (e.count % e.groups or e.used > e.count // e.groups * e.groups_kept or e.group_best > e.count // e.groups):
        raise ModelInvalid(f"{meta.file}: {e.used} of {e.count} experts cannot be taken from {e.groups_kept} of {e.groups} groups")
    return config


def hf_weights(config: ModelConfig) -> dict[str, Recipe]:
    """Where each of the plan's weights stands in a checkpoint."""
    outside = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight", "output.weight": "lm_head.weight"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm", "attn_q_b": "self_attn.q_b_proj",
             "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa", "attn_kv_a_norm": "self_attn.kv_a_layernorm",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
             "ffn_gate_inp": "mlp.gate", "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
             "ffn_up_shexp": "mlp.shared_experts.up_proj", "ffn_down_shexp": "mlp.shared_experts.down_proj"}
    experts = {f"ffn_{part}_exps": f"{part}_proj" for part in ("gate", "up", "down")}
    e = config.experts

    def recipe(name: str) -> Recipe:
        if name in outside:
            return Taken(outside[name])
        _, layer, part, kind = name.split(".")
        at = f"layers.{layer}."
        if part in experts and e:
            return tuple(Taken(f"{at}mlp.experts.{i}.{experts[part]}.weight") for i in range(e.count))
        if part == "exp_probs_b":
            return Taken(at + "mlp.gate.e_score_correction_bias")
        if part in ("attn_k_b", "attn_v_b"):
            return _halves(config, at + "self_attn.kv_b_proj.weight")[part[5]]
        return Taken(f"{at}{parts[part]}.{kind}")

    return {w.name: recipe(w.name) for w in plan(config).weights}


def plan(config: ModelConfig) -> Plan:
    """The op list: eight ops a layer for attention, then two for a dense block or up to seven for a mixture.

    What a token chose in layer i stays in slot `routes.i` after a run."""
    c, latent = config, config.latent
    assert latent is not None
    weights = [Weight("token_embd.weight", c.vocab, c.width)]
    ops: list[Op] = [Embed("x", "token_embd.weight")]
    cuts, slots = [0], [Slot("x", c.width), Slot("kv", c.head_dim), Slot("q", c.heads * (latent.keys + latent.rope)),
                        Slot("queries", c.heads * c.head_dim), Slot("mixed", c.heads * latent.rank),
                        Slot("values", c.heads * latent.values)]
    if latent.q_rank:
        slots.append(Slot("q_latent", latent.q_rank))

    def need(name: str, rows: int, k: int = 0) -> str:
        weights.append(Weight(name, rows, k))
        return name

    def attention(b: str, layer: int) -> list[Op]:
        rows, norm = c.heads * (latent.keys + latent.rope), need(b + "attn_norm.weight", c.width)
        if latent.q_rank:
            q: list[Op] = [
                NormLinear("x", "q_latent", norm=norm, w0=need(b + "attn_q_a.weight", latent.q_rank, c.width), eps=c.eps),
                NormLinear("q_latent", "q", norm=need(b + "attn_q_a_norm.weight", latent.q_rank),
                           w0=need(b + "attn_q_b.weight", rows, latent.q_rank), eps=latent.eps)]
        else:
            q = [NormLinear("x", "q", norm=norm, w0=need(b + "attn_q.weight", rows, c.width), eps=c.eps)]
        return [
            *q, NormLinear("x", "kv", norm=norm, w0=need(b + "attn_kv_a_mqa.weight", c.head_dim, c.width), eps=c.eps),
            EachLinear("q", "queries", need(b + "attn_k_b.weight", c.heads * latent.rank, latent.keys), parts=c.heads, of=c.heads),
            LatentKV("kv", "q", "queries", "kv", layer=layer, heads=c.heads, norm=need(b + "attn_kv_a_norm.weight", latent.rank),
                     rope=0, eps=latent.eps),
            Attention("queries", "mixed", "kv", layer=layer, heads=c.heads, scale=c.query_scale),
            EachLinear("mixed", "values", need(b + "attn_v_b.weight", c.heads * latent.values, latent.rank), parts=c.heads,
                       of=c.heads),
            LinearAdd("values", "x", need(b + "attn_output.weight", c.width, c.heads * latent.values))]

    def feed_forward(b: str, names: str, hidden: int, slot: str, norm: str) -> tuple[Op, Op]:
        if slot not in {s.name for s in slots}:
            slots.append(Slot(slot, hidden))
        return (Gated("x", slot, norm=norm, gate=need(f"{b}ffn_gate{names}.weight", hidden, c.width),
                      up=need(f"{b}ffn_up{names}.weight", hidden, c.width), activation=Activation[c.activation.upper()], eps=c.eps),
                LinearAdd(slot, "x", need(f"{b}ffn_down{names}.weight", c.width, hidden)))

    def mixture(b: str, layer: int, e: Experts, norm: str) -> list[Op]:
        routes = f"routes.{layer}"
        slots.append(Slot(routes, 2 * e.used))
        shared = feed_forward(b, "_shexp", e.shared, "shared", norm) if e.shared else ()
        return [
            NormLinear("x", "router", norm=norm, w0=need(b + "ffn_gate_inp.weight", e.count, c.width), eps=c.eps),
            Route("router", routes, top_k=e.used, bias=need(b + "exp_probs_b.bias", e.count) if e.biased else None,
                  scoring=Scoring.SIGMOID if e.sigmoid else Scoring.SOFTMAX, groups=e.groups, groups_kept=e.groups_kept,
                  group_best=e.group_best, normalize=e.normalize, scale=e.scale),
            ExpertsOp("x", "experts", routes, norm=norm, gate=need(b + "ffn_gate_exps.weight", e.count * e.hidden, c.width),
                      up=need(b + "ffn_up_exps.weight", e.count * e.hidden, c.width), parts=e.used, of=e.count,
                      activation=Activation[c.activation.upper()], eps=c.eps),
            EachLinear("experts", "results", need(b + "ffn_down_exps.weight", e.count * c.width, e.hidden), parts=e.used,
                       of=e.count, routes=routes),
            *shared[:1], RoutedAdd("results", "x", routes, parts=e.used), *shared[1:]]

    if c.experts:
        e = c.experts
        slots += [Slot("router", e.count), Slot("experts", e.used * e.hidden), Slot("results", e.used * c.width)]
    for i in range(c.layers):
        b = f"blk.{i}."
        if i:
            cuts.append(len(ops))
        ops += attention(b, i)
        norm = need(b + "ffn_norm.weight", c.width)
        if c.experts and i >= c.experts.dense:
            ops += mixture(b, i, c.experts, norm)
        else:
            ops += feed_forward(b, "", c.hidden, "hidden", norm)
    head = "token_embd.weight" if c.tied else need("output.weight", c.vocab, c.width)
    ops += [Logits("x", "logits", norm=need("output_norm.weight", c.width), weight=head, eps=c.eps), Sample("logits")]
    return Plan(
        ops=tuple(ops), slots=(*slots, Slot("logits", c.vocab, per_row=True)), weights=tuple(weights),
        groups=(CacheGroup("kv", c.layers, 1, c.head_dim, kind="latent", width=latent.rank, k_format=c.k_format,
                           v_format=c.v_format),),
        ropes=(Rope(inverse_frequencies(c), c.rope_interleaved, c.rope_scaling.mscale),),
        vocab=c.vocab, context=c.context, width=c.width, cuts=tuple(cuts))


TINY = Latent(rank=32, q_rank=48, keys=16, rope=8, values=16), Experts(8, 3, 32, shared=64, dense=1)


def tiny(*, layers: int = 3, width: int = 96, heads: int = 4, hidden: int = 160, vocab: int = 211, context: int = 256,
         latent: Latent = TINY[0], experts: Experts | None = TINY[1], **more: object) -> ModelConfig:
    """A config small enough for property tests; any field can be overridden."""
    fields = {"rope_dims": latent.rope, "query_scale": (latent.keys + latent.rope) ** -0.5, "eps": 1e-6, "tied": False} | more
    return ModelConfig("deepseek_v2", layers, width, heads, 1, latent.rank + latent.rope, hidden, vocab, context,  # type: ignore[arg-type]
                       latent=latent, experts=experts, **fields)

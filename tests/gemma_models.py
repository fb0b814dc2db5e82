"""Random Gemma 3 models of `transformers`, and the GGUF files a converter makes of them."""
from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from reference_models import random_values

from pyruntime.config import ModelConfig
from pyruntime.models import gemma3

NAMES = {
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def hugging_face_name(name: str) -> str:
    """A GGUF tensor's name in transformers' state dict."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def hugging_face_config(config: ModelConfig) -> transformers.Gemma3TextConfig:
    """Of a config of ours."""
    scaled = {"rope_type": "linear", "factor": config.rope_scaling.factor} if config.rope_scaling.kind == "linear" else \
        {"rope_type": "default"}
    return transformers.Gemma3TextConfig(
        vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.hidden, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.kv_heads, head_dim=config.head_dim,
        max_position_embeddings=config.context, rms_norm_eps=config.eps, sliding_window=config.window,
        layer_types=["sliding_attention" if local else "full_attention" for local in config.local],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
                         "full_attention": {**scaled, "rope_theta": config.rope_theta}},
        query_pre_attn_scalar=round((config.query_scale or config.head_dim**-0.5) ** -2), tie_word_embeddings=True,
        final_logit_softcapping=config.final_softcap or None, attn_implementation="eager",
        pad_token_id=0, bos_token_id=None, eos_token_id=None)


def hugging_face(config: ModelConfig, values: dict[str, np.ndarray]) -> transformers.Gemma3ForCausalLM:
    """transformers' model of GGUF's values in f32: there a norm's weight lacks its +1."""
    with torch.device("meta"):
        model = transformers.Gemma3ForCausalLM(hugging_face_config(config))
    model = model.to_empty(device="cpu").eval()
    for module in model.modules():     # buffers are made, not stored
        model._init_weights(module) if not list(module.parameters(recurse=False)) or hasattr(module, "embed_scale") else None
    state = {hugging_face_name(n): torch.from_numpy(v - 1 if "norm" in n else v) for n, v in values.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.to(torch.float32)


def random_gemma(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Values under GGUF's names: logits spread by 1 and more, scores by several, so that a window and an angle show."""
    values = random_values(gemma3.plan(config), seed)
    for name in values:
        if "attn_q_norm" in name or "attn_k_norm" in name:
            values[name] *= np.float32(1.6)
        if name == "token_embd.weight":
            values[name] *= np.float32(0.7)
    return values


def write_gguf(path: Path, config: ModelConfig, values: dict[str, np.ndarray]) -> Path:
    """The file as llama.cpp's converter writes it, F32, without a tokenizer."""
    out = gguf.GGUFWriter(path, "gemma3")
    out.add_context_length(config.context)
    out.add_embedding_length(config.width)
    out.add_block_count(config.layers)
    out.add_feed_forward_length(config.hidden)
    out.add_head_count(config.heads)
    out.add_head_count_kv(config.kv_heads)
    out.add_layer_norm_rms_eps(config.eps)
    out.add_key_length(config.head_dim)
    out.add_value_length(config.head_dim)
    out.add_rope_freq_base(config.rope_theta)
    out.add_sliding_window(config.window)
    if config.local != gemma3.pattern(config.layers, gemma3.PERIOD):
        out.add_array("gemma3.attention.sliding_window_pattern", list(config.local))
    if config.local_rope_theta != 1e4:
        out.add_float32("gemma3.rope.freq_base_swa", config.local_rope_theta)
    if config.query_scale:
        out.add_float32("gemma3.attention.scale", config.query_scale)
    if config.final_softcap:
        out.add_float32("gemma3.final_logit_softcapping", config.final_softcap)
    if config.rope_scaling.kind == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(config.rope_scaling.factor)
    for name, value in values.items():
        out.add_tensor(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path

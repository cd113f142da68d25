"""Tiny random models of many architectures, and encoded examples for them."""

from typing import Any

import numpy as np
import torch
import transformers

from stasc_ray.learning import encoding

TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # logits of scale 1.6
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {  # of gated delta nets
    "head_dim": 16,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
APART: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "Qwen2Config": {},
    "Qwen3Config": {"head_dim": 16},
    "Qwen3MoeConfig": {"head_dim": 16, **EXPERTS},
    "Phi3Config": {},
    "MistralConfig": {"sliding_window": 8},
    "Gemma2Config": {"head_dim": 16, "sliding_window": 8},
    "Gemma3TextConfig": {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "SmolLM3Config": {"num_hidden_layers": 4},
    "Olmo2Config": {},
    "GraniteConfig": {},
}
MIXED: dict[str, dict[str, Any]] = {
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "FalconH1Config": {"mamba_d_ssm": 64, "mamba_d_head": 16, **MAMBA},
    "GraniteMoeHybridConfig": {
        "layer_types": ["mamba", "attention"],
        "mamba_d_head": 32,
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
        **MAMBA,
    },
    "NemotronHConfig": {
        "hybrid_override_pattern": "M*M-",
        "num_hidden_layers": 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "n_groups": 1,
        "ssm_state_size": 16,
        "chunk_size": 16,
        "head_dim": 16,
    },
    "Qwen3NextConfig": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32},
    "Qwen3_5TextConfig": LINEAR,
    "BloomConfig": {"n_head": 4, "n_layer": 2},  # ALiBi counts from the start of the sequence
}


def tiny(name: str) -> Any:
    """A model of that config class, in evaluation, with the same weights each time."""
    settings = getattr(transformers, name)(**(TINY | (APART | MIXED)[name]))
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(settings).eval()


def example(seed: int, length: int, prompt: int) -> encoding.Encoded:
    """Random tokens, trained on after the prompt."""
    ids = np.random.default_rng(seed).integers(3, TINY["vocab_size"], length).astype(np.int32)
    labels = np.where(np.arange(length) < prompt, encoding.IGNORED, ids)
    return encoding.Encoded(input_ids=ids, labels=labels)


TWO = (example(1, 60, 20), example(2, 50, 12))


def logprobs(model: Any, row: dict[str, np.ndarray]) -> torch.Tensor:
    """Of every next token, (T, V), of one example alone."""
    with torch.no_grad():
        return model(torch.tensor(row["input_ids"][None]).long(), use_cache=False).logits[0].log_softmax(-1)

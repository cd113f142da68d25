"""How much arithmetic a training step is, and what share of a GPU's peak that takes. Pure but for
`of_model`, which looks at a model's weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stasc_ray.learning import attention

PEAK_FLOPS: Mapping[str, float] = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
"""Dense bfloat16 operations per second, from NVIDIA's data sheets, by a part of the device's name; the first
that fits counts."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Config fields of models in which a token passes through some of the weights only."""


@dataclass(frozen=True)
class Weights:
    """What a token is multiplied with."""

    inner: int
    """Weights of all layers' matrices."""
    head: int
    """Weights of the output layer, which only trained tokens meet."""
    attention: int
    """Layers x attention heads x head size."""
    frozen: bool = False
    """Whether these weights get no gradients (LoRA)."""


def peak_flops(device_name: str) -> float | None:
    """Of a GPU by its name; None for one that is not in the table."""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in device_name), None)


def training_flops(weights: Weights, tokens: float, squares: float, trained: float) -> float:
    """Operations of a forward and a backward pass, recomputation not counted.

    Per weight and token 2 forward, 2 for the gradient of the input, 2 for that of the weight. Causal
    attention adds 6 x length x width per layer and token.

    Args:
        tokens: in all.
        squares: sum of the squared lengths of the examples.
        trained: tokens that are trained on.
    """
    times = 4 if weights.frozen else 6
    return times * (weights.inner * tokens + weights.head * trained) + 6 * weights.attention * squares


def of_model(model: Any, *, frozen: bool) -> Weights | None:
    """Of a transformers model (or peft's around one); None where the arithmetic would not be right (experts,
    no attention heads).
    """
    settings = attention.base_of(model).config.get_text_config()
    heads = getattr(settings, "num_attention_heads", None)
    if not heads or any((getattr(settings, name, None) or 0) > 1 for name in EXPERTS):
        return None
    outer = {id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one}
    inner = sum(one.numel() for one in model.parameters() if one.ndim >= 2 and id(one) not in outer)
    width = heads * (getattr(settings, "head_dim", None) or settings.hidden_size // heads)
    head = settings.vocab_size * settings.hidden_size
    return Weights(inner, head, settings.num_hidden_layers * width, frozen)

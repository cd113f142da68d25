"""What a fine-tune minimizes: one function per objective, from a model and one forward pass's tensors to a
summed loss.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stasc_ray.learning import encoding

if TYPE_CHECKING:
    import torch

Objective = Callable[[Any, Mapping[str, "torch.Tensor"]], "torch.Tensor"]


def sft(model: Any, tensors: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    """Summed cross-entropy of the trained tokens (a scalar, nats).

    Args:
        tensors: `encoding.Packed` or `encoding.Stacked` as (B, T) tensors.
    """
    import torch

    inputs = {name: tensor for name, tensor in tensors.items() if name != "labels"}
    labels = tensors["labels"][:, 1:]
    # (P,) where some next token is trained on
    predicting = (labels != encoding.IGNORED).any(dim=0).nonzero().squeeze(-1)
    # No mask: transformers derives the block-diagonal one from positions that restart. Logits only where they
    # count: the vocabulary is large, and most tokens belong to the prompt.
    # (B, P, V)
    logits = model(**inputs, attention_mask=None, use_cache=False, logits_to_keep=predicting).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels[:, predicting].flatten(),
        ignore_index=encoding.IGNORED,
        reduction="sum",
    )


OBJECTIVES: dict[str, Objective] = {"sft": sft}

"""What a fine-tune minimizes: one function per objective, from a model and one forward pass's tensors to a
summed loss.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stasc_ray.learning import attention, encoding

if TYPE_CHECKING:
    import torch

Objective = Callable[..., "torch.Tensor"]
"""(model, tensors, *, chunk_logits: int | None) -> summed loss."""
CHUNK_LOGITS = 2**27
"""Logits (positions x vocabulary) that exist at once, 0.5 GiB in float32; more go chunk by chunk."""


def sft(
    model: Any, tensors: Mapping[str, "torch.Tensor"], *, chunk_logits: int | None = None
) -> "torch.Tensor":
    """Summed cross-entropy of the trained tokens (a scalar, nats).

    Args:
        tensors: `encoding.Packed` or `encoding.Stacked` as (B, T) tensors; `predicting` (P,) names the
            positions at which some next token is trained on, found here if it is missing.
        chunk_logits: above so many logits the output layer works chunk by chunk, and once more in the
            backward pass, so that they never exist all at once; None: never.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    inputs = {name: tensor for name, tensor in tensors.items() if name not in ("labels", "predicting")}
    labels, predicting = tensors["labels"][:, 1:], tensors.get("predicting")
    if predicting is None:  # which waits for a GPU
        predicting = (labels != encoding.IGNORED).any(dim=0).nonzero().squeeze(-1)
    # No mask: transformers derives the block-diagonal one from positions that restart. Logits only where they
    # count: the vocabulary is large, and most tokens belong to the prompt.
    call = {**inputs, "attention_mask": None, "use_cache": False, "logits_to_keep": predicting}
    wanted = labels[:, predicting].flatten()  # (B * P,)
    head = model.get_output_embeddings()
    vocabulary = attention.base_of(model).config.get_text_config().vocab_size
    if chunk_logits is None or len(wanted) * vocabulary <= chunk_logits:
        return _cross_entropy(model(**call).logits.flatten(0, 1), wanted)  # logits (B, P, V)
    with _left_out(head):
        hidden = model(**call).logits.flatten(0, 1)  # (B * P, C)
    total = torch.zeros((), device=hidden.device)
    for rows, targets in _chunks(hidden, wanted, max(1, chunk_logits // vocabulary)):
        total = total + checkpoint(
            lambda one, target: _cross_entropy(head(one), target), rows, targets, use_reentrant=False
        )
    return total


def _cross_entropy(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.nn.functional.cross_entropy(
        logits.float(), labels, ignore_index=encoding.IGNORED, reduction="sum"
    )


def _chunks(
    hidden: "torch.Tensor", labels: "torch.Tensor", rows: int
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    return zip(hidden.split(rows), labels.split(rows), strict=True)


@contextmanager
def _left_out(head: Any) -> Iterator[None]:
    """The model gives what its output layer would get."""
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward


OBJECTIVES: dict[str, Objective] = {"sft": sft}

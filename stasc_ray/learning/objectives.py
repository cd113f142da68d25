"""What a fine-tune minimizes: one function per objective, from a model and one forward pass's tensors to a
summed loss.

The tensors of a pass, from `encoding.Packed` or `encoding.Stacked`: `input_ids`, `labels` (B, T);
`position_ids` and `bounds` if packed; `predicting` (P,), the positions at which some next token is trained
on, found here if it is missing. Objectives that need more say what.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stasc_ray import config
from stasc_ray.learning import attention, encoding

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, Any]
MODEL_INPUTS = ("input_ids", "position_ids", "bounds")
"""Of a pass's tensors, those that the model gets."""
CHUNK_LOGITS = 2**27
"""Logits (positions x vocabulary) that exist at once, 0.5 GiB in float32; more go chunk by chunk."""


def sft(
    model: Any, tensors: Tensors, settings: config.Finetune | None = None, *, chunk_logits: int | None = None
) -> "torch.Tensor":
    """Summed cross-entropy of the trained tokens (a scalar, nats); no settings matter."""
    return _token_losses(model, tensors, chunk_logits)[0].sum()


def weighted_sft(
    model: Any, tensors: Tensors, settings: config.Finetune | None = None, *, chunk_logits: int | None = None
) -> "torch.Tensor":
    """Cross-entropy of the trained tokens, summed with the weights of their examples (a scalar).

    A negative weight makes an example less likely. Weights that are rewards minus the mean of their question,
    on texts of the weights that are trained, give REINFORCE with a group baseline (Williams 1992;
    arXiv 2402.14740): so the first step after sampling is on policy, and later ones are not.

    Args:
        tensors: with `weights` (B, T) of each token; missing: all are 1.
        settings: none matters.
    """
    losses, predicting = _token_losses(model, tensors, chunk_logits)
    weights = tensors.get("weights")
    return (losses if weights is None else losses * _of_next(weights, predicting)).sum()


def dpo(
    model: Any, tensors: Tensors, settings: config.Finetune, *, chunk_logits: int | None = None
) -> "torch.Tensor":
    """Direct preference optimization (arXiv 2305.18290, equation 7), summed over pairs (a scalar).

    -log sigmoid(beta * (d_chosen - d_rejected)), with d = log pi(y|x) - log pi_reference(y|x) over the
    trained tokens; `length_normalized` divides each d by its number of tokens. `sft_weight` adds the mean
    loss per token of each chosen text.

    Args:
        tensors: with `sides` (B, T), 2 * pair for a chosen token and 2 * pair + 1 for a rejected one, and
            `reference` (pairs, 2), what `side_logprobs` gave under the weights at the start.
        settings: `dpo`.
    """
    import torch

    sums, tokens = side_logprobs(model, tensors, chunk_logits=chunk_logits).unbind(-1)  # (pairs, 2) each
    gained = sums - tensors["reference"]
    if settings.dpo.length_normalized:
        gained = gained / tokens
    margins = gained[:, 0] - gained[:, 1]  # (pairs,)
    losses = -torch.nn.functional.logsigmoid(settings.dpo.beta * margins)
    if settings.dpo.sft_weight:
        losses = losses - settings.dpo.sft_weight * sums[:, 0] / tokens[:, 0]
    return losses.sum()


def side_logprobs(
    model: Any, tensors: Tensors, settings: config.Finetune | None = None, *, chunk_logits: int | None = None
) -> "torch.Tensor":
    """Of both sides of each pair the summed log-probability of the trained tokens, and their number:
    (pairs, 2, 2), the chosen side first.
    """
    import torch

    losses, predicting = _token_losses(model, tensors, chunk_logits)
    learnt = (_of_next(tensors["labels"], predicting) != encoding.IGNORED).float()
    found = torch.zeros(2 * len(tensors["reference"]), 2, device=losses.device)
    sides = _of_next(tensors["sides"], predicting)
    return found.index_add(0, sides, torch.stack([-losses, learnt], dim=-1)).unflatten(0, (-1, 2))


@dataclass(frozen=True)
class Objective:
    """A loss and the examples that it takes."""

    loss: Callable[..., "torch.Tensor"]
    """(model, tensors, settings, *, chunk_logits) -> summed loss."""
    pairs: bool = False
    """Whether examples have a `rejected` side. The mean loss is over pairs then, else over trained tokens."""
    weights: bool = False
    """Whether examples may have a weight other than 1."""


OBJECTIVES: dict[str, Objective] = {
    "sft": Objective(sft),
    "weighted_sft": Objective(weighted_sft, weights=True),
    "dpo": Objective(dpo, pairs=True),
}


def objective_of(name: str) -> Objective:
    """A recipe's objective, or one's own by its dotted path `package.module:NAME`.

    Raises:
        ValueError: no such objective, or the path leads to something else.
    """
    found = config.named("recipe.objective", name, OBJECTIVES, "OBJECTIVE")
    if not isinstance(found, Objective):
        raise ValueError(
            f"recipe.objective: expected an Objective at {name!r}, found a {type(found).__name__}"
        )
    return found


def misfit(name: str, *, pair: bool, weight: float) -> str | None:
    """Why an objective can't learn such an example; None: it can.

    Raises:
        ValueError: as `objective_of`.
    """
    objective = objective_of(name)
    if pair != objective.pairs:
        takes, found = (
            ("a pair", "no `rejected` side") if objective.pairs else ("no pair", "a `rejected` side")
        )
        fits = ", ".join(sorted(other for other, one in OBJECTIVES.items() if one.pairs == pair))
        return f"objective {name!r} expects {takes}, found {found}; a recipe with such examples names {fits}"
    if weight != 1 and not objective.weights:
        fits = ", ".join(sorted(other for other, one in OBJECTIVES.items() if one.weights))
        return f"objective {name!r} knows no weights, found {weight:g}; a recipe with weights names {fits}"
    return None


# --- the loss of each token
# -------------------------------------------------------------------------------------------


def _token_losses(
    model: Any, tensors: Tensors, chunk_logits: int | None
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Cross-entropy of the token after each of the predicting positions (B * P,), 0 where none is trained on;
    and the positions (P,).

    Args:
        chunk_logits: above so many logits the output layer works chunk by chunk, and once more in the
            backward pass, so that they never exist all at once; None: never.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    inputs = {name: tensors[name] for name in MODEL_INPUTS if name in tensors}
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
        return _cross_entropy(model(**call).logits.flatten(0, 1), wanted), predicting  # logits (B, P, V)
    with _left_out(head):
        hidden = model(**call).logits.flatten(0, 1)  # (B * P, C)
    found = [
        checkpoint(lambda one, target: _cross_entropy(head(one), target), rows, targets, use_reentrant=False)
        for rows, targets in _chunks(hidden, wanted, max(1, chunk_logits // vocabulary))
    ]
    return torch.cat(found), predicting


def _of_next(values: "torch.Tensor", predicting: "torch.Tensor") -> "torch.Tensor":
    """Of the token after each predicting position, in the order of `_token_losses`: (B * P,)."""
    return values[:, 1:][:, predicting].flatten()


def _cross_entropy(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.nn.functional.cross_entropy(
        logits.float(), labels, ignore_index=encoding.IGNORED, reduction="none"
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

"""Attention over packed examples with explicit bounds: each example attends to itself, and nothing else is
computed.

Hooks torch's variable-length kernel (flash attention, CUDA only) into transformers' attention interface.
`reference` computes the same with plain attention, example by example, on any device. Before step 1
packing.py compares the two in every layer of the model, forward and backward, and so decides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME, COMPARED = "stasc_varlen", "stasc_varlen_compared"
"""In transformers' table of attention functions."""
Kernel = Callable[
    ["torch.Tensor", "torch.Tensor", "torch.Tensor", "Bounds", float | None, int], "torch.Tensor"
]
"""q (T, H, D), k and v (T, H_kv, D), bounds, scale, window (tokens back, itself not counted; -1: all)
-> (T, H, D). Causal."""
UNKNOWN = ("softcap", "s_aux", "sinks", "position_bias")
"""What some models ask of their attention and the kernel does not do."""


class Bounds:
    """Where packed examples begin and end."""

    def __init__(self, lengths: Sequence[int], device: Any) -> None:
        """Of examples with these lengths, one after another; the copy to the device waits for nothing."""
        import torch

        self.lengths = list(lengths)
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        if torch.device(device).type == "cuda":
            ends = ends.pin_memory()
        self.ends = ends.to(device, non_blocking=True)
        self.longest = max(lengths)


def kernel(q: Any, k: Any, v: Any, bounds: Bounds, scale: float | None, window: int) -> "torch.Tensor":
    """Torch's flash attention for sequences of unequal lengths: bfloat16 on CUDA, compute capability 8 or
    newer.
    """
    from torch.nn.attention.varlen import varlen_attn

    found: Any = varlen_attn(
        q,
        k,
        v,
        bounds.ends,
        bounds.ends,
        bounds.longest,
        bounds.longest,
        scale=scale,
        window_size=(window, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return found


def reference(q: Any, k: Any, v: Any, bounds: Bounds, scale: float | None, window: int) -> "torch.Tensor":
    """The same by plain attention, in the inputs' own type."""
    import torch

    pieces = []
    for one in zip(*(tensor.split(bounds.lengths) for tensor in (q, k, v)), strict=True):
        heads = [tensor.transpose(0, 1)[None] for tensor in one]  # (1, H, T, D)
        mask = None
        if window >= 0:
            place = torch.arange(len(one[0]), device=q.device)
            back = place[:, None] - place[None]
            mask = (back >= 0) & (back <= window)
        found = torch.nn.functional.scaled_dot_product_attention(
            *heads, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        pieces.append(found[0].transpose(0, 1))
    return torch.cat(pieces)


def attend(  # noqa: PLR0913  # transformers' signature
    compute: Kernel,
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: Any,
    *,
    bounds: Bounds,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple["torch.Tensor", None]:
    """What transformers calls in each layer; q, k and v are (1, H, T, D), the result is (1, T, H, D).

    Raises:
        NotImplementedError: something is asked for that `compute` does not do.
    """
    asked = [name for name in UNKNOWN if more.get(name) is not None] + ["dropout"] * (dropout > 0)
    if attention_mask is not None or query.shape[0] != 1 or not getattr(module, "is_causal", True):
        asked.append("a mask, a batch or attention that is not causal")
    if asked:
        raise NotImplementedError(
            f"variable-length attention: expected causal attention alone, found {asked}"
        )
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, H, D)
    window = -1 if sliding_window is None else sliding_window - 1
    return compute(q, k, v, bounds, scaling, window)[None].to(query.dtype), None


def in_bfloat16(compute: Kernel) -> Kernel:
    """The kernel on inputs of any type: autocast leaves float32 after the rotation of q and k."""
    import torch

    def cast(q: Any, k: Any, v: Any, *rest: Any) -> "torch.Tensor":
        q, k, v = (tensor.to(torch.bfloat16).contiguous() for tensor in (q, k, v))
        return compute(q, k, v, *rest)

    return cast


def install(model: Any, compute: Kernel | None = None) -> None:
    """Let the model attend with `attend`; its forward then takes `bounds`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, partial(attend, in_bfloat16(compute or kernel)))
    base_of(model).set_attn_implementation(NAME)


def base_of(model: Any) -> Any:
    """The transformers model, without peft's around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def compared(model: Any, compute: Kernel | None = None) -> Iterator[list[float]]:
    """Attend with `reference`, and compare the kernel with it: one number per call, the greatest relative
    error of the result and of the three gradients.
    """
    from transformers import AttentionInterface

    base, errors = base_of(model), list[float]()
    before = base.config._attn_implementation

    def both(q: Any, k: Any, v: Any, *rest: Any) -> "torch.Tensor":
        errors.append(_error(in_bfloat16(compute or kernel), q, k, v, *rest))
        return reference(q, k, v, *rest)

    AttentionInterface.register(COMPARED, partial(attend, both))
    base.set_attn_implementation(COMPARED)
    try:
        yield errors
    finally:
        base.set_attn_implementation(before)


def _error(compute: Kernel, q: Any, k: Any, v: Any, *rest: Any) -> float:
    """The greatest relative error, by Euclidean norms."""
    import torch

    sides: list[list[torch.Tensor]] = []
    # both sides get what bfloat16 holds, so that the kernel's own arithmetic is compared
    inputs = [tensor.detach().to(torch.bfloat16) for tensor in (q, k, v)]
    direction = torch.randn(q.shape, generator=torch.Generator().manual_seed(0)).to(q.device)
    for function in (compute, reference):
        given = [tensor.float().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            found = function(*given, *rest).float()
            found.backward(direction.to(torch.bfloat16).float())
        sides.append([found.detach(), *(tensor.grad for tensor in given if tensor.grad is not None)])
    if [len(side) for side in sides] != [4, 4]:
        return float("inf")
    worst = [
        ((ours - right).norm() / right.norm().clamp(min=1e-6)).nan_to_num(float("inf"))
        for ours, right in zip(*sides, strict=True)
    ]
    return max(error.item() for error in worst)


def bounds_of(row: Mapping[str, Any], device: Any) -> Bounds:
    """Of a packed sequence (`encoding.Packed`), whose positions restart with each example."""
    import numpy as np

    positions = np.asarray(row["position_ids"])
    starts = np.flatnonzero(positions == 0)
    return Bounds(np.diff([*starts, len(positions)]).tolist(), device)

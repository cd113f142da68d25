"""Whether examples may share one sequence, and how they share a forward pass.

Reads a model and two encoded examples; writes nothing. Attention keeps packed examples apart if their
positions restart. Convolutions, linear attention and state-space layers of many hybrid models do not: their
state runs on from one example into the next. So a model is measured, not looked up.
"""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stasc_ray import config
from stasc_ray.learning import attention, encoding, objectives

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3
"""Nats. Measured in float32 on random models: at most 1e-5 where attention does all, above 0.1 where state
runs on."""
CONTEXT_TOKENS, WINDOW_TOKENS = 16, 64
"""Of each measured example: what comes before its first trained token, and how much in all."""
KERNEL_TOLERANCE = 0.03
"""Relative error of the attention kernel in bfloat16, whose rounding is 0.004; a wrong bound, scale or window
gives above 0.1."""
CPU_CAPACITY_TOKENS = 1024
"""Measured: 32 examples of 96 tokens take 149 ms a step; with 4096, 141 ms; packed into sequences of 512
tokens, 238 ms."""

Held = list[tuple[dict[str, Any], str, Any]]
"""Modules' tables of tensors, names in them, and the tensors that belong there."""


@dataclass(frozen=True)
class Passes:
    """How the examples of a step share forward passes."""

    capacity: int
    """Tokens of one pass; 0: one example each."""
    stacked: bool
    """Side by side; else packed into one sequence."""
    note: str = ""
    """Why they are not packed, or not with variable-length attention, although the config on CUDA says so."""
    varlen: bool = False
    """Whether packed examples attend with explicit bounds (attention.py)."""
    chunk_logits: int | None = None
    """Above so many logits the loss is computed in chunks; None: never."""

    @property
    def packed(self) -> bool:
        """Whether one sequence may hold several examples."""
        return self.capacity > 0 and not self.stacked


@dataclass(frozen=True)
class Measured:
    """What two examples showed on a model before step 1."""

    leak: float | None = None
    """Of `leak`; None if it was not measured."""
    varlen: str | None = ""
    """Why variable-length attention can't be used; None: it can; empty: not tried."""
    chunked: bool = False
    """Whether the loss in chunks is the loss."""


def passes(finetune: config.Finetune, on_cuda: bool, found: Measured, longest: int = 0) -> Passes:
    """How examples share a pass: packed on CUDA, if that leaves them as they are; else side by side.

    On CPUs the T x T mask of a packed sequence costs more than the filling of stacked ones.

    Args:
        longest: tokens of the longest example; a pair's two sides are in one pass, so it may be above
            `max_length_tokens`.
    """
    longest = max(longest, finetune.max_length_tokens)
    chunk = objectives.CHUNK_LOGITS if found.chunked else None
    if not finetune.packing:
        return Passes(0, stacked=not on_cuda, chunk_logits=chunk)
    if not on_cuda:
        return Passes(CPU_CAPACITY_TOKENS, stacked=True, chunk_logits=chunk)
    if found.leak is not None and found.leak > TOLERANCE:
        return Passes(longest, stacked=True, note=_leaks(found.leak), chunk_logits=chunk)
    if found.varlen is None:
        capacity = max(finetune.pack_tokens, longest)
        return Passes(capacity, stacked=False, varlen=True, chunk_logits=chunk)
    note = f"packed without variable-length attention: {found.varlen}" if found.varlen else ""
    return Passes(longest, stacked=False, note=note, chunk_logits=chunk)


def _leaks(leak: float) -> str:
    found = f"differ by {leak:.2g}" if math.isfinite(leak) else "can't be compared"
    return (
        f"examples go side by side: packed into one sequence, log-probabilities of trained tokens {found} "
        f"from those of examples alone (at most {TOLERANCE:g} is expected); this architecture does not keep "
        "packed examples apart"
    )


def measure(
    model: Any,
    layers: Set[str],
    rows: Sequence[Mapping[str, Any]],
    device: Any,
    *,
    pack: bool,
    varlen: bool,
    chunk: bool,
) -> Measured:
    """What the first two examples show on `device`.

    Takes a whole model on the host, before it is sharded, and computes in float32: what bfloat16 gives is too
    coarse to tell a leak from rounding. The device holds one layer at a time, besides embeddings and head.

    Args:
        layers: class names of the model's layers.
        pack: measure whether they may be packed.
        varlen: and with variable-length attention.
        chunk: measure whether the loss may be computed in chunks.
    """
    found = Measured()
    with _streamed(model, layers, device):
        if pack and len(rows) > 1:  # nothing can mix one alone
            found = Measured(leak(model, rows[0], rows[1], device))
            if varlen and found.leak is not None and found.leak <= TOLERANCE:
                found = replace(found, varlen=lack_of_varlen(model, rows[0], rows[1], device))
        if chunk:
            found = replace(found, chunked=may_be_chunked(model, rows[0], device))
    return found


def lack_of_varlen(
    model: Any,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    device: Any,
    kernel: attention.Kernel | None = None,
) -> str | None:
    """Why this model's attention can't be computed with explicit bounds, or None: every layer's kernel is
    compared with plain attention, and the log-probabilities with those of examples alone.
    """
    import torch

    rows = [_window(row) for row in (first, second)]
    joined = encoding.concatenate(rows)
    try:
        with _evaluating(model):
            alone = torch.cat([_logprobs(model, encoding.stack([row]), device) for row in rows])
            with attention.compared(model, kernel) as errors:
                bounds = attention.bounds_of(joined, device)
                packed = _logprobs(model, joined, device, bounds=bounds)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return str(error).strip().split("\n")[0]
    apart = (packed - alone).abs().max().item()
    if not errors:
        return "the model does not attend through transformers' attention interface"
    if not max(errors) <= KERNEL_TOLERANCE:
        return f"its results differ by {max(errors):.2g} (relative) from plain attention"
    if not apart <= TOLERANCE:
        return f"log-probabilities differ by {apart:.2g} from those of examples alone"
    return None


def may_be_chunked(model: Any, row: Mapping[str, Any], device: Any) -> bool:
    """Whether the loss of an example is the same in chunks: not where the model does more to its logits than
    its output layer (Gemma 2's soft cap).
    """
    import torch

    cut = encoding.stack([_window(row)])
    tensors = {name: torch.as_tensor(values, device=device) for name, values in cut.items()}
    with _evaluating(model):
        whole, chunked = (objectives.sft(model, tensors, chunk_logits=size) for size in (None, 0))
    trained = max(1, int((tensors["labels"] != encoding.IGNORED).sum()))
    return abs(whole.item() - chunked.item()) / trained <= TOLERANCE


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """No dropout, no gradients, no rounding to fewer bits."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        model.train(training)


def leak(model: Any, first: Mapping[str, Any], second: Mapping[str, Any], device: Any = "cpu") -> float:
    """How much two examples change each other in one sequence: the greatest difference of a trained token's
    log-probability (nats) between the examples alone and packed.

    The examples are cut to WINDOW_TOKENS around their first trained token. The model computes as in
    evaluation (no dropout) in its own type, which should be float32.

    Returns:
        infinity where nothing can be compared: the model takes no positions, or gives no finite numbers.
    """
    import torch

    if not _takes_positions(model):
        return math.inf
    rows = [_window(row) for row in (first, second)]
    with _evaluating(model):
        alone = torch.cat([_logprobs(model, encoding.stack([row]), device) for row in rows])
        packed = _logprobs(model, encoding.concatenate(rows), device)
    found = (packed - alone).abs().max().item() if alone.numel() else math.inf
    return found if math.isfinite(found) else math.inf


def _takes_positions(model: Any) -> bool:
    parameters = inspect.signature(attention.base_of(model).forward).parameters.values()
    return any(one.name == "position_ids" or one.kind is one.VAR_KEYWORD for one in parameters)


def _window(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    trained = np.flatnonzero(np.asarray(row["labels"])[1:] != encoding.IGNORED) + 1
    start = max(0, int(trained[0]) - CONTEXT_TOKENS) if len(trained) else 0
    return {name: np.asarray(row[name])[start : start + WINDOW_TOKENS] for name in ("input_ids", "labels")}


def _logprobs(model: Any, row: Mapping[str, Any], device: Any, **more: Any) -> "torch.Tensor":
    """Of the trained tokens, each given all tokens before it: (P,), in the order of the sequence."""
    import torch

    tensors = {name: torch.atleast_2d(torch.as_tensor(values, device=device)) for name, values in row.items()}
    labels = tensors.pop("labels")[0, 1:]
    predicting = (labels != encoding.IGNORED).nonzero().squeeze(-1)
    call = {**tensors, **more, "attention_mask": None, "use_cache": False, "logits_to_keep": predicting}
    found = model(**call).logits[0]
    return found.float().log_softmax(-1).gather(-1, labels[predicting][:, None])[:, 0]


@contextmanager
def _streamed(model: Any, layers: Set[str], device: Any) -> Iterator[None]:
    """Compute on `device` while weights stay on the host: a layer's are copied there when it computes."""
    inner = [module for module in model.modules() if type(module).__name__ in layers]
    of_layers = {module for layer in inner for module in layer.modules()}
    outer = _bring([module for module in model.modules() if module not in of_layers], device)
    there: dict[Any, Held] = {}

    def before(layer: Any, _: Any) -> None:
        there[layer] = _bring(layer.modules(), device)

    def after(layer: Any, *_: Any) -> None:
        _put_back(there.pop(layer))

    hooks = [layer.register_forward_pre_hook(before) for layer in inner]
    hooks += [layer.register_forward_hook(after) for layer in inner]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for held in (*there.values(), outer):
            _put_back(held)


def _bring(modules: Iterable[Any], device: Any) -> Held:
    """Put float32 copies on `device` in the place of these modules' own tensors; tied ones share a copy."""
    import torch

    held: Held = []
    copies: dict[int, Any] = {}
    for module in modules:
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    held.append((table, name, tensor))
                    if id(tensor) not in copies:
                        wanted = torch.float32 if tensor.is_floating_point() else tensor.dtype
                        copies[id(tensor)] = tensor.detach().to(device, wanted)
                    table[name] = copies[id(tensor)]
    return held


def _put_back(held: Held) -> None:
    for table, name, tensor in held:
        table[name] = tensor

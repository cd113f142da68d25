"""Whether examples may share one sequence, and how they share a forward pass.

Reads a model and two encoded examples; writes nothing. Attention keeps packed examples apart if their
positions restart. Convolutions, linear attention and state-space layers of many hybrid models do not: their
state runs on from one example into the next. So a model is measured, not looked up.
"""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stasc_ray import config
from stasc_ray.learning import encoding

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3
"""Nats. Measured in float32 on random models: at most 1e-5 where attention does all, above 0.1 where state
runs on."""
CONTEXT_TOKENS, WINDOW_TOKENS = 16, 64
"""Of each measured example: what comes before its first trained token, and how much in all."""
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
    """Why they are not packed although `finetune.packing` on CUDA says so."""

    @property
    def packed(self) -> bool:
        """Whether one sequence may hold several examples."""
        return self.capacity > 0 and not self.stacked


def passes(finetune: config.Finetune, on_cuda: bool, leak: float | None) -> Passes:
    """How examples share a pass: packed on CUDA, if that leaves them as they are; else side by side.

    On CPUs the T x T mask of a packed sequence costs more than the filling of stacked ones.

    Args:
        leak: of `measure`; None if it was not measured.
    """
    if not finetune.packing:
        return Passes(0, stacked=not on_cuda)
    if not on_cuda:
        return Passes(CPU_CAPACITY_TOKENS, stacked=True)
    if leak is None or leak <= TOLERANCE:
        return Passes(finetune.max_length_tokens, stacked=False)
    found = f"differ by {leak:.2g}" if math.isfinite(leak) else "can't be compared"
    note = (
        f"examples go side by side: packed into one sequence, log-probabilities of trained tokens {found} "
        f"from those of examples alone (at most {TOLERANCE:g} is expected); this architecture does not keep "
        "packed examples apart"
    )
    return Passes(finetune.max_length_tokens, stacked=True, note=note)


def measure(
    model: Any, layers: Set[str], rows: Sequence[Mapping[str, Any]], device: Any, world: int
) -> float | None:
    """`leak` of the first two examples on `device`; the greatest of all workers', so that they agree.

    Takes a whole model on the host in float32, before it is sharded: what FSDP2 computes in bfloat16 is too
    coarse to tell a leak from rounding. The device holds one layer at a time, besides embeddings and head.

    Args:
        layers: class names of the model's layers.

    Returns:
        None for fewer than two examples, which nothing can mix.
    """
    import torch
    import torch.distributed as dist

    if len(rows) < 2:
        return None
    with _streamed(model, layers, device):
        found = torch.tensor(leak(model, rows[0], rows[1], device), device=device)
    if world > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.item()


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
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            alone = torch.cat([_logprobs(model, encoding.stack([row]), device) for row in rows])
            packed = _logprobs(model, encoding.concatenate(rows), device)
    finally:
        model.train(training)
    found = (packed - alone).abs().max().item() if alone.numel() else math.inf
    return found if math.isfinite(found) else math.inf


def _takes_positions(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # of a LoRA adapter
    parameters = inspect.signature(base.forward).parameters.values()
    return any(one.name == "position_ids" or one.kind is one.VAR_KEYWORD for one in parameters)


def _window(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    trained = np.flatnonzero(np.asarray(row["labels"])[1:] != encoding.IGNORED) + 1
    start = max(0, int(trained[0]) - CONTEXT_TOKENS) if len(trained) else 0
    return {name: np.asarray(row[name])[start : start + WINDOW_TOKENS] for name in ("input_ids", "labels")}


def _logprobs(model: Any, row: Mapping[str, Any], device: Any) -> "torch.Tensor":
    """Of the trained tokens, each given all tokens before it: (P,), in the order of the sequence."""
    import torch

    tensors = {name: torch.atleast_2d(torch.as_tensor(values, device=device)) for name, values in row.items()}
    labels = tensors.pop("labels")[0, 1:]
    predicting = (labels != encoding.IGNORED).nonzero().squeeze(-1)
    found = model(**tensors, attention_mask=None, use_cache=False, logits_to_keep=predicting).logits[0]
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
    """Put copies on `device` in the place of these modules' own tensors; tied ones share a copy."""
    held: Held = []
    copies: dict[int, Any] = {}
    for module in modules:
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    held.append((table, name, tensor))
                    if id(tensor) not in copies:
                        copies[id(tensor)] = tensor.detach().to(device)
                    table[name] = copies[id(tensor)]
    return held


def _put_back(held: Held) -> None:
    for table, name, tensor in held:
        table[name] = tensor

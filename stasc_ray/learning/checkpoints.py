"""Checkpoints of one fine-tune: sharded state through Ray Train, and the trained weights gathered for the
export.

Reads and writes Ray Train's checkpoint folders: each worker's part of weights and optimizer, and losses.json.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def report(model: Any, optimizer: Any, losses: list[float], steps: int, rank: int) -> None:
    """Report a sharded checkpoint: every worker saves its own part, Ray merges the parts into one folder."""
    from ray import train

    with tempfile.TemporaryDirectory() as folder:
        save(model, optimizer, folder)
        if rank == 0:
            (Path(folder) / "losses.json").write_text(json.dumps({"losses": losses, "steps": steps}))
        train.report(
            {"step": len(losses), "loss": losses[-1]}, checkpoint=train.Checkpoint.from_directory(folder)
        )


def resume(model: Any, optimizer: Any, steps: int) -> tuple[list[float], int]:
    """Load the last checkpoint, if any of this many steps; returns the losses it has seen, and its planned
    steps.
    """
    from ray import train

    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return [], steps
    with checkpoint.as_directory() as folder:
        saved = json.loads((Path(folder) / "losses.json").read_text())
        if saved["steps"] == steps:
            load(model, optimizer, folder)
    return saved["losses"], saved["steps"]


def save(model: Any, optimizer: Any, folder: str) -> None:
    """Write this worker's part of what is trained, and of its moments. All workers call it."""
    from torch.distributed.checkpoint.state_dict_saver import save

    save(_state(model, optimizer), checkpoint_id=folder)


def load(model: Any, optimizer: Any, folder: str) -> None:
    """Read what `save` has written, for any number of workers. All workers call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    state = _state(model, optimizer)
    load(state, checkpoint_id=folder)
    options = StateDictOptions(ignore_frozen_params=True, strict=False)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=options,
    )


def _state(model: Any, optimizer: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    weights, moments = get_state_dict(model, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    return {"model": weights, "optimizer": moments}


def gather(model: Any, dtype: "torch.dtype | None" = None) -> dict[str, "torch.Tensor"]:
    """The trained weights, whole, on the host of rank 0 (empty elsewhere). All workers call it.

    Args:
        dtype: to which each weight is rounded before it comes to the host; None keeps float32. An adapter,
            whose base is frozen, is never rounded.
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.tensor import DTensor

    adapter = not all(parameter.requires_grad for parameter in model.parameters())
    state = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=adapter))
    found: dict[str, torch.Tensor] = {}
    for name in list(state):
        tensor: Any = state.pop(name)
        if dtype and not adapter and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if not dist.is_initialized() or dist.get_rank() == 0:
            found[name] = whole.detach().cpu()
    return found

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
    from torch.distributed.checkpoint.state_dict_saver import save

    with tempfile.TemporaryDirectory() as folder:
        save(_state(model, optimizer), checkpoint_id=folder)
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
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return [], steps
    with checkpoint.as_directory() as folder:
        saved = json.loads((Path(folder) / "losses.json").read_text())
        if saved["steps"] == steps:
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
    return saved["losses"], saved["steps"]


def _state(model: Any, optimizer: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    weights, moments = get_state_dict(model, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    return {"model": weights, "optimizer": moments}


def gather(model: Any) -> dict[str, "torch.Tensor"]:
    """The trained weights, whole, in float32, in the host memory of rank 0 (empty elsewhere). All workers
    call it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return dict(get_model_state_dict(model, options=options))  # type: ignore[arg-type]

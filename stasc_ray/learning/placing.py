"""The model that is trained: read from its folder, and put on the workers' devices.

With several workers only the first reads the folder; the others build the model without weights, and each
gets its share of every weight from the first (FSDP2).
"""

from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stasc_ray import config
from stasc_ray.learning import export

if TYPE_CHECKING:
    import torch

    from stasc_ray.learning.job import FinetuneJob

WHOLE_WEIGHTS = 2 * 10**9
"""Below so many weights, workers keep the gathered weights from the forward to the backward pass: they fit,
and are gathered once a pass instead of twice."""


def load_model(job: "FinetuneJob", device: Any = "cpu", *, empty: bool = False) -> tuple[Any, set[str]]:
    """M0 or the current model on the host, with its adapter if LoRA trains; and its layers' class names.

    Weights that are trained are float32. What LoRA freezes has the type in which it computes on `device`.

    Args:
        empty: without weights (torch's meta device), for a worker that gets its share from another.
    """
    import torch

    finetune = job.finetune
    torch.manual_seed(job.seed)
    frozen = finetune.method == "lora" and torch.device(device).type == "cuda"
    dtype = compute_dtype(finetune, torch.device(device)) if frozen else torch.float32
    with torch.device("meta") if empty else nullcontext():
        model: Any = export.build_base(job, dtype) if empty else export.load_base(job, dtype)
        if finetune.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        layers: set[str] = set(model._no_split_modules or ())
        if finetune.method == "lora":
            model = export.with_adapter(model, job, trainable=True, empty=empty)
    return model.train(), layers


def place(
    model: Any, layers: set[str], job: "FinetuneJob", device: Any, world: int, whole: Any = None
) -> "torch.nn.Module":
    """The model on its device; sharded with FSDP2 if workers share it, from `whole`, which rank 0 has.

    Args:
        model: what is placed; with several workers one without weights.
        whole: with several workers, on rank 0: the model with its weights, on the host.
    """
    if world == 1:
        return model.to(device)
    dtype = compute_dtype(job.finetune, device)
    sharded = shard(model, layers, device, world, dtype, job.finetune.sharding == "hybrid")
    _fill(sharded, whole, device)
    return sharded


def shard(
    model: Any,
    layers: set[str],
    device: Any,
    world: int,
    dtype: Any,
    hybrid: bool,
) -> Any:
    """Shard with FSDP2, layer by layer.

    Small models keep a layer's gathered weights until their backward pass. Larger ones give them back, and
    gather the next layer's while one computes.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = _hybrid_mesh(device, world) if hybrid else init_device_mesh(device.type, (world,))
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    again = sum(parameter.numel() for parameter in model.parameters()) >= WHOLE_WEIGHTS
    inner = [module for module in model.modules() if type(module).__name__ in layers]
    for module in inner:
        fully_shard(module, mesh=mesh, mp_policy=mixed, reshard_after_forward=again)
    fully_shard(model, mesh=mesh, mp_policy=mixed, reshard_after_forward=False)
    if again:
        for module, after in pairwise(inner):
            module.set_modules_to_forward_prefetch([after])
            after.set_modules_to_backward_prefetch([module])
    return model


def _fill(sharded: Any, whole: Any, device: Any) -> None:
    """Give every worker its share of the weights, and all buffers, that rank 0 has."""
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    buffers = dict(whole.named_buffers()) if whole else {}
    for name, buffer in list(sharded.named_buffers()):
        there = buffers[name].to(device) if whole else torch.empty_like(buffer, device=device)
        dist.broadcast(there, 0)
        owner, _, own = name.rpartition(".")
        sharded.get_submodule(owner)._buffers[own] = there
    ties = _ties(sharded)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(sharded, whole.state_dict() if whole else {}, options=options)
    for (module, name), *others in ties:  # which the assignment of weights has parted
        for other, its_name in others:
            setattr(other, its_name, getattr(module, name))


def _ties(model: Any) -> list[list[tuple[Any, str]]]:
    """Modules, and names in them, that share a parameter."""
    places: dict[int, list[tuple[Any, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    return [found for found in places.values() if len(found) > 1]


def _hybrid_mesh(device: Any, world: int) -> Any:
    """(replicas, shards): shards of one node's workers; one group over all where nodes have unequal numbers
    or one worker each.
    """
    import torch.distributed as dist
    from ray import train
    from torch.distributed.device_mesh import init_device_mesh

    local: list[Any] = [None] * world
    dist.all_gather_object(local, train.get_context().get_local_world_size())
    if len(set(local)) > 1 or local[0] in (1, world):
        return init_device_mesh(device.type, (world,))
    return init_device_mesh(device.type, (world // local[0], local[0]), mesh_dim_names=("replicas", "shards"))


def compute_dtype(finetune: config.Finetune, device: Any) -> Any:
    """The type of the matrix products; weights, gradients and optimizer state stay float32."""
    import torch

    name = finetune.dtype
    return getattr(torch, name if name != "auto" else ("bfloat16" if device.type == "cuda" else "float32"))

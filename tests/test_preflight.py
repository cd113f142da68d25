"""What is known before work starts: memory from the weights' headers, and words for what a node does not see."""

from pathlib import Path

import pytest

from stasc_ray import cluster, config, preflight
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
    found = preflight.too_small(settings(*overrides), 1_500_000_000, gpu_gb)
    if expected is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=expected):
            raise ValueError(found)
    assert preflight.too_small(settings(), 1_500_000_000, 22.0, training=False) is None


def test_each_thing_a_node_lacks_is_one_message(tmp_path: Path) -> None:
    whole = preflight.Sight(True, True, cluster.versions(), None)
    preflight._check_sight("n1", whole, tmp_path, "m")
    for sight, expected in (
        (preflight.Sight(False, True, cluster.versions(), None), "storage: expected node n1 to see the run folder"),
        (preflight.Sight(True, False, cluster.versions(), None), "model.path: expected node n1 to see m"),
        (preflight.Sight(True, True, cluster.versions() | {"ray": "1.0"}, None), r"found \(node, driver\) {'ray': \('1.0'"),
    ):
        with pytest.raises(RuntimeError, match=expected):
            preflight._check_sight("n1", sight, tmp_path, "m")

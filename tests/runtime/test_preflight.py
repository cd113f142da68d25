"""What is known before work starts: the number of weights, and words for what a node does not see."""

from pathlib import Path

import pytest

from stasc_ray.runtime import preflight, ray_session
from stasc_ray.tasks import sandbox


def test_the_number_of_weights_is_read_from_the_headers() -> None:
    import safetensors.numpy

    (file,) = sandbox.model_path().glob("*.safetensors")
    expected = sum(tensor.size for tensor in safetensors.numpy.load_file(file).values())
    assert preflight.parameters(sandbox.model_path()) == expected > 100_000


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

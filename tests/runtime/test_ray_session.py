"""What of the cluster's arithmetic needs no cluster; tests/test_jobs.py and tests/faults/ have real ones."""

import pytest

from stasc_ray import config
from stasc_ray.runtime import capacity


def engine(*overrides: str) -> config.Engine:
    return config.load_config(None, overrides).engine


@pytest.mark.parametrize(
    ("nodes", "cuda", "overrides", "expected"),
    [
        ([{"CPU": 64, "GPU": 8}], True, [], 8),
        ([{"CPU": 64, "GPU": 8}], True, ["engine.tensor_parallel_size=4"], 2),
        (
            [{"CPU": 64, "GPU": 6}] * 2,
            True,
            ["engine.tensor_parallel_size=4"],
            2,
        ),  # not 3: no engine spans two nodes
        ([{"CPU": 64, "GPU": 2}] * 8, True, ["engine.tensor_parallel_size=4"], 0),
        (
            [{"CPU": 64}, {"CPU": 2, "GPU": 8}],
            True,
            [],
            2,
        ),  # the CPUs of the one are of no use to the GPUs of the other
        ([{"CPU": 5, "GPU": 8}], True, [], 4),  # one CPU is left to read and grade
        ([{"CPU": 5, "GPU": 8}, {"CPU": 1}], True, [], 5),
        ([{"CPU": 9}], False, ["engine.cpus_per_actor=4"], 2),
        ([{"CPU": 64}], True, [], 0),
        ([], False, [], 0),
        ([{"CPU": 64, "GPU": 8}], False, [], 63),
        ([{"CPU": 64, "GPU": 8}], False, ["engine.reserve_gpus=true", "engine.tensor_parallel_size=4"], 2),
    ],
)
def test_room_for_engines(
    nodes: list[dict[str, float]], cuda: bool, overrides: list[str], expected: int
) -> None:
    assert capacity.room_for_engines(engine(*overrides), nodes, cuda) == expected


def test_a_fixed_pool_and_a_growing_one() -> None:
    assert capacity.pool_size(engine("engine.actors=3"), cuda=True) == (3, 3)
    assert capacity.pool_size(engine("engine.actors=[2, 16]"), cuda=True) == (2, 16)
    assert [engine(f"engine.actors={text}").least_actors for text in ("3", "[2, 16]", "all")] == [3, 2, 1]
    with pytest.raises(ValueError, match=r"expected \[min, max\] with min <= max, found \[4, 2\]"):
        engine("engine.actors=[4, 2]")

"""Threads on CPUs: each engine and each worker gets its share of the cores, and at least one thread."""

import pytest

from stasc_ray import config
from stasc_ray.runtime import capacity


@pytest.mark.parametrize(
    ("actors", "cpus", "cores", "expected"),
    [("2", 1, 8, 4), ("1", 1, 2, 2), ("4", 1, 2, 1), ("2", 3, 4, 3), ("[1, 4]", 2, 8, 2), ("all", 1, 8, 1)],
)
def test_a_fixed_pool_shares_the_cores_out_and_one_that_grows_keeps_to_its_cpus(
    actors, cpus, cores, expected
) -> None:
    settings = config.load_config(None, [f"engine.actors={actors}", f"engine.cpus_per_actor={cpus}"])
    assert capacity.rollout_threads(settings.engine, cores) == expected


@pytest.mark.parametrize(
    ("replicas", "cpus", "cores", "expected"),
    [(1, 1, 2, 1), (1, 1, 8, 7), (2, 1, 8, 3), (2, 4, 8, 4), (1, 0, 1, 1)],
)
def test_an_engine_that_serves_leaves_a_core_to_http(replicas, cpus, cores, expected) -> None:
    overrides = [f"serve.replicas={replicas}", f"serve.cpus_per_replica={cpus}"]
    assert capacity.replica_threads(config.load_config(None, overrides).serve, cores) == expected


@pytest.mark.parametrize(("workers", "cores", "expected"), [(1, 2, 1), (1, 8, 7), (2, 8, 3), (4, 2, 1)])
def test_trainer_workers_leave_a_core_free(workers, cores, expected) -> None:
    assert capacity.trainer_threads(workers, cores) == expected

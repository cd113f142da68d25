"""What nodes have room for, as arithmetic. Tests in test_submission.py and tests/faults/ run real
clusters."""

import pytest

from stasc_ray import config
from stasc_ray.recipes import section_of
from stasc_ray.runtime import capacity


def settings(*overrides: str) -> config.Config:
    return config.load_config(None, overrides, section_of)


def engine(*overrides: str) -> config.Engine:
    return settings(*overrides).engine


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
    nodes = [{"CPU": 5.0, "GPU": 8.0}]
    assert capacity.pool_size(engine("engine.actors=3"), nodes, cuda=True) == (3, 3)
    assert capacity.pool_size(engine("engine.actors=[2, 16]"), nodes, cuda=True) == (2, 16)
    assert capacity.pool_size(engine("engine.actors=all"), nodes, cuda=True) == (4, 4)
    assert capacity.pool_size(engine("engine.actors=all"), [], cuda=True) == (1, 1)
    assert [engine(f"engine.actors={text}").least_actors for text in ("3", "[2, 16]", "all")] == [3, 2, 1]
    with pytest.raises(ValueError, match=r"expected \[min, max\] with min <= max, found \[4, 2\]"):
        engine("engine.actors=[4, 2]")


@pytest.mark.parametrize(
    ("overrides", "gpu_gb", "expected"),
    [
        ([], 40.0, None),  # 1.5e9 x 16 bytes = 22.4 GiB
        ([], 22.0, "finetune: expected .* fit into a GPU's 22.0 GiB, found 22.4 GiB"),
        (["finetune.workers=2"], 22.0, None),
        (["finetune.workers=[2, 8]"], 12.0, None),
        (["finetune.method=lora"], 4.0, None),  # 2 bytes a frozen weight
        (["finetune.method=lora", "finetune.dtype=float32"], 4.0, "finetune: .*found 5.6 GiB"),
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


def host(gb: float, **more: float) -> dict[str, float]:
    return {"memory": 0.7 * gb * 2**30, "object_store_memory": 0.3 * gb * 2**30, **more}


@pytest.mark.parametrize(
    ("overrides", "nodes", "cuda", "expected"),
    [
        (["finetune.method=lora", "finetune.workers=8"], [host(64, GPU=8)], True, None),  # 7B: 7 bytes each
        (["finetune.method=lora", "finetune.workers=8"], [host(32, GPU=8)], True, "49.5 GiB of host memory"),
        ([], [host(32, GPU=8), host(512)], True, "found at most 32.0 GiB on a node"),  # it has no GPU
        ([], [host(32, GPU=8), host(64, GPU=1)], True, None),
        ([], [], True, None),  # the autoscaler brings them
        ([], [host(64)], False, "expected 113.2 GiB"),  # 16 bytes each
        ([], [host(64)], False, "raise finetune.workers or set finetune.method=lora"),
        (["finetune.workers=2"], [host(64)] * 2, False, None),
        (["finetune.method=lora"], [host(64)], False, None),
    ],
)
def test_host_memory_of_a_7b_model(
    overrides: list[str], nodes: list[dict[str, float]], cuda: bool, expected: str | None
) -> None:
    found = capacity.too_little_host_memory(settings(*overrides).finetune, 7_600_000_000, nodes, cuda)
    assert found is None if expected is None else found and expected in found


@pytest.mark.parametrize(
    ("overrides", "room_gb", "tight"),
    [
        ([], 0.06, False),
        (["engine.tensor_parallel_size=4"], 0.06, True),
        (["engine.tensor_parallel_size=4"], 2.0, False),
        (["finetune.workers=2"], 0.06, True),
        (["finetune.workers=[1, 2]"], 0.06, True),
    ],
)
def test_gpus_that_work_together_need_shared_memory(
    overrides: list[str], room_gb: float, tight: bool
) -> None:
    found = capacity.tight_shm(settings(*overrides), room_gb, generation=True, training=True)
    assert "found 0.06 GiB" in found if found else not tight
    assert capacity.tight_shm(settings(*overrides), room_gb, generation=False, training=False) is None


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
        assert found[0].endswith("add nodes"), "CUDA builds do not run on CPUs"
    assert not list(capacity.lack_of_room(given, nodes, cuda, generation=False, training=False))


@pytest.mark.parametrize(
    ("actors", "cpus", "cores", "expected"),
    [("2", 1, 8, 4), ("1", 1, 2, 2), ("4", 1, 2, 1), ("2", 3, 4, 3), ("[1, 4]", 2, 8, 2), ("all", 1, 8, 1)],
)
def test_a_fixed_pool_shares_the_cores_out_and_one_that_grows_keeps_to_its_cpus(
    actors, cpus, cores, expected
) -> None:
    settings = config.load_config(
        None, [f"engine.actors={actors}", f"engine.cpus_per_actor={cpus}"], section_of
    )
    assert capacity.rollout_threads(settings.engine, cores) == expected


@pytest.mark.parametrize(
    ("replicas", "cpus", "cores", "expected"),
    [(1, 1, 2, 1), (1, 1, 8, 7), (2, 1, 8, 3), (2, 4, 8, 4), (1, 0, 1, 1)],
)
def test_an_engine_that_serves_leaves_a_core_to_http(replicas, cpus, cores, expected) -> None:
    overrides = [f"serve.replicas={replicas}", f"serve.cpus_per_replica={cpus}"]
    assert capacity.replica_threads(config.load_config(None, overrides, section_of).serve, cores) == expected


@pytest.mark.parametrize(("workers", "cores", "expected"), [(1, 2, 2), (1, 8, 8), (2, 8, 4), (4, 2, 1)])
def test_trainer_workers_share_the_cores(workers, cores, expected) -> None:
    assert capacity.trainer_threads(workers, cores) == expected


@pytest.mark.parametrize(
    ("nodes", "overrides", "expected"),
    [
        # one card: engine and worker take turns on it
        ([{"CPU": 16, "GPU": 1}], [], 0.6),
        ([{"CPU": 64, "GPU": 8}], ["engine.actors=all", "finetune.workers=8"], 0.6),
        ([{"CPU": 16, "GPU": 1}], ["engine.keep_alive=false"], 1),
        # enough cards for both
        ([{"CPU": 64, "GPU": 8}], ["engine.actors=4", "finetune.workers=4"], 1),
        # some cards would have no engine, and two workers could meet on one of them
        ([{"CPU": 64, "GPU": 8}], ["engine.actors=4", "finetune.workers=8"], 1),
        ([{"CPU": 64, "GPU": 8}], ["engine.actors=[4, 8]", "finetune.workers=8"], 1),
        # an engine over several cards has them to itself
        ([{"CPU": 64, "GPU": 8}], ["engine.actors=all", "engine.tensor_parallel_size=4"], 4),
    ],
)
def test_gpus_of_engines_that_outlive_trainers(
    nodes: list[dict[str, float]], overrides: list[str], expected: float
) -> None:
    assert capacity.engine_gpus(settings(*overrides), nodes, True, training=True) == expected


def test_engines_of_a_run_that_trains_nothing_have_whole_gpus() -> None:
    assert capacity.engine_gpus(settings(), [{"CPU": 16, "GPU": 1}], True, training=False) == 1
    assert capacity.engine_gpus(settings(), [{"CPU": 16}], False, training=True) == 0


@pytest.mark.parametrize(
    ("nodes", "engines", "engine_gpus", "worker_gpus", "expected"),
    [
        ({"a": {"CPU": 16, "GPU": 1}}, {"a": 1}, 0.6, 0.4, 1),
        ({"a": {"CPU": 16, "GPU": 8}, "b": {"CPU": 16, "GPU": 8}}, {"a": 8, "b": 8}, 0.6, 0.4, 16),
        ({"a": {"CPU": 16, "GPU": 8}}, {"a": 4}, 1, 1, 4),
        ({"a": {"CPU": 16, "GPU": 8}}, {"a": 2}, 4, 1, 0),
        ({"a": {"CPU": 3}}, {"a": 2}, 0, 0, 1),
        ({"a": {"CPU": 2}, "b": {"CPU": 2}}, {"a": 2}, 0, 0, 2),
        ({"a": {"CPU": 2}}, {"a": 2, "gone": 1}, 0, 0, 0),
    ],
)
def test_room_for_workers_beside_engines(
    nodes: dict[str, dict[str, float]],
    engines: dict[str, int],
    engine_gpus: float,
    worker_gpus: float,
    expected: int,
) -> None:
    assert capacity.room_beside(engine(), nodes, engines, engine_gpus, worker_gpus) == expected


@pytest.mark.parametrize(
    ("tokens", "bytes_per_token", "gpu_gb", "expected"),
    [
        (256 * 512, 1024, 80, 4 * 256 * 512 * 1024),  # the demo: 32,768 blocks in place of 4.5 million
        (256 * 2048, 23_040, 80, None),  # SmolLM2-135M: 203,000 blocks
        (256 * 2048, 28_672, 80, None),  # Qwen2.5-1.5B
        (256 * 512, 1024, 4, None),  # a small card makes few by itself
        (1024 * 32_768, 1024, 80, None),  # what is asked at once fills the card
    ],
)
def test_only_a_tiny_models_kv_cache_is_capped(
    tokens: int, bytes_per_token: int, gpu_gb: int, expected: int | None
) -> None:
    room = int(gpu_gb * 0.9 * 2**30)
    assert capacity.capped_kv_cache_bytes(tokens, bytes_per_token, room) == expected

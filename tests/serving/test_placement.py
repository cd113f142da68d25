"""A replica and its engines are one unit: one placement group, on one node, with GPUs of its own."""

import os
import signal
import time

import pytest
from harness import served, served_runs

from benchmarks.ray_cluster import free_port
from stasc_ray import config, store
from stasc_ray.recipes import section_of
from stasc_ray.serving import app, placement

QUESTION = served.QUESTIONS[0]


def settings(*overrides: str) -> config.Config:
    return config.load_config(None, list(overrides), section_of)


@pytest.mark.parametrize(
    ("overrides", "on_cuda", "expected"),
    [
        ([], False, [{"CPU": 1}]),
        (["serve.cpus_per_replica=0"], False, [{"CPU": 0.001}]),
        ([], True, [{"CPU": 1}, {"GPU": 1}, {"GPU": 1}]),
        (["serve.swap=in_place", "engine.tensor_parallel_size=4"], True, [{"CPU": 1}, {"GPU": 4}]),
        (["finetune.method=lora"], True, [{"CPU": 1}, {"GPU": 1}]),
        (["serve.gpus_per_engine=0.5"], True, [{"CPU": 1}, {"GPU": 0.5}, {"GPU": 0.5}]),
        (["serve.keep_warm=2"], True, [{"CPU": 1}, *[{"GPU": 1}] * 4]),
        (["algorithm.variant=FIE", "serve.swap=in_place"], True, [{"CPU": 1}, {"GPU": 1}, {"GPU": 1}]),
        (["algorithm.variant=FIE", "serve.keep_warm=1"], True, [{"CPU": 1}, *[{"GPU": 1}] * 4]),
        (
            ["algorithm.variant=FIE", "serve.initial_answers_from=current", "serve.swap=in_place"],
            True,
            [{"CPU": 1}, {"GPU": 1}],
        ),
        (
            ["algorithm.variant=FIE", "serve.keep_warm=3", "finetune.method=lora", "serve.swap=in_place"],
            True,
            [{"CPU": 1}, {"GPU": 1}],
        ),
        (["engine.reserve_gpus=true", "serve.swap=in_place"], False, [{"CPU": 1}, {"GPU": 1}]),
    ],
)
def test_a_replicas_engines_have_their_places_beside_it(overrides, on_cuda, expected) -> None:
    assert placement.bundles(settings(*overrides), on_cuda=on_cuda) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ["serve.gpus_per_engine=2"],
        ["serve.gpus_per_engine=0.5", "engine.tensor_parallel_size=2"],
        ["serve.gpus_per_engine=1", "engine.tensor_parallel_size=2"],
    ],
)
def test_a_share_that_an_engine_could_not_use_is_refused(overrides) -> None:
    with pytest.raises(ValueError, match=r"serve.gpus_per_engine: expected engine.tensor_parallel_size"):
        placement.engine_gpus(settings(*overrides), on_cuda=True)


def test_previous_versions_do_not_stay_where_one_engine_takes_all_weights() -> None:
    with pytest.raises(ValueError, match=r"serve.keep_warm: expected 0 with serve.swap=in_place, .*found 2"):
        placement.bundles(settings("serve.keep_warm=2", "serve.swap=in_place"), on_cuda=False)


def test_what_m0_and_previous_versions_need_is_said_in_numbers(monkeypatch) -> None:
    monkeypatch.setattr(placement.ray_session, "may_grow", lambda: False)
    needed = placement.bundles(settings("algorithm.variant=FIE", "serve.keep_warm=1"), on_cuda=True)
    expected = (
        r"1 CPUs and 4 GPUs, found at most 16 and 1; for fewer than its 4 engines .*serve.keep_warm.*"
        r"initial_answers_from=current; .*gpus_per_engine=0.25 engine.gpu_memory_utilization=0.22$"
    )
    with pytest.raises(ValueError, match=expected):
        placement.check_room(needed, [{"CPU": 16, "GPU": 1}])


def test_a_replica_that_no_node_has_room_for_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(placement.ray_session, "may_grow", lambda: False)
    beside = placement.bundles(settings(), on_cuda=True)
    with pytest.raises(ValueError, match=r"1 CPUs and 2 GPUs, found at most 16 and 1; .*swap=in_place"):
        placement.check_room(beside, [{"CPU": 16, "GPU": 1}, {"CPU": 2}])
    placement.check_room(beside, [{"CPU": 16, "GPU": 2}])
    placement.check_room(
        placement.bundles(settings("serve.swap=in_place"), on_cuda=True), [{"CPU": 16, "GPU": 1}]
    )


@pytest.mark.slow
@pytest.mark.served
def test_an_engine_that_dies_gives_its_gpu_back(tmp_path) -> None:
    """On CPU, with GPUs that are only declared."""
    import ray

    served_runs.make_model(tmp_path / "a", noise=0.05, seed=1)
    run = served_runs.make_run(tmp_path / "run", "engine.device=cpu", "engine.reserve_gpus=true")
    served_runs.publish(run, tmp_path / "a")
    values, port = store.read_config(run.path, section_of), free_port()
    with served.local_ray(gpus=2):
        with app.serving(run.path, values, "127.0.0.1", port, None, loopback_only=True):
            endpoint = served.Served(run, tmp_path, f"http://127.0.0.1:{port}", {"plain": "none"})
            health = endpoint.wait(lambda found: found["status"] == "ok")
            assert ray.available_resources().get("GPU", 0) == 0, "two places for engines"
            (pid,) = health["engine_pids"]
            os.kill(pid, signal.SIGKILL)
            endpoint.wait(lambda found: found["status"] == "ok" and pid not in found["engine_pids"])
            assert endpoint.correct(QUESTION).status_code == 200
            version = endpoint.publish("a")
            endpoint.wait(lambda found: found["loaded"] == [version])
            assert endpoint.correct(QUESTION).json()["model_version"] == version
        end = time.monotonic() + 60
        while ray.available_resources().get("GPU", 0) < 2:
            assert time.monotonic() < end
            time.sleep(0.2)

"""vLLM's own process on a CPU, as it is on a GPU: its death is noticed, and it outlives nobody."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from benchmarks.ray_cluster import RayCluster, kill, ray_cluster
from stasc_ray import config
from stasc_ray.generation.engine import Engine
from stasc_ray.generation.samples import Request
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.tasks import sandbox

LONG = Request(config.Sampling(temperature=1.0, max_tokens=400), 8, 0)
ENGINE = {"max_model_len_tokens": 512, "kv_cache_gb": 0.25, "max_num_seqs": 64}


def cores_of(pid: int) -> list[psutil.Process]:
    """vLLM's own processes below a process."""
    return [one for one in psutil.Process(pid).children(recursive=True) if "EngineCore" in one.name()]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    made = Engine(str(sandbox.model_path()), EngineSpec(config.Engine(**ENGINE), on_cuda=False, threads=1))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.ci
@pytest.mark.timeout(300)
def test_a_core_that_is_killed_while_it_answers_fails_what_waits(engine: Engine) -> None:
    (core,) = cores_of(os.getpid())
    waiting = engine.submit([5, 6, 7], LONG)
    time.sleep(0.3)
    core.send_signal(signal.SIGKILL)
    with pytest.raises(RuntimeError, match="the engine stopped"):
        waiting.result(timeout=30)
    with pytest.raises(RuntimeError, match="not running"):
        engine.submit([5, 6, 7], LONG).result(timeout=30)
    assert not engine.alive


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "ask",
    [
        lambda engine: engine.logprobs([5, 6, 7]),
        lambda engine: engine.reload(str(sandbox.model_path())),
    ],
)
def test_a_core_that_is_killed_between_two_requests_is_noticed(
    engine: Engine, ask: Callable[[Engine], Future[object]]
) -> None:
    (core,) = cores_of(os.getpid())
    assert len(engine.submit([5, 6, 7], LONG).result(timeout=60)) == 8
    core.send_signal(signal.SIGKILL)
    with pytest.raises(RuntimeError):
        ask(engine).result(timeout=30)
    deadline = time.monotonic() + 30
    while engine.alive:
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- whoever dies, the core dies too


DRIVER = f"""
import json, os, sys, time, psutil, ray
from stasc_ray import config
from stasc_ray.generation.engines import EngineActor
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.tasks import sandbox

ray.init(address=sys.argv[1], log_to_driver=False)
spec = EngineSpec(config.Engine(**{ENGINE!r}), on_cuda=False, threads=1)
actor = ray.remote(EngineActor).options(num_cpus=1).remote(str(sandbox.model_path()), spec)
pid = ray.get(actor.pid.remote())
cores = [one.pid for one in psutil.Process(pid).children(recursive=True) if "EngineCore" in one.name()]
print(json.dumps({{"actor": pid, "cores": cores}}), flush=True)
time.sleep(600)
"""


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["the actor", "the driver", "the raylet", "the raylet, then the actor"])
def test_no_core_outlives_its_actor(victim: str) -> None:
    with ray_cluster(1, VLLM_ENABLE_V1_MULTIPROCESSING="1") as cluster:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, cluster.address],
            stdout=subprocess.PIPE,
            text=True,
            env={**cluster.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            assert driver.stdout
            found = json.loads(driver.stdout.readline())
            (core,) = (psutil.Process(pid) for pid in found["cores"])
            assert core.is_running()
            strike(victim, cluster, driver.pid, found["actor"])
            deadline = time.monotonic() + 60
            while Path(f"/proc/{core.pid}").exists() and core.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, f"{core} is left over"
                time.sleep(0.2)
        finally:
            driver.kill()
            driver.wait()


def strike(victim: str, cluster: RayCluster, driver: int, actor: int) -> None:
    match victim:
        case "the actor":
            kill(actor)
        case "the driver":
            kill(driver)
        case "the raylet":
            cluster.nodes[-1].kill_raylet()
        case _:
            cluster.nodes[-1].kill_raylet()
            kill(actor)

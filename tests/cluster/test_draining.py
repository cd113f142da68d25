"""A node that is told to end, as Kubernetes ends a pod: its replica moves to another node, and no request fails."""

import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
import yaml
from harness import served_runs
from harness.served import PATIENCE_S, QUESTIONS

from benchmarks.ray_cluster import command_of, free_port, ray_cluster

SERVICE = Path(__file__).resolve().parents[2] / "cluster" / "kuberay" / "rayservice.yaml"
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def drain_s() -> str:
    """What the manifest gives a pod."""
    service = next(yaml.safe_load_all(SERVICE.read_text(encoding="utf-8")))
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    (found,) = [one["value"] for one in container["env"] if one["name"] == DRAIN]
    return found


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_a_node_that_ends_gives_its_replica_up_after_its_requests(tmp_path) -> None:
    run = served_runs.make_run(tmp_path / "run", "serve.replicas=2", "serve.max_rounds=64")
    served_runs.publish(run, None)
    port, statuses, stop = free_port(), Counter(), threading.Event()
    url = f"http://127.0.0.1:{port}"

    def keep_asking(number: int) -> None:
        while not stop.is_set():
            body = {"question": QUESTIONS[number], "rounds": 8, "temperature": 0}
            statuses[httpx.post(f"{url}/v1/correct", json=body, timeout=PATIENCE_S).status_code] += 1

    def replicas() -> list[list[int]]:
        return [
            [pid for pid in node.processes() if "ServeReplica" in command_of(pid)] for node in cluster.nodes
        ]

    # a CPU for each replica, and one for the replica that takes the place
    with ray_cluster(1, 1, 1, **{DRAIN: drain_s()}) as cluster, (tmp_path / "serve.log").open("w") as log:
        command = [sys.executable, "-m", "stasc_ray.cli", "serve", str(run.path), "--port", str(port)]
        command += ["--address", cluster.address]
        serve = subprocess.Popen(command, stdout=log, stderr=log, env=cluster.environment)
        clients = [threading.Thread(target=keep_asking, args=(number,)) for number in range(4)]
        try:
            until(lambda: sum(map(bool, replicas())) == 2, serve)
            until(lambda: "answers at" in (tmp_path / "serve.log").read_text(), serve)
            for client in clients:
                client.start()
            until(lambda: statuses[200] >= 8, serve)
            node = next(node for node, found in zip(cluster.nodes, replicas(), strict=True) if found)
            started = time.monotonic()
            node.process.terminate()  # SIGTERM, and Kubernetes waits
            node.process.wait(timeout=float(drain_s()))
            took_s, before = time.monotonic() - started, statuses[200]
            assert "finished draining" in "".join(
                file.read_text() for file in cluster.folder.glob("*/start.log")
            )
            until(lambda: statuses[200] >= before + 4, serve)
        finally:
            stop.set()
            for client in clients:
                client.join() if client.ident else None
            serve.terminate()
            serve.wait(timeout=PATIENCE_S)
    print(f"{statuses} while a node drained in {took_s:.0f} s")
    assert set(statuses) == {200}


def until(condition, serve: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert serve.poll() is None, "the endpoint ended"
        assert time.monotonic() < end
        time.sleep(0.2)

"""A real Ray cluster of several processes on this machine: a head and worker nodes, each of which can be
killed alone.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

RAY = str(Path(sys.executable).with_name("ray"))
HOST = "127.0.0.1"
START_TIMEOUT_S = 240
HEAD_TYPE = "ray.head.default"  # as Ray's pretended cloud calls it


class Node:
    """One `ray start --block` and everything it started, in a session of its own."""

    def __init__(self, *arguments: str, log: Path, environment: dict[str, str]) -> None:
        command = [
            RAY,
            "start",
            "--block",
            "--disable-usage-stats",
            "--include-log-monitor=false",
            "--object-store-memory=250000000",
        ]
        command += [
            f"--dashboard-agent-listen-port={free_port()}",
            f"--dashboard-agent-grpc-port={free_port()}",
        ]
        command += [
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--metrics-export-port={free_port()}",
            *arguments,
        ]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, start_new_session=True, env=environment
            )

    def processes(self) -> list[int]:
        """Pids of the node: its whole session, workers of the raylet included."""
        return [pid for pid in all_pids() if session_of(pid) == self.process.pid]

    def kill(self) -> None:
        """SIGKILL all of it at once, as a lost machine."""
        for pid in self.processes():
            kill(pid)
        self.process.wait()

    def kill_raylet(self) -> None:
        """SIGKILL the raylet alone; Ray ends what depended on it."""
        (raylet,) = [pid for pid in self.processes() if command_of(pid).split(" ")[0].endswith("/raylet")]
        kill(raylet)


class RayCluster:
    """A head with the Jobs API, to which nodes can be added."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.port, self.dashboard_port = folder, free_port(), free_port()
        self.environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", **environment}
        self.environment |= {"RAY_ENABLE_AUTOSCALER_V2": "0", "STASC_TEST_CLUSTER": str(folder)}
        self.environment["PATH"] = f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}"  # jobs run `python`
        self.environment.pop("RAY_ADDRESS", None)
        self.nodes: list[Node] = []

    @property
    def address(self) -> str:
        """For `--address` of `stasc run`."""
        return f"{HOST}:{self.port}"

    @property
    def jobs_address(self) -> str:
        """For `--address` of `stasc submit`."""
        return f"http://{HOST}:{self.dashboard_port}"

    def start_head(self, cpus: int, *more: str) -> None:
        """Start the head and wait until the Jobs API answers."""
        head = ["--head", f"--port={self.port}", f"--num-cpus={cpus}", "--dashboard-host=127.0.0.1"]
        head += [f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={free_port()}"]
        self._start(*head, *more, until=lambda: self._get("/api/version") is not None)

    def start_growing_head(self, worker_cpus: int, most: int) -> None:
        """A head without CPUs and Ray's own autoscaler, which adds nodes on this machine as it would rent
        them elsewhere.
        """
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

        nothing: dict[str, Any] = {name: {} for name in ("auth", "docker", "file_mounts")}
        commands = (
            "initialization",
            "setup",
            "head_setup",
            "worker_setup",
            "head_start_ray",
            "worker_start_ray",
        )
        nothing |= {f"{name}_commands": [] for name in commands}
        nothing |= {name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")}
        worker = {"resources": {"CPU": worker_cpus}, "node_config": {}, "min_workers": 0, "max_workers": most}
        settings = {
            **nothing,
            "cluster_name": "growing",
            "provider": {
                "type": "external",  # not "fake_multinode", whose defaults are not in Ray's wheel
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "gcs_address": self.address,
            },
            "head_node_type": HEAD_TYPE,
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": worker,
            },
            "max_workers": most,
            "upscaling_speed": 10.0,
            "idle_timeout_minutes": 5,
            "file_mounts_sync_continuously": False,
        }
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(settings))
        self.environment |= {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": HEAD_TYPE,  # as KubeRay and `ray up` set it
        }
        self.start_head(0, f"--autoscaling-config={file}")

    def add_node(self, cpus: int, gpus: int = 0) -> Node:
        """A further node with CPUs of its own, and GPUs that it only declares; returns when it has joined."""
        resources = [f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        return self._start(f"--address={self.address}", *resources, until=lambda: self.alive_nodes() > 1)

    def _start(self, *arguments: str, until: Callable[[], bool]) -> Node:
        """Start a node; again if it gives up, since Ray allows 30 s for it, which a busy small machine may
        exceed.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            # As on machines of their own: in a shared one, each node would unpack a job's upload anew under
            # the others' feet.
            home = self.folder / uuid.uuid4().hex[:8]
            home.mkdir()
            log = home / "start.log"
            node = Node(*arguments, f"--temp-dir={home}", log=log, environment=self.environment)
            self.nodes.append(node)
            while node.process.poll() is None:
                # A node that Ray is about to give up may count as alive already: its own word comes first.
                if "Ray runtime started" in log.read_text() and until():
                    return node
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            node.kill()
            self.nodes.remove(node)
            assert time.monotonic() < deadline, log.read_text()

    def _get(self, path: str) -> Any:
        token = self.environment.get("RAY_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.jobs_address + path, headers=headers), timeout=10
            ) as answer:
                return json.load(answer)
        except OSError:
            return None

    def alive_nodes(self) -> int:
        """Nodes the head believes in."""
        found = (self._get("/nodes?view=summary") or {}).get("data", {}).get("summary", [])
        return sum(node["raylet"]["state"] == "ALIVE" for node in found)

    def stop(self) -> None:
        """End every process of every node."""
        for node in reversed(self.nodes):
            node.kill()


@contextmanager
def growing_cluster(worker_cpus: int, most: int) -> Iterator[RayCluster]:
    """A head that adds up to `most` nodes when there is work, ended with the block."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", ignore_cleanup_errors=True))
        cluster = RayCluster(Path(folder))
        stack.callback(cluster.stop)
        cluster.start_growing_head(worker_cpus, most)
        yield cluster


@contextmanager
def ray_cluster(
    *worker_cpus: int, head_cpus: int = 0, gpus: int = 0, **environment: str
) -> Iterator[RayCluster]:
    """A head and one node per entry of `worker_cpus`, ended with the block."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-", ignore_cleanup_errors=True))
        cluster = RayCluster(Path(folder), **environment)
        stack.callback(cluster.stop)
        cluster.start_head(head_cpus)
        for cpus in worker_cpus:  # one by one: starting is what a small machine is slowest at
            cluster.add_node(cpus, gpus)
        yield cluster


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def all_pids() -> list[int]:
    """Every process that can be seen."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def session_of(pid: int) -> int:
    """The session a process belongs to; 0 when it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def command_of(pid: int) -> str:
    """A process's title or command line; Ray's workers show what they do (`ray::RolloutActor`)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return

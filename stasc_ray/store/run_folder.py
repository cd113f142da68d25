"""The run folder: every path in it, commit marks, the lease that keeps a second driver out, versions and
LATEST.

    <storage>/<run>/
      config.json environment.json metrics.jsonl      what ran, on what, and what came out (a line per stage)
      configs/FINGERPRINT.json                        each config it ever had; lines name theirs
      questions/{train,dev,test}.parquet              the questions, one row group per unit of work
      base/ iteration_01/ ...                         rollouts/ examples/ model/ evaluation/, each closed
      versions/v0001.json ... LATEST                  what was published; the pointer is renamed last
      fork.json                                       of a fork: where it comes from
      lease/0001 ...                                  one file per attempt; the highest number may write
      tracking/mlflow.json ...                        which lines each tracker has
      logs/                                           Ray's and vLLM's own logs

A stage is: if committed, skip; else compute, write, commit. A file without its mark is never read. `storage`
is a path that every node sees; renaming a file over another must be atomic there (POSIX file systems and NFS
are; object stores are not).
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.store.files import read_json, write_atomically
from stasc_ray.store.lease import Lease, hold_lease
from stasc_ray.store.rows import FORMAT

COMMIT_MARK = "_COMMITTED.json"
FORK_FILE = "fork.json"
ITERATION = "iteration_"


class RunFolder:
    """Paths and commit marks of one run. Reading needs no lease; `commit`, `publish` and `log` need the one
    in `lease`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lease: Lease | None = None

    @property
    def metrics_file(self) -> Path:
        """One JSON object per finished stage."""
        return self.path / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        """Logs of Ray, vLLM and the driver."""
        return self.path / "logs"

    @property
    def questions(self) -> Path:
        """Questions of all splits, as Parquet."""
        return self.path / "questions"

    def iteration(self, number: int) -> Path:
        """Folder of one iteration; 0 is the base model."""
        return self.path / iteration_name(number)

    def stage(self, number: int, stage: str) -> Path:
        """Folder of one stage of one iteration: rollouts, examples, model or evaluation."""
        return self.iteration(number) / stage

    def committed(self, folder: Path) -> dict[str, Any] | None:
        """What a stage's commit mark holds; None where there is none."""
        mark = folder / COMMIT_MARK
        return read_json(mark, "line", "files") if mark.is_file() else None

    def files(self, folder: Path) -> list[Path]:
        """The Parquet files of a committed stage, as its mark lists them.

        Raises:
            FileNotFoundError: the stage is not committed.
        """
        mark = self.committed(folder)
        if mark is None:
            raise FileNotFoundError(
                f"{folder}: expected a finished stage (with {COMMIT_MARK}), found none; `stasc run` makes it"
            )
        return [folder / name for name in mark["files"]]

    def commit(self, folder: Path, mark: Mapping[str, Any]) -> None:
        """Close a stage: from now on its files are read and its work is not done again.

        Raises:
            RuntimeError: another driver has taken the run over.
        """
        self.check_lease()
        write_atomically(folder / COMMIT_MARK, json.dumps(mark, indent=2, ensure_ascii=False))

    def fresh_stage(self, folder: Path) -> Path:
        """An empty folder for a stage that cannot continue from what an earlier attempt left."""
        self.check_lease()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a finished stage's line to metrics.jsonl unless it is there (a driver may die between mark
        and line). A pass that was completed since the run grew has a second line, which counts.
        """
        self.check_lease()
        known = {(one["stage"], one["iteration"]): json.dumps(one) for one in self.metrics()}
        if known.get((line["stage"], line["iteration"])) != json.dumps(line):
            # An attempt that was killed while it wrote may have left half a line: begin on a new one.
            data = self.metrics_file.read_bytes() if self.metrics_file.exists() else b""
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(("" if data.endswith(b"\n") or not data else "\n") + json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """A line per stage, in the order in which the stages were first finished; the newest of each."""
        return list({(line["stage"], line["iteration"]): line for line in self.metrics_lines()}.values())

    def metrics_lines(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl as they were written."""
        if not self.metrics_file.is_file():
            return []
        lines = []
        for text in self.metrics_file.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # the half line of a killed attempt
                lines.append(json.loads(text))
        return [line for line in lines if isinstance(line, dict) and {"stage", "iteration"} <= set(line)]

    def best_on_dev(self, measures: Sequence[str], up_to: int | None = None) -> int | None:
        """The iteration with the best figure on dev so far, the earliest of equals; None if none was
        measured. Of a fork those models count that were asked as its config says.

        Args:
            measures: names after `evaluation/dev/`; of each iteration the first one counts that it has.
        """
        found: dict[int, float] = {}
        compares_from = self.fork().get("compares_from", 0)
        for line in self.metrics():
            values = (line.get(f"evaluation/dev/{name}") for name in measures)
            value = next((one for one in values if isinstance(one, int | float) and math.isfinite(one)), None)
            if (
                line["stage"] == "evaluation"
                and line["iteration"] >= compares_from
                and value is not None
                and (up_to is None or line["iteration"] <= up_to)
            ):
                found[line["iteration"]] = value
        return max(found, key=lambda iteration: (found[iteration], -iteration), default=None)

    def fork(self) -> dict[str, Any]:
        """What fork.json holds (store/fork.py); empty for a run that is no fork."""
        file = self.path / FORK_FILE
        return read_json(file, "origin", "iteration", "compares_from", "earlier") if file.is_file() else {}

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Keep what the newest attempt ran on."""
        self.check_lease()
        write_atomically(self.path / "environment.json", json.dumps(environment, indent=2))

    def versions(self) -> list[dict[str, Any]]:
        """Manifests of the published versions, oldest first."""
        return [
            read_json(file, "version", "model") for file in sorted((self.path / "versions").glob("v*.json"))
        ]

    def latest(self) -> str | None:
        """Name of the version that LATEST points to; None before the first publication."""
        pointer = self.path / "LATEST"
        return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None

    def publish(self, manifest: Mapping[str, Any], *, move_latest: bool) -> None:
        """Write a version's manifest and then, if wanted, the pointer. `manifest["version"]` names it."""
        self.check_lease()
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        write_atomically(self.path / "versions" / f"{manifest['version']}.json", text)
        if move_latest:
            self.check_lease()
            write_atomically(self.path / "LATEST", f"{manifest['version']}\n")

    @property
    def attempt(self) -> int:
        """Number of this driver's attempt at the run."""
        self.check_lease()
        assert self.lease is not None
        return self.lease.number

    def check_lease(self) -> None:
        """Raises RuntimeError unless this process holds the run's newest lease."""
        if self.lease is None:
            raise RuntimeError(f"run folder {self.path} was opened for reading; writing needs `open_run`")
        self.lease.check()


def iteration_name(number: int) -> str:
    """`base` for 0, else `iteration_01` and so on."""
    return "base" if number == 0 else f"{ITERATION}{number:02d}"


@contextlib.contextmanager
def open_run(path: Path, settings: config.Config, *, fresh: bool = False) -> Iterator[RunFolder]:
    """Create a run folder or take up an existing one, and hold its lease.

    Args:
        fresh: delete what the folder holds and begin again.

    Raises:
        ValueError: the folder belongs to a run with another config, or is not a run folder; the message says
            the ways out.
        RuntimeError: another driver works on it.
        OSError: the folder cannot be written to.
    """
    run = RunFolder(path)
    ours = (path / "config.json").exists() or (path / "lease").is_dir()
    if path.exists() and not ours and any(path.iterdir()):
        raise ValueError(
            f"run folder {path}: expected a run's folder or an empty one, found other files; name another "
            f"folder"
        )
    if not fresh:
        _check_same_config(path, settings)
    path.mkdir(parents=True, exist_ok=True)
    with hold_lease(path / "lease") as lease:
        run.lease = lease
        if fresh and (path / FORK_FILE).exists():
            raise ValueError(
                f"--fresh: expected a run that began by itself, found the fork {path}: fork again, under "
                "another name (stasc fork --help)"
            )
        if fresh or not (path / "config.json").exists():
            # The config goes first and comes last: a folder without it holds nothing of a run, whoever was
            # killed here. It is kept meanwhile: a run that goes on with its folder's has no other.
            _keep_config(path, settings)
            (path / "config.json").unlink(missing_ok=True)
            for entry in path.iterdir():
                if entry.name not in ("lease", "configs"):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        run.logs.mkdir(exist_ok=True)
        write_config(path, settings)
        try:
            yield run
        except Exception:
            # whoever was taken over fails in one of many ways; this is the reason for all of them
            lease.check()
            raise


def read_config(path: Path, sections: config.Sections) -> config.Config:
    """The config a run folder was made with; `sections` as for `config.load_config`.

    Raises:
        FileNotFoundError: no run folder at `path`.
        ValueError: a run folder of another format.
    """
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"run folder: expected config.json in {path}, found none; `stasc run` makes one"
            + (f" (configs it had are in {path / 'configs'})" if (path / "configs").is_dir() else "")
        )
    return config.validate(read_values(path), sections, origin=str(file))


def read_values(path: Path) -> dict[str, Any]:
    """The values of a run folder's config.json.

    Raises:
        ValueError: a run folder of another format.
    """
    values = read_json(path / "config.json")
    found = values.pop("format", 1)
    if found != FORMAT:
        raise ValueError(
            f"run folder {path}: expected format {FORMAT}, found format {found}, written by another version "
            "of stasc_ray; finish or serve it with that version, start over with --fresh (deletes it), or "
            "choose another name=... or --run-dir (its models are plain Hugging Face folders: "
            "model.path=RUN/iteration_NN/model)"
        )
    return values


def write_config(path: Path, settings: config.Config) -> None:
    """Write a run folder's config.json, and keep it for the lines that will name it."""
    _keep_config(path, settings)
    write_atomically(path / "config.json", _stored(settings))


def _keep_config(path: Path, settings: config.Config) -> None:
    kept = path / "configs" / f"{config.fingerprint(settings)}.json"
    if not kept.exists():
        write_atomically(kept, _stored(settings))


def _stored(settings: config.Config) -> str:
    return (
        json.dumps({"format": FORMAT, **settings.model_dump(mode="json")}, indent=2, ensure_ascii=False)
        + "\n"
    )


def _check_same_config(path: Path, settings: config.Config) -> None:
    if not (path / "config.json").is_file() or not (path / "questions" / COMMIT_MARK).is_file():
        return  # nothing was done with the old config yet
    recipe, ours = settings.algorithm.recipe, type(settings.algorithm)
    theirs = read_json(path / "config.json").get("algorithm", {}).get("recipe", recipe)
    if theirs != recipe:
        raise _another_config(path, [f"algorithm.recipe: {theirs!r} in the folder, {recipe!r} now"])
    stored = read_config(path, lambda _: ours)
    old, new = (dict((name, value) for name, value, *_ in config.walk(tree)) for tree in (stored, settings))
    allowed = config.rules_on_resume(settings)
    differing = [
        f"{name}: {old.get(name)!r} in the folder, {new.get(name)!r} now"
        for name in config.differing_fields(stored, settings)
        if name not in allowed
    ]
    differing += _iterations_lost(path, stored.algorithm.iterations, settings.algorithm.iterations)
    if differing:
        raise _another_config(path, differing)


def _iterations_lost(path: Path, old: int, new: int) -> list[str]:
    """Why a run can't have this number of iterations now; empty if it can."""
    change = f"algorithm.iterations: {old} in the folder, {new} now"
    if bool(old) != bool(new):
        return [f"{change}; a run of 0 iterations has test questions only, any other has train and dev too"]
    marks = path.glob(f"{ITERATION}*/*/{COMMIT_MARK}")
    reached = max((int(mark.parts[-3].removeprefix(ITERATION)) for mark in marks), default=0)
    if new < reached:
        return [f"{change}; {iteration_name(reached)} has begun, so expected at least {reached}"]
    return []


def _another_config(path: Path, differing: Sequence[str]) -> ValueError:
    return ValueError(
        f"run folder {path} belongs to a run with another config:\n"
        + "\n".join(f"  {line}" for line in differing)
        + f"\nresume it with its own config, continue from one of its iterations in a new folder (stasc fork "
        f"{path} --from N NEW_NAME section.field=value ...), start over with --fresh (deletes it), or choose "
        "another name=... or --run-dir"
    )


def now() -> str:
    """The time in UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")

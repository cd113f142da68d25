"""What the storage can do to a run: a full disk, a read-only folder, files cut short, garbage. Nothing
committed is lost."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.faulty_runs import CONFIG, SMALL, check_run
from stasc_ray import stages, store
from stasc_ray.generation import unit_files
from stasc_ray.store import files

ONE_ENGINE = [*SMALL, "engine.actors=1", "questions.train.limit=120"]


def stasc(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "stasc_ray.cli",
        "run",
        str(CONFIG),
        "--run-dir",
        str(folder),
        *ONE_ENGINE,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=580, check=False, env=environment)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own; skips where that is not allowed."""
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_unit_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    units = [unit_files.Unit(f"train-{number:06d}", "questions.parquet", number) for number in range(3)]
    for unit in units[:2]:
        pq.write_table(pa.table({"id": ["a", "b"]}), tmp_path / f"{unit.name}.parquet")
    whole = (tmp_path / "train-000001.parquet").read_bytes()
    (tmp_path / "train-000001.parquet").write_bytes(whole[:-20])
    assert unit_files.written(tmp_path, units) == units[:1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["train-000000.parquet"]
    (tmp_path / "train-000002.parquet").touch()
    assert unit_files.written(tmp_path, units) == units[:1]


def test_garbage_in_a_commit_mark_or_a_manifest_names_the_file(tmp_path: Path) -> None:
    run = store.RunFolder(tmp_path)
    (tmp_path / "versions").mkdir()
    for garbage in ('{"version": "v00', "{}"):
        (tmp_path / "versions" / "v0001.json").write_text(garbage)
        with pytest.raises(
            ValueError, match=r"v0001.json: expected (JSON, found something|a JSON object with version)"
        ):
            run.versions()
    run.questions.mkdir()
    for garbage in (b"", b"\x00\xff\xfe", b"[1]", b"{}"):
        (run.questions / store.COMMIT_MARK).write_bytes(garbage)
        for read in (lambda: run.files(run.questions), lambda: stages.repair_metrics(run)):
            with pytest.raises(
                ValueError, match=r"_COMMITTED.json: expected .*restore it or delete its stage"
            ):
                read()
    line = {"stage": "questions", "iteration": 0}
    run.metrics_file.write_bytes(json.dumps(line).encode() + b'\n\xff\xfe\x00\n1\n{"stage": "rollo')
    assert run.metrics() == [line]


def test_a_committed_file_that_was_cut_short_is_named_whoever_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "train-000000.parquet"
    row = {
        "id": "a",
        "question": "1 + 1?",
        "answers": ["2"],
        "split": "train",
        "documents": None,
        "choices": None,
    }
    unit_files.write_questions([row], file, 1)
    (unit,) = unit_files.question_units(file, "train")
    file.write_bytes(file.read_bytes()[:-20])
    named = r"train-000000.parquet: expected a whole Parquet file.*delete _COMMITTED.json beside it, and the same command"
    read_unit = partial(unit_files.read_unit, pa.Table.from_pylist([vars(unit)]))
    for read in (partial(unit_files.question_units, file, "train"), read_unit, partial(files.read, file)):
        with pytest.raises(ValueError, match=named):
            read()


@pytest.mark.cluster
def test_a_read_only_folder_is_told_at_once(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        done = stasc(disk / "run")
    assert done.returncode == 1 and "Read-only file system" in done.stderr and "--run-dir" in done.stderr, (
        done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=500k") as disk:
        done = stasc(disk / "run")
        assert done.returncode == 1 and "No space left on device" in done.stderr, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and "the same command continues" in done.stderr
        committed = {mark: mark.read_text() for mark in (disk / "run").glob("**/_COMMITTED.json")}
        assert committed, "the questions were committed before the disk was full"
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        again = stasc(disk / "run")
        assert again.returncode == 0, again.stdout + again.stderr
        assert all(mark.read_text() == text for mark, text in committed.items())
        check_run(disk / "run")

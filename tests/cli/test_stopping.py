"""A command that a signal stops: one line, and the exit status that a shell expects."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, time
from stasc_ray.cli.errors import GOES_ON, errors_for_people
import typer

def command():
    with errors_for_people(False, end_s=0.3, stopped=GOES_ON):
        {body}

typer.run(command)
"""
WAITS = "print('up', flush=True); time.sleep(60)"
LOSES_A_WORKER = """
        try:
            print('up', flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            raise RuntimeError('a worker died')
"""
HANGS = """
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as a run sends it to its log
        while True:
            try:
                print('up', flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                pass
"""


def stop(command: list[str], number: int, *, at: str, **options) -> tuple[int, str, str]:
    """Exit status, stdout after `at` was seen, and stderr."""
    pipe, ignored = subprocess.PIPE, signal.default_int_handler
    with subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        # pytest may itself run where SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, ignored),
        **options,
    ) as process:
        assert process.stdout
        assert at in process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("body", [WAITS, LOSES_A_WORKER, HANGS])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_says_by_what_and_ends(body: str, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    status, _, err = stop(command, number, at="up")
    assert status == 128 + number
    assert err == (
        f"stopped by {number.name}; what was committed is kept, and the same command goes on from there\n"
    )


def test_a_second_signal_does_not_break_off_what_ends_the_first() -> None:
    body = """
        try:
            print('up', flush=True)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            print('ended in order', flush=True)
"""
    command = [sys.executable, "-c", PROGRAM.replace("0.3", "30").format(body=body)]
    status, out, err = stop(command, signal.SIGTERM, at="up")
    assert (status, out) == (143, "ended in order\n") and err.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_is_stopped_while_ray_starts_says_so(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "jobs" / "configs" / "demo.toml"
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "stasc_ray.cli", "run", str(config), "--run-dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        # Ray's own handler of SIGTERM is in place from here until Ray is up
        while not ours_starts_ray(process.pid):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "")
    assert err.startswith("stopped by SIGTERM; ") and err.count("\n") == 1


def ours_starts_ray(pid: int) -> bool:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in children.read_text().split() if children.exists() else ():
        try:
            if b"gcs_server" in Path(f"/proc/{child}/cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False

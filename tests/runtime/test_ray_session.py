"""A local Ray: what it says of its own goes to the log."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import pathlib, sys, time
from stasc_ray.runtime import ray_session

log = pathlib.Path(sys.argv[1]) / "driver.log"
with ray_session.connect(None, log.parent):
    from ray._private.utils import publish_error_to_driver
    from ray._private.worker import global_worker

    deadline = time.monotonic() + 60
    while "(raylet) a worker died" not in log.read_text() and time.monotonic() < deadline:
        publish_error_to_driver("worker_died", "a worker died", gcs_client=global_worker.gcs_client)
        time.sleep(0.2)
"""


@pytest.mark.slow
def test_what_ray_says_of_lost_processes_is_in_the_log_not_on_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "(raylet) a worker died" in (tmp_path / "driver.log").read_text()
    assert (done.stdout, done.stderr) == ("", "")

"""`stasc serve` of a run folder, in a process of its own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from benchmarks.ray_cluster import free_port

PATIENCE_S = 300  # a loaded machine
ROOT = Path(__file__).parents[2]
STASC = [sys.executable, "-m", "stasc_ray.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "harness")])}


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The endpoint's address, until the block ends."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [*STASC, "serve", str(folder), "--port", str(port)], env=ENVIRONMENT, stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            assert server.poll() is None and time.monotonic() < end, (folder / "serve.log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(60)

"""What the GPU does while something else runs: its busy share and the memory in use, as nvidia-smi says."""

import contextlib
import math
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stasc_ray import store

EVERY_S = 0.5
QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--id=0")


@dataclass(frozen=True)
class Sample:
    """One look at the first GPU."""

    time: float
    """Seconds since the epoch."""
    busy: float
    """Percent of the last moment in which a kernel ran; NaN where nvidia-smi has no number."""
    used_gb: float
    """Memory of all processes, GiB."""


def look() -> Sample | None:
    """One sample; None if there is no nvidia-smi, or no GPU."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    busy, used = (_number(text) for text in done.stdout.strip().split(","))
    return Sample(time.time(), busy, used / 1024)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return math.nan


@contextlib.contextmanager
def watching() -> Iterator[list[Sample]]:
    """Samples, twice a second, that are all there when the block ends; none without a GPU."""
    found: list[Sample] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(EVERY_S):
            sample = look()
            if sample is None:
                return
            found.append(sample)

    thread = threading.Thread(target=watch, name="gpu-watch", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def figures(samples: Sequence[Sample]) -> dict[str, float]:
    """peak_gb, and the share of the samples in which the GPU was idle; nothing without samples."""
    if not samples:
        return {}
    idle = sum(sample.busy == 0 for sample in samples) / len(samples)
    return {"peak_gb": max(sample.used_gb for sample in samples), "gpu_idle_share": idle}


def peaks_by_stage(run: Path, samples: Sequence[Sample]) -> dict[str, float]:
    """The most memory in use in each stage of a finished run, over its iterations; GiB."""
    peaks: dict[str, float] = {}
    for line in store.RunFolder(run).metrics():
        stage, end = line["stage"], line["time"]
        begin = end - line.get(f"{stage}/duration_s", 0)
        used = [sample.used_gb for sample in samples if begin <= sample.time <= end]
        if used:
            peaks[stage] = max(peaks.get(stage, 0), *used)
    return peaks

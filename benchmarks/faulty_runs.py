"""Runs on a real cluster whose processes are killed, and what must hold afterwards."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.ray_cluster import Node, RayCluster, command_of, kill
from stasc_ray import store

CONFIG = Path(__file__).parents[1] / "jobs" / "configs" / "demo.toml"
ENGINE, POOL, GRADER, TRAINER, CONTROLLER = (
    "ray::EngineActor",
    "ray::EnginePool",
    "grade_and_write",
    "ray::RayTrainWorker",
    "ray::TrainController",
)
VLLM_CHILD = "VLLM::EngineCore"
BUSY_ENGINE = "ray::EngineActor.roll_out"  # answers a unit: between two it costs nothing to kill one
SMALL = [
    "questions.train.limit=240",
    "questions.dev.limit=40",
    "questions.test.limit=40",
    "engine.kv_cache_gb=0.25",
    "engine.batch_size=8",
    "engine.concurrent_batches=1",
    "engine.actors=2",
    "algorithm.iterations=1",
    "finetune.batch_size=24",
    "finetune.checkpoint_every_s=0.001",
    "finetune.max_failures=4",
]
TIMEOUT_S = 560


class FaultyRun:
    """`stasc run` on a cluster, as a process of its own."""

    def __init__(self, cluster: RayCluster, folder: Path, *overrides: str) -> None:
        self.cluster, self.folder = cluster, folder
        self.output = folder.with_suffix(".output")
        command = [
            sys.executable,
            "-m",
            "stasc_ray.cli",
            "run",
            str(CONFIG),
            "--run-dir",
            str(folder),
            *SMALL,
            *overrides,
        ]
        with self.output.open("ab") as file:
            self.driver = subprocess.Popen(
                [*command, "--address", cluster.address], stdout=file, stderr=file, env=cluster.environment
            )
        self.deadline = time.monotonic() + TIMEOUT_S

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a moment of the run."""
        while not condition():
            assert self.driver.poll() is None, f"the run ended too soon:\n{self.output.read_text()}"
            assert time.monotonic() < self.deadline, f"the moment never came:\n{self.output.read_text()}"
            time.sleep(0.02)

    def generating(self) -> bool:
        """The first pass has written some units, and most are still to come."""
        return len(list((self.folder / "base" / "rollouts").glob("*.parquet"))) >= 3

    def training(self) -> bool:
        """The first fine-tune has made a step."""
        progress = self.folder / "iteration_01" / "training" / "progress.json"
        return progress.is_file() and json.loads(progress.read_text())["step"] >= 1

    def exporting(self) -> bool:
        """The new model is being written."""
        return any((self.folder / "iteration_01").glob("model*"))

    def handing_over(self) -> bool:
        """The new model is there, and the engines take it over."""
        return (self.folder / "iteration_01" / "model" / store.COMMIT_MARK).exists()

    def publishing(self) -> bool:
        """The first version's manifest is being written, or has been a moment ago."""
        return (self.folder / "versions").exists()

    def finish(self) -> str:
        """Wait for its end; returns what it printed."""
        status = self.driver.wait(timeout=max(self.deadline - time.monotonic(), 1))
        output = self.output.read_text()
        assert status == 0, output
        return output


@contextmanager
def faulty_run(cluster: RayCluster, folder: Path, *overrides: str) -> Iterator[FaultyRun]:
    """A run that is gone after the block, whatever happens in it."""
    run = FaultyRun(cluster, folder, *overrides)
    try:
        yield run
    finally:
        run.driver.kill()
        run.driver.wait()


def processes(cluster: RayCluster, title: str) -> list[int]:
    """The cluster's worker processes with that in their title."""
    return [pid for node in cluster.nodes for pid in node.processes() if title in command_of(pid)]


def kill_one(run: FaultyRun, title: str) -> int:
    """SIGKILL the first process with that in its title, as soon as there is one."""
    found: list[int] = []
    run.wait_until(lambda: bool(found.extend(processes(run.cluster, title)) or found))
    kill(found[0])
    return found[0]


def kill_node_with(run: FaultyRun, title: str) -> Node:
    """SIGKILL everything of the node that such a process runs on."""
    nodes: list[Node] = []
    run.wait_until(
        lambda: bool(
            nodes.extend(
                n for n in run.cluster.nodes[1:] if any(title in command_of(p) for p in n.processes())
            )
            or nodes
        )
    )
    nodes[0].kill()
    run.cluster.nodes.remove(nodes[0])
    return nodes[0]


def check_run(folder: Path) -> None:
    """What holds for every finished run: each question once, each stage once, whole versions, nothing
    half-written.
    """
    run = store.RunFolder(folder)
    stages = Counter((line["stage"], line["iteration"]) for line in run.metrics_lines())
    assert stages and set(stages.values()) == {1}
    asked = {
        split: set(pq.read_table(folder / "questions" / f"{split}.parquet")["id"].to_pylist())
        for split in ("train", "dev", "test")
    }
    for rollouts in folder.glob("*/rollouts"):
        assert run.committed(rollouts)
        rows = pq.read_table(
            [str(file) for file in rollouts.glob("*.parquet")], columns=["id", "split"]
        ).to_pylist()
        found = Counter((row["split"], row["id"]) for row in rows)
        assert set(found.values()) == {1}, "each question has one trace"
        for split in {split for split, _ in found}:
            assert {id for name, id in found if name == split} == asked[split]
    versions = [manifest["version"] for manifest in run.versions()]
    assert versions == [f"v{number:04d}" for number in range(len(versions))] and run.latest() in versions
    for manifest in run.versions()[1:]:
        model = folder / manifest["model"]
        assert (
            (model / "config.json").is_file()
            and list(model.glob("*.safetensors"))
            and (folder / manifest["canary"]).is_file()
        )
    assert [name for name in os.listdir(folder) if name.endswith(".partial")] == []

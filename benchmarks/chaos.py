"""One run after the other under random kills, on a cluster of three nodes on this machine; then what must hold is checked.

python benchmarks/chaos.py --kills 50 --seed 1

Every few seconds one process gets SIGKILL: an engine's actor, a Ray Data worker, a Ray Train worker, Ray Train's controller, the
driver or a whole worker node. The driver is started again with the same command whenever it is gone, a lost node is replaced. A run
that completes is checked (each question has one rollout, each stage one line, whole versions) and the next begins. Prints a
Markdown table of what was killed when.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import faulty_runs  # pyright: ignore[reportMissingImports]
from faulty_runs import FaultyRun  # pyright: ignore[reportMissingImports]
from ray_cluster import RayCluster, kill, ray_cluster  # pyright: ignore[reportMissingImports]

from stasc_ray import store

KINDS = {
    "engine's actor": faulty_runs.ENGINE,
    "Ray Data worker": faulty_runs.GRADER,
    "Ray Train worker": faulty_runs.TRAINER,
    "Ray Train controller": faulty_runs.CONTROLLER,
    "driver": None,
    "worker node": None,
}
SECONDS_BETWEEN = (5.0, 30.0)


@dataclass
class Chaos:
    """What happened so far."""

    cluster: RayCluster
    random: random.Random
    say: Callable[[str], None]
    kills: list[tuple[int, float, str, str]] = field(default_factory=list)
    """(run, seconds into it, what, the stage that was under way)"""
    restarts: int = 0
    completed: int = 0

    def strike(self, run: FaultyRun, number: int, seconds: float) -> None:
        """Kill one process of a random kind, of those that there are."""
        nodes = self.cluster.nodes[1:]
        there = {kind: faulty_runs.processes(self.cluster, title) for kind, title in KINDS.items() if title}
        there |= {"driver": [run.driver.pid], "worker node": nodes}
        kind = self.random.choice([kind for kind, victims in there.items() if victims])
        if kind == "worker node":
            node = self.random.choice(nodes)
            node.kill()
            self.cluster.nodes.remove(node)
            self.cluster.add_node(2)
        else:
            kill(self.random.choice(there[kind]))
        self.kills.append((number, seconds, kind, stage_of(run.folder)))
        self.say(f"kill {len(self.kills)}: {kind} after {seconds:.0f} s, during {self.kills[-1][-1]}")


def stage_of(folder: Path) -> str:
    """The stage after the last one that was committed."""
    lines = store.RunFolder(folder).metrics()
    return f"what follows {lines[-1]['stage']} of iteration {lines[-1]['iteration']}" if lines else "start"


def torment(chaos: Chaos, folder: Path, number: int, kills: int, overrides: list[str]) -> None:
    """One run to its end, with kills on the way."""
    started, next_kill = time.monotonic(), time.monotonic() + chaos.random.uniform(*SECONDS_BETWEEN)
    run = FaultyRun(chaos.cluster, folder, *overrides)
    try:
        while (status := run.driver.poll()) != 0:
            if status is not None:
                chaos.restarts += 1
                run = FaultyRun(chaos.cluster, folder, *overrides)
            if time.monotonic() > next_kill and len(chaos.kills) < kills:
                chaos.strike(run, number, time.monotonic() - started)
                next_kill = time.monotonic() + chaos.random.uniform(*SECONDS_BETWEEN)
            time.sleep(0.2)
    finally:
        run.driver.kill()
    faulty_runs.check_run(folder)
    chaos.completed += 1
    chaos.say(f"run {number} is complete and right after {time.monotonic() - started:.0f} s")


def main() -> None:
    """Parse the command line, torment, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, ray_cluster(2, 2) as cluster:
        chaos = Chaos(cluster, random.Random(arguments.seed), say=lambda text: print(text, flush=True))
        while len(chaos.kills) < arguments.kills:
            number = chaos.completed + 1
            torment(chaos, Path(folder) / f"run{number}", number, arguments.kills, arguments.overrides)
    print(
        f"\n{len(chaos.kills)} kills (seed {arguments.seed}), {chaos.completed} runs completed, {chaos.restarts} driver restarts\n"
    )
    print("| kill | run | s | what | during |\n|---|---|---|---|---|")
    for count, (number, seconds, kind, stage) in enumerate(chaos.kills, 1):
        print(f"| {count} | {number} | {seconds:.0f} | {kind} | {stage} |")


if __name__ == "__main__":
    main()

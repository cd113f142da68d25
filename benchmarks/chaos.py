"""One run after the other under random kills, on a cluster of three nodes on this machine; then what must hold is checked.

python -m benchmarks.chaos --kills 50 --seed 1

Some seconds after the run has got over the last kill, one process gets SIGKILL: an engine's actor, the engines' pool, a Ray Data worker, a Ray Train
worker, Ray Train's controller, the driver or a whole worker node. The driver is started again with the same command whenever it
is gone, a lost node is replaced. A run that completes is checked (each question has one trace, each stage one line, whole
versions) and the next begins. Prints Markdown tables of what was killed when, and of what it cost: the seconds until the run was
further than at the kill. Run 0 is undisturbed.
"""

import argparse
import contextlib
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import faulty_runs
from benchmarks.faulty_runs import FaultyRun
from benchmarks.ray_cluster import RayCluster, kill, ray_cluster
from stasc_ray import store

KINDS = {
    "engine's actor": faulty_runs.ENGINE,
    "pool of engines": faulty_runs.POOL,
    "Ray Data worker": faulty_runs.GRADER,
    "Ray Train worker": faulty_runs.TRAINER,
    "Ray Train controller": faulty_runs.CONTROLLER,
    "driver": None,
    "worker node": None,
}
SECONDS_BETWEEN = (3.0, 12.0)
WAIT_S = 1.5
"""How long a strike waits for a process of the kind that chance has chosen."""
PATIENCE_S = 40.0
"""A kill waits until the run has got over the one before, but no longer than this: or one stage would get them all."""


Progress = tuple[int, int, int]
"""(stages committed, trace files written, optimizer steps made): grows, lexicographically, while a run gets on."""


@dataclass
class Kill:
    """One process that was killed."""

    run: int
    seconds: float
    """Since the run began."""
    what: str
    stage: str
    progress: Progress
    cost_s: float | None = None
    """Until the run was further than at the kill, where no other kill came before that."""
    overtaken: bool = False


@dataclass
class Chaos:
    """What happened so far."""

    cluster: RayCluster
    random: random.Random
    say: Callable[[str], None]
    kills: list[Kill] = field(default_factory=list)
    coming: list[threading.Thread] = field(default_factory=list)
    """Nodes that are being added."""
    runs: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, driver starts) of each completed run"""

    def strike(self, run: FaultyRun, number: int, started: float) -> None:
        """Kill one process of a random kind, of those that there are or that come soon."""
        nodes = list(self.cluster.nodes[1:])
        for kind in self.random.sample(sorted(KINDS), len(KINDS)):  # the driver is always there
            title, deadline = KINDS[kind], time.monotonic() + WAIT_S
            victims = [node.process.pid for node in nodes] if kind == "worker node" else []
            victims += [run.driver.pid] if kind == "driver" else []
            while title and not victims and time.monotonic() < deadline:  # some live for a second only
                time.sleep(0.05)
                victims = faulty_runs.processes(self.cluster, title)
            if victims:
                break
        if run.driver.poll() is not None:  # it has ended meanwhile
            return
        seconds = time.monotonic() - started
        for earlier in self.kills:
            earlier.overtaken = earlier.overtaken or earlier.cost_s is None
        self.kills.append(Kill(number, seconds, kind, stage_of(run.folder), progress_of(run.folder)))
        if kind == "worker node":
            node = self.random.choice(nodes)
            node.kill()
            self.cluster.nodes.remove(node)
            self.coming.append(
                threading.Thread(target=self.cluster.add_node, args=(2,))
            )  # the autoscaler's part
            self.coming[-1].start()
        else:
            kill(self.random.choice(victims))
        self.say(f"kill {len(self.kills)}: {kind} after {seconds:.0f} s, {self.kills[-1].stage}")

    def note_progress(self, run: FaultyRun, number: int, seconds: float) -> None:
        """Close the account of kills that the run has got over."""
        open_kills = [
            kill for kill in self.kills if kill.run == number and kill.cost_s is None and not kill.overtaken
        ]
        if open_kills:
            progress = progress_of(run.folder)
            for one in open_kills:
                if progress > one.progress:
                    one.cost_s = seconds - one.seconds

    def recovering(self, number: int) -> bool:
        """Whether the run is not yet further than at the last kill."""
        return bool(self.kills) and self.kills[-1].run == number and self.kills[-1].cost_s is None


def stage_of(folder: Path) -> str:
    """The stage after the last one that was committed."""
    lines = store.RunFolder(folder).metrics()
    return f"after {lines[-1]['stage']} of iteration {lines[-1]['iteration']}" if lines else "at the start"


def progress_of(folder: Path) -> Progress:
    """How far the run is."""
    steps = 0
    for file in folder.glob("iteration_*/training/progress.json"):
        with contextlib.suppress(OSError, ValueError):  # being replaced
            steps = json.loads(file.read_text())["step"]
    return len(store.RunFolder(folder).metrics()), len(list(folder.glob("*/rollouts/*.parquet"))), steps


def torment(chaos: Chaos, folder: Path, number: int, kills: int, overrides: list[str]) -> None:
    """One run to its end, with kills on the way."""
    started, next_kill = time.monotonic(), time.monotonic() + chaos.random.uniform(*SECONDS_BETWEEN)
    starts, run = 1, FaultyRun(chaos.cluster, folder, *overrides)
    try:
        while (status := run.driver.poll()) != 0:
            if status is not None:
                starts, run = starts + 1, FaultyRun(chaos.cluster, folder, *overrides)
            chaos.note_progress(run, number, time.monotonic() - started)
            if len(chaos.kills) < kills and time.monotonic() > next_kill + (
                PATIENCE_S if chaos.recovering(number) else 0
            ):
                chaos.strike(run, number, started)
                next_kill = time.monotonic() + chaos.random.uniform(*SECONDS_BETWEEN)
            time.sleep(0.2)
    finally:
        run.driver.kill()
        for thread in chaos.coming:
            thread.join()
    seconds = time.monotonic() - started
    chaos.note_progress(run, number, seconds)
    faulty_runs.check_run(folder)
    chaos.runs.append((seconds, starts))
    chaos.say(f"run {number} is complete and right after {seconds:.0f} s")


def tables(chaos: Chaos) -> Iterator[str]:
    """Markdown: every kill; kills by kind; runs."""
    yield "| kill | run | s | what | when | s until further |\n|---|---|---|---|---|---|"
    for count, one in enumerate(chaos.kills, 1):
        cost = (
            "the next kill came first"
            if one.overtaken
            else "-"
            if one.cost_s is None
            else f"{one.cost_s:.0f}"
        )
        yield f"| {count} | {one.run} | {one.seconds:.0f} | {one.what} | {one.stage} | {cost} |"
    yield "\n| what | kills | of them got over before the next | s until further: median | most |\n|---|---|---|---|---|"
    for kind in KINDS:
        kills = [one for one in chaos.kills if one.what == kind]
        costs = [one.cost_s for one in kills if one.cost_s is not None]
        spread = f"{statistics.median(costs):.0f} | {max(costs):.0f}" if costs else "- | -"
        yield f"| {kind} | {len(kills)} | {len(costs)} | {spread} |"
    yield "\n| run | s | kills | driver starts |\n|---|---|---|---|"
    for number, (seconds, starts) in enumerate(chaos.runs):
        kills = sum(one.run == number for one in chaos.kills)
        yield f"| {number} | {seconds:.0f} | {kills} | {starts} |"


def main() -> None:
    """Parse the command line, torment, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, ray_cluster(2, 2) as cluster:
        chaos = Chaos(cluster, random.Random(arguments.seed), say=lambda text: print(text, flush=True))
        torment(chaos, Path(folder) / "run0", 0, 0, arguments.overrides)  # undisturbed, to compare
        while len(chaos.kills) < arguments.kills:
            number = len(chaos.runs)
            torment(chaos, Path(folder) / f"run{number}", number, arguments.kills, arguments.overrides)
    print(
        f"\nseed {arguments.seed}: {len(chaos.kills)} kills, {len(chaos.runs) - 1} runs completed and right\n"
    )
    print("\n".join(tables(chaos)))


if __name__ == "__main__":
    main()

"""Whole runs of `stasc run`, timed: of this tree or of another commit's, to the end or to a certain point."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stasc_ray import store

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "jobs" / "configs" / "demo.toml"
SMOLLM2 = ROOT / "jobs" / "configs" / "squad_smollm2_135m.toml"
POLL_S = 0.05
PATIENCE_S = 120
"""For a run that is stopped."""


def run_s(
    config: Path,
    folder: Path,
    overrides: Sequence[str],
    *,
    tree: Path = ROOT,
    until: Callable[[], bool] | None = None,
) -> float:
    """Seconds of `stasc run CONFIG`, from the code in `tree`.

    Args:
        config: of this tree; the same file of `tree` is run.
        folder: the run's; a run that is there continues.
        until: whether enough is there; then the run is stopped.

    Raises:
        RuntimeError: the run failed.
    """
    command = [sys.executable, "-m", "stasc_ray.cli", "run", str(config.relative_to(ROOT))]
    command += ["--run-dir", str(folder.resolve()), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        with subprocess.Popen(command, cwd=tree, env=environment, stdout=log, stderr=log) as process:
            while process.poll() is None:
                if until and until():
                    seconds = time.perf_counter() - started
                    _stop(process)
                    return seconds
                time.sleep(POLL_S)
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            end = log.read()[-3000:]
            raise RuntimeError(f"{' '.join(command)} in {tree} ended with {process.returncode}:\n{end}")
    return seconds


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def published(folder: Path, iteration: int) -> bool:
    """Whether a run has published that iteration."""
    lines = store.RunFolder(folder).metrics()
    return any((line["stage"], line["iteration"]) == ("publish", iteration) for line in lines)


def stage_seconds(run: Path, number: int) -> dict[str, float]:
    """Where the wall time of an iteration went, from one published model to the next: parts that add up to
    `wall`, and the tokens of the work. Only for a run that was not interrupted.

    A trainer and its workers start while the iteration before is measured and examples are selected;
    "trainer start" is what is left of it, the encoding included. "hand-over" is until the engines hold the
    new weights, by an exchange or by starting.
    """
    lines = store.RunFolder(run).metrics()
    before = max(line["time"] for line in lines if line["iteration"] == number - 1)
    of = {line["stage"]: line for line in lines if line["iteration"] == number}
    train, generate = of["finetune"], of["rollouts"]
    wall = of["publish"]["time"] - before
    hand_over = generate["rollouts/hand_over_s"]
    if generate["rollouts/engines_started"]:
        hand_over = max(hand_over, generate["rollouts/engine_start_s"])
    parts = {
        "selection": of["examples"]["examples/duration_s"],
        "trainer start": train["finetune/start_s"],
        "training": train["finetune/train_s"],
        "export": train["finetune/export_s"],
    }
    parts["trainer end"] = train["finetune/duration_s"] - sum(
        train[f"finetune/{name}_s"] for name in ("start", "train", "export")
    )
    parts |= {
        "hand-over": hand_over,
        "generation": generate["rollouts/duration_s"] - hand_over,
        "evaluation": of["evaluation"]["evaluation/duration_s"],
    }
    return {
        "wall": wall,
        **parts,
        "the rest": wall - sum(parts.values()),
        "generated_tokens": generate["rollouts/generated_tokens"],
        "trained_on_tokens": train["finetune/tokens_per_s"] * train["finetune/train_s"],
    }


@contextmanager
def checkout(commit: str) -> Iterator[Path | None]:
    """A temporary git worktree of a commit; None where git does not have it."""

    def git(*arguments: str) -> bool:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
        except FileNotFoundError:
            return False
        return done.returncode == 0

    with tempfile.TemporaryDirectory(prefix="tree-") as temporary:
        tree = Path(temporary) / commit
        if not git("worktree", "add", "--detach", str(tree), commit):
            yield None
            return
        try:
            # this tree's are compiled already
            subprocess.run([sys.executable, "-m", "compileall", "-q", "stasc_ray"], cwd=tree, check=True)
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))

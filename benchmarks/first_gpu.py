"""The first half hour on a GPU on which nothing has run: ten steps, from the machine to a whole run.

python -m benchmarks.first_gpu                          all steps; runs/first-gpu/summary.txt
python -m benchmarks.first_gpu --steps machine packed   some, beside what is there of earlier calls
python -m benchmarks.first_gpu --device cpu             a rehearsal with tiny models; parts that only CUDA has are named

Each step is a process with a time limit and a log; the next one starts however it ends. The summary is
written after every step, so that a session that is cut off keeps what was seen. Needs no network: models are
shapes with random weights, and the shipped sandbox. first_gpu_learning.py, first_gpu_sharded.py and
first_gpu_engines.py have the steps.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_watch
from stasc_ray import store

Figures = dict[str, Any]
StepFunction = Callable[["Case"], Iterator[Figures]]
"""Gives figures as it finds them, which are kept if it fails later. Raises: what was expected and found."""
ONLY_CUDA = "only CUDA has it"
"""Why a part is skipped in a rehearsal."""
PATIENCE_S = 20.0
"""For processes that outlive their step: Ray's take a moment to end."""
SLOWER = 3
"""How many times the limit a step has in a rehearsal: on a shared CPU."""
TAIL_LINES = 15
LEAST_S = 15.0
"""No step begins with less time than that."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: lost processes below this one become its children, so that they are found."""


@dataclass(frozen=True)
class Step:
    """A function's name, the module that has it, and the seconds it may take."""

    name: str
    module: str
    limit_s: float


LEARNING, SHARDED = "benchmarks.first_gpu_learning", "benchmarks.first_gpu_sharded"
ENGINES = "benchmarks.first_gpu_engines"
STEPS = (
    Step("machine", ENGINES, 90),
    Step("packed", LEARNING, 150),
    Step("speed", LEARNING, 240),
    Step("sharded", SHARDED, 180),
    Step("exported", LEARNING, 180),
    Step("imports", ENGINES, 150),
    Step("bare", ENGINES, 300),
    Step("engine", ENGINES, 240),
    Step("run", ENGINES, 360),
    Step("bench", ENGINES, 500),
)


@dataclass(frozen=True)
class Case:
    """What a step is told."""

    device: str
    """`cuda`, or `cpu` for a rehearsal."""
    folder: str
    """For models and work, which steps share."""
    limit_s: float

    @property
    def on_cuda(self) -> bool:
        """Whether it is the real thing."""
        return self.device == "cuda"

    @property
    def work(self) -> Path:
        """`folder`."""
        return Path(self.folder)


def carry_out(functions: Mapping[str, StepFunction]) -> None:
    """A step's process: `NAME FILE CASE`; its figures go to the file as they come."""
    name, file, case = sys.argv[1:4]
    found: Figures = {}
    for figures in functions[name](Case(**json.loads(case))):
        found |= figures
        store.write_atomically(Path(file), json.dumps(found))
        print(json.dumps(figures), flush=True)


# --- one step
# ----------------------------------------------------------------------------------------------------


def run_step(step: Step, case: Case, logs: Path) -> Figures:
    """Its line of the summary: step, outcome (`ok`, `failed`), seconds, figures, and why it failed."""
    log, file = (logs / f"{STEPS.index(step) + 1:02d}-{step.name}.{end}" for end in ("log", "json"))
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", step.module, step.name, str(file), json.dumps(asdict(case))]
    started, why = time.monotonic(), ""
    with gpu_watch.watching() as samples, log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            if code := process.wait(case.limit_s):
                why = f"ended with {code}"
        except subprocess.TimeoutExpired:
            why = f"took longer than {case.limit_s:.0f} s"
            process.kill()
            process.wait()
    seconds = time.monotonic() - started
    found = json.loads(file.read_text()) if file.exists() else {}
    # What a step that was killed leaves behind says nothing.
    left = end_left_over(0 if process.returncode < 0 else PATIENCE_S)
    if left and not why:
        why = "processes outlived it"
    found |= gpu_watch.figures(samples) | ({"left_over": left} if left else {})
    if last := gpu_watch.look():
        found["used_gb_after"] = last.used_gb
    outcome = {"step": step.name, "outcome": "failed" if why else "ok", "seconds": round(seconds, 1)}
    return {**outcome, "figures": found, **({"why": why, "tail": tail(log)} if why else {})}


def end_left_over(patience_s: float) -> list[str]:
    """Wait for what is left of a step's processes, then kill it; name and id of each that was killed."""
    import psutil

    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = psutil.Process().children(recursive=True)
        if not left:
            return []
        if time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    names = []
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(f"{one.name()} {one.pid}")
            one.kill()
    psutil.wait_procs(left, timeout=PATIENCE_S)
    return names


def tail(log: Path) -> list[str]:
    """The last lines, without colours and progress bars."""
    text = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(errors="replace"))
    lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return [line[:300] for line in lines if line][-TAIL_LINES:]


# --- all of them
# ------------------------------------------------------------------------------------------------------


def summary_text(summary: Figures) -> str:
    """The table, and for each step its figures and why it failed."""
    lines = [f"device {summary['device']}, commit {summary['commit']}", ""]
    for line in summary["steps"]:
        lines.append(f"{line['step']:10} {line['outcome']:8} {line['seconds']:7.1f} s  {line.get('why', '')}")
    for line in summary["steps"]:
        lines += ["", f"--- {line['step']}: {line['outcome']}"]
        lines += [f"{name}: {_short(value)}" for name, value in line["figures"].items()]
        lines += [f"    | {text}" for text in line.get("tail", ())]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "".join(f"\n    {_short(one)}" for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_steps(names: Sequence[str], device: str, folder: Path, budget_s: float) -> list[str]:
    """Run these, and write the summary after each; returns the names of those that were not ok."""
    from benchmarks.speed_table import commit

    (folder / "work").mkdir(parents=True, exist_ok=True)
    file, about = folder / "summary.json", {"device": device, "commit": commit()}
    before = json.loads(file.read_text()) if file.exists() else {}
    same = {name: before.get(name) for name in about} == about
    lines = {line["step"]: line for line in before["steps"]} if same else {}
    deadline = time.monotonic() + budget_s
    for step in STEPS:
        if step.name not in names:
            continue
        limit = step.limit_s if device == "cuda" else SLOWER * step.limit_s
        left = deadline - time.monotonic()
        if left < LEAST_S:
            lines[step.name] = {"step": step.name, "outcome": "skipped", "seconds": 0.0, "figures": {}}
            lines[step.name]["why"] = "no time left of --budget-s"
        else:
            case = Case(device, str((folder / "work").resolve()), min(limit, left))
            lines[step.name] = run_step(step, case, folder)
        ordered = [lines[one.name] for one in STEPS if one.name in lines]
        store.write_atomically(file, json.dumps({**about, "steps": ordered}, indent=1))
        store.write_atomically(folder / "summary.txt", summary_text({**about, "steps": ordered}))
        now = lines[step.name]
        print(f"{step.name}: {now['outcome']} in {now['seconds']:.0f} s {now.get('why', '')}", flush=True)
    return [name for name in names if lines[name]["outcome"] != "ok"]


def main() -> None:
    """Run the steps that are asked for; ends with 1 if one was not ok."""
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", choices=names, default=names)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", type=Path, default=Path("runs/first-gpu"))
    parser.add_argument("--budget-s", type=float, default=1500, help="seconds for all (%(default)s)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and gpu_watch.look() is None:
        raise SystemExit(
            "first-gpu: expected nvidia-smi to see a GPU, found none; --device cpu rehearses the steps"
        )
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    failed = run_steps(arguments.steps, arguments.device, arguments.folder, arguments.budget_s)
    print(f"\n{(arguments.folder / 'summary.txt').read_text()}")
    if failed:
        raise SystemExit(f"not ok: {', '.join(failed)}; each has a log in {arguments.folder}")


if __name__ == "__main__":
    main()

"""The Slurm script: clean bash, the run's exit status, and back into the queue near the time limit."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "cluster" / "slurm" / "stasc.sbatch"


def test_sbatch_is_clean_bash() -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)
    subprocess.run([Path(sys.executable).with_name("shellcheck"), SBATCH], check=True)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SBATCH.read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == "1" and {"requeue", "exclusive"} <= set(options)
    assert re.fullmatch(r"B:USR1@\d+", options["signal"]) and options["open-mode"] == "append"


def stand_ins(folder: Path, srun: str) -> dict[str, str]:
    """A checkout whose commands are stand-ins that write down their arguments; returns the environment Slurm
    would set."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text(f'export PATH="{folder}/.venv/bin:$PATH"\n')
    [ray] = re.findall(r"^ray==(\S+)$", (ROOT / "requirements" / "cpu.txt").read_text(), re.MULTILINE)
    commands = {"srun": srun, "scontrol": "true", "ray": "true", "python": f"echo {ray}"}
    for name, body in commands.items():
        file = folder / ".venv" / "bin" / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >> "{folder}/calls"\n{body}\n')
        file.chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "41234",
        "SLURM_NNODES": "2",
        "SLURM_RESTART_COUNT": "1",
    }
    return {**os.environ, "HOME": str(folder), **slurm}


@pytest.mark.parametrize(("srun", "status"), [("exit 0", 0), ("exit 3", 3)])
def test_sbatch_ends_with_the_runs_exit_status(tmp_path: Path, srun: str, status: int) -> None:
    command = ["bash", SBATCH, "jobs/configs/demo.toml", "seed=1"]
    assert subprocess.run(command, env=stand_ins(tmp_path, srun), check=False).returncode == status
    [step] = [line for line in (tmp_path / "calls").read_text().splitlines() if "symmetric-run" in line]
    address = re.search(r"--address (\S+:21234)", step)
    assert address and step.endswith(f"-- stasc run jobs/configs/demo.toml seed=1 --address {address[1]}")
    assert "--min-nodes 2" in step and "scontrol" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(("restarts", "status"), [("1", 0), ("50", 1)])
def test_sbatch_goes_back_into_the_queue_near_the_time_limit(
    tmp_path: Path, restarts: str, status: int
) -> None:
    environment = stand_ins(tmp_path, "exec sleep 60") | {"SLURM_RESTART_COUNT": restarts}
    job = subprocess.Popen(["bash", SBATCH, "demo.toml"], env=environment, start_new_session=True)
    deadline = time.monotonic() + 20
    calls = tmp_path / "calls"
    while not (calls.exists() and "symmetric-run" in calls.read_text()):
        assert time.monotonic() < deadline, "the script never reached srun"
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) == status
    os.killpg(job.pid, signal.SIGKILL)  # the sleeping stand-in, which Slurm would end
    assert ("scontrol requeue 41234" in calls.read_text()) == (status == 0)

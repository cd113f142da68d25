"""`stasc datasets`: what ships, as a table and as JSON."""

import json
import subprocess
import sys

from stasc_ray import config


def datasets(*arguments: str) -> str:
    command = [sys.executable, "-m", "stasc_ray.cli", "datasets", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_every_dataset_is_listed() -> None:
    lines = datasets().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(config.DATASETS)
    (gsm8k,) = [line for line in lines if line.startswith("gsm8k ")]
    assert gsm8k.split() == [
        "gsm8k",
        "GSM8K",
        "openai/gsm8k",
        "main",
        "train,",
        "-,",
        "test",
        "math",
        "math",
        "MIT",
    ]
    rows = json.loads(datasets("--json"))
    assert [row["name"] for row in rows] == list(config.DATASETS)

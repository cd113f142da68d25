"""Bytes a parameter that a fine-tune takes on the host, stage by stage: what docs/clusters.md says.

One worker on the CPU, so that what would lie on a GPU is counted too.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 640,
    "intermediate_size": 1792,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
}
"""63 million weights, untied."""
SLACK = 0.8
"""Bytes a parameter: activations, the allocator's and Python's own."""
SEEN = 0.75
"""Of what the page says, at least: a short peak may fall between two looks where the cores are busy."""


def anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@contextmanager
def peak(found: dict[str, float], stage: str, before: int, weights: int) -> Iterator[None]:
    """The most that is held at once during the block, in bytes a weight above `before`."""
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], anonymous_bytes())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        found[stage] = (most[0] - before) / weights


def measure(folder: Path, method: str) -> dict[str, float]:
    """Peaks of each stage; run in a process of its own."""
    import pyarrow as pa
    import torch
    from harness.tiny_models import example
    from test_placing import make_job
    from torch.distributed.checkpoint.state_dict_saver import save

    from stasc_ray.learning import batches, checkpoints, encoding, export, packing, placing, steps

    job, cpu = make_job(folder, shape="large", method=method), torch.device("cpu")
    examples = batches.collect([pa.Table.from_pylist([encoding.as_row("q", [example(0, 16, 8)])])])
    placing.load_model(make_job(folder, method=method))  # a tiny one, so that imports do not count
    before, found = anonymous_bytes(), dict[str, float]()
    weights = json.loads((folder / "weights").read_text())
    with peak(found, "load", before, weights):
        model, layers = placing.load_model(job)
        model = placing.place(model, layers, job, cpu, 1)
    optimizer = steps.make_optimizer(model, job.finetune)
    forward = steps.make_forward(model, job, cpu, 1, packing.Passes(64, stacked=True))
    with peak(found, "train", before, weights):
        for _ in range(2):
            steps.backward(forward, examples, [[[0]]], 0, cpu, stacked=True)
            steps.update(model, optimizer, 1e-3, 1.0)
    with peak(found, "checkpoint", before, weights):
        save(checkpoints._state(model, optimizer), checkpoint_id=folder / "checkpoint")
    del optimizer
    with peak(found, "export", before, weights):
        state = checkpoints.gather(model, export.saved_dtype(job))
        del model, forward
        export.give_back_memory()
        export.export(state, job, [examples.read(0)], cpu)
    return found


if __name__ == "__main__":
    print("found", json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))


@pytest.mark.slow
def test_a_fine_tune_takes_the_bytes_a_parameter_that_the_page_says(tmp_path: Path) -> None:
    import torch
    from harness.chat_templates import tokenizer_of
    from transformers import LlamaConfig, LlamaForCausalLM

    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16)
    (tmp_path / "weights").write_text(str(sum(one.numel() for one in model.parameters())))
    model.save_pretrained(tmp_path / "model_large")
    tokenizer_of("chatml").save_pretrained(tmp_path / "model_large")
    page = (REPOSITORY / "docs/clusters.md").read_text(encoding="utf-8")
    for method in ("full", "lora"):
        command = [sys.executable, __file__, str(tmp_path), method]
        paths = os.pathsep.join(
            str(path) for path in (REPOSITORY, REPOSITORY / "tests", Path(__file__).parent)
        )
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout.split("found ")[1])
        print(method, found)
        row = re.search(rf"^\| {method} \|(.*)\|$", page, re.MULTILINE)
        assert row, "a row for each method"
        said = [float(cell.split()[0]) for cell in row[1].split("|")]
        for (stage, bytes_each), expected in zip(found.items(), said, strict=True):
            assert SEEN * expected <= bytes_each <= expected + SLACK, (method, stage, found)

"""Why vLLM's own processes did not start, from their output. The texts are vLLM 0.29's, shortened; the last test
makes a real engine fail.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stasc_ray.generation import core_output
from stasc_ray.tasks import sandbox

WORKER_FAILED = """\
(Worker pid=17239) ERROR 11-26 11:20:58 [multiproc_executor.py:944] WorkerProc failed to start.
(Worker pid=17239) ERROR 11-26 11:20:58 [multiproc_executor.py:944] Traceback (most recent call last):
(Worker pid=17239) ERROR 11-26 11:20:58 [multiproc_executor.py:944]   File "/x/vllm/parameter.py", line 229, in load
(Worker pid=17239) ERROR 11-26 11:20:58 [multiproc_executor.py:944]     assert self.shape == loaded.shape
(Worker pid=17239) ERROR 11-26 11:20:58 [multiproc_executor.py:944]            ^^^^^^^^^^
(Worker pid=17239) ERROR 11-26 11:20:58 [multiproc_executor.py:944] {error}
(EngineCore pid=16204) ERROR 11-26 11:21:01 [core.py:1374]   File "/x/vllm/executor.py", line 808, in wait
(EngineCore pid=16204) ERROR 11-26 11:21:01 [core.py:1374]     raise e from None
(EngineCore pid=16204) ERROR 11-26 11:21:01 [core.py:1374] Exception: WorkerProc initialization failed due \
to an exception in a background process. See stack trace for root cause.
"""
CORE_FAILED = """\
(EngineCore pid=22923)   File "/x/vllm/kv_cache_utils.py", line 879, in check
(EngineCore pid=22923)     raise ValueError(
(EngineCore pid=22923) ValueError: To serve at least one request, 2.0 GiB KV cache is needed.

(EngineCore pid=22923) ERROR 11-26 11:26:46 [executor.py:314] Worker proc VllmWorker-0 died unexpectedly.
"""
SIGNAL = """\
:actor_name:EngineActor
ValueError: logged, and got over
*** SIGSEGV received at time=1795704856 on cpu 0 ***
Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/x/vllm/_custom_ops.py", line 3910 in cpu_attn_get_scheduler_metadata
  File "/x/vllm/cpu_attn.py", line 250 in build
"""
RAISES = """
import os, sys
from stasc_ray.generation import core_output
os.write({descriptor}, b"ValueError: of an earlier engine\\n")
with core_output.explained():
    os.write({descriptor}, {text!r})
    raise RuntimeError("Engine core initialization failed. See root cause above.")
"""
BROKEN_START = """
from stasc_ray import config
from stasc_ray.generation.engine import Engine
from stasc_ray.generation.spec import EngineSpec

if __name__ == "__main__":
    settings = config.Engine(device="cpu", kv_cache_gb=0.1, max_model_len_tokens=512)
    try:
        Engine({model!r}, EngineSpec(settings, on_cuda=False, threads=1))
    except RuntimeError as error:
        open("said.txt", "w").write(str(error))
"""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (WORKER_FAILED.format(error="torch.OutOfMemoryError: CUDA out of memory."), "torch.OutOfMemoryError: CUDA"),
        (WORKER_FAILED.format(error="AssertionError"), "AssertionError in load (parameter.py:229): assert self.shape =="),
        (CORE_FAILED, "ValueError: To serve at least one request, 2.0 GiB KV cache is needed."),
        ("\x1b[36m(EngineCore pid=1)\x1b[0;0m ValueError: in colour", "ValueError: in colour"),
        (SIGNAL, "Segmentation fault in cpu_attn_get_scheduler_metadata (_custom_ops.py:3910)"),
        ("INFO loading weights\n", "It wrote no error; killed for lack of memory? Its last line: INFO loading weights"),
        ("", "It wrote no error; killed for lack of memory? Its last line: none"),
    ],
)  # fmt: skip
def test_the_cause_is_the_error_that_the_others_point_at(output: str, expected: str) -> None:
    assert core_output.cause(output).startswith(expected)


@pytest.mark.parametrize("descriptor", [1, 2])
def test_the_cause_is_read_from_the_file_that_the_output_goes_to(descriptor: int, tmp_path: Path) -> None:
    script = RAISES.format(descriptor=descriptor, text=CORE_FAILED.encode())
    out, err = tmp_path / "worker.out", tmp_path / "worker.err"
    with out.open("w") as stdout, err.open("w") as stderr:
        subprocess.run([sys.executable, "-c", script], stdout=stdout, stderr=stderr, timeout=60)
    said = err.read_text().rstrip().splitlines()
    assert said[-1] == "ValueError: To serve at least one request, 2.0 GiB KV cache is needed."
    assert f"All of its output: {err} and {out}" in said


def test_an_earlier_engines_error_is_not_this_ones(tmp_path: Path) -> None:
    script = RAISES.format(descriptor=1, text=b"")
    with (tmp_path / "both").open("w") as both:
        subprocess.run([sys.executable, "-c", script], stdout=both, stderr=both, timeout=60)
    said = (tmp_path / "both").read_text()
    assert said.rstrip().endswith("Its last line: none"), "stdout and stderr are one file, read once"


def test_on_a_terminal_or_a_pipe_the_message_stays(tmp_path: Path) -> None:
    script = RAISES.format(descriptor=1, text=CORE_FAILED.encode())
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stderr
    assert said.rstrip().endswith("See root cause above.")


@pytest.mark.slow
def test_an_engine_that_cannot_read_its_weights_says_so(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(sandbox.model_path(), model)
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    weights[name] = weights[name][:-3].contiguous()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    script = tmp_path / "start.py"  # a file: vLLM's processes import the main module again
    script.write_text(BROKEN_START.format(model=str(model)))
    separate = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (tmp_path / "log").open("w") as log:
        subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=separate, stdout=log, stderr=log, timeout=500
        )
    said = (tmp_path / "said.txt").read_text().splitlines()
    assert said[0].startswith("Engine core initialization failed.")
    assert said[-1].startswith("AssertionError in ") and "shape" in said[-1], said

"""A real endpoint: Ray Serve on a local Ray, vLLM on the CPU, the sandbox model and variants of it, over HTTP
on loopback."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from harness import served_runs

from benchmarks.ray_cluster import free_port
from stasc_ray import config, store
from stasc_ray.recipes import section_of
from stasc_ray.runtime import model_folder
from stasc_ray.serving import app
from stasc_ray.serving.keys import add_key
from stasc_ray.tasks import chat, prompts, sandbox

QUESTIONS = [row["question"] for row in sandbox.questions("dev", 8, seed=0)]
PATIENCE_S = 300  # a loaded machine
CAPACITY = {"in_flight": 4, "queue": 4}


class Served:
    """The endpoint under test and what is needed to talk to it."""

    def __init__(self, run: store.RunFolder, models_folder: Path, url: str, keys: dict[str, str]) -> None:
        self.run, self.models, self.url, self.keys = run, models_folder, url, keys

    def client(self, key: str = "plain") -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.keys[key]}"}, timeout=PATIENCE_S
        )

    def correct(self, question: str, **fields) -> httpx.Response:
        with self.client() as client:
            return client.post("/v1/correct", json={"question": question, "temperature": 0, **fields})

    def health(self) -> dict:
        return httpx.get(f"{self.url}/healthz", timeout=PATIENCE_S).json()

    def wait(self, what, seconds: float = PATIENCE_S) -> dict:
        """Until `what(health)` holds; returns that health."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError, ValueError):
                if what(found := self.health()):
                    return found
            assert time.monotonic() < end, f"not so within {seconds} s: {found}"
            time.sleep(0.1)

    def publish(self, name: str) -> str:
        """Publish a model and wait until it answers."""
        version = served_runs.publish(self.run, self.models / name)
        self.wait(lambda health: health["active"] == version)
        return version


@contextlib.contextmanager
def serving(folder: Path, *overrides: str):
    """An endpoint with two published versions."""
    for name, values in {
        "a": {"noise": 0.05, "seed": 1},
        "b": {"noise": 0.05, "seed": 2},
        "tied": {"tied": True},
    }.items():
        served_runs.make_model(folder / name, **values)
    served_runs.make_lora_model(folder / "lora", noise=0.02, seed=3)
    limits = [
        "finetune.method=lora",
        f"serve.max_in_flight={CAPACITY['in_flight']}",
        f"serve.max_queue={CAPACITY['queue']}",
    ]
    run = served_runs.make_run(
        folder / "run", *limits, f"serve.request_timeout_s={PATIENCE_S}", "serve.max_rounds=64", *overrides
    )
    served_runs.publish(run, None)
    served_runs.publish(run, folder / "a")
    keys_file = folder / "keys.json"
    keys = {name: add_key(keys_file, name, admin=name == "admin") for name in ("plain", "admin")}
    settings, port = store.read_config(run.path, section_of), free_port()
    with local_ray(), app.serving(run.path, settings, "127.0.0.1", port, keys_file, loopback_only=False):
        yield Served(run, folder, f"http://127.0.0.1:{port}", keys)


@contextlib.contextmanager
def local_ray(gpus: int = 0):
    """A Ray of four CPUs, and GPUs that are only declared, in this process."""
    import ray

    session = tempfile.mkdtemp(prefix="stasc-")
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=session,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(session, ignore_errors=True)


_greedy_answers: dict[tuple[str, str], tuple[str, str]] = {}


def greedy(run: store.RunFolder, version: str, question: str) -> tuple[str, str]:
    """Initial answer and correction by transformers, which knows nothing of the engine."""
    if (version, question) not in _greedy_answers:
        messages = prompts.initial_messages({"question": question}, config.Prompts(preset="sandbox"))
        initial = _greedy_text(run, version, messages)
        _greedy_answers[version, question] = initial, greedy_correction(run, version, question, initial)
    return _greedy_answers[version, question]


def greedy_correction(run: store.RunFolder, version: str, question: str, initial: str) -> str:
    """The correction of a given answer, likewise."""
    texts = config.Prompts(preset="sandbox")
    return _greedy_text(run, version, prompts.correction_messages({"question": question}, initial, texts))


def _greedy_text(run: store.RunFolder, version: str, messages) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    (manifest,) = [manifest for manifest in run.versions() if manifest["version"] == version]
    path = str(run.path / manifest["model"])
    tokenizer = model_folder.load_tokenizer(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.tensor([chat.Chat(tokenizer).render(messages, add_generation_prompt=True)])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))

"""A real endpoint: Ray Serve on a local Ray, vLLM on the CPU, the sandbox model and variants of it, over HTTP
on loopback."""

import contextlib
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

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
    first = folder / "keys" / "..first"
    keys = {name: add_key(first / "keys.json", name, admin=name == "admin") for name in ("plain", "admin")}
    keys_file = as_secret(first)
    settings, port = store.read_config(run.path, section_of), free_port()
    with local_ray(), app.serving(run.path, settings, "127.0.0.1", port, keys_file, loopback_only=False):
        yield Served(run, folder, f"http://127.0.0.1:{port}", keys)


def as_secret(target: Path) -> Path:
    """Let `..data`, to which the file of keys beside it is a link, mean this folder: as Kubernetes lays out
    secrets."""
    data, file = target.parent / "..data", target.parent / "keys.json"
    (moved := data.with_name("..data_tmp")).symlink_to(target.name)
    moved.rename(data)
    if not file.is_symlink():
        file.symlink_to("..data/keys.json")
    return file


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
    (manifest,) = [manifest for manifest in run.versions() if manifest["version"] == version]
    canary = run.path / manifest["model"] / "canary.json"  # another one for other weights
    key = canary.read_text() if canary.exists() else version, question
    if key not in _greedy_answers:
        messages = prompts.initial_messages({"question": question}, config.Prompts(preset="sandbox"))
        initial = _greedy_text(run, version, messages)
        _greedy_answers[key] = initial, greedy_correction(run, version, question, initial)
    return _greedy_answers[key]


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


class Reply(NamedTuple):
    """What a client of `Load` got."""

    question: str
    status: int
    body: dict
    retry_after: str | None
    seconds: float


class Load:
    """Clients that keep asking; every answer must be the greedy one of the version it names."""

    def __init__(self, served: Served, clients: int, key: str = "plain") -> None:
        self.served, self.key, self.stop = served, key, threading.Event()
        self.replies: list[Reply] = []
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def _ask(self, number: int) -> None:
        with self.served.client(self.key) as client:
            while not self.stop.is_set():
                question, started = QUESTIONS[number % 8], time.monotonic()
                try:
                    reply = client.post("/v1/correct", json={"question": question, "temperature": 0})
                    found = reply.status_code, reply.json(), reply.headers.get("retry-after")
                except (httpx.TransportError, ValueError) as error:  # a failure as well
                    found = 0, {"error": repr(error)}, None
                self.replies.append(Reply(question, *found, time.monotonic() - started))
                number += 1

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def check(self, *, may_be_told_to_come_back: bool = False) -> set[str]:
        """The versions that answered; each reply is right, or if that may be 429 or 503 with a time to come
        back."""
        answered, failed = [reply for reply in self.replies if reply.status == 200], []
        for reply in self.replies:
            told = may_be_told_to_come_back and reply.status in (429, 503) and reply.retry_after
            if reply.status != 200 and not told:
                failed.append(reply)
        assert not failed, f"{len(failed)} of {len(self.replies)} failed: {failed[:2]}"
        for question, _, body, _, _ in answered:
            assert (body["initial_answer"], body["answer"]) == greedy(
                self.served.run, body["model_version"], question
            )
        return {reply.body["model_version"] for reply in answered}

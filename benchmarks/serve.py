"""What HTTP, Ray Serve and the process boundary cost: two-turn corrections over the endpoint, and on the
engine directly.

python -m benchmarks.serve                          the sandbox model on the CPU, in a run folder made for it
python -m benchmarks.serve --size 20M --questions 100   random weights: steps that cost something, as a real model's do
python -m benchmarks.serve --run runs/demo --questions 1000

Prints a line of JSON per pair: questions/s with 16 in flight and the median latency with 1, of both, and
their ratio; then the medians. The client runs on the same machine, so on two cores it takes part of what it
measures.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from stasc_ray import config, store
from stasc_ray.recipes import recipe_of, section_of
from stasc_ray.recipes.policies import answer
from stasc_ray.recipes.recipe import Plan
from stasc_ray.runtime import capacity, ray_session
from stasc_ray.tasks import sandbox
from stasc_ray.tasks.chat import Chat

Ask = Callable[[str], Awaitable[Any]]
SIZES = {"20M": (8, 6, 1408), "85M": (12, 12, 2048)}
"""Heads of 64, layers, width of the MLP."""
LIMITS = ["serve.max_in_flight=64", "sampling.initial.temperature=0", "sampling.correction.temperature=0"]


def main() -> None:
    """Measure both and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="run folder; default: one with the sandbox model")
    parser.add_argument("--size", choices=["sandbox", *SIZES], default="sandbox")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=3, help="how often both are measured, in turn")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument(
        "--served-first", action="store_true", help="in the first pair; from then on they take turns"
    )
    parser.add_argument("--part", choices=["direct", "served"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        measured = {"direct": direct, "served": served}[arguments.part]
        print(json.dumps(measured(arguments.run, arguments.questions, arguments.in_flight)))
        return
    pairs = []
    with run_folder(arguments.run, arguments.size) as folder:
        for number in range(arguments.pairs):
            order = sorted(("direct", "served"), reverse=arguments.served_first != bool(number % 2))
            pair: dict[str, Any] = {part: in_own_process(part, folder, arguments) for part in order}
            pair["throughput_ratio"] = pair["served"]["questions_per_s"] / pair["direct"]["questions_per_s"]
            pair["added_p50_ms_per_turn"] = (
                pair["served"]["p50_ms_at_1"] - pair["direct"]["p50_ms_at_1"]
            ) / 2
            print(json.dumps(pair), flush=True)
            pairs.append(pair)
    for name in ("throughput_ratio", "added_p50_ms_per_turn"):
        values = [pair[name] for pair in pairs]
        print(f"{name}: median {statistics.median(values):.3g}, from {min(values):.3g} to {max(values):.3g}")


@contextlib.contextmanager
def run_folder(given: Path | None, size: str) -> Iterator[Path]:
    """The given run, or one with the sandbox model, or a larger one, as its only version."""
    if given:
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = ["engine.max_model_len_tokens=256", "engine.kv_cache_gb=0.5", "engine.max_num_seqs=64"]
        settings = config.load_config(
            None, ["prompts.preset=sandbox", "sampling.initial.max_tokens=48", *sizes], section_of
        )
        with store.open_run(folder, settings):
            pass
        model = sandbox.model_path() if size == "sandbox" else random_model(folder / "model", size)
        manifest = {"version": "v0000", "iteration": 0, "model": str(model), "created": store.now()}
        store.write_atomically(
            folder / "versions" / "v0000.json", json.dumps({**manifest, "metrics": {}, "canary": None})
        )
        store.write_atomically(folder / "LATEST", "v0000\n")
        yield folder


def random_model(folder: Path, size: str) -> Path:
    """Random weights in the sandbox model's architecture, with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = str(sandbox.model_path())
    heads, layers, intermediate = SIZES[size]
    sizes = {"hidden_size": 64 * heads, "intermediate_size": intermediate, "num_hidden_layers": layers}
    shape = AutoConfig.from_pretrained(
        source, **sizes, num_attention_heads=heads, num_key_value_heads=heads, head_dim=64
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def in_own_process(part: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """One part's figures; each part has its vLLM and its Ray to itself."""
    options = ["--part", part, "--run", str(folder), "--questions", str(arguments.questions)]
    command = [sys.executable, "-m", "benchmarks.serve", *options, "--in-flight", str(arguments.in_flight)]
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )


def settings_of(folder: Path) -> config.Config:
    """The run's config, greedy."""
    return config.with_overrides(store.read_config(folder, section_of), LIMITS, section_of)


def direct(folder: Path, questions: int, in_flight: int) -> dict[str, float]:
    """The engine in this process; both turns by the code that the endpoint uses."""
    from stasc_ray.generation.asking import Asker, OnPiece
    from stasc_ray.generation.engine import Engine
    from stasc_ray.generation.samples import Request, Sample
    from stasc_ray.generation.spec import EngineSpec
    from stasc_ray.serving.published import model_path

    settings, run = settings_of(folder), store.RunFolder(folder)
    recipe = recipe_of(settings.algorithm.recipe)
    plan = Plan(settings.prompts, settings.algorithm, n_initial=1, n_corrections=1)
    (manifest,) = [manifest for manifest in run.versions() if manifest["version"] == run.latest()]
    threads = capacity.replica_threads(settings.serve, ray_session.cores())
    engine = Engine(model_path(folder, manifest), EngineSpec(settings.engine, on_cuda=False, threads=threads))
    chat = Chat.of(engine.tokenizer, settings)

    async def generate(token_ids: list[int], request: Request, _: OnPiece | None) -> list[Sample]:
        return await asyncio.wrap_future(engine.submit(token_ids, request))

    async def ask(question: str) -> None:
        row = {"question": question, "documents": [], "choices": []}
        asker = Asker(
            chat,
            generate,
            sampling=settings.sampling,
            identity=(0,),
            writer=manifest["version"],
            max_prompt_tokens=settings.engine.max_model_len_tokens - 1,
        )
        await answer(None, recipe, row, asker, plan)

    found = asyncio.run(measure(ask, questions, in_flight))
    engine.close()
    return found


def served(folder: Path, questions: int, in_flight: int) -> dict[str, float]:
    """The same questions over HTTP."""
    import httpx

    from stasc_ray.serving import app

    settings, port = settings_of(folder), 8791

    async def over_http() -> dict[str, float]:
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=300, limits=limits
        ) as client:

            async def ask(question: str) -> None:
                (await client.post("/v1/correct", json={"question": question})).raise_for_status()

            return await measure(ask, questions, in_flight)

    with (
        tempfile.TemporaryDirectory(prefix="stasc-") as logs,
        ray_session.connect(None, Path(logs), worker_niceness=app.WORKER_NICENESS),
        app.serving(folder, settings, "127.0.0.1", port, None, loopback_only=True),
    ):
        found = asyncio.run(over_http())
    return found


async def measure(ask: Ask, questions: int, in_flight: int) -> dict[str, float]:
    """Warm up; then all questions with `in_flight` at once; then a few, one at a time."""
    texts = [row["question"] for row in sandbox.questions("test", questions, seed=0)]
    await throughput(ask, texts[: 2 * in_flight], in_flight)
    per_s = await throughput(ask, texts, in_flight)
    seconds = []
    for text in texts[:20]:
        started = time.perf_counter()
        await ask(text)
        seconds.append(time.perf_counter() - started)
    return {"questions_per_s": per_s, "p50_ms_at_1": 1000 * statistics.median(seconds)}


async def throughput(ask: Ask, texts: list[str], in_flight: int) -> float:
    """Questions per second with `in_flight` at once."""
    waiting = iter(texts)

    async def work() -> None:
        for text in waiting:
            await ask(text)

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    return len(texts) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()

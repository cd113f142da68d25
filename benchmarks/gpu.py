"""The comparisons that need a GPU: a model of Qwen2.5-1.5B's shape with random weights, texts of NQ's
lengths.

python -m benchmarks.gpu --folder runs/bench-gpu --write docs/performance.md

Four rows: generation against one bare `vllm.LLM`; model-FLOPs utilization of the fine-tune, packed, bfloat16;
the seconds of a run between its stages; and the share of its time in which the GPU did nothing. Without a
CUDA device it says so and ends.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import baselines, speed
from stasc_ray import config, store
from stasc_ray.generation import unit_files
from stasc_ray.learning import flops
from stasc_ray.recipes import section_of
from stasc_ray.recipes.recipe import written
from stasc_ray.runtime import ray_session
from stasc_ray.tasks import prompts

QWEN_1_5B = {
    "num_hidden_layers": 28,
    "hidden_size": 1536,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
QUESTION_WORDS, ANSWER_WORDS = 12, 200
MARKS = ("<!-- gpu table: written by benchmarks/gpu.py -->", "<!-- end of the gpu table -->")
ROWS = ("generation", "training", "run")
CONFIG = Path(__file__).with_suffix(".toml")


def by_chance(answer: str, references: list[str]) -> float:
    """A reward that a random model earns now and then, the same at every call: a quarter of all answers."""
    return float(random.Random(answer).random() < 0.25)


# --- a model and its questions
# -----------------------------------------------------------------------------------


def make_model(folder: Path, shape: Mapping[str, Any], device: str) -> None:
    """Random bfloat16 weights, and a tokenizer in which every id is a word of its own: texts keep their
    number of tokens.

    Llama's architecture, which is Qwen2's without biases: transformers gives models of type qwen2 a tokenizer
    of its own.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<end>", "<user>", "<assistant>"]
    words = [*special, "0", "1"]  # the digits are what encoding.py tries a template with
    words += [f"w{number}" for number in range(len(words), shape["vocab_size"])]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<end>",
        extra_special_tokens=special[2:],
    )
    fast.chat_template = (
        "{% for m in messages %}{{ ' <' + ('assistant' if m.role == 'assistant' else 'user') + '> ' + "
        "m.content + ' <end>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ ' <assistant> ' }}{% endif %}"
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=1, pad_token_id=1, bos_token_id=None))
    model.to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()  # the engines want the memory


def sentence(words: int, generator: random.Random, vocabulary: int) -> str:
    """So many random words, each one token."""
    return " ".join(f"w{generator.randrange(6, vocabulary)}" for _ in range(words))


def questions(number: int, split: str, vocabulary: int) -> list[dict[str, Any]]:
    """Canonical rows."""
    generator = random.Random(split)
    texts = [sentence(QUESTION_WORDS, generator, vocabulary) for _ in range(number)]
    return [
        {"id": f"{split}-{i}", "question": text, "answers": ["w6"], "split": split}
        for i, text in enumerate(texts)
    ]


def make_work(folder: Path, shape: Mapping[str, Any], number: int, device: str) -> dict[str, Any]:
    """What the functions of speed.py and baselines.py take."""
    model, train, examples = folder / "model", folder / "train.parquet", folder / "examples.jsonl"
    if not (model / "config.json").exists():
        make_model(model, shape, device)
    settings = config.load_config(CONFIG, [f"model.path={str(model)!r}"], section_of)
    unit_files.write_questions(
        questions(number, "train", shape["vocab_size"]), train, settings.engine.batch_size
    )
    generator = random.Random(0)
    with examples.open("w") as lines:
        for row in questions(number, "train", shape["vocab_size"]):
            first, second = (sentence(ANSWER_WORDS, generator, shape["vocab_size"]) for _ in range(2))
            asked = prompts.user(row["question"])
            messages = [asked, prompts.assistant(first), asked, written(second)]
            lines.write(json.dumps({"messages": messages}) + "\n")
    return {
        "config": config.to_json(settings),
        "model": str(model),
        "threads": ray_session.cores(),
        "n_corrections": settings.algorithm.n_corrections,
        "folder": str(folder),
        "train": str(train),
        "examples": str(examples),
        "on_cuda": device == "cuda",
    }


# --- what is measured
# --------------------------------------------------------------------------------------------


def generation(work: dict[str, Any], first: str) -> dict[str, dict[str, float]]:
    """Both turns through Ray Data and by one bare engine."""
    sides = {
        "ours": ("ours_generation", "benchmarks.speed"),
        "against": ("bare_vllm", "benchmarks.baselines"),
    }
    order = sorted(sides, key=lambda side: side != first)
    return {side: baselines.in_process(sides[side][0], work, sides[side][1]) for side in order}


def utilization(
    tokens_per_s: float, shape: Mapping[str, Any], length: int, trained: float, peak: float
) -> float:
    """Model-FLOPs utilization of training. The output layer works on the `trained` share of the tokens only.
    The rate includes the first steps, in which CUDA warms up.
    """
    width, heads, kv = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    layer = width * width * (2 + 2 * kv / heads) + 3 * width * shape["intermediate_size"]
    layers = shape["num_hidden_layers"]
    weights = flops.Weights(int(layers * layer), shape["vocab_size"] * width, layers * width)
    return tokens_per_s * flops.training_flops(weights, 1, length, trained) / peak


def watch_gpu(found: list[float], done: threading.Event) -> None:
    """The GPU's busy share in percent, twice a second; nothing where nvidia-smi has no number for it."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
    while not done.wait(0.5):
        with contextlib.suppress(OSError, ValueError):
            found.append(float(subprocess.run(query, capture_output=True, text=True, check=False).stdout))


def whole_run(work: dict[str, Any], shape: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A run of three iterations: the seconds of its second one, part by part, and the GPU's idle share over
    the whole run.
    """
    overrides = [f"model.path={work['model']!r}"]
    for split, number in (("train", 500), ("dev", 100), ("test", 100)):
        file = folder / f"{split}.jsonl"
        file.write_text(
            "".join(json.dumps(row) + "\n" for row in questions(number, split, shape["vocab_size"]))
        )
        overrides.append(f"questions.{split}.source={str(file)!r}")
    busy: list[float] = []
    done = threading.Event()
    watching = threading.Thread(target=watch_gpu, args=(busy, done))
    watching.start()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [
        sys.executable,
        "-m",
        "stasc_ray.cli",
        "run",
        str(CONFIG),
        "--run-dir",
        str(folder / "run"),
        *overrides,
    ]
    try:
        subprocess.run(command, check=True, env=environment)
    finally:
        done.set()
        watching.join()
    idle = sum(share == 0 for share in busy) / len(busy) if busy else float("nan")
    return {**speed.stage_seconds(folder / "run", 2), "gpu_idle_share": idle}


def measured(row: str, work: dict[str, Any], first: str, peak: float, folder: Path) -> dict[str, Any]:
    """One measurement of a row."""
    if row == "generation":
        return generation(work, first)
    if row == "training":
        trained = baselines.in_process("ours_training", work, "benchmarks.speed")
        length = 2 * (
            QUESTION_WORDS + ANSWER_WORDS
        )  # attention looks back within an example, not over a packed sequence
        return {
            **trained,
            "mfu": utilization(trained["tokens_per_s"], QWEN_1_5B, length, ANSWER_WORDS / length, peak),
        }
    with tempfile.TemporaryDirectory(dir=folder) as run:
        return whole_run(work, QWEN_1_5B, Path(run))


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Markdown lines, of the rows that were measured."""
    yield "| what | found | target |"
    yield "|---|---|---|"
    if found.get("generation"):
        yield _generation_row(found)
    for training in found.get("training", []):
        rate = f"{training['tokens_per_s']:,.0f} tokens/s, {training['mfu']:.2f} MFU"
        yield f"| fine-tuning, packed to 4,096 tokens, bfloat16 | {rate} | >= 0.40 |"
    for run in found.get("run", []):
        names = [name for name in run if name not in ("wall", "gpu_idle_share") and "tokens" not in name]
        parts = ", ".join(f"{name} {run[name]:.1f}" for name in names)
        yield f"| iteration 2 of a run, seconds | {run['wall']:.1f}: {parts} | printed |"
        yield f"| GPU idle, share of the whole run | {run['gpu_idle_share']:.2f} | printed |"


def _generation_row(found: Mapping[str, Any]) -> str:
    ratios = [pair["ours"]["tokens_per_s"] / pair["against"]["tokens_per_s"] for pair in found["generation"]]
    ours, bare = (
        statistics.median(pair[side]["tokens_per_s"] for pair in found["generation"])
        for side in ("ours", "against")
    )
    return f"| two-turn generation over bare `vllm.LLM` | {ours:,.0f} / {bare:,.0f} tokens/s = {speed.spread(ratios)} | >= 0.95 |"


def main() -> None:
    """Measure on the CUDA device that is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument(
        "--folder", type=Path, help="for model, questions and figures; default: one that goes away"
    )
    parser.add_argument("--write", type=Path, help="Markdown file with the marks, e.g. docs/performance.md")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("bench-gpu: expected a CUDA device, found none; nothing was measured")
        return
    name = torch.cuda.get_device_name()
    peak = flops.peak_flops(name)
    if peak is None:
        raise SystemExit(
            f"PEAK_FLOPS: expected one of {', '.join(flops.PEAK_FLOPS)} in the device's name, found {name!r}; add "
            f"it"
        )
    with speed.work_folder(arguments.folder) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        work = make_work(folder, QWEN_1_5B, arguments.questions, "cuda")
        results = folder / "gpu.json"
        found: dict[str, list[Any]] = json.loads(results.read_text()) if results.exists() else {}
        for row in arguments.rows:
            kept, times = found.setdefault(row, []), arguments.pairs if row == "generation" else 1
            while len(kept) < times:  # kept as they come: a lent GPU's time may end
                kept.append(measured(row, work, ("ours", "against")[len(kept) % 2], peak, folder))
                store.write_atomically(results, json.dumps(found, indent=1))
    lines = [f"{name}; {speed.machine()} Commit {speed.commit()}.", "", *table(found)]
    print("\n".join(lines))
    if arguments.write:
        speed.write_between_marks(arguments.write, "\n".join(lines), MARKS)


if __name__ == "__main__":
    main()

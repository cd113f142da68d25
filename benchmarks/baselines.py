"""What stasc_ray is measured against, each written as plainly as its library allows; speed.py runs them in
processes of their own.

Every function takes one dictionary of plain values and returns one. Times are of the work alone, models and
engines being warm, unless the name says otherwise (`*_whole`).
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stasc_ray import config
from stasc_ray.learning import encoding
from stasc_ray.recipes import section_of
from stasc_ray.recipes.recipe import written
from stasc_ray.runtime import model_folder
from stasc_ray.tasks import chat, prompts, rewards

PATIENCE_S = 1800
"""For one measurement."""
WARM_UP = 64
"""Prompts that an engine answers before the clock starts."""


# --- generation
# --------------------------------------------------------------------------------------------------


def bare_vllm(work: dict[str, Any]) -> dict[str, float]:
    """One `vllm.LLM`, one `generate` for all initial answers, one for all corrections. Only those two calls
    are timed.
    """
    settings = read_config(work)
    bare = Bare(work)
    rows, texts = read_questions(work), settings.prompts
    asked = [initial_prompt(bare.tokenizer, row, texts) for row in rows]
    bare.generate(asked[:WARM_UP], settings.sampling.initial, 1)
    started = time.perf_counter()
    initial = bare.generate(asked, settings.sampling.initial, 1)
    seconds = time.perf_counter() - started
    answers = [bare.text(samples[0]) for samples in initial]
    asked = [
        correction_prompt(bare.tokenizer, row, answer, texts)
        for row, answer in zip(rows, answers, strict=True)
    ]
    started = time.perf_counter()
    corrections = bare.generate(asked, settings.sampling.correction, work["n_corrections"])
    seconds += time.perf_counter() - started
    tokens = sum(len(one) for samples in (*initial, *corrections) for one in samples)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}


def ray_data_llm(work: dict[str, Any]) -> dict[str, float]:
    """`ray.data.llm`, as its documentation shows it: one row per sample, a processor per turn, one after the
    other.

    Its engines start within the pipelines, and that is left out: a turn lasts from when its engine begins the
    first row until the last row is back.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    settings = read_config(work)
    sampling = settings.sampling
    engine = {
        "max_model_len": settings.engine.max_model_len_tokens,
        "max_num_seqs": settings.engine.max_num_seqs,
        "max_num_batched_tokens": settings.engine.max_num_batched_tokens,
        "kv_cache_memory_bytes": int(settings.engine.kv_cache_gb * 2**30),
        "dtype": "float32",
        "enforce_eager": True,
        "enable_chunked_prefill": False,
    }

    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": str(work["threads"]),
    }

    def turn(
        messages: Callable[[dict[str, Any]], list[chat.Message]],
        values: config.Sampling,
        answer: str,
        tokens: str,
        begun: str,
    ) -> Any:
        parameters = {
            "temperature": values.temperature,
            "top_p": values.top_p,
            "max_tokens": values.max_tokens,
        }
        return build_processor(
            vLLMEngineProcessorConfig(
                model_source=work["model"],
                engine_kwargs=engine,
                concurrency=(1, 1),
                batch_size=settings.engine.batch_size,
                placement_group_config={"bundles": [{"CPU": 1}]},
                runtime_env={"env_vars": environment},
            ),
            preprocess=lambda row: {**row, "messages": messages(row), "sampling_params": parameters},
            postprocess=lambda row: {
                **{name: row[name] for name in row if name in KEPT},
                answer: row["generated_text"],
                tokens: row["num_generated_tokens"],
                begun: time.time() - row["time_taken_llm"],
                f"{begun}_ended": time.time(),
            },
        )

    texts = settings.prompts
    rows = [{name: row[name] for name in KEPT if name in row} for row in read_questions(work)]
    # Its five stages of actors need room. Niceness as on our side.
    own: dict[str, Any] = {"_system_config": {"worker_niceness": 0}}
    with ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, **own):
        first = turn(
            lambda row: prompts.initial_messages(row, texts),
            sampling.initial,
            "initial",
            "initial_tokens",
            "first",
        )
        second = turn(
            lambda row: prompts.correction_messages(row, row["initial"], texts),
            sampling.correction,
            "corrected",
            "tokens",
            "second",
        )
        started = time.perf_counter()
        initial = first(ray.data.from_items(rows)).materialize()
        answers = second(initial.flat_map(lambda row: [row] * work["n_corrections"])).take_all()
        whole_s = time.perf_counter() - started
    tokens = sum(row["tokens"] + row["initial_tokens"] / work["n_corrections"] for row in answers)
    seconds = sum(
        max(row[f"{turn}_ended"] for row in answers) - min(row[turn] for row in answers)
        for turn in ("first", "second")
    )
    return {"tokens": tokens, "seconds": seconds, "whole_s": whole_s, "tokens_per_s": tokens / seconds}


KEPT = ("id", "question", "documents", "choices", "initial", "initial_tokens", "first", "first_ended")


# --- fine-tuning
# -------------------------------------------------------------------------------------------------


def bare_torch(work: dict[str, Any]) -> dict[str, float]:
    """A loop over tensors of several examples each, made before the clock starts."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(work["threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    encoded = read_encoded(work)
    batches = [encoded[at : at + work["batch_size"]] for at in range(0, len(encoded), work["batch_size"])]
    groups = [
        encoding.stack_lengths([len(one["input_ids"]) for one in batch], work["capacity"])
        for batch in batches
    ]
    stacked = [
        [encoding.stack([batch[place] for place in group]) for group in of]
        for batch, of in zip(batches, groups, strict=True)
    ]
    tensors = [[{name: torch.as_tensor(rows[name]) for name in rows} for rows in batch] for batch in stacked]
    started = time.perf_counter()
    for batch in tensors:
        trained = sum(int((rows["labels"] != encoding.IGNORED).sum()) for rows in batch)
        for rows in batch:
            labels = rows["labels"][:, 1:]
            places = (labels != encoding.IGNORED).any(dim=0).nonzero().squeeze(-1)
            logits = model(
                rows["input_ids"], attention_mask=None, use_cache=False, logits_to_keep=places
            ).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, places].flatten(), reduction="sum"
            )
            (loss / trained).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    tokens = sum(len(one["input_ids"]) for one in encoded)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}


def hf_trainer(work: dict[str, Any]) -> dict[str, float]:
    """Hugging Face `Trainer` with batches padded to their longest example."""
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    torch.set_num_threads(work["threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32)
    encoded = [{name: one[name].tolist() for name in ("input_ids", "labels")} for one in read_encoded(work)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=work.get("output", folder),
            per_device_train_batch_size=work["batch_size"],
            num_train_epochs=1,
            learning_rate=5e-5,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        collator = DataCollatorForSeq2Seq(model_folder.load_tokenizer(work["model"]), padding=True)
        trainer = Trainer(model, arguments, train_dataset=encoded, data_collator=collator)  # type: ignore[arg-type]
        seconds = float(trainer.train().metrics["train_runtime"])
        if "output" in work:
            trainer.save_model(work["output"])
            model_folder.load_tokenizer(work["model"]).save_pretrained(work["output"])
    tokens = sum(len(one["input_ids"]) for one in encoded)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}


# --- a whole iteration, the reference's way
# ----------------------------------------------------------------------


def reference_whole(work: dict[str, Any]) -> dict[str, float]:
    """Fresh processes one after another: an engine for the initial answers, one for the corrections, a
    trainer, an engine again.

    As the paper's own code does it (VityaVitalich/STASC): three engine starts and a subprocess trainer per
    iteration.
    """
    folder = Path(work["folder"])
    started, marks = time.perf_counter(), {}
    for name in ("reference_initial", "reference_corrections", "hf_trainer", "reference_evaluation"):
        before = time.perf_counter()
        own = {**work, "examples": str(folder / "examples.jsonl"), "output": str(folder / "model")}
        in_process(name, own)
        marks[name] = time.perf_counter() - before
    return {"seconds": time.perf_counter() - started, **marks}


def reference_initial(work: dict[str, Any]) -> dict[str, float]:
    """Initial answers of the train questions, to a file."""
    rows = read_questions(work)
    answers = Bare(work).initial(rows)
    with (Path(work["folder"]) / "initial.jsonl").open("w") as file:
        file.writelines(
            json.dumps({**row, "initial": answer}) + "\n" for row, answer in zip(rows, answers, strict=True)
        )
    return {}


def reference_corrections(work: dict[str, Any]) -> dict[str, float]:
    """Their corrections, graded and filtered as ENE does, to a file of training messages."""
    settings, folder = read_config(work), Path(work["folder"])
    rows = [json.loads(line) for line in (folder / "initial.jsonl").read_text().splitlines()]
    bare = Bare(work)
    found = bare.corrections(rows, [row["initial"] for row in rows], work["n_corrections"])
    grade = rewards.grader(settings.reward, settings.prompts.answer_marker)
    with (folder / "examples.jsonl").open("w") as file:
        for row, texts in zip(rows, found, strict=True):
            before = grade(row["initial"], row)[0]
            for text in texts:
                after = grade(text, row)[0]
                if text.strip() and (after > before or after == before >= 1):
                    asked = prompts.correction_messages(row, row["initial"], settings.prompts)
                    messages = [*asked, written(text)]
                    file.write(json.dumps({"messages": messages}) + "\n")
    return {}


def reference_evaluation(work: dict[str, Any]) -> dict[str, float]:
    """One initial answer and one correction of each dev and test question, by the new model."""
    settings = read_config(work)
    rows = [row for file in (work["dev"], work["test"]) for row in pq.read_table(file).to_pylist()]
    bare = Bare(work, work["output"])
    corrected = bare.corrections(rows, bare.initial(rows), 1)
    grade = rewards.grader(settings.reward, settings.prompts.answer_marker)
    right = [grade(texts[0], row)[0] for row, texts in zip(rows, corrected, strict=True)]
    return {"r_y2": sum(right) / len(right)}


# --- what they share
# ---------------------------------------------------------------------------------------------


class Bare:
    """A plain `vllm.LLM` with the values that stasc_ray gives its own engine."""

    def __init__(self, work: dict[str, Any], model: str | None = None) -> None:
        model = model or str(work["model"])
        settings, threads = read_config(work), work["threads"]
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if work["on_cuda"] else "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        # OpenMP's threads keep spinning here, other than in stasc_ray's engines: alone on a machine that is
        # the faster.
        import torch
        from vllm import LLM

        torch.set_num_threads(threads)
        engine = settings.engine
        self.settings, self.tokenizer = settings, model_folder.load_tokenizer(model)
        self.stop_token_ids = model_folder.stop_token_ids(model, self.tokenizer)
        on_cuda = bool(work["on_cuda"])
        self.llm = LLM(
            model=model,
            skip_tokenizer_init=True,
            dtype="bfloat16" if on_cuda else "float32",
            max_model_len=engine.max_model_len_tokens,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            enable_prefix_caching=True,
            enable_chunked_prefill=on_cuda,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            kv_cache_memory_bytes=None if on_cuda else int(engine.kv_cache_gb * 2**30),
            enforce_eager=not on_cuda,
            disable_log_stats=True,
        )

    def generate(
        self, token_ids: Sequence[list[int]], values: config.Sampling, n: int
    ) -> list[list[list[int]]]:
        """Token ids of `n` samples of each prompt."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            n=n,
            temperature=values.temperature,
            top_p=values.top_p,
            max_tokens=values.max_tokens,
            detokenize=False,
            stop_token_ids=self.stop_token_ids,
        )
        asked: Any = [{"prompt_token_ids": ids} for ids in token_ids]
        return [
            [list(one.token_ids) for one in output.outputs]
            for output in self.llm.generate(asked, parameters, use_tqdm=False)
        ]

    def text(self, token_ids: list[int]) -> str:
        """What they say."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def initial(self, rows: list[dict[str, Any]]) -> list[str]:
        """One initial answer for each question."""
        asked = [initial_prompt(self.tokenizer, row, self.settings.prompts) for row in rows]
        return [self.text(samples[0]) for samples in self.generate(asked, self.settings.sampling.initial, 1)]

    def corrections(self, rows: list[dict[str, Any]], answers: Sequence[str], n: int) -> list[list[str]]:
        """`n` corrections of each answer."""
        asked = [
            correction_prompt(self.tokenizer, r, a, self.settings.prompts)
            for r, a in zip(rows, answers, strict=True)
        ]
        found = self.generate(asked, self.settings.sampling.correction, n)
        return [[self.text(sample) for sample in samples] for samples in found]


def read_config(work: dict[str, Any]) -> config.Config:
    """The run's config."""
    return config.validate(json.loads(work["config"]), section_of)


@functools.cache
def chat_of(tokenizer: Any) -> chat.Chat:
    """How a tokenizer's conversations are rendered: worked out once."""
    return chat.Chat(tokenizer)


def initial_prompt(tokenizer: Any, row: dict[str, Any], texts: config.Prompts) -> list[int]:
    """Token ids of the first turn."""
    return chat_of(tokenizer).render(prompts.initial_messages(row, texts), add_generation_prompt=True)


def correction_prompt(tokenizer: Any, row: dict[str, Any], answer: str, texts: config.Prompts) -> list[int]:
    """Token ids of the second turn."""
    return chat_of(tokenizer).render(
        prompts.correction_messages(row, answer, texts), add_generation_prompt=True
    )


def read_questions(work: dict[str, Any]) -> list[dict[str, Any]]:
    """The train questions."""
    return pq.read_table(work["train"]).to_pylist()


def read_encoded(work: dict[str, Any]) -> list[Any]:
    """The training examples, encoded."""
    renders = chat.Chat(model_folder.load_tokenizer(work["model"]))
    lines = Path(work["examples"]).read_text().splitlines()
    found = (
        encoding.encode(renders, json.loads(line)["messages"], work["max_length_tokens"]) for line in lines
    )
    return [sequence for sequences in found if not isinstance(sequences, str) for sequence in sequences]


def in_process(name: str, work: dict[str, Any], module: str = "benchmarks.baselines") -> dict[str, float]:
    """Call a function of a module in a separate process; returns what it returned."""
    command = [sys.executable, "-m", module, name, json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def called(functions: Mapping[str, Callable[[dict[str, Any]], dict[str, float]]]) -> None:
    """The other side of `in_process`."""
    print("\n" + json.dumps(functions[sys.argv[1]](json.loads(sys.argv[2]))))


FUNCTIONS = {
    function.__name__: function
    for function in (
        bare_vllm,
        ray_data_llm,
        bare_torch,
        hf_trainer,
        reference_whole,
        reference_initial,
        reference_corrections,
        reference_evaluation,
    )
}

if __name__ == "__main__":
    called(FUNCTIONS)

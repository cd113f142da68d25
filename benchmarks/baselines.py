"""What stasc_ray is measured against, each written as plainly as its library allows; speed.py runs them in
processes of their own.

Every function takes one dictionary of plain values and returns one. Times are of the work alone, models and
engines being warm, unless the name says otherwise (`*_whole`).
"""

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
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text
from stasc_ray.runtime import model_folder
from stasc_ray.tasks import chat, prompts

Work = dict[str, Any]
"""What the functions take: the run's config as JSON, paths, threads; plain values, since processes get it."""
PATIENCE_S = 7200
"""For one measurement."""
WARM_UP = 64
"""Prompts that an engine answers before the clock starts."""


# --- generation
# --------------------------------------------------------------------------------------------------


def bare_vllm(work: Work) -> dict[str, float]:
    """One `vllm.LLM`, one `generate` for all initial answers, one for all corrections of the train questions.
    Only those two calls are timed.
    """
    bare, rows = Bare(work), read_questions(work)
    bare.warm_up(rows)
    bare.two_turns(rows, [bare.settings.algorithm.n_corrections] * len(rows))
    return {**bare.rate(), "start_s": bare.start_s}


def bare_pass(work: Work) -> dict[str, float]:
    """What an iteration asks of its new model, in two calls of one `vllm.LLM`: corrections of dev and test
    questions, one each (`rest_tokens_per_s`); then those and the train questions together (`tokens_per_s`).
    """
    bare, train, rest = Bare(work), read_questions(work), read_questions(work, "dev", "test")
    bare.warm_up(train)
    bare.two_turns(rest, [1] * len(rest))
    of_rest = bare.rate()
    bare.llm.reset_prefix_cache()
    bare.tokens, bare.seconds = 0, 0.0
    bare.two_turns([*train, *rest], [bare.settings.algorithm.n_corrections] * len(train) + [1] * len(rest))
    return {"rest_tokens_per_s": of_rest["tokens_per_s"], **bare.rate()}


def ray_data_llm(work: Work) -> dict[str, float]:
    """`ray.data.llm`, as its documentation shows it: one row per sample, a processor per turn, one after the
    other.

    Its engines start within the pipelines, and that is left out: a turn lasts from when its engine begins the
    first row until the last row is back.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    settings = read_config(work)
    sampling, n_corrections = settings.sampling, settings.algorithm.n_corrections
    engine = {
        "max_model_len": settings.engine.max_model_len_tokens,
        "max_num_seqs": settings.engine.max_num_seqs,
        "max_num_batched_tokens": settings.engine.max_num_batched_tokens,
        "kv_cache_memory_bytes": int(settings.engine.kv_cache_gb * 2**30),
        "dtype": "float32",
        "enforce_eager": True,
        "enable_chunked_prefill": False,
    }

    environment = {**vllm_environment(on_cuda=False), "OMP_NUM_THREADS": str(work["threads"])}

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
        answers = second(initial.flat_map(lambda row: [row] * n_corrections)).take_all()
        whole_s = time.perf_counter() - started
    tokens = sum(row["tokens"] + row["initial_tokens"] / n_corrections for row in answers)
    seconds = sum(
        max(row[f"{turn}_ended"] for row in answers) - min(row[turn] for row in answers)
        for turn in ("first", "second")
    )
    return {"tokens": tokens, "seconds": seconds, "whole_s": whole_s, "tokens_per_s": tokens / seconds}


KEPT = ("id", "question", "documents", "choices", "initial", "initial_tokens", "first", "first_ended")


# --- fine-tuning
# -------------------------------------------------------------------------------------------------


def bare_torch(work: Work) -> dict[str, float]:
    """A loop over tensors of several examples each, made before the clock starts."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(work["threads"])
    finetune = read_config(work).finetune
    model: Any = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=finetune.learning_rate)
    encoded, size = read_encoded(work), finetune.batch_size
    batches = [encoded[at : at + size] for at in range(0, len(encoded), size)]
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


def hf_trainer(work: Work) -> dict[str, float]:
    """Hugging Face `Trainer` with batches padded to their longest example, in `micro_batches` parts a step."""
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    torch.set_num_threads(work["threads"])
    finetune = read_config(work).finetune
    model: Any = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32)
    encoded = [{name: one[name].tolist() for name in ("input_ids", "labels")} for one in read_encoded(work)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=work.get("output", folder),
            per_device_train_batch_size=finetune.batch_size // work["micro_batches"],
            gradient_accumulation_steps=work["micro_batches"],
            num_train_epochs=finetune.epochs,
            learning_rate=finetune.learning_rate,
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


# --- what they share
# ---------------------------------------------------------------------------------------------


def vllm_environment(on_cuda: bool) -> dict[str, str]:
    """What vLLM reads when it is imported, on the other sides of the tables: as in stasc_ray's engines.

    But OpenMP's threads keep spinning here, other than there: alone on a machine that is the faster.
    """
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if on_cuda else "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # vLLM's own sampler, as on our side: FlashInfer's needs nvcc, and two samplers would be compared.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }


class Bare:
    """A plain `vllm.LLM` with the values that stasc_ray gives its own engine, and what it has generated."""

    def __init__(self, work: Work, model: str | None = None) -> None:
        model = model or str(work["model"])
        self.settings, threads = read_config(work), work["threads"]
        os.environ |= vllm_environment(work["on_cuda"])
        import torch
        from vllm import LLM

        torch.set_num_threads(threads)
        engine = self.settings.engine
        tokenizer = model_folder.load_tokenizer(model)
        self.chat, self.tokenizer = chat.Chat.of(tokenizer, self.settings), tokenizer
        self.stop_token_ids = model_folder.stop_token_ids(model, tokenizer)
        self.tokens, self.seconds = 0, 0.0
        """Generated, and the time within `generate`."""
        on_cuda = bool(work["on_cuda"])
        started = time.perf_counter()
        self.llm = LLM(
            model=model,
            skip_tokenizer_init=True,
            dtype=engine.dtype if engine.dtype != "auto" else "bfloat16" if on_cuda else "float32",
            max_model_len=engine.max_model_len_tokens,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=max(engine.max_num_batched_tokens, engine.max_model_len_tokens),
            enable_prefix_caching=True,
            enable_chunked_prefill=on_cuda,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            kv_cache_memory_bytes=None if on_cuda else int(engine.kv_cache_gb * 2**30),
            enforce_eager=engine.enforce_eager or not on_cuda,
            disable_log_stats=True,
        )
        self.start_s = time.perf_counter() - started
        """Of the engine, its imports not counted."""

    def warm_up(self, rows: Sequence[dict[str, Any]]) -> None:
        """Some initial answers that do not count."""
        self.answers(rows[:WARM_UP])
        self.tokens, self.seconds = 0, 0.0

    def two_turns(self, rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> list[list[Text]]:
        """Of each question an initial answer and so many corrections: two calls in all."""
        answers = self.answers(rows)
        found = self.corrections(rows, answers, counts)
        return [[answer, *texts] for answer, texts in zip(answers, found, strict=True)]

    def answers(self, rows: Sequence[dict[str, Any]]) -> list[Text]:
        """One initial answer for each question."""
        asked = [prompts.initial_messages(row, self.settings.prompts) for row in rows]
        found = self._generate(ANSWER, asked, self.settings.sampling.initial, [1] * len(rows))
        return [texts[0] for texts in found]

    def corrections(
        self, rows: Sequence[dict[str, Any]], answers: Sequence[Text], counts: Sequence[int]
    ) -> list[list[Text]]:
        """So many corrections of each answer."""
        asked = [
            prompts.correction_messages(row, answer.said, self.settings.prompts)
            for row, answer in zip(rows, answers, strict=True)
        ]
        found = self._generate(CORRECTION, asked, self.settings.sampling.correction, counts)
        for answer, texts in zip(answers, found, strict=True):
            for text in texts:
                text.parent = answer
        return found

    def rate(self) -> dict[str, float]:
        """tokens, seconds, tokens_per_s."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / self.seconds,
        }

    def _generate(
        self, turn: str, asked: Sequence[list[chat.Message]], values: config.Sampling, counts: Sequence[int]
    ) -> list[list[Text]]:
        from vllm import SamplingParams

        rendered: Any = [
            {"prompt_token_ids": self.chat.render(messages, add_generation_prompt=True)} for messages in asked
        ]
        parameters = {
            n: SamplingParams(
                n=n,
                temperature=values.temperature,
                top_p=values.top_p,
                top_k=values.top_k,
                min_p=values.min_p,
                repetition_penalty=values.repetition_penalty,
                max_tokens=values.max_tokens,
                detokenize=False,
                stop_token_ids=self.stop_token_ids,
            )
            for n in set(counts)
        }
        started = time.perf_counter()
        outputs = self.llm.generate(rendered, [parameters[n] for n in counts], use_tqdm=False)
        self.seconds += time.perf_counter() - started
        self.tokens += sum(len(one.token_ids) for output in outputs for one in output.outputs)
        return [
            [self._text(turn, number, one) for number, one in enumerate(output.outputs)] for output in outputs
        ]

    def _text(self, turn: str, sample: int, one: Any) -> Text:
        ids = list(one.token_ids)
        said = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return Text(turn, said, sample, token_ids=ids, finish_reason=one.finish_reason or "stop")


def read_config(work: Work) -> config.Config:
    """The run's config."""
    return config.validate(json.loads(work["config"]), section_of)


def read_questions(work: Work, *splits: str) -> list[dict[str, Any]]:
    """The questions of these splits, by default train."""
    return [row for split in splits or ("train",) for row in pq.read_table(work[split]).to_pylist()]


def read_encoded(work: Work) -> list[Any]:
    """The training examples, encoded."""
    settings = read_config(work)
    renders = chat.Chat.of(model_folder.load_tokenizer(work["model"]), settings)
    lines = Path(work["examples"]).read_text().splitlines()
    most = settings.finetune.max_length_tokens
    found = (encoding.encode(renders, json.loads(line)["messages"], most) for line in lines)
    return [sequence for sequences in found if not isinstance(sequences, str) for sequence in sequences]


def in_process(
    name: str, work: Work, module: str = "benchmarks.baselines", timeout_s: float = PATIENCE_S
) -> dict[str, float]:
    """Call a function of a module in a separate process; returns what it returned.

    Raises:
        RuntimeError: it failed; with the ends of what it has written (vLLM's own processes log to stdout).
        subprocess.TimeoutExpired: it took longer than `timeout_s`.
    """
    command = [sys.executable, "-m", module, name, json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{said}")
    return json.loads(done.stdout.splitlines()[-1])


def called(functions: Mapping[str, Callable[[dict[str, Any]], dict[str, float]]]) -> None:
    """The other side of `in_process`."""
    print("\n" + json.dumps(functions[sys.argv[1]](json.loads(sys.argv[2]))))


FUNCTIONS = {
    function.__name__: function for function in (bare_vllm, bare_pass, ray_data_llm, bare_torch, hf_trainer)
}

if __name__ == "__main__":
    called(FUNCTIONS)

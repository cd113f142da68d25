"""stasc_ray.learning.finetune and its rooms: the loss curve, the export, and what a fine-tune survives."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from harness.chat_templates import tokenizer_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from stasc_ray import config
from stasc_ray.learning import (
    batches,
    checkpoints,
    encoding,
    export,
    finetune,
    placing,
    steps,
    train_loop,
)
from stasc_ray.learning.job import FinetuneJob
from stasc_ray.recipes import section_of
from stasc_ray.store import step_log
from stasc_ray.tasks import sandbox
from stasc_ray.tasks.chat import Chat

CPU = torch.device("cpu")


def make_model(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = False) -> str:
    """A random Qwen2 with head size 32 and the ChatML test tokenizer."""
    tokenizer: Any = tokenizer_of("chatml")
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_examples(n: int) -> list[dict[str, Any]]:
    """Additions whose correction is now and then longer, so that examples differ in length."""
    roles = ("user", "assistant", "user", "assistant")
    texts = [
        (
            f"What is {a} + {a * 7}?",
            f"It is {a}.",
            "Correct it if it is wrong.",
            f"{a} + {a * 7} = {a * 8}." * (1 + a % 3),
        )
        for a in range(n)
    ]
    return [
        {"id": f"q{i}", "messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]}
        for i, turns in enumerate(texts)
    ]


def encode(rows: list[dict[str, Any]], max_length_tokens: int = 512) -> batches.Examples:
    encoded = [
        sequence
        for row in rows
        for sequence in finetune._encode(Chat(tokenizer_of("chatml")), row, max_length_tokens)
    ]
    return batches.collect([pa.Table.from_pylist(encoded[:3]), pa.Table.from_pylist(encoded[3:])])


def make_config(**values: Any) -> config.Config:
    quick = {"learning_rate": 3e-3, "batch_size": 4, "max_length_tokens": 512, "checkpoint_every_s": 600}
    return config.validate({"finetune": {**quick, **values}}, section_of)


def make_job(base: str, tmp_path: Path, **values: Any) -> FinetuneJob:
    return FinetuneJob.of(
        make_config(**values),
        base,
        output=tmp_path / "model",
        storage=tmp_path / "state",
        iteration=1,
        on_cuda=False,
        examples=10,
        model_card={"dev r(Y2)": 0.5},
    )


def train_here(job: FinetuneJob, examples: batches.Examples) -> tuple[list[float], torch.nn.Module]:
    """The loop of one worker without Ray: losses and the trained model. With `job.on_cuda` examples are packed
    as there.
    """
    values = job.finetune
    plan = batches.schedule(examples, values, "0/1")
    model, layers = placing.load_model(job)
    passes = train_loop.choose_passes(model, layers, job, examples, plan[0], CPU)
    model: Any = placing.place(model, layers, job, CPU, world=1)
    optimizer = steps.make_optimizer(model, values)
    forward = steps.make_forward(model, job, CPU, world=1)
    losses = []
    for batch in plan:
        shares = batches.deal(batch, examples.lengths, 1, passes.capacity, stacked=passes.stacked)
        summed, _ = steps.backward(forward, examples, shares, 0, CPU, stacked=passes.stacked).tolist()
        losses.append(summed / examples.trained[batch].sum())
        steps.update(model, optimizer, values.learning_rate, values.max_grad_norm)
    return losses, model.eval()


def as_on_cuda(job: FinetuneJob) -> FinetuneJob:
    """Pack examples, as a job on CUDA does; computed in float32 on whatever device there is."""
    return replace(job, on_cuda=True)


def logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float()


# --- which examples a step trains on
# ------------------------------------------------------------------------------


def scheduled(examples: batches.Examples, seed: str = "0/1", **values: Any) -> list[list[str]]:
    """Ids of each step's examples."""
    plan = batches.schedule(examples, make_config(**values).finetune, seed)
    return [[examples.ids[index] for index in batch] for batch in plan]


def test_every_epoch_trains_on_every_example_once_whatever_the_order_of_the_rows():
    rows = make_examples(10)
    steps, again = (scheduled(encode(given), epochs=2) for given in (rows, rows[::-1]))
    assert [len(step) for step in steps] == [4, 4, 2] * 2
    for epoch in (steps[:3], steps[3:]):
        assert sorted(id for step in epoch for id in step) == sorted(row["id"] for row in rows)
    assert steps[:3] != steps[3:]
    assert steps == again
    assert steps != scheduled(encode(rows), seed="0/2", epochs=2)


@pytest.mark.parametrize("budget", [1, 30, 100, 101, 1000, 5000])
def test_a_budget_of_tokens_is_met_by_the_last_example(budget: int):
    """Some examples are left out, or all come again, until the trained tokens are there."""
    rows = make_examples(10)
    examples = encode(rows)
    plan = batches.schedule(examples, make_config(trained_tokens=budget, epochs=3).finetune, "0/1")
    order = np.concatenate(plan)
    tokens = examples.trained[order]
    assert tokens.sum() >= budget > tokens[:-1].sum()
    assert [len(batch) for batch in plan[:-1]] == [4] * (len(plan) - 1) and 1 <= len(plan[-1]) <= 4
    for first in range(0, len(order) - 10, 10):  # each pass has all of them, in another order
        assert sorted(order[first : first + 10]) == list(range(10))
    if len(order) >= 20:
        assert order[:10].tolist() != order[10:20].tolist()
    again = scheduled(encode(rows[::-1]), trained_tokens=budget)
    assert again == [[examples.ids[index] for index in batch] for batch in plan]


def test_a_budget_begins_as_the_epochs_do():
    """So that two runs that compare methods at equal cost differ in nothing else."""
    examples = encode(make_examples(10))
    assert scheduled(examples, trained_tokens=10**4)[:2] == scheduled(examples)[:2]


@pytest.mark.parametrize("values", [{"epochs": 2}, {"trained_tokens": 300}])
@pytest.mark.parametrize("start", range(4))
def test_a_resumed_plan_is_the_end_of_the_whole_one(start: int, values: dict[str, int]):
    """A resumed loop takes the steps of the same schedule that its checkpoint has not seen
    (train_loop._train)."""
    rows = make_examples(10)
    whole, resumed = (scheduled(encode(given), **values) for given in (rows, rows[5:] + rows[:5]))
    assert len(whole) > start and resumed[start:] == whole[start:]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("capacity", [0, 512])
@pytest.mark.parametrize("stacked", [False, True])
def test_each_example_of_a_batch_goes_to_one_worker(workers: int, capacity: int, stacked: bool):
    examples = encode(make_examples(10))
    shares = batches.deal(np.array([7, 2, 5, 1]), examples.lengths, workers, capacity, stacked=stacked)
    assert len(shares) == workers
    assert sorted(index for share in shares for group in share for index in group) == [1, 2, 5, 7]
    assert all(examples.lengths[group].sum() <= 512 for share in shares for group in share)
    assert all(len(group) == 1 for share in shares for group in share) or capacity


def test_rows_that_were_left_out_are_not_trained_on():
    rows = make_examples(5)
    rows[1]["messages"][-1]["content"] = " "
    examples = encode(rows)
    assert list(examples.ids) == ["q0", "q2", "q3", "q4"]
    found = examples.read(1)
    assert len(found["input_ids"]) == examples.lengths[1]
    assert (found["labels"] != encoding.IGNORED).sum() == examples.trained[1]


def test_a_conversation_of_several_sequences_keeps_their_ids_apart():
    """Two trained turns of which the first is not canonical; of a person's own messages the last one is
    trained."""
    tokenizer: Any = tokenizer_of("chatml")
    ids = [tokenizer.encode(letter)[0] for letter in "Rhine"] + [tokenizer.eos_token_id]
    first = {"role": "assistant", "pieces": [{"text": "Rhine", "token_ids": ids, "train": True}]}
    asked = [{"role": "user", "content": "Which river?"}]
    second = {"role": "assistant", "content": "Danube", "train": True}
    found = finetune._encode(
        Chat(tokenizer), {"id": "q1/0", "messages": [*asked, first, *asked, second]}, 512
    )
    assert [row["id"] for row in found] == ["q1/0", "q1/0#1"]
    assert [row["trained_tokens"] for row in found] == [6, len(tokenizer.encode("Danube")) + 1]
    plain = [
        *asked,
        {"role": "assistant", "content": "Rhine"},
        *asked,
        {"role": "assistant", "content": "Danube"},
    ]
    (row,) = finetune._encode(Chat(tokenizer), {"id": "mine", "messages": plain}, 512)
    assert row["trained_tokens"] == found[1]["trained_tokens"]


def test_the_learning_rate_rises_falls_and_never_starts_at_zero():
    values = make_config(warmup_fraction=0.1).finetune
    factors = [steps.learning_rate_factor(step, 40, values) for step in range(40)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:] == sorted(factors[4:], reverse=True) and 0 < factors[-1] < 0.01
    linear = steps.learning_rate_factor(22, 40, values.model_copy(update={"schedule": "linear"}))
    assert linear == pytest.approx(0.5)
    assert steps.learning_rate_factor(0, 1, values.model_copy(update={"warmup_fraction": 0.0})) == 1.0


# --- training and export without Ray
# ------------------------------------------------------------------------------


def test_packing_and_gradient_checkpointing_leave_the_loss_curve_as_it_is(tmp_path: Path):
    base, examples = make_model(tmp_path / "base"), encode(make_examples(10))
    stacked, _ = train_here(make_job(base, tmp_path, epochs=2), examples)
    packed, _ = train_here(as_on_cuda(make_job(base, tmp_path, epochs=2)), examples)
    single, _ = train_here(make_job(base, tmp_path, epochs=2, packing=False), examples)
    recomputed, _ = train_here(
        as_on_cuda(make_job(base, tmp_path, epochs=2, gradient_checkpointing=True)), examples
    )
    assert packed == pytest.approx(single, abs=1e-4)
    assert stacked == pytest.approx(single, abs=1e-4)
    assert packed == pytest.approx(recomputed, abs=1e-5)
    assert packed[-1] < packed[0]


def test_the_first_loss_is_the_mean_over_all_trained_tokens_of_the_batch(tmp_path: Path):
    base, examples = make_model(tmp_path / "base"), encode(make_examples(4))
    losses, _ = train_here(make_job(base, tmp_path), examples)
    model = AutoModelForCausalLM.from_pretrained(base)
    total = 0.0
    for index in range(4):
        row = examples.read(index)
        labels = torch.tensor(row["labels"][1:].astype(np.int64))
        total += float(
            torch.nn.functional.cross_entropy(
                logits(model, row["input_ids"].tolist())[:-1], labels, reduction="sum"
            )
        )
    assert losses[0] == pytest.approx(total / examples.trained.sum(), abs=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_full_export_reloads_as_trained(tmp_path: Path, tied: bool):
    base, examples = make_model(tmp_path / "base", tied=tied), encode(make_examples(8))
    job = make_job(base, tmp_path)
    _, model = train_here(job, examples)
    export.export(checkpoints.gather(model), job, [examples.read(0), examples.read(1)], CPU)
    folder = tmp_path / "model"
    reloaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = examples.read(0)["input_ids"].tolist()
    assert torch.allclose(logits(reloaded, ids), logits(model, ids), atol=1e-5)
    assert not torch.allclose(
        logits(reloaded, ids), logits(AutoModelForCausalLM.from_pretrained(base), ids), atol=1e-2
    )
    shared = reloaded.lm_head.weight.data_ptr() == reloaded.model.embed_tokens.weight.data_ptr()
    assert shared == tied == reloaded.config.tie_word_embeddings
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (folder, base))
    assert ours.chat_template == theirs.chat_template
    assert ours.encode("What is 12 + 345?\n<|im_end|>") == theirs.encode("What is 12 + 345?\n<|im_end|>")
    assert (folder / "generation_config.json").is_file()
    assert "| dev r(Y2) | 0.5 |" in (folder / "README.md").read_text()
    saved = json.loads((folder / "canary.json").read_text())["prompts"][1]
    k = saved["n_prompt"]
    expected = logits(reloaded, saved["token_ids"]).log_softmax(-1)[
        range(k - 1, len(saved["token_ids"]) - 1), saved["token_ids"][k:]
    ]
    assert saved["logprobs"] == pytest.approx(expected.tolist(), abs=1e-5)
    labels = examples.read(1)["labels"]
    trained = int(np.flatnonzero(labels != encoding.IGNORED)[0])
    assert k == max(1, trained - export.CANARY_TOKENS) < trained, "the question's end is part of it"
    assert len(saved["token_ids"]) == min(trained + export.CANARY_TOKENS, len(labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["tied", "untied", "sandbox"])
def test_the_saved_folder_is_what_the_whole_model_would_save(tmp_path: Path, which: str, dtype: torch.dtype):
    """Names and types of the tensors, their bits, and the configs: as by loading the base model, putting the
    trained weights in, and saving that.
    """
    base = str(tmp_path / "base")
    if which == "sandbox":
        model = AutoModelForCausalLM.from_pretrained(sandbox.model_path(), dtype=dtype)
        model.save_pretrained(base)
        AutoTokenizer.from_pretrained(sandbox.model_path()).save_pretrained(base)
    else:
        make_model(tmp_path / "base", dtype, tied=which == "tied")
    job = make_job(base, tmp_path)
    trained, _ = placing.load_model(job)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    right: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    right.load_state_dict(trained.state_dict())
    right.tie_weights()
    right.to(dtype).save_pretrained(tmp_path / "right")
    export.export(checkpoints.gather(trained, dtype), job, [], CPU)
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "model" / name).read_text() == (tmp_path / "right" / name).read_text()
    ours, theirs = (load_file(tmp_path / at / "model.safetensors") for at in ("model", "right"))
    assert ours.keys() == theirs.keys() and ("lm_head.weight" in ours) == (which != "tied")
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_a_head_that_has_parted_from_the_embeddings_is_saved(tmp_path: Path):
    """Whatever the config says about them."""
    base, examples = make_model(tmp_path / "base", tied=True), encode(make_examples(4))
    job = make_job(base, tmp_path)
    state = checkpoints.gather(placing.load_model(job)[0])
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    export.export(state, job, [examples.read(0)], CPU)
    assert "lm_head.weight" in load_file(tmp_path / "model" / "model.safetensors")


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_weights_that_are_not_the_base_models_are_refused(tmp_path: Path, change: str):
    job = make_job(make_model(tmp_path / "base"), tmp_path)
    state = checkpoints.gather(placing.load_model(job)[0])
    state["unknown"] = state.pop("model.norm.weight") if change == "missing" else torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"export: expected the trained weights .* found \['"):
        export.export(state, job, [], CPU)


def test_export_keeps_the_base_models_type(tmp_path: Path):
    base, examples = make_model(tmp_path / "base", dtype=torch.bfloat16), encode(make_examples(4))
    job = make_job(base, tmp_path)
    _, model = train_here(job, examples)
    assert next(model.parameters()).dtype == torch.float32
    export.export(checkpoints.gather(model), job, [examples.read(0)], CPU)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_lora_export_equals_the_adapter_and_can_be_continued(tmp_path: Path):
    base, examples = make_model(tmp_path / "base"), encode(make_examples(12))
    job = make_job(base, tmp_path, method="lora", learning_rate=1e-2)
    losses, model = train_here(job, examples)
    assert losses[-1] < losses[0]
    export.export(checkpoints.gather(model), job, [examples.read(0)], CPU)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = examples.read(0)["input_ids"].tolist()
    assert torch.allclose(logits(merged, ids), logits(model, ids), atol=1e-4)
    assert not torch.allclose(
        logits(merged, ids), logits(AutoModelForCausalLM.from_pretrained(base), ids), atol=1e-2
    )
    adapter = tmp_path / "model" / "adapter"
    assert (adapter / "adapter_model.safetensors").is_file()
    continued, _ = placing.load_model(replace(job, adapter=adapter))
    assert torch.allclose(logits(continued.eval(), ids), logits(model, ids), atol=1e-5)
    trained = {name for name, parameter in continued.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)


# --- with Ray
# -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import ray
    from ray.data import DataContext

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        )
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("base") / "model", tied=True)


def run(ray: Any, base: str, folder: Path, rows: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    job = FinetuneJob.of(
        make_config(**values),
        base,
        output=folder / "model",
        storage=folder / "state",
        iteration=1,
        on_cuda=False,
    )
    return finetune.finetune(ray.data.from_items(rows), job)


@pytest.fixture(scope="module")
def one_worker(
    cluster: Any, base: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("one")
    return run(cluster, base, folder, make_examples(30)), folder


@pytest.mark.slow
def test_one_worker_learns_and_reports(one_worker: tuple[dict[str, Any], Path], base: str):
    found, folder = one_worker
    assert found["steps"] == len(found["losses"]) == 8
    assert found["loss_last"] == found["losses"][-1] < found["loss_first"] == found["losses"][0]
    assert found["left_out_no_target"] == found["left_out_too_long"] == 0
    assert (
        found["trained_tokens"] > 0
        and found["tokens_per_s"] > 0
        and found["duration_s"] > found["train_s"] > 0
    )
    assert json.loads((folder / "state" / "progress.json").read_text())["step"] == 8
    lines = step_log.read(folder / "model" / "training.jsonl")
    assert lines == step_log.read(folder / "state" / "training.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["loss"] for line in lines] == found["losses"]
    assert all(line["grad_norm"] > 0 and line["tokens_per_s"] > 0 and line["mfu"] is None for line in lines)
    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.tie_word_embeddings
    # Ray Train puts a handler of its own in place; what was there before is back (a background shell ignores
    # SIGINT).
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)


@pytest.mark.slow
def test_two_workers_give_the_same_curve(
    cluster: Any, base: str, one_worker: tuple[dict[str, Any], Path], tmp_path: Path
):
    found = run(cluster, base, tmp_path, make_examples(30), workers=[1, 4])  # elastic: there is room for two
    assert found["workers"] == 2
    assert found["losses"] == pytest.approx(one_worker[0]["losses"], abs=1e-4)
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder / "model") for folder in (tmp_path, one_worker[1])
    )
    ids = tokenizer_of("chatml").encode("What is 3 + 4?")
    assert torch.allclose(logits(ours, ids), logits(theirs, ids), atol=1e-2)


@pytest.mark.slow
def test_a_killed_worker_resumes_to_the_same_curve(
    cluster: Any, base: str, one_worker: tuple[dict[str, Any], Path], tmp_path: Path
):
    killed = threading.Event()

    def kill_after_first_checkpoint() -> None:
        deadline = time.time() + 300
        while not (tmp_path / "state" / "iteration_01" / "checkpoint_manager_snapshot.json").exists():
            if time.time() > deadline:
                return
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if any("RayTrainWorker" in word for word in process.cmdline()):
                process.kill()
                killed.set()

    threading.Thread(target=kill_after_first_checkpoint, daemon=True).start()
    found = run(cluster, base, tmp_path, make_examples(30), checkpoint_every_s=0.001)
    assert killed.is_set() and found["resumed_from_step"] >= 1
    assert found["losses"] == pytest.approx(one_worker[0]["losses"], abs=1e-6)
    lines = (tmp_path / "model" / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9)), "no step twice"


@pytest.mark.slow
@pytest.mark.cluster  # `make test` covers this in test_run.py, with a killed driver
def test_a_second_call_continues_from_the_last_checkpoint(
    cluster: Any, base: str, one_worker: tuple[dict[str, Any], Path]
):
    again = run(cluster, base, one_worker[1], make_examples(30))
    assert again["resumed_from_step"] == 8
    assert again["losses"] == pytest.approx(one_worker[0]["losses"], abs=1e-6)
    with pytest.raises(
        ValueError, match="expected a fine-tune of 1 steps, its checkpoint belongs to one of 8"
    ):
        run(cluster, base, one_worker[1], make_examples(3))


@pytest.mark.slow
@pytest.mark.cluster
def test_an_export_that_fails_is_repeated_without_its_training(
    cluster: Any, base: str, one_worker: tuple[dict[str, Any], Path], tmp_path: Path
):
    (tmp_path / "model").write_text("in the way")
    with pytest.raises(RuntimeError, match="The same command continues from the last checkpoint"):
        run(cluster, base, tmp_path, make_examples(30), max_failures=0)
    (tmp_path / "model").unlink()
    found = run(cluster, base, tmp_path, make_examples(30), max_failures=0)
    assert found["resumed_from_step"] == found["steps"] == 8
    assert found["losses"] == pytest.approx(one_worker[0]["losses"], abs=1e-6)
    ids = tokenizer_of("chatml").encode("What is 3 + 4?")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(at / "model") for at in (tmp_path, one_worker[1]))
    assert torch.equal(logits(ours, ids), logits(theirs, ids))


@pytest.mark.slow
def test_what_cannot_be_trained_stops_with_its_reason(cluster: Any, base: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"all 5 are left out: 5 longer than finetune.max_length_tokens = 8"):
        run(cluster, base, tmp_path, make_examples(5), max_length_tokens=8)
    with pytest.raises(FloatingPointError, match="expected a finite loss"):
        run(
            cluster,
            base,
            tmp_path / "nan",
            make_examples(12),
            learning_rate=1e30,
            max_grad_norm=1e30,
            batch_size=2,
        )
    assert not (tmp_path / "nan" / "model").exists()

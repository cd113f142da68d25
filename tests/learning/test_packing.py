"""Examples in one sequence leave each other alone, or go side by side: measured on the packed forward itself."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from harness.chat_templates import tokenizer_of
from harness.tiny_models import APART, MIXED, TINY, TWO, example, logprobs, tiny

from stasc_ray import config
from stasc_ray.learning import batches, encoding, packing, placing, steps, train_loop
from stasc_ray.learning.job import FinetuneJob
from stasc_ray.recipes import section_of

CPU = torch.device("cpu")
# --- the packed forward of each architecture
# ----------------------------------------------------------------------


@pytest.mark.parametrize("name", APART)
def test_attention_keeps_packed_examples_apart(name: str) -> None:
    assert packing.leak(tiny(name), *TWO) <= 1e-4


@pytest.mark.parametrize("name", MIXED)
def test_state_that_runs_on_is_found_and_side_by_side_it_is_none(name: str) -> None:
    model = tiny(name)
    assert packing.leak(model, *TWO) > 10 * packing.TOLERANCE
    stacked: Any = encoding.stack(TWO)
    with torch.no_grad():
        together = model(torch.tensor(stacked["input_ids"]), use_cache=False).logits.log_softmax(-1)
    for place, row in enumerate(TWO):
        alone = logprobs(model, row)
        assert (together[place, : len(alone)] - alone).abs().max() < 1e-4


def test_the_second_example_is_the_one_that_changes_and_order_does_not_hide_it() -> None:
    model = tiny("Lfm2Config")
    assert packing.leak(model, TWO[1], TWO[0]) > packing.TOLERANCE
    assert packing.leak(model, TWO[0], TWO[0]) > packing.TOLERANCE, "also of twice the same"


def test_long_examples_are_cut_to_what_surrounds_their_first_trained_token() -> None:
    """So that memory does not depend on the examples' lengths."""
    seen: list[tuple[int, ...]] = []
    model = tiny("Lfm2Config")
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert packing.leak(model, example(1, 480, 300), example(2, 400, 390)) > packing.TOLERANCE
    assert seen == [(1, 64), (1, 26), (1, 90)]


def test_a_measured_model_is_left_as_it_was() -> None:
    model = tiny("LlamaConfig")
    model.config.attention_dropout = 0.5
    model.train()
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    found = packing.measure(model, {"LlamaDecoderLayer"}, TWO, CPU, pack=True, varlen=False, chunk=True)
    assert found.leak == pytest.approx(0, abs=1e-4) and found.chunked and found.varlen == ""
    assert model.training
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_only_one_layer_at_a_time_is_on_the_device() -> None:
    model = tiny("LlamaConfig")
    first, second = model.model.layers
    with packing._streamed(model, {"LlamaDecoderLayer"}, "meta"):
        assert model.lm_head.weight.is_meta and model.model.norm.weight.is_meta
        assert not first.mlp.up_proj.weight.is_meta
        second.register_forward_pre_hook(
            lambda *_: seen.append((first.mlp.up_proj.weight.is_meta, second.mlp.up_proj.weight.is_meta))
        )
        seen: list[tuple[bool, bool]] = []
        hidden = torch.zeros(1, 4, TINY["hidden_size"], device="meta")
        angles = (torch.zeros(1, 4, 16, device="meta"),) * 2
        for layer in (first, second):
            hidden = layer(hidden, position_embeddings=angles, attention_mask=None)
    assert hidden.is_meta and seen == [(False, True)]
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_a_model_that_knows_no_positions_or_gives_no_numbers_is_not_packed() -> None:
    class Recurrent(torch.nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            raise AssertionError("not even tried")

    assert packing.leak(Recurrent(), *TWO) == math.inf
    model = tiny("LlamaConfig")
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    assert packing.leak(model, *TWO) == math.inf
    assert packing.leak(tiny("LlamaConfig"), TWO[0], example(3, 9, 9)) < 1e-4, "one has nothing to compare"


def test_the_choice_follows_from_device_config_and_what_was_measured() -> None:
    values, single = (
        config.validate(
            {"finetune": {"packing": on, "max_length_tokens": 700, "pack_tokens": 4096}}, section_of
        ).finetune
        for on in (True, False)
    )
    untold, leaking = packing.Measured(), packing.Measured(0.25)
    assert packing.passes(values, False, untold) == packing.Passes(packing.CPU_CAPACITY_TOKENS, stacked=True)
    assert packing.passes(values, True, untold) == packing.Passes(700, stacked=False)
    assert packing.passes(values, True, packing.Measured(1e-3)) == packing.Passes(700, stacked=False)
    for found, words in ((leaking, "differ by 0.25 from"), (packing.Measured(math.inf), "can't be compared")):
        chosen = packing.passes(values, True, found)
        assert chosen.stacked and chosen.capacity == 700 and not chosen.packed and words in chosen.note
    assert (
        packing.passes(single, True, untold).capacity == packing.passes(single, False, untold).capacity == 0
    )
    varlen = packing.passes(values, True, packing.Measured(0.0, varlen=None))
    assert varlen == packing.Passes(4096, stacked=False, varlen=True), (
        "pays for no attention between examples"
    )
    longer = values.model_copy(update={"max_length_tokens": 5000})
    assert packing.passes(longer, True, packing.Measured(0.0, varlen=None)).capacity == 5000
    refused = packing.passes(values, True, packing.Measured(0.0, varlen="head size 512"))
    assert refused.capacity == 700 and not refused.varlen and "head size 512" in refused.note
    assert packing.passes(values, True, packing.Measured(chunked=True)).chunk_logits
    model = tiny("LlamaConfig")
    alone = packing.measure(model, set(), TWO[:1], CPU, pack=True, varlen=True, chunk=False)
    assert alone == packing.Measured(), "one example alone tells nothing"


# --- in the train loop
# ----------------------------------------------------------------------------------------------


def make_job(name: str, tmp_path: Path, **values: Any) -> FinetuneJob:
    """Of a tiny model in a folder, on CPU but joined as on CUDA."""
    folder, tokenizer = tmp_path / name, tokenizer_of("chatml")
    assert len(tokenizer) <= TINY["vocab_size"]
    tiny(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    quick = {"learning_rate": 3e-3, "batch_size": 4, "max_length_tokens": 256}
    settings = config.validate({"finetune": {**quick, **values}}, section_of)
    job = FinetuneJob.of(
        settings, str(folder), output=tmp_path / "out", storage=tmp_path, iteration=1, on_cuda=False
    )
    return replace(job, on_cuda=True)


def some_examples() -> batches.Examples:
    rows = [encoding.as_row(f"q{seed}", [example(seed, 24 + seed, 12 + seed)]) for seed in range(8)]
    return batches.collect([pa.Table.from_pylist(rows)])


def train(job: FinetuneJob, passes: packing.Passes | None = None) -> tuple[list[float], packing.Passes]:
    """Losses of the loop of one worker, and how examples were joined (chosen, or as given)."""
    examples = some_examples()
    plan = batches.schedule(examples, job.finetune, "0/1")
    model, layers = placing.load_model(job)
    chosen = passes or train_loop.choose_passes(model, layers, job, examples, plan[0], CPU)
    placed = placing.place(model, layers, job, CPU, world=1)
    optimizer = steps.make_optimizer(placed, job.finetune)
    forward = steps.make_forward(placed, job, CPU, world=1, passes=chosen)
    losses = []
    for batch in plan:
        shares = batches.deal(batch, examples.lengths, 1, chosen.capacity, stacked=chosen.stacked)
        summed, _ = steps.backward(forward, examples, shares, 0, CPU, stacked=chosen.stacked).tolist()
        losses.append(summed / examples.trained[batch].sum())
        steps.update(placed, optimizer, job.finetune.learning_rate, 1.0)
    return losses, chosen


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_hybrid_model_trains_as_if_each_example_went_alone(method: str, tmp_path: Path) -> None:
    job = make_job("Lfm2Config", tmp_path, method=method, gradient_checkpointing=True, epochs=2)
    found, passes = train(job)
    assert passes.stacked and passes.note.startswith("examples go side by side")
    alone, one_each = train(replace(job, finetune=job.finetune.model_copy(update={"packing": False})))
    assert one_each.capacity == 0 and not one_each.note
    assert found == pytest.approx(alone, abs=1e-4)
    packed, _ = train(job, packing.Passes(256, stacked=False))
    assert max(abs(a - b) for a, b in zip(packed, alone, strict=True)) > 1e-3, "what the choice prevents"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_dense_model_is_packed(method: str, tmp_path: Path) -> None:
    job = make_job("LlamaConfig", tmp_path, method=method, gradient_checkpointing=True)
    found, passes = train(job)
    assert passes.packed and passes == packing.Passes(256, stacked=False)
    alone, _ = train(replace(job, finetune=job.finetune.model_copy(update={"packing": False})))
    assert found == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
def test_workers_that_share_a_model_learn_what_the_first_has_measured(tmp_path: Path) -> None:
    """Two processes with FSDP2 in bfloat16, of which only the first has read the model."""
    job = make_job("Lfm2Config", tmp_path, dtype="bfloat16", method="lora")
    torch.multiprocessing.spawn(_measure_and_shard, (tmp_path, job), nprocs=2)  # type: ignore[attr-defined]
    first, second = (torch.load(tmp_path / f"found{rank}", weights_only=False) for rank in (0, 1))
    assert first["passes"] == second["passes"] and "side by side" in first["passes"].note
    assert first["sums"] == second["sums"] and math.isfinite(first["sums"][0])
    assert first["sums"][1] == 1, "a flag that one worker raises reaches all"


def _measure_and_shard(rank: int, folder: Path, job: FinetuneJob) -> None:
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    whole, layers = placing.load_model(job, empty=rank > 0)
    assert all(one.is_meta for one in whole.parameters()) == (rank > 0)
    examples = some_examples()
    passes = train_loop.choose_passes(whole, layers, job, examples, np.arange(8), CPU, rank=rank, world=2)
    model, _ = placing.load_model(job, empty=True)
    placed = placing.place(model, layers, job, CPU, 2, None if rank else whole)
    forward = steps.make_forward(placed, job, CPU, world=2, passes=passes)
    shares = batches.deal(np.arange(8), examples.lengths, 2, passes.capacity, stacked=passes.stacked)
    sums = steps.backward(
        forward, examples, shares, rank, CPU, stacked=passes.stacked, flag=rank == 0
    ).tolist()
    torch.save({"passes": passes, "sums": sums}, folder / f"found{rank}")
    dist.barrier()
    os._exit(0)  # all is found; one that ended in order was once seen to abort (SIGABRT), in CI

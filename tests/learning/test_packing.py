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
import transformers
from harness.chat_templates import tokenizer_of

from stasc_ray import config
from stasc_ray.learning import batches, encoding, finetune, packing, placing, steps, train_loop
from stasc_ray.recipes import section_of

CPU = torch.device("cpu")
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # logits of scale 1.6
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {  # of gated delta nets
    "head_dim": 16,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
APART: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "Qwen2Config": {},
    "Qwen3Config": {"head_dim": 16},
    "Qwen3MoeConfig": {"head_dim": 16, **EXPERTS},
    "Phi3Config": {},
    "MistralConfig": {"sliding_window": 8},
    "Gemma2Config": {"head_dim": 16, "sliding_window": 8},
    "Gemma3TextConfig": {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "SmolLM3Config": {"num_hidden_layers": 4},
    "Olmo2Config": {},
    "GraniteConfig": {},
}
MIXED: dict[str, dict[str, Any]] = {
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "FalconH1Config": {"mamba_d_ssm": 64, "mamba_d_head": 16, **MAMBA},
    "GraniteMoeHybridConfig": {
        "layer_types": ["mamba", "attention"],
        "mamba_d_head": 32,
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
        **MAMBA,
    },
    "NemotronHConfig": {
        "hybrid_override_pattern": "M*M-",
        "num_hidden_layers": 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "n_groups": 1,
        "ssm_state_size": 16,
        "chunk_size": 16,
        "head_dim": 16,
    },
    "Qwen3NextConfig": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32},
    "Qwen3_5TextConfig": LINEAR,
    "BloomConfig": {"n_head": 4, "n_layer": 2},  # ALiBi counts from the start of the sequence
}


def tiny(name: str) -> Any:
    settings = getattr(transformers, name)(**(TINY | (APART | MIXED)[name]))
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(settings).eval()


def example(seed: int, length: int, prompt: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(3, TINY["vocab_size"], length).astype(np.int32)
    return {"input_ids": ids, "labels": np.where(np.arange(length) < prompt, encoding.IGNORED, ids)}


TWO = (example(1, 60, 20), example(2, 50, 12))


def logprobs(model: Any, row: dict[str, np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(row["input_ids"][None]).long(), use_cache=False).logits[0].log_softmax(-1)


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
    assert packing.measure(model, {"LlamaDecoderLayer"}, TWO, CPU, world=1) == pytest.approx(0, abs=1e-4)
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


def test_the_choice_follows_from_device_config_and_leak() -> None:
    values, single = (
        config.validate({"finetune": {"packing": on, "max_length_tokens": 700}}, section_of).finetune
        for on in (True, False)
    )
    assert packing.passes(values, False, None) == packing.Passes(packing.CPU_CAPACITY_TOKENS, stacked=True)
    assert packing.passes(values, True, None) == packing.Passes(700, stacked=False)
    assert packing.passes(values, True, 1e-3) == packing.Passes(700, stacked=False)
    for found, words in ((0.25, "differ by 0.25 from"), (math.inf, "can't be compared")):
        chosen = packing.passes(values, True, found)
        assert chosen.stacked and chosen.capacity == 700 and not chosen.packed and words in chosen.note
    assert packing.passes(single, True, None).capacity == packing.passes(single, False, None).capacity == 0
    assert packing.measure(None, set(), TWO[:1], CPU, world=1) is None


# --- in the train loop
# ----------------------------------------------------------------------------------------------


def make_job(name: str, tmp_path: Path, **values: Any) -> finetune.FinetuneJob:
    """Of a tiny model in a folder, on CPU but joined as on CUDA."""
    folder, tokenizer = tmp_path / name, tokenizer_of("chatml")
    assert len(tokenizer) <= TINY["vocab_size"]
    tiny(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    quick = {"learning_rate": 3e-3, "batch_size": 4, "max_length_tokens": 256}
    settings = config.validate({"finetune": {**quick, **values}}, section_of)
    job = finetune.FinetuneJob.of(
        settings, str(folder), output=tmp_path / "out", storage=tmp_path, iteration=1, on_cuda=False
    )
    return replace(job, on_cuda=True)


def some_examples() -> batches.Examples:
    rows = [
        {"id": f"q{seed}", "trained_tokens": 12, **example(seed, 24 + seed, 12 + seed)} for seed in range(8)
    ]
    return batches.collect([pa.Table.from_pylist(rows)])


def train(
    job: finetune.FinetuneJob, passes: packing.Passes | None = None
) -> tuple[list[float], packing.Passes]:
    """Losses of the loop of one worker, and how examples were joined (chosen, or as given)."""
    examples = some_examples()
    plan = batches.schedule(examples, job.finetune, "0/1")
    model, layers = placing.load_model(job)
    chosen = passes or train_loop.choose_passes(model, layers, job, examples, plan[0], CPU, world=1)
    placed = placing.place(model, layers, job, CPU, world=1)
    optimizer = steps.make_optimizer(placed, job.finetune)
    forward = steps.make_forward(placed, job, CPU, world=1)
    losses = []
    for batch in plan:
        shares = batches.deal(batch, examples.lengths, 1, chosen.capacity, stacked=chosen.stacked)
        losses.append(steps.backward(forward, examples, shares, 0, CPU, stacked=chosen.stacked))
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
def test_workers_that_share_a_model_agree_before_it_is_sharded(tmp_path: Path) -> None:
    """Two processes with FSDP2 in bfloat16: each measures other examples in float32; all take the worse."""
    job = make_job("Lfm2Config", tmp_path, dtype="bfloat16", method="lora")
    torch.multiprocessing.spawn(_measure_and_shard, (tmp_path, job), nprocs=2)  # type: ignore[attr-defined]
    found = [torch.load(tmp_path / f"found{rank}") for rank in (0, 1)]
    assert found[0]["agreed"] == found[1]["agreed"] == max(one["own"] for one in found)
    assert found[0]["own"] != found[1]["own"]
    assert found[0]["loss"] == found[1]["loss"] and math.isfinite(found[0]["loss"])


def _measure_and_shard(rank: int, folder: Path, job: finetune.FinetuneJob) -> None:
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    model, layers = placing.load_model(job)
    rows = TWO if rank == 0 else TWO[::-1]
    own = packing.measure(model, layers, rows, CPU, world=1)
    agreed = packing.measure(model, layers, rows, CPU, world=2)
    assert agreed is not None
    placed = placing.place(model, layers, job, CPU, world=2)
    forward = steps.make_forward(placed, job, CPU, world=2)
    examples, passes = some_examples(), packing.passes(job.finetune, True, agreed)
    shares = batches.deal(np.arange(8), examples.lengths, 2, passes.capacity, stacked=passes.stacked)
    loss = steps.backward(forward, examples, shares, rank, CPU, stacked=passes.stacked)
    torch.save({"own": own, "agreed": agreed, "loss": loss}, folder / f"found{rank}")
    dist.destroy_process_group()

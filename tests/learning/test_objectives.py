"""The loss in chunks is the loss, and so are its gradients; a weight multiplies the loss of its example."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from harness.tiny_models import TWO, example, tiny
from harness.traces import answered

from stasc_ray.learning import batches, encoding, objectives, packing, steps
from stasc_ray.recipes.recipe import advantages

CPU = torch.device("cpu")
VOCABULARY = 512


def gradients(model: Any, joined: Any, chunk_logits: int | None) -> tuple[float, list[torch.Tensor]]:
    tensors = {name: torch.as_tensor(np.atleast_2d(values)) for name, values in joined.items()}
    model.zero_grad()
    loss = objectives.sft(model, tensors, chunk_logits=chunk_logits)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("join", [encoding.concatenate, encoding.stack])
@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_chunks_change_neither_loss_nor_gradients(join: Any, positions: int) -> None:
    model, joined = tiny("LlamaConfig"), join([*TWO, example(5, 33, 11)])
    whole, expected = gradients(model, joined, None)
    seen: list[int] = []
    model.lm_head.register_forward_hook(
        lambda _, args, found: seen.append(found.shape[-2]) if found.shape[-1] == VOCABULARY else None
    )
    loss, found = gradients(model, joined, positions * VOCABULARY)
    assert loss == pytest.approx(whole, rel=1e-6)
    for ours, right in zip(found, expected, strict=True):
        assert torch.allclose(ours, right, rtol=1e-4, atol=1e-5 * right.abs().max())
    assert max(seen) <= positions and "forward" not in vars(model.lm_head)
    assert len(seen) == 1 if positions == 1000 else len(seen) > 20 // positions


@pytest.mark.parametrize("name", ["LlamaConfig", "Qwen2Config", "Gemma3TextConfig", "Olmo2Config"])
def test_models_whose_last_step_is_their_output_layer_may_be_chunked(name: str) -> None:
    assert packing.may_be_chunked(tiny(name), TWO[0], CPU)


def test_models_that_change_their_logits_are_not_chunked() -> None:
    model = tiny("Gemma2Config")  # has a soft cap; Granite's scale may stand before its output layer as well
    model.config.final_logit_softcapping = 1.0
    assert not packing.may_be_chunked(model, TWO[0], CPU)


def test_the_sandbox_never_computes_in_chunks() -> None:
    assert packing.CPU_CAPACITY_TOKENS * 8192 < objectives.CHUNK_LOGITS


@pytest.mark.parametrize("stacked", [False, True])
def test_a_weight_multiplies_the_loss_of_its_example_alone(stacked: bool) -> None:
    weights, model = [1.0, -0.5, 0.25], tiny("LlamaConfig")
    rows = [*TWO, example(5, 33, 11)]
    examples = batches.collect(
        [
            pa.Table.from_pylist(
                [encoding.as_row(str(n), [row], weight=weights[n]) for n, row in enumerate(rows)]
            )
        ]
    )

    def loss(group: list[int], compute: Any) -> float:
        joined = steps.join(examples, group, stacked=stacked)
        tensors = {name: torch.as_tensor(np.atleast_2d(values)) for name, values in joined.items()}
        with torch.no_grad():
            return compute(model, tensors).item()

    alone = [loss([n], objectives.sft) for n in range(3)]
    expected = sum(weight * one for weight, one in zip(weights, alone, strict=True))
    assert loss([0, 1, 2], objectives.weighted_sft) == pytest.approx(expected, rel=1e-5)
    assert loss([2, 1], objectives.weighted_sft) == pytest.approx(0.25 * alone[2] - 0.5 * alone[1], rel=1e-5)
    assert loss([0], objectives.weighted_sft) == pytest.approx(alone[0], rel=1e-6), "of weight 1"
    assert examples.counts.tolist() == examples.trained.tolist(), "the mean is over tokens"


def test_advantages_are_rewards_minus_their_mean() -> None:
    assert advantages(answered([1, 0, 0, 1])) == [0.5, -0.5, -0.5, 0.5]
    assert advantages(answered([1, 1])) == [0, 0] and advantages([]) == []

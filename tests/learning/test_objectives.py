"""The loss in chunks is the loss, and so are its gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from harness.tiny_models import TWO, example, tiny

from stasc_ray.learning import encoding, objectives, packing

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

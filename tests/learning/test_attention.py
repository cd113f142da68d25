"""stasc_ray.learning.attention: bounds instead of a mask, and a kernel that is compared before it is used.

The CUDA kernel does not run here: plain attention in bfloat16 stands in for it, right and wrong.
"""

from typing import Any

import pytest
import torch
from harness.tiny_models import APART, MIXED, TWO, logprobs, tiny

from stasc_ray.learning import attention, encoding, packing

CPU = torch.device("cpu")
DENSE = [name for name in APART if name != "Gemma2Config"]


def without_bounds(q: Any, k: Any, v: Any, bounds: attention.Bounds, *rest: Any) -> torch.Tensor:
    return attention.reference(q, k, v, attention.Bounds([len(q)], "cpu"), *rest)


def without_scale(q: Any, k: Any, v: Any, bounds: Any, scale: Any, window: int) -> torch.Tensor:
    return attention.reference(q, k, v, bounds, 0.5 * (scale or q.shape[-1] ** -0.5), window)


def without_window(q: Any, k: Any, v: Any, bounds: Any, scale: Any, window: int) -> torch.Tensor:
    return attention.reference(q, k, v, bounds, scale, -1)


def without_gradient(q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
    """Its result is right."""
    return attention.reference(q, k.detach() + 0 * k, v, *rest)


def test_bounds_come_from_positions_that_restart() -> None:
    bounds = attention.bounds_of(encoding.concatenate(TWO), CPU)
    assert (bounds.lengths, bounds.longest, bounds.ends.tolist()) == ([60, 50], 60, [0, 60, 110])
    assert bounds.ends.dtype == torch.int32


@pytest.mark.parametrize("window", [-1, 5])
def test_the_reference_attends_as_a_mask_would(window: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(30, heads, 16, generator=generator) for heads in (4, 2, 2))
    found = attention.reference(q, k, v, attention.Bounds([12, 18], CPU), 0.3, window)
    owner, place = torch.arange(30) >= 12, torch.arange(30)
    back = place[:, None] - place
    mask = (owner[:, None] == owner) & (back >= 0) & (back <= (window if window >= 0 else 30))
    heads = [tensor.transpose(0, 1)[None] for tensor in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    assert torch.allclose(found, expected[0].transpose(0, 1), atol=1e-6)


@pytest.mark.parametrize("name", DENSE)
def test_every_layer_is_compared_and_a_right_kernel_is_taken(name: str) -> None:
    model = tiny(name)
    assert packing.lack_of_varlen(model, *TWO, CPU, kernel=attention.reference) is None
    assert model.config._attn_implementation == "sdpa", "as it was"


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("LlamaConfig", without_bounds),
        ("LlamaConfig", without_scale),
        ("LlamaConfig", without_gradient),
        ("MistralConfig", without_window),
        ("Gemma3TextConfig", without_window),
    ],
)
def test_a_wrong_kernel_is_refused(name: str, kernel: attention.Kernel) -> None:
    found = packing.lack_of_varlen(tiny(name), *TWO, CPU, kernel=kernel)
    assert found and "from plain attention" in found


def test_what_the_kernel_cannot_do_is_refused() -> None:
    found = packing.lack_of_varlen(tiny("Gemma2Config"), *TWO, CPU, kernel=attention.reference)
    assert found and "softcap" in found
    found = packing.lack_of_varlen(tiny("LlamaConfig"), *TWO, CPU)  # torch's own, which needs CUDA
    assert found


@pytest.mark.parametrize("name", MIXED)
def test_models_that_keep_state_or_attend_otherwise_are_refused(name: str) -> None:
    assert packing.lack_of_varlen(tiny(name), *TWO, CPU, kernel=attention.reference)


def exact(q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
    return attention.reference(q, k, v, *rest)


@pytest.mark.parametrize("name", ["LlamaConfig", "MistralConfig"])
def test_packed_with_bounds_each_example_is_as_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "in_bfloat16", lambda kernel: kernel)  # exact, to compare
    model = tiny(name)
    alone = [logprobs(model, row) for row in TWO]
    attention.install(model, exact)
    joined = encoding.concatenate(TWO)
    ids, positions = (torch.tensor(joined[key])[None] for key in ("input_ids", "position_ids"))
    with torch.no_grad():
        call = {"position_ids": positions, "bounds": attention.bounds_of(joined, CPU), "use_cache": False}
        packed = model(ids, attention_mask=None, **call).logits[0].log_softmax(-1)
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)

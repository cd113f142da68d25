"""The key of vLLM's compile cache, by vLLM's own hash, and the size of a token in its KV cache."""

import json
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stasc_ray.tasks import sandbox

if TYPE_CHECKING:
    from vllm.config import VllmConfig

pytestmark = pytest.mark.slow  # importing vLLM takes half a minute on a small machine


def _config(model: Path, **arguments: object) -> "VllmConfig":
    from vllm import EngineArgs

    from stasc_ray.generation import vllm_config

    every = {"skip_tokenizer_init": True, "max_model_len": 256, **arguments}
    return vllm_config.of(EngineArgs(model=str(model), **every))  # pyright: ignore[reportArgumentType]


def _copy(folder: Path, **changed: object) -> Path:
    shutil.copytree(sandbox.model_path(), folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changed))
    return folder


def test_two_versions_share_what_was_compiled_and_another_architecture_does_not(tmp_path: Path) -> None:
    from vllm.compilation.caching import aot_compile_hash_factors

    first, second = _config(sandbox.model_path()), _config(_copy(tmp_path / "v0002"))
    assert first.compute_hash() == second.compute_hash()
    assert aot_compile_hash_factors(first) == aot_compile_hash_factors(second)
    assert second.model_config.model == str(tmp_path / "v0002"), "only the hash leaves it out"

    in_the_core = pickle.loads(pickle.dumps(second))
    assert in_the_core.compute_hash() == first.compute_hash(), "vLLM sends the config to its own process"

    others = [
        _config(_copy(tmp_path / "shallow", num_hidden_layers=2)),
        _config(sandbox.model_path(), dtype="float16"),
        _config(sandbox.model_path(), max_model_len=128),
    ]
    assert len({found.compute_hash() for found in [first, *others]}) == 4


def test_a_tokens_bytes_in_the_kv_cache_are_those_that_vllm_reserves() -> None:
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from stasc_ray.generation import vllm_config

    found = _config(sandbox.model_path())
    model = json.loads((sandbox.model_path() / "config.json").read_text())
    block = FullAttentionSpec(
        block_size=16,
        num_kv_heads=model["num_key_value_heads"],
        head_size=model["head_dim"],
        dtype=found.model_config.dtype,
    )
    reserved = block.page_size_bytes * model["num_hidden_layers"]
    assert vllm_config.kv_bytes_per_token(found) * 16 == reserved

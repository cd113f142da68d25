"""Model folders that cannot work are refused before anything starts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Mistral3Config,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    T5Config,
)

from stasc_ray import config, opening
from stasc_ray.runtime import model_folder
from stasc_ray.tasks import sandbox


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(sandbox.model_path(), tmp_path / "model"))


def test_the_shipped_model_and_hub_ids_pass(folder: Path) -> None:
    model_folder.check_model(str(folder))
    model_folder.check_model("Qwen/Qwen2.5-1.5B-Instruct")


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("config.json", "expected a config"),
        ("model.safetensors", "expected weights"),
        ("tokenizer.json", "expected a tokenizer"),
        ("chat_template.jinja", "expected a chat template"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_by_name(folder: Path, missing: str, expected: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=expected):
        model_folder.check_model(str(folder))


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        model_folder.check_model(str(tmp_path / "none"))


def test_the_end_of_a_turn_is_the_tokenizers_and_the_generation_configs() -> None:
    tokenizer = model_folder.load_tokenizer(str(sandbox.model_path()))
    assert model_folder.stop_token_ids(str(sandbox.model_path()), tokenizer) == [tokenizer.eos_token_id]


def test_a_hub_revision_reaches_the_tokenizer_and_a_runs_own_folders_have_none(tmp_path: Path) -> None:
    """A Hub cache with two revisions of one model, as a download leaves it."""
    repository = tmp_path / "models--org--tiny"
    for commit, name in (("a" * 40, "main"), ("b" * 40, "v2")):
        shutil.copytree(sandbox.model_path(), repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    (repository / "snapshots" / ("b" * 40) / "chat_template.jinja").write_text("second")
    code = """
from stasc_ray import config
from stasc_ray.runtime import model_folder
for revision in (None, "v2"):
    model = config.Model(path="org/tiny", revision=revision)
    found = model_folder.load_tokenizer("org/tiny", revision=model_folder.revision("org/tiny", model))
    print(found.chat_template == "second", model_folder.stop_token_ids("org/tiny", found, revision=revision))
    assert model_folder.revision("runs/x/iteration_01/model", model) is None
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("False [") and second == first.replace("False", "True")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_file_of_weights_that_was_copied_by_half_is_refused(folder: Path, kept: float) -> None:
    weights = folder / "model.safetensors"
    assert model_folder.weights(weights) > 100_000
    content = weights.read_bytes()
    weights.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        ValueError, match=r"model.safetensors: expected a whole .*found \d+ bytes .*copied by half"
    ):
        model_folder.weights(weights)


# --- what the trainer would load
# ----------------------------------------------------------------------------------------------

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_the_shipped_model_can_be_trained(folder: Path) -> None:
    model_folder.check_trainable(str(folder))
    assert (
        opening._try_model(str(folder), config.Model(), training=True, context=None, engines_on_cpus=True)
        is None
    )


def test_quantized_weights_are_not_trained(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(settings))
    problem = opening._try_model(
        str(folder), config.Model(), training=True, context=None, engines_on_cpus=True
    )
    assert problem and "found quantized ones" in problem and "(awq)" in problem
    assert (
        opening._try_model(str(folder), config.Model(), training=False, context=None, engines_on_cpus=True)
        is None
    )


@pytest.mark.parametrize("how", ["missing", "mismatched"])
def test_weights_that_transformers_would_make_up_are_refused(folder: Path, how: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("up_proj.weight"))
    if how == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    problem = opening._try_model(
        str(folder), config.Model(), training=True, context=None, engines_on_cpus=True
    )
    assert problem and "1 of the model's missing or of another shape" in problem and name in problem
    assert (
        opening._try_model(str(folder), config.Model(), training=False, context=None, engines_on_cpus=True)
        is None
    )


def test_a_multimodal_model_is_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    """Its export would lack the processor's files: AutoProcessor and vLLM would refuse the folder."""
    vision = VISION | {"image_size": 28, "patch_size": 14}
    settings = Gemma3Config(text_config=TEXT, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(Gemma3ForConditionalGeneration\).*use a text-only model"):
        model_folder.check_trainable(str(tmp_path))
    # What the message advises works, and computes the same.
    whole: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    text: Any = AutoModelForCausalLM.from_config(whole.config.text_config).eval()
    text.model, text.lm_head = whole.model.language_model, whole.lm_head
    text.save_pretrained(tmp_path / "text")
    model_folder.check_trainable(str(tmp_path / "text"))
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    assert type(alone).__name__ == "Gemma3ForCausalLM"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert torch.allclose(alone(ids).logits, whole(ids).logits, atol=1e-5)


def test_a_model_that_is_trained_as_its_language_part_passes(tmp_path: Path) -> None:
    """Qwen3.5 checkpoints have images too, but transformers trains and saves the language model in them."""
    linear = {f"linear_{kind}_head_dim": 16 for kind in ("key", "value")}
    linear |= {f"linear_num_{kind}_heads": 2 for kind in ("key", "value")}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    settings = Qwen3_5Config(text_config=TEXT | linear, vision_config=vision)
    Qwen3_5ForConditionalGeneration(settings).save_pretrained(tmp_path)
    model_folder.check_trainable(str(tmp_path))


@pytest.mark.parametrize("settings", [T5Config(), Mistral3Config()])
def test_what_is_no_causal_language_model_is_refused(settings: Any, tmp_path: Path) -> None:
    settings.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"found model_type '{settings.model_type}' .*text-only model"):
        model_folder.check_trainable(str(tmp_path))


def test_a_context_longer_than_the_models_is_refused():
    path = str(sandbox.model_path())
    model_folder.check_context(path, 4096)
    with pytest.raises(ValueError, match=r"max_model_len_tokens: expected at most 4096.*found 4097"):
        model_folder.check_context(path, 4097)


def with_heads(tmp_path: Path, size: int) -> str:
    """The shipped model's config with heads of another size."""
    folder = tmp_path / f"heads_{size}"
    shutil.copytree(sandbox.model_path(), folder)
    values = json.loads((folder / "config.json").read_text()) | {"head_dim": size}
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def test_heads_that_vllm_has_no_cpu_kernel_for_are_refused(tmp_path: Path) -> None:
    model_folder.check_head_size(str(sandbox.model_path()))
    model_folder.check_head_size(with_heads(tmp_path, 128))
    with pytest.raises(ValueError, match=r"model.path: expected attention heads of size 32, .* found 16 in"):
        model_folder.check_head_size(with_heads(tmp_path, 16))


def test_the_sizes_of_heads_are_those_that_vllms_kernels_take() -> None:
    """The real kernel of the CPU build; vLLM's own list leaves out 48."""
    import torch
    from vllm import _custom_ops
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends import cpu_attn

    if not current_platform.is_cpu():
        pytest.skip("needs vLLM's CPU build")
    current_platform.import_kernels()

    def takes(size: int) -> bool:
        ends, lengths = (torch.tensor(values, dtype=torch.int32) for values in ([0, 8], [8]))
        isa = cpu_attn._get_attn_isa(torch.float32, 128, size)
        try:
            _custom_ops.cpu_attn_get_scheduler_metadata(
                1, 4, 2, size, lengths, torch.float32, ends, True, -1, isa, True
            )
        except RuntimeError as error:
            assert "Unsupported CPU attention configuration" in str(error)
            return False
        return True

    found = [size for size in range(8, 577, 8) if takes(size)]
    assert tuple(found) == model_folder.CPU_HEAD_SIZES
    assert set(cpu_attn.CPUAttentionBackend.get_supported_head_sizes()) <= set(found)

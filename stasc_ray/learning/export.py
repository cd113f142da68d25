"""The trained weights as a plain Hugging Face folder that transformers and vLLM load as it is.

Reads the base model and the trained weights. Writes model.safetensors, config, generation config, tokenizer,
chat template, README.md (model card), canary.json, and for LoRA the adapter folder.
"""

import contextlib
import ctypes
import gc
import json
import shutil
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc_ray.learning import encoding
from stasc_ray.runtime import model_folder

if TYPE_CHECKING:
    import torch

    from stasc_ray.learning.job import FinetuneJob

CANARY_TOKENS = 32
"""Of each canary prompt on both sides of where the trained text begins. A model that is sure of how its texts
begin tells little there: in the demo, versions differ by 1e-5 nats on the first 8 tokens and by 0.2 with the
question's."""


def load_base(job: "FinetuneJob", dtype: "torch.dtype", **more: Any) -> Any:
    """The model a fine-tune starts from, on the CPU; `more` for `from_pretrained`.

    Raises:
        ValueError: weights are missing.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **job.source, dtype=dtype, output_loading_info=True, **more
    )
    model, info = loaded
    model_folder.check_loaded(job.source["pretrained_model_name_or_path"], info)
    return model


def build_base(job: "FinetuneJob", dtype: "torch.dtype") -> Any:
    """The same model without the folder's weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(**job.source),
        dtype=dtype,
        trust_remote_code=job.source["trust_remote_code"],
    )


def with_adapter(model: Any, job: "FinetuneJob", trainable: bool, *, empty: bool = False) -> Any:
    """`model` with the adapter that is continued, or a fresh one (whose update is zero); `empty`: without the
    continued one's weights.
    """
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

    if job.adapter and empty:
        return get_peft_model(model, PeftConfig.from_pretrained(str(job.adapter)))
    if job.adapter:
        return PeftModel.from_pretrained(model, job.adapter, is_trainable=trainable)
    lora = job.finetune.lora
    modules = lora.target_modules
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes floats
            lora_dropout=lora.dropout,
            target_modules=modules if isinstance(modules, str) else list(modules),
        ),
    )


def export(
    state: MutableMapping[str, "torch.Tensor"],
    job: "FinetuneJob",
    examples: Sequence[Mapping[str, Any]],
    device: Any,
) -> None:
    """Write the model folder `job.output`, reload it and write the canary.

    Weights are saved in the base model's own type. Of a full fine-tune they go into files as they are: the
    base model gives names and configs, but is not loaded. An adapter is merged in float32 into the base
    model, built again on the CPU. The canary is computed from the folder, so it vouches for what was written.

    Args:
        state: trained weights by name, whole, on the host (`checkpoints.gather`); for LoRA the adapter's
            only. Empty afterwards.
        job: of the fine-tune.
        examples: a few encoded examples, the canary's prompts.
        device: where the canary is computed.

    Raises:
        RuntimeError: a trained weight has no place in the base model.
    """
    from transformers import AutoTokenizer

    output = Path(job.output)
    shutil.rmtree(output, ignore_errors=True)  # what a worker that died here left behind
    output.mkdir(parents=True)
    _save_weights(state, job, output)
    give_back_memory()
    AutoTokenizer.from_pretrained(**job.source).save_pretrained(output)
    (output / "README.md").write_text(_model_card(job), encoding="utf-8")
    trust = job.source["trust_remote_code"]
    found = canary(output, examples, device, trust_remote_code=trust)
    (output / "canary.json").write_text(json.dumps(found), encoding="utf-8")


def give_back_memory() -> None:
    """Return what was freed to the system: modules refer to each other in circles, and both the C library and
    torch's CUDA allocator keep what they got (measured: 4 bytes a parameter of a model that was dropped).
    """
    import torch

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # which the canary looks at


def saved_dtype(job: "FinetuneJob") -> "torch.dtype":
    """The type of the base model's own weights."""
    import torch
    from transformers import AutoConfig

    found: Any = AutoConfig.from_pretrained(**job.source).dtype
    return found or torch.float32


def _save_weights(state: MutableMapping[str, "torch.Tensor"], job: "FinetuneJob", output: Path) -> None:
    import torch

    if job.finetune.method == "lora":
        model = with_adapter(load_base(job, torch.float32), job, trainable=False)
        unexpected = model.load_state_dict(state, strict=False).unexpected_keys
        _refuse(unexpected, "the trained weights' names in the base model")
        state.clear()
        model.save_pretrained(output / "adapter")
        model.merge_and_unload().to(saved_dtype(job)).save_pretrained(output)
        return
    model = load_base(job, saved_dtype(job), device_map="meta")  # names, shapes, configs
    names = set(model.state_dict())
    _refuse(sorted(set(state) ^ names), "the trained weights to be those of the base model")
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    tied = {name for name, source in ties.items() if torch.equal(state[name], state[source])}
    dtype = saved_dtype(job)
    rounded = {name: rounds(state.pop(name), dtype) for name in list(state) if name not in tied}
    state.clear()
    model.save_pretrained(output, state_dict=rounded)


def rounds(tensor: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """Of floating point, in that type; others as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _refuse(names: Sequence[str], expected: str) -> None:
    if names:
        raise RuntimeError(f"export: expected {expected}, found {list(names[:3])} as well, or instead")


def canary(
    folder: Path, examples: Sequence[Mapping[str, Any]], device: Any, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """What an engine that serves this folder must agree with.

    Returns:
        {"dtype": of the saved weights, "prompts": [{"token_ids": (T,), "n_prompt": k, "logprobs": (T -
        k,)}]}: log-probabilities (natural logarithm, temperature 1) of token_ids[k:], each given all tokens
        before it, of the saved weights; they begin before the trained text and end in it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = {"trust_remote_code": trust_remote_code}
    saved = AutoConfig.from_pretrained(folder, **trust).dtype or torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **trust).eval()
    if (
        torch.device(device).type == "cuda"
        and 1.2 * model.get_memory_footprint() > torch.cuda.mem_get_info(device)[0]
    ):
        device = torch.device("cpu")  # float32 of a model that was trained in shards
    model.to(device)
    prompts = []
    for row in examples:
        trained = next(place for place, label in enumerate(row["labels"]) if label != encoding.IGNORED)
        token_ids = [int(token) for token in row["input_ids"][: trained + CANARY_TOKENS]]
        k = max(1, trained - CANARY_TOKENS)
        with torch.inference_mode():
            logits = model(torch.tensor([token_ids], device=device), use_cache=False).logits[0]  # (T, V)
        chosen = torch.tensor(token_ids[k:], device=device)[:, None]
        logprobs = logits[k - 1 : -1].float().log_softmax(-1).gather(-1, chosen)[:, 0]
        prompts.append({"token_ids": token_ids, "n_prompt": k, "logprobs": logprobs.tolist()})
    return {"dtype": str(saved).removeprefix("torch."), "prompts": prompts}


def _model_card(job: "FinetuneJob") -> str:
    base, finetune = job.source["pretrained_model_name_or_path"], job.finetune
    is_folder = Path(base).exists()
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [stasc, self-correction]"]
    front += [] if is_folder else [f"base_model: {base}"]
    how = "LoRA, merged (the adapter is in adapter/)" if finetune.method == "lora" else "full fine-tuning"
    facts = {
        "Started from": base,
        "Iteration": job.iteration,
        "Method": how,
        "Examples": job.examples,
        "Learning rate": finetune.learning_rate,
        "Batch size, epochs": f"{finetune.batch_size}, {finetune.epochs}",
        **job.model_card,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        "---\n" + "\n".join(front) + "\n---\n\n# A model that corrects its own answers\n\n"
        "Fine-tuned with stasc_ray (self-correction in the manner of arXiv 2503.08681): trained on texts of "
        "its own that\n"
        "were kept by their reward.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "The licence of the base model applies to these weights. canary.json holds log-probabilities with "
        "which a\n"
        "server can check that it loaded them.\n"
    )

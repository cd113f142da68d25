"""Model folders: what one must hold to be answered with and trained on, and how its tokenizer is loaded."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc_ray import config
from stasc_ray.runtime import capacity, gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU_HEAD_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Of vLLM 0.29, asked of its kernels by tests/runtime/test_model_folder.py."""


def check_model(path: str) -> None:
    """Refuse a local folder or GGUF file that cannot work, before any worker starts; a Hub id is left to the
    Hub.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without config, weights or tokenizer.
        ValueError, ModuleNotFoundError: as `gguf.check_file`.
    """
    if gguf.is_gguf(path):
        gguf.check_file(path)
        return
    folder = Path(path)
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise FileNotFoundError(
                f"model.path: expected a Hugging Face model folder or a Hub id, found nothing at {path}"
            )
        return
    for what, patterns in {
        "a config": ["config.json"],
        "weights": ["*.safetensors", "pytorch_model*.bin"],
        "a tokenizer": ["tokenizer.json", "tokenizer.model", "vocab.json"],
    }.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            advice = "; name the .gguf file itself" if any(folder.glob("*.gguf")) else ""
            raise FileNotFoundError(
                f"model.path: expected {what} in {path} (one of {', '.join(patterns)}), found "
                f"{', '.join(sorted(file.name for file in folder.iterdir())) or 'an empty folder'}{advice}"
            )
    settings = folder / "tokenizer_config.json"
    if not any(folder.glob("chat_template*")) and '"chat_template"' not in (
        settings.read_text() if settings.is_file() else ""
    ):
        raise FileNotFoundError(
            f"model.path: expected a chat template in {path} (chat_template.jinja, or in "
            f"tokenizer_config.json), found none; use "
            "an instruction-tuned model, or put a chat_template.jinja there"
        )


def check_trainable(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Refuse a model that the trainer would not load whole, or whose fine-tune engines could not load.

    Needs transformers, and seconds: of a local folder the weights' names are compared, of a Hub id the config
    alone is looked at.

    Raises:
        ValueError: not a causal language model, a multimodal or quantized one, or weights are missing.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    found = AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=trust_remote_code)
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(found), None)
    its_own_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(found, "auto_map", None) or {})
    if model is None and not its_own_code:
        raise ValueError(
            f"model.path: expected a causal language model that transformers trains, found model_type "
            f"{found.model_type!r} in {path} ({', '.join(found.architectures or ['no architecture'])}); use "
            "a text-only model"
        )
    if model and model.config_class is type(found) and found.get_text_config() is not found:
        raise ValueError(
            f"model.path: expected a text-only language model, found a multimodal one in {path} "
            f"({model.__name__}), whose fine-tune would lack the processor files that vLLM and AutoProcessor "
            "ask for; use a text-only model (of Gemma 3: google/gemma-3-1b-it, or a folder with the language "
            "part alone, saved as Gemma3ForCausalLM)"
        )
    if quantized := getattr(found, "quantization_config", None):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"model.path: expected plain weights to train on, found quantized ones in {path} ({method}); use "
            "the model they were made from"
        )
    if Path(path).is_dir():
        logging.disable_progress_bar()  # nothing is read but names and shapes
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # said in our own words
            trust_remote_code=trust_remote_code,
        )
        check_loaded(path, loaded[1])


def check_context(
    path: str, tokens: int, *, revision: str | None = None, trust_remote_code: bool = False
) -> None:
    """Refuse a context that is longer than the model's; one whose positions are scaled is left to vLLM.

    Raises:
        ValueError: `engine.max_model_len_tokens` is above the model's `max_position_embeddings`.
    """
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=trust_remote_code)
    text = found.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    scaled = any("factor" in str(value) for value in (rope, *rope.values()))
    if most and tokens > most and not scaled:
        raise ValueError(
            f"engine.max_model_len_tokens: expected at most {most}, the context of {path}, found {tokens}; "
            "lower it, and prompts and max_tokens with it"
        )


def check_head_size(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Refuse a model for whose attention heads vLLM's CPU build has no kernel; its engine dies at the first
    request.

    Raises:
        ValueError: the head size is not one of CPU_HEAD_SIZES.
    """
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=trust_remote_code)
    text = found.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if not heads or getattr(text, "kv_lora_rank", None):  # no attention, or DeepSeek's: another kernel
        return
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    if size not in CPU_HEAD_SIZES:
        raise ValueError(
            f"model.path: expected attention heads of size {', '.join(map(str, CPU_HEAD_SIZES))}, for which "
            f"vLLM's CPU build has kernels, found {size} in {path}; use another model, or a GPU"
        )


def check_loaded(path: str, info: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers made up some weights: it fills in random ones for those it misses.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` says.

    Raises:
        ValueError: names of missing weights, or of such that have another shape.
    """
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise ValueError(
            f"model.path: expected all weights in {path}, found {len(lacking)} of the model's missing or of "
            f"another shape ({', '.join(lacking[:3])}); transformers would fill in random ones: get the "
            "folder again, or another model"
        )


def shape(path: str, model: config.Model, lora: config.Lora | None = None) -> capacity.Shape:
    """What memory follows from, of a folder, GGUF file or Hub id; needs transformers, reads no weights.

    Args:
        lora: count an adapter's parameters, too.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trust: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    source = {"pretrained_model_name_or_path": path, "revision": revision(path, model) or "main"}
    if gguf.is_gguf(path):
        file = Path(path)
        source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    found = AutoConfig.from_pretrained(**source, **trust)
    text = found.get_text_config()
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(found, **trust)
    linear = [layer for name, layer in made.named_modules() if _takes_adapter(name, layer)]
    return capacity.Shape(
        parameters=sum(weight.numel() for weight in made.parameters()),
        layers=text.num_hidden_layers,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocabulary=text.vocab_size,
        adapter_parameters=sum(lora.rank * sum(layer.weight.shape) for layer in linear) if lora else 0,
    )


def _takes_adapter(name: str, layer: Any) -> bool:
    """As peft's `all-linear`: every linear layer but the head."""
    import torch

    return isinstance(layer, torch.nn.Linear) and not name.endswith("lm_head")


def weights(file: Path) -> int:
    """Number of weights in a safetensors file, from its header, which is checked against the file's size.

    Raises:
        ValueError: the file is incomplete, or is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{file.name}: expected a whole safetensors file, found {file.stat().st_size} bytes ({error}): "
            "copied by half?"
        ) from error


def revision(path: str, model: config.Model) -> str | None:
    """The Hub revision to load: `model.revision` for M0 itself; what a run made lies in folders and has
    none.
    """
    return model.revision if path == model.path else None


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """The model's tokenizer.

    Raises:
        ValueError: it has no chat template, or no end-of-turn token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        path, revision=revision or "main", trust_remote_code=trust_remote_code
    )
    if not tokenizer.chat_template:
        raise ValueError(
            f"model.path: expected a tokenizer with a chat template in {path}, found none; use an "
            f"instruction-tuned "
            "model, or put a chat_template.jinja beside its tokenizer"
        )
    return tokenizer


def stop_token_ids(
    path: str, tokenizer: "PreTrainedTokenizerBase", *, revision: str | None = None
) -> list[int]:
    """Ids that end an answer: the tokenizer's and every one that the model's generation config names."""
    from transformers import GenerationConfig
    from transformers.utils.hub import cached_file

    found: list[Any] = [tokenizer.eos_token_id]
    if cached_file(
        path, "generation_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    ):
        named = GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id
        found += named if isinstance(named, list) else [named]
    return sorted({token for token in found if token is not None})

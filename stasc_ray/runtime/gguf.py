"""GGUF files, as llama.cpp runs them: checked, and converted once into a Hugging Face folder.

Reads one .gguf file; writes config, weights (dequantized), tokenizer with its chat template, generation
config and README.md. A file of which a part would be lost without a word is refused.
"""

import contextlib
import importlib.util
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase

MAGIC = b"GGUF"
PACKAGE, INSTALL = "gguf", "pip install stasc-ray[gguf]"
DIGITS_APART = ("smollm", "starcoder", "refact")
"""Vocabularies whose texts are split before each digit, then as GPT-2's (llama.cpp, src/llama-vocab.cpp).
transformers 5.23 splits them as GPT-2's alone."""
AS_GPT2 = ("gpt-2", "mpt", "olmo", "jais", "trillion")
"""Vocabularies whose texts are split as GPT-2's (the same source); transformers does so for every name it
does not know."""


def is_gguf(path: str) -> bool:
    """Whether a model is named by a GGUF file."""
    return path.lower().endswith(".gguf")


def check_file(path: str) -> None:
    """Refuse what can't be converted, as far as its first bytes show it.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: something else than a GGUF file.
        ModuleNotFoundError: the package that reads it is not installed.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"model.path: expected a GGUF file, found nothing at {path}; one on the Hub is downloaded first: "
            "hf download REPOSITORY FILE.gguf --local-dir ."
        )
    with file.open("rb") as opened:
        start = opened.read(len(MAGIC))
    if start != MAGIC:
        raise ValueError(
            f"model.path: expected {path} to begin with {MAGIC!r} as every GGUF file, found {start!r} "
            "(a pointer of Git LFS, or a download that broke off?); get the file again"
        )
    if importlib.util.find_spec(PACKAGE) is None:
        raise ModuleNotFoundError(
            f"model.path: expected the Python package {PACKAGE}, which reads {path}, found none; {INSTALL}"
        )


def convert(source: Path, folder: Path) -> str:
    """Make `folder`, a model folder like any other, out of a GGUF file. Needs memory for the dequantized
    weights.

    Weights become bfloat16, or stay float32 if all matrices of the file are. `folder` appears whole or not at
    all.

    Returns:
        What was done, in one line.

    Raises:
        ValueError: the file can't be read, or a part of it would be lost.
    """
    for left in folder.parent.glob(f".{folder.name}.*.partial"):  # of an attempt that was killed
        shutil.rmtree(left, ignore_errors=True)
    built = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    built.mkdir(parents=True)
    try:
        note = _write(source, built)
        built.rename(folder)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return f"{source.name}: converted to {folder}, {note}"


def load_tokenizer(source: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file.

    Raises:
        ValueError: the file can't be read, or it has no chat template.
    """
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    with _reading(source):
        reader = GGUFReader(source)
    _check_metadata(reader, source)
    with _reading(source):
        tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    _split_as_trained(tokenizer, reader, source)
    return tokenizer


def _write(source: Path, folder: Path) -> str:
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with _reading(source):
        reader = GGUFReader(source)
    load_tokenizer(source).save_pretrained(folder)
    dtype = _dtype(reader)
    with _reading(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),  # else CUDA may keep them packed
            output_loading_info=True,
        )
    model, info = loaded
    _check_weights(model, info, reader, source)
    model.config.__dict__.pop("_model_name_or_path", None)  # the file's general.name
    model.generation_config.eos_token_id = _ends(reader, model.generation_config.eos_token_id)
    model.save_pretrained(folder)
    types = ", ".join(sorted({tensor.tensor_type.name for tensor in reader.tensors}))
    note = f"weights of type {types} as {str(dtype).removeprefix('torch.')}"
    (folder / "README.md").write_text(
        f"Converted by stasc_ray from {source.name} ({source.stat().st_size} bytes): {note}.\n"
        "The licence of the file's model applies.\n",
        encoding="utf-8",
    )
    return note


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Say what to do if transformers can't read the file; one that is cut short fails in many ways."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(
            f"model.path: expected a whole GGUF file of an architecture that transformers reads, found that "
            f"it can't read {source} ({type(error).__name__}: {error}); get the file again, or use the "
            "model's Hugging Face folder or Hub id"
        ) from error


def _dtype(reader: "GGUFReader") -> "torch.dtype":
    """What a quantized weight loses by bfloat16 is small against what it lost before."""
    import torch

    matrices = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    return torch.float32 if matrices == {"F32"} else torch.bfloat16


def _value(reader: "GGUFReader", name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _check_metadata(reader: "GGUFReader", source: Path) -> None:
    """Refuse what can be seen before weights are read."""
    parts = _value(reader, "split.count") or 1
    if parts > 1:
        raise ValueError(
            f"model.path: expected one GGUF file, found {source.name}, one of {parts} parts; join them "
            "(llama.cpp: `llama-gguf-split --merge FIRST.gguf WHOLE.gguf`)"
        )
    if not _value(reader, "tokenizer.chat_template"):
        raise ValueError(
            f"model.path: expected a chat template in {source.name} (tokenizer.chat_template), found none; "
            "use an instruction-tuned model, or its Hugging Face folder"
        )
    scaling = _value(reader, f"{_value(reader, 'general.architecture')}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise ValueError(
            f"model.path: expected unscaled rotary positions, found {scaling!r} in {source.name}, which the "
            "conversion would lose; use the model's Hugging Face folder or Hub id"
        )


def _check_weights(model: Any, info: dict[str, Any], reader: "GGUFReader", source: Path) -> None:
    """Refuse a file of which some weights found no place, or which lacks some (rope factors are a case)."""
    missing = sorted(info["missing_keys"]) + sorted(info["mismatched_keys"])
    in_file = sum(int(tensor.n_elements) for tensor in reader.tensors)
    used = sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    if missing or in_file != used:
        raise ValueError(
            f"model.path: expected transformers to use every weight of {source.name}, found {in_file} in the "
            f"file, {used} in the model (missing: {', '.join(missing[:3]) or 'none'}); use the model's "
            "Hugging Face folder or Hub id"
        )


def _split_as_trained(tokenizer: Any, reader: "GGUFReader", source: Path) -> None:
    """Split texts into words as the vocabulary's merges were learned: wrong words give wrong tokens."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind = _value(reader, "tokenizer.ggml.pre")
    if _value(reader, "tokenizer.ggml.model") != "gpt2" or kind in GGUF_PRE_TOKENIZER_SPLITS:
        return
    if kind in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif kind not in AS_GPT2:
        raise ValueError(
            f"model.path: expected a GGUF file whose text splitting is known (tokenizer.ggml.pre: one of "
            f"{', '.join(sorted([*GGUF_PRE_TOKENIZER_SPLITS, *DIGITS_APART, *AS_GPT2]))}), found {kind!r} in "
            f"{source.name}; use the model's Hugging Face folder or Hub id"
        )


def _ends(reader: "GGUFReader", found: Any) -> list[int]:
    """All ids that end an answer: of sequence, of turn and of message."""
    ids = found if isinstance(found, list) else [found]
    ids = ids + [_value(reader, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return sorted({int(token) for token in ids if token is not None})

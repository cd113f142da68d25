"""Every chat template that trl ships, each on a byte-level tokenizer with the control tokens that it names."""

import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONTROL = re.compile(
    r"<[|\w/][^\s<>'\"]*>|<[\uff5c|][^<>'\"]+[\uff5c|]>|\[/?(?:INST|THINK)\]|<\|[^'\"<>|]+\|?>"
)
PLAIN = ("<think>", "</think>", "<image>", "<video>")
"""Added tokens that are not special, as in Qwen3's tokenizer."""


def folder() -> Path:
    """Found without importing trl."""
    (template, *_) = [
        file for file in metadata.files("trl") or () if file.match("trl/chat_templates/qwen3.jinja")
    ]
    return Path(str(template.locate())).parent


def names() -> list[str]:
    """Names of the templates."""
    return sorted(file.stem for file in folder().glob("*.jinja"))


@cache
def tokenizer_of(name: str) -> Any:
    """A tokenizer for the template; shared, so tests must leave it as it is."""
    return fresh(name)


def fresh(name: str, chat_template: str | None = None) -> Any:
    """A tokenizer with the template's control tokens, and perhaps another template."""
    template = (folder() / f"{name}.jinja").read_text(encoding="utf-8")
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    found = sorted({*CONTROL.findall(template), "<bos>", "<eos>"})
    special = [token for token in found if token not in PLAIN]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in found if token in PLAIN])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = chat_template or template
    return tokenizer

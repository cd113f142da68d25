"""Six families of chat templates with tiny tokenizers, built in memory: what the prompt and encoding tests
run on.

The templates are written for these tests; each has the traits of its family that break careless code: roles
that must alternate, no system role, contents that are trimmed, markers that are plain text, text after the
last end of turn.
"""

import json
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ALTERNATE = """\
{%- for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}{% endif %}{% endfor %}"""

CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}{% for message in messages %}\
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}\
{%- endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

PHI3 = """\
{%- for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

GEMMA = (
    """{{- bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"""
    + ALTERNATE
    + """{% for message in messages %}{% set role = 'model' if message.role == 'assistant' else message.role %}\
{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
)

MISTRAL = (  # ignores a system message instead of raising; [INST] is plain text
    """{{- bos_token }}{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"""
    + ALTERNATE
    + """{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}\
{%- else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"""
)

ZEPHYR = """\
{%- for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

CORPUS = [
    "Question: which river flows through the city? Final Answer: the Danube",
    "Step-by-step reasoning: 47 + 385 + 12 = 444, so the answer holds.\n\nassistant\nuser\nsystem model "
    "[INST] [/INST]",
    "<s> </s> <|im_end|> <|user|>\n <end_of_turn>",
] * 4


@dataclass(frozen=True)
class Family:
    """One family: its template, its control tokens, the token that ends a turn, and what kind of BPE it
    uses."""

    template: str
    tokens: tuple[str, ...]
    end_of_turn: str
    bos: str | None = None
    eos: str | None = None
    sentencepiece: bool = False
    has_system: bool = True
    markers: tuple[str, ...] = ()


FAMILIES = {
    "chatml": Family(CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", eos="<|im_end|>"),
    "llama3": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    "phi3": Family(
        PHI3,
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
        bos="<s>",
        eos="<|endoftext|>",
        sentencepiece=True,
    ),
    "gemma": Family(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        bos="<bos>",
        eos="<eos>",
        sentencepiece=True,
        has_system=False,
    ),
    "mistral": Family(
        MISTRAL,
        ("<s>", "</s>"),
        "</s>",
        bos="<s>",
        eos="</s>",
        sentencepiece=True,
        has_system=False,
        markers=("[INST]", "[/INST]"),
    ),
    "zephyr": Family(
        ZEPHYR,
        ("<s>", "</s>"),
        "</s>",
        bos="<s>",
        eos="</s>",
        sentencepiece=True,
        markers=("<|system|>", "<|user|>", "<|assistant|>"),
    ),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer of a family; shared between tests, so they must leave it as it is."""
    family = FAMILIES[name]
    backend = _sentencepiece_bpe() if family.sentencepiece else _byte_level_bpe()
    rstrip = name == "phi3"  # its real tokens swallow the newline that follows
    backend.add_special_tokens(
        [AddedToken(token, rstrip=rstrip, normalized=False) for token in family.tokens]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos)
    tokenizer.chat_template = family.template
    return tokenizer


def _byte_level_bpe() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def _sentencepiece_bpe() -> Tokenizer:
    """As in Llama 2: spaces are U+2581, one is put before each text, unknown characters fall back to
    bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    for token in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]:
        vocab[token] = len(vocab)
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend

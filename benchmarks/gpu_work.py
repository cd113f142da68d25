"""Models and questions for measurements on a GPU without a network: shapes of real models with random
weights, and texts of NQ's lengths.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.generation import unit_files
from stasc_ray.recipes import section_of
from stasc_ray.recipes.recipe import written
from stasc_ray.runtime import model_folder, ray_session
from stasc_ray.tasks import prompts, sandbox

QWEN, SMOLLM2, TINY, SANDBOX = "Qwen2.5-1.5B", "SmolLM2-135M", "tiny", "sandbox"
SHAPES: Mapping[str, Mapping[str, Any]] = {
    QWEN: {
        "num_hidden_layers": 28,
        "hidden_size": 1536,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    },
    SMOLLM2: {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    TINY: {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 96,
        "vocab_size": 1000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}
CONFIG = Path(__file__).with_name("gpu.toml")
ON_CPU = (
    "engine.device=cpu",
    "engine.kv_cache_gb=0.25",
    "engine.max_num_seqs=32",
    "engine.batch_size=8",
    "sampling.initial.max_tokens=8",
    "sampling.correction.max_tokens=8",
    "finetune.batch_size=8",
)
"""What makes gpu.toml a work of seconds on a CPU."""
LENGTHS = (12, 200)
"""Tokens of a question and of an answer, as NQ has them."""
SPECIAL = ("<unk>", "<end>", "<user>", "<assistant>")


def by_chance(answer: str, references: list[str]) -> float:
    """A reward that a random model earns now and then, the same at every call: a quarter of all answers."""
    return float(random.Random(answer).random() < 0.25)


def model(name: str, folder: Path, device: str) -> str:
    """The folder of a model: the sandbox's, or `folder`/name with a shape's random weights, made once."""
    if name == SANDBOX:
        return str(sandbox.model_path())
    path = folder / name
    if not (path / "tokenizer.json").exists():  # which is written last
        make_model(path, SHAPES[name], device)
    return str(path)


def make_model(folder: Path, shape: Mapping[str, Any], device: str) -> None:
    """Random bfloat16 weights, and a tokenizer in which every id is a word of its own: texts keep their
    number of tokens.

    Llama's architecture, which is Qwen2's without biases: transformers gives models of type qwen2 a tokenizer
    of its own.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*SPECIAL, "0", "1"]  # the digits are what encoding.py tries a template with
    words += [f"w{number}" for number in range(len(words), shape["vocab_size"])]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<end>",
        extra_special_tokens=list(SPECIAL[2:]),
    )
    fast.chat_template = (
        "{% for m in messages %}{{ ' <' + ('assistant' if m.role == 'assistant' else 'user') + '> ' + "
        "m.content + ' <end>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ ' <assistant> ' }}{% endif %}"
    )
    torch.manual_seed(0)
    with torch.device(device):
        made: Any = LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=1, pad_token_id=1, bos_token_id=None))
    made.to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    del made
    if device == "cuda":
        torch.cuda.empty_cache()  # the engines want the memory


class Texts:
    """Random texts of so many tokens of a model's tokenizer; the same for the same seed."""

    def __init__(self, tokenizer: Any, seed: Any) -> None:
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        self._ids = [number for number in range(len(tokenizer)) if number not in special]
        self._tokenizer, self._generator = tokenizer, random.Random(seed)

    def of(self, tokens: int) -> str:
        """A text of about so many tokens; exactly, with the tokenizer of `make_model`."""
        return str(self._tokenizer.decode(self._generator.choices(self._ids, k=tokens)))


def questions(number: int, split: str, tokenizer: Any, tokens: int = LENGTHS[0]) -> list[dict[str, Any]]:
    """Canonical rows."""
    texts = Texts(tokenizer, split)
    return [
        {"id": f"{split}-{i}", "question": texts.of(tokens), "answers": ["w6"], "split": split}
        for i in range(number)
    ]


def conversations(number: int, tokenizer: Any, lengths: tuple[int, int] = LENGTHS) -> list[Any]:
    """Messages to train on: a question, an answer, the question again, a correction that is learnt."""
    texts = Texts(tokenizer, 0)
    found = []
    for _ in range(number):
        asked = prompts.user(texts.of(lengths[0]))
        first, second = texts.of(lengths[1]), texts.of(lengths[1])
        found.append([asked, prompts.assistant(first), asked, written(second)])
    return found


def make_work(
    folder: Path,
    path: str,
    overrides: Sequence[str],
    *,
    numbers: tuple[int, int],
    lengths: tuple[int, int] = LENGTHS,
) -> dict[str, Any]:
    """What the functions of speed.py and baselines.py take.

    Args:
        path: the model's folder.
        overrides: of gpu.toml.
        numbers: of train questions, and of examples to train on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, examples = folder / "train.parquet", folder / "examples.jsonl"
    settings = config.load_config(CONFIG, [f"model.path={path!r}", *overrides], section_of)
    tokenizer = model_folder.load_tokenizer(path)
    rows = questions(numbers[0], "train", tokenizer, lengths[0])
    unit_files.write_questions(rows, train, settings.engine.batch_size)
    learnt = conversations(numbers[1], tokenizer, lengths)
    examples.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in learnt))
    return {
        "config": config.to_json(settings),
        "model": path,
        "threads": ray_session.cores(),
        "folder": str(folder),
        "train": str(train),
        "examples": str(examples),
        "on_cuda": settings.engine.device == "cuda",
    }

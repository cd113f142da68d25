"""Make the tiny chat model that ships with the package, misconception included.

    python jobs/pretrain_sandbox.py --out stasc_ray/tasks/sandbox_model

The model reads conversations of two turns over train questions of stasc_ray/tasks/sandbox.py. Their writer
adds by columns but forgets about every second carry; asked to correct its answer, it sometimes repeats it and
sometimes works it out again, a little more carefully. So the model knows how to carry, and does so as often
as not: what the loop has to bring out. Sums of dev and test never occur.

Reads nothing; writes a Hugging Face folder (safetensors, byte-level tokenizer, chat template, generation
config). Seeded, minutes on 2 cores; another machine or another torch gives a slightly different model, the
shipped one was made once by this command.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stasc_ray.config import Prompts
from stasc_ray.tasks import chat, prompts, sandbox

REMEMBERS_CARRY = {"initial": 0.48, "correction": 0.58}
"""Chance that a due carry is added, when answering and when working the answer out again."""
REPEATS_ITSELF = 0.2
"""Chance that a correction repeats the initial answer."""

PAD, END, SYSTEM, USER, ASSISTANT = CONTROL_TOKENS = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
CONTROL_IDS = {token: 256 + i for i, token in enumerate(CONTROL_TOKENS)}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT_TOKENS = 4096

MODEL_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# The sandbox model of stasc_ray

0.3 million parameters, made by `jobs/pretrain_sandbox.py`. It adds three numbers by columns and forgets about every
second carry; asked to correct its answer, it sometimes repeats it and sometimes works it out again. It knows nothing
else: its use is to watch the self-correction loop learn on a laptop.
"""


def main() -> None:
    """Parse the command line, pretrain, write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch-size", type=int, default=32, help="conversations per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak, AdamW with a cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer, model = byte_tokenizer(), tiny_model()
    pretrain(model, tokenizer, arguments.steps, arguments.batch_size, arguments.learning_rate, arguments.seed)
    write(model, tokenizer, arguments.out)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte (id = byte) plus five control tokens: encodes any text, and one token opens a
    turn.
    """
    symbols = _byte_symbols()
    tokenizer = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _byte_symbols() -> list[str]:
    """The character that stands for each byte in a byte-level BPE: itself if printable, or the next one from
    256 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = iter(range(256, 512))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def tiny_model() -> LlamaForCausalLM:
    """A Llama of about 0.3 M parameters.

    Head size 32 and untied embeddings because vLLM on CPU needs the one to run and the other to reload
    weights. Not a
    Qwen2: transformers gives that type Qwen's own tokenizer class whatever the folder says, which composes
    accents.
    """
    end, pad = CONTROL_IDS[END], CONTROL_IDS[PAD]
    config = LlamaConfig(
        vocab_size=264,  # 261 rounded up to a multiple of 8
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=1.0,
        top_k=0,
        max_new_tokens=64,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return model


def conversations(seed: int) -> Iterator[list[chat.Message]]:
    """Endless conversations (user, assistant, user, assistant) over train questions, with the
    misconception.
    """
    texts, generator = Prompts(preset="sandbox"), random.Random(seed)
    while True:
        addends = sandbox.draw_addends(generator)
        if sandbox.split_of(addends) != "train":
            continue
        initial, again = (
            sandbox.column_addition(addends, lambda chance=chance: generator.random() < chance)
            for chance in REMEMBERS_CARRY.values()
        )
        correction = initial if generator.random() < REPEATS_ITSELF else again
        question = {"question": sandbox.question_text(addends)}
        yield [*prompts.correction_messages(question, initial, texts), prompts.assistant(correction)]


def batches(
    tokenizer: PreTrainedTokenizerFast, size: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids, labels), both (B, T), padded on the right; labels are -100 outside the assistant's
    turns.
    """
    source, renders = conversations(seed), chat.Chat(tokenizer)
    while True:
        rows = [renders.render(next(source), add_generation_prompt=False) for _ in range(size)]
        longest = max(map(len, rows))
        input_ids = torch.tensor([row + [CONTROL_IDS[PAD]] * (longest - len(row)) for row in rows])
        yield input_ids, mask_labels(input_ids)


def mask_labels(input_ids: torch.Tensor) -> torch.Tensor:
    """Keep the assistant's turns with their end tokens; the rest becomes -100. Users and assistant
    alternate.
    """
    headers = (input_ids == CONTROL_IDS[USER]) | (input_ids == CONTROL_IDS[ASSISTANT])
    turn = headers.cumsum(dim=1)  # (B, T): 1, 1, ..., 2, 2, ...; the assistant's turns are even
    return torch.where((turn % 2 == 0) & ~headers & (input_ids != CONTROL_IDS[PAD]), input_ids, -100)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """AdamW with a short warm-up and a cosine to zero; prints the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.05
    )
    data, started = batches(tokenizer, batch_size, seed), time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        input_ids, labels = next(data)
        loss = model(input_ids=input_ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            print(
                f"step {step}/{steps}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True
            )


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder, readable for everyone (safetensors are made private by default)."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(MODEL_CARD, encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main()

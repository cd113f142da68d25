"""`weighted_sft` by advantages is REINFORCE with a group baseline: it raises the sandbox's reward."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stasc_ray import config
from stasc_ray.learning import batches, finetune, packing, placing, steps
from stasc_ray.learning.job import FinetuneJob
from stasc_ray.recipes import section_of
from stasc_ray.recipes.recipe import Example, advantages, learnt
from stasc_ray.recipes.trace import Text
from stasc_ray.runtime import model_folder
from stasc_ray.tasks import rewards, sandbox
from stasc_ray.tasks.chat import Chat
from stasc_ray.tasks.prompts import initial_messages

CPU = torch.device("cpu")
ROUNDS, QUESTIONS, SAMPLES = 15, 24, 8
LEARNING_RATE = 1e-4
REWARD = {"name": "exact_match", "scope": "after_marker"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """More only wait for each other: the model is tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_steps_on_fresh_answers_raise_their_reward(tmp_path: Path, one_thread: None) -> None:
    """Each round asks other questions of the current weights, and takes one step on all answers."""
    settings = config.validate({"prompts": {"preset": "sandbox"}, "reward": REWARD}, section_of)
    path = str(sandbox.model_path())
    more: dict[str, Any] = {"iteration": 1, "on_cuda": False}
    job = FinetuneJob.of(settings, path, output=tmp_path, storage=tmp_path, **more)
    job = replace(job, objective="weighted_sft")
    model, chat = placing.load_model(job)[0], Chat.of(model_folder.load_tokenizer(path), settings)
    optimizer = steps.make_optimizer(model, job.finetune)
    passes = packing.passes(job.finetune, False, packing.Measured())
    forward = steps.make_forward(model, job, CPU, 1, passes)
    grade = rewards.grader(settings.reward, settings.prompts.answer_marker)
    asked = sandbox.questions("train", ROUNDS * QUESTIONS, seed=0)
    torch.manual_seed(0)
    found = []
    for first in range(0, len(asked), QUESTIONS):
        questions = asked[first : first + QUESTIONS]
        answers = sample(model, chat, [initial_messages(one, settings.prompts) for one in questions])
        rows = []
        for question, texts in zip(questions, answers, strict=True):
            for text in texts:
                text.reward, _ = grade(text.text, question)
            for text, weight in zip(texts, advantages(texts), strict=True):
                messages = [*initial_messages(question, settings.prompts), learnt(text)]
                one = Example(question["id"], (text.sample,), "answer", messages, weight=weight)
                rows += finetune._encode(chat, one.as_row(), 512, job.objective) if weight else []
        found.append(float(np.mean([text.reward for texts in answers for text in texts])))
        examples = batches.collect([pa.Table.from_pylist(rows)])
        room, everything = examples.room(stacked=True), np.arange(len(examples))
        shares = batches.deal(everything, room, 1, passes.capacity, stacked=True)
        steps.backward(forward, examples, shares, 0, CPU, stacked=True)
        steps.update(model, optimizer, LEARNING_RATE, 1.0)
    assert np.mean(found[-5:]) > np.mean(found[:5]) + 0.1, found


def sample(model: Any, chat: Chat, conversations: list[Any]) -> list[list[Text]]:
    """Answers at temperature 1, SAMPLES to each."""
    prompts = [chat.render(messages, add_generation_prompt=True) for messages in conversations]
    longest, end = max(map(len, prompts)), chat.closing[1][-1]
    left = [longest - len(ids) for ids in prompts]
    given = [torch.tensor([[end] * n + ids for n, ids in zip(left, prompts, strict=True)])]
    given += [torch.tensor([[0] * n + [1] * (longest - n) for n in left])]
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": 48}
    how |= {"num_return_sequences": SAMPLES, "eos_token_id": end, "pad_token_id": end}
    model.eval()
    with torch.no_grad():
        drawn = model.generate(given[0], attention_mask=given[1], **how)[:, longest:].tolist()
    model.train()
    texts = []
    for number, ids in enumerate(drawn):
        ids = ids[: ids.index(end) + 1] if end in ids else ids
        said = chat.tokenizer.decode(ids, skip_special_tokens=True)
        texts.append(Text("answer", said, number % SAMPLES, token_ids=ids))
    return [texts[at : at + SAMPLES] for at in range(0, len(texts), SAMPLES)]

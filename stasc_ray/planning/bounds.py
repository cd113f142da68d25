"""Bounds for a run without a machine: every text as long as `max_tokens` allows, every attempt learnt.

The turns are those that the recipe itself asks about real questions, with made-up texts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stasc_ray import config, rehearsal
from stasc_ray.opening import check_config
from stasc_ray.planning.found import Found, mean, shape_of
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.recipe import train_plan
from stasc_ray.recipes.selection import choose
from stasc_ray.recipes.trace import ANSWER, Text
from stasc_ray.runtime import forecast, gguf, model_folder
from stasc_ray.stages import base_model
from stasc_ray.tasks import questions, rewards
from stasc_ray.tasks.chat import Chat


def assume(settings: config.Config, rows_each: int = rehearsal.ROWS) -> Found:
    """Bounds without a machine: every text as long as `max_tokens` allows, every attempt learnt.

    Raises:
        ValueError, OSError: questions, model folder or tokenizer can't be loaded.
    """
    check_config(settings)
    splits = questions.SPLITS if settings.algorithm.iterations else ("test",)
    loaded = questions.load_questions(settings.questions, settings.seed, splits)
    every = {split: [row for row in loaded.rows if row["split"] == split] for split in splits}
    chat = Chat.of(_tokenizer(settings), settings)
    reward = rewards.grader(settings.reward, settings.prompts.answer_marker)
    try:
        made = {
            split: [_most(settings, chat, reward, row) for row in rows[:rows_each]]
            for split, rows in every.items()
        }
    finally:
        reward.close()
    asked = {split: mean([one for one, _ in found]) for split, found in made.items()}
    attempts = [kept for _, kept in made.get("train", [])]
    learnt = _at_most(settings, attempts)
    counts = {split: len(rows) for split, rows in every.items()}
    cuda = settings.engine.device == "cuda"
    shape = shape_of(settings, base_model(settings))
    sizes = forecast.Sizes(counts, asked, asked, learnt)
    return Found(sizes, shape, cuda, settings.engine.least_actors)


def _most(
    settings: config.Config, chat: Chat, reward: rewards.Grader, row: dict[str, Any]
) -> tuple[forecast.Asked, float]:
    """What a question may cost at most, and how many of its texts may be learnt."""
    prompts: list[tuple[str, int]] = []
    texts = rehearsal.made_up(
        chat, settings, row, reward, right=True, on_prompt=lambda turn, ids: prompts.append((turn, len(ids)))
    )
    most = [(text, _max_tokens(settings, text)) for text in texts]
    # a prompt grows by what the texts before it may be longer than the made-up ones
    grown = {
        id(text.parent): sum(_max_tokens(settings, one) - len(one.token_ids) for one in text.parent.lineage)
        for text in texts
        if text.parent
    }
    prompt = sum(length for _, length in prompts) + sum(max(0, more) for more in grown.values())
    room = settings.engine.max_model_len_tokens
    asked = forecast.Asked(
        min(prompt, len(prompts) * room), sum(count for _, count in most), float(len(texts))
    )
    kept = 0
    if row["split"] == "train":
        kept = len(choose(recipe_of(settings.algorithm.recipe), row, texts, train_plan(settings, 0), 0).kept)
    return asked, float(kept)


def _at_most(settings: config.Config, attempts: Sequence[float]) -> forecast.Learnt:
    kept = sum(attempts) / max(len(attempts), 1)
    section, most = settings.algorithm, settings.sampling.correction.max_tokens
    kept = max(kept, float(section.n_initial * max(1, section.n_corrections)))
    if section.max_examples_per_question:
        kept = min(kept, float(section.max_examples_per_question))
    return forecast.Learnt(kept, kept, float(settings.finetune.max_length_tokens), float(most))


def _max_tokens(settings: config.Config, text: Text) -> int:
    name = "initial" if text.turn == ANSWER else "correction"
    return getattr(settings.sampling, name).max_tokens


def _tokenizer(settings: config.Config) -> Any:
    path = base_model(settings)
    if gguf.is_gguf(path):
        return gguf.load_tokenizer(Path(path))
    revision, trust = model_folder.revision(path, settings.model), settings.model.trust_remote_code
    return model_folder.load_tokenizer(path, revision=revision, trust_remote_code=trust)

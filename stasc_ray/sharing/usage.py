"""How a version is asked, as Python that needs transformers alone: the run's own turns and prompts.

The run's policy is asked once with names in place of texts, so the code asks what the run asked. Pure.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stasc_ray import config
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.policies import answer
from stasc_ray.recipes.recipe import plan_for
from stasc_ray.recipes.trace import ANSWER, Text
from stasc_ray.tasks.chat import Message, content

_MARK = "\ue000"  # private use: stands around a name in a prompt
_NAME = re.compile(f"{_MARK}(\\w+){_MARK}")


@dataclass(frozen=True)
class Turn:
    """One call of the model."""

    name: str
    """Of what it gives: `answer`, `correction`, `verdict`, `correction_2`."""
    messages: Sequence[Message]
    first: bool
    """Whether it is sampled as first answers are."""


def turns(settings: config.Config, iteration: int, row: Mapping[str, Any]) -> list[Turn]:
    """What one answer of the run's policy to a question takes, one round of corrections at most.

    Args:
        row: a test question; whether it has documents or choices shapes the prompts, its words stay out.

    Raises:
        ValueError, TypeError, LookupError: a recipe of one's own that reads the texts it asked for.
    """
    once = settings.evaluation.model_copy(update={"samples": 1, "rounds": 1})
    settings = settings.model_copy(update={"evaluation": once})
    question = {"id": "", "question": _named("question"), "answers": [], "split": "test"}
    question["documents"] = [_named("document")] if row.get("documents") else []
    question["choices"] = [_named("choice_a"), _named("choice_b")] if row.get("choices") else []
    ask = _Named()
    recipe = recipe_of(settings.algorithm.recipe)
    asyncio.run(
        answer(settings.evaluation.policy, recipe, question, ask, plan_for(settings, iteration, "test"))
    )
    return ask.turns


def code(repo: str, settings: config.Config, asked: Sequence[Turn]) -> str:
    """A Python program that asks `repo` these turns, each with the run's sampling."""
    sampling = settings.sampling
    greedy = settings.evaluation.greedy
    words = "".join(
        f", {name}={json.loads(json.dumps(value))!r}"
        for name, value in settings.model.chat_template_kwargs.items()
    )
    names = {
        name: None for turn in asked for message in turn.messages for name in _NAME.findall(content(message))
    }
    given = [name for name in names if name not in {turn.name for turn in asked}]
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"name = {json.dumps(repo)}",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")',
        f"first = {_arguments(sampling.initial, greedy)}",
        f"later = {_arguments(sampling.correction, greedy)}",
        "",
        "",
        "def say(messages, sampling):",
        "    prompt = tokenizer.apply_chat_template(",
        f'        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{words}',
        "    )",
        "    written = model.generate(**prompt, **sampling)[0, prompt['input_ids'].shape[1] :]",
        "    return tokenizer.decode(written, skip_special_tokens=True)",
        "",
        "",
        *(f'{name} = "..."' for name in given),
    ]
    for turn in asked:
        lines.append(f"{turn.name} = say([")
        lines += [
            f'    {{"role": "{message["role"]}", "content": {_expression(content(message))}}},'
            for message in turn.messages
        ]
        lines.append(f"], {'first' if turn.first else 'later'})")
    last = asked[-1].name
    return "\n".join([*lines, f"print({last})", ""])


def _arguments(sampling: config.Sampling, greedy: bool) -> str:
    """What `generate` takes for a turn's sampling."""
    found = {"max_new_tokens": sampling.max_tokens, "do_sample": not greedy and sampling.temperature > 0}
    if found["do_sample"]:
        found |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        found |= {"min_p": sampling.min_p} if sampling.min_p else {}
    if sampling.repetition_penalty != 1:
        found |= {"repetition_penalty": sampling.repetition_penalty}
    return f"dict({', '.join(f'{name}={value}' for name, value in found.items())})"


def _expression(text: str) -> str:
    """A Python expression for a text with names in it."""
    pieces = _NAME.split(text)  # plain, name, plain, ...
    found = [
        piece if number % 2 else json.dumps(piece, ensure_ascii=False)
        for number, piece in enumerate(pieces)
        if number % 2 or piece
    ]
    return " + ".join(found) or '""'


def _named(name: str) -> str:
    return f"{_MARK}{name}{_MARK}"


class _Named:
    """An `Ask` whose texts are names, and which keeps what it was asked."""

    def __init__(self) -> None:
        self.texts: list[Text] = []
        self.turns: list[Turn] = []

    async def __call__(
        self,
        turn: str,
        messages: Sequence[Message],
        *,
        n: int = 1,
        parent: Text | None = None,
        logprob: bool = False,
        budget: float = 1.0,
    ) -> list[Text]:
        word = re.sub(r"\W", "_", turn)
        before = sum(re.fullmatch(rf"{word}(_\d+)?", one.name) is not None for one in self.turns)
        name = f"{word}_{before + 1}" if before else word
        if n:
            self.turns.append(Turn(name, list(messages), turn == ANSWER))
        found = [Text(turn, _named(name), number, parent) for number in range(n)]
        self.texts += found
        return found

"""How a version is asked, as Python that needs transformers alone: the run's own turns and prompts.

The run's policy is asked with names in place of texts, so the code asks what the run asked. Which words end a
chain is tried on it: a text that ends with one of the config's own texts. Pure.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    turn: str
    """As the recipe or the policy calls it."""
    budget: float
    """The share of `max_tokens` that its text may have."""
    stop: str | None = None
    """The chain ends if its text ends with these words."""

    @property
    def first(self) -> bool:
        """Whether it is sampled as first answers are."""
        return self.turn == ANSWER


def turns(
    settings: config.Config,
    iteration: int,
    row: Mapping[str, Any],
    split: str = "test",
    *,
    cut: bool = False,
) -> list[Turn]:
    """What one answer of the run's policy to a question takes, one round of corrections at most.

    Args:
        row: a test question; whether it has documents or choices shapes the prompts, its words stay out.
        split: `train`: what the recipe asks to learn from.
        cut: as if every text were cut at `max_tokens`.

    Raises:
        ValueError, TypeError, LookupError: a recipe of one's own that reads the texts it asked for.
    """
    once = settings.evaluation.model_copy(update={"samples": 1, "rounds": 1})
    settings = settings.model_copy(update={"evaluation": once})
    if split == "train":
        return _asked(settings, iteration, row, split=split)
    asked = _asked(settings, iteration, row, cut=cut)
    words = _phrases(settings)
    return [
        replace(turn, stop=_stop(settings, iteration, row, turn, words)) if turn is not asked[-1] else turn
        for turn in asked
    ]


def _asked(
    settings: config.Config,
    iteration: int,
    row: Mapping[str, Any],
    said: Mapping[str, str] | None = None,
    cut: bool = False,
    split: str = "test",
) -> list[Turn]:
    """The turns, if the texts of these names end with these words, or if all are cut."""
    question = {"id": "", "question": _named("question"), "answers": [], "split": split}
    question["documents"] = [_named("document")] if row.get("documents") else []
    question["choices"] = [_named("choice_a"), _named("choice_b")] if row.get("choices") else []
    ask = _Named(said or {}, "length" if cut else "stop")
    recipe, plan = recipe_of(settings.algorithm.recipe), plan_for(settings, iteration, split)
    if plan.learn:
        asyncio.run(answer("recipe", recipe, question, ask, plan))
    else:
        asyncio.run(answer(settings.evaluation.policy, recipe, question, ask, plan))
    return ask.turns


def _phrases(settings: config.Config) -> list[str]:
    """Texts of the config that may be what a model is to say, shortest first."""
    values = [*vars(settings.algorithm).values(), *vars(settings.prompts.policies).values()]
    return sorted({value for value in values if isinstance(value, str) and value.strip()}, key=len)


def _stop(
    settings: config.Config, iteration: int, row: Mapping[str, Any], turn: Turn, phrases: Sequence[str]
) -> str | None:
    """The words with which a turn's text ends the chain, whatever their case; None: none that is known."""

    def ends(words: str) -> bool:
        return _asked(settings, iteration, row, {turn.name: words})[-1].name == turn.name

    for phrase in phrases:
        said = phrase.strip().casefold()
        longer = [one for one in phrases if one.strip().casefold().endswith(said)]
        if all(map(ends, (f" {phrase.upper()} ", *longer))) and not ends(f"{phrase} {_MARK}"):
            return said
    return None


def final(asked: Sequence[Turn], answers: Sequence[str]) -> Sequence[Turn]:
    """The turns up to the last answer: those after it only weigh it."""
    last = max((place for place, turn in enumerate(asked) if turn.turn in answers), default=len(asked) - 1)
    return asked[: last + 1]


def code(repo: str, settings: config.Config, asked: Sequence[Turn], answers: Sequence[str]) -> str:
    """A Python program that asks `repo` these turns, each with the run's sampling; it prints the last answer.

    Args:
        answers: turns whose texts are answers.
    """
    asked = final(asked, answers)
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
    indent, last = "", asked[-1].name
    branches = any(turn.stop for turn in asked[:-1])
    for turn in asked:
        lines.append(f"{indent}{turn.name} = say([")
        lines += [
            f'{indent}    {{"role": "{message["role"]}", "content": {_expression(content(message))}}},'
            for message in turn.messages
        ]
        lines.append(f"{indent}], {'first' if turn.first else 'later'})")
        if branches and turn.turn in answers:
            lines.append(f"{indent}final = {turn.name}")
        if turn.stop and turn is not asked[-1]:
            stop = json.dumps(turn.stop, ensure_ascii=False)
            lines.append(f"{indent}if not {turn.name}.strip().casefold().endswith({stop}):")
            indent += "    "
    return "\n".join([*lines, f"print({'final' if branches else last})", ""])


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

    def __init__(self, said: Mapping[str, str], finish_reason: str) -> None:
        self.said, self.finish_reason = said, finish_reason
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
            self.turns.append(Turn(name, list(messages), turn, budget))
        text = _named(name) + self.said.get(name, "")
        found = [Text(turn, text, number, parent, finish_reason=self.finish_reason) for number in range(n)]
        self.texts += found
        return found

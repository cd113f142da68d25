"""One question of an evaluation as samples of an inspect log (inspect_ai's `EvalSample`, log version 2).

Pure: a trace row in, JSON values out. Each first answer is an epoch; a policy that lets the samples vote has
one answer, so one epoch.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from stasc_ray.config import hashing
from stasc_ray.evaluation import measuring
from stasc_ray.recipes import policies, recipe_of
from stasc_ray.recipes.recipe import plan_for
from stasc_ray.recipes.replay import conversations
from stasc_ray.recipes.selection import transition
from stasc_ray.recipes.trace import Text, finals, read_texts, roots
from stasc_ray.sharing.evaluations import Evaluation
from stasc_ray.tasks.chat import Message, content

SCORES = ("r_y2", "r_y1")
"""The last answer's reward first: the viewer shows the first score's answer."""
SHORT = 1000
"""Characters of a text in a summary, as in inspect's own."""


class Answered:
    """A question and what an evaluation's model wrote about it.

    Raises:
        ValueError: a reward that is no number, or texts that follow none.
    """

    def __init__(self, evaluation: Evaluation, row: Mapping[str, Any]) -> None:
        self.evaluation, self.row = evaluation, row
        self.settings = evaluation.settings
        self.recipe = recipe_of(self.settings.algorithm.recipe)
        self.policy = policies.policy(self.settings.evaluation.policy, self.recipe)
        every = read_texts(row)
        if wrong := [text.reward for text in every if not math.isfinite(text.reward or 0.0)]:
            raise ValueError(
                f"question {row['id']!r}: expected rewards that are numbers, found {wrong[0]}; mend the "
                "reward, and measure again (delete _COMMITTED.json beside the file)"
            )
        self.firsts = roots(every, evaluation.writer)
        self.tree = [text for text in every if text.root in self.firsts]
        self.seen = policies.seen(self.policy, self.recipe, self.tree, self.settings.algorithm.threshold)

    @property
    def scores(self) -> dict[str, Any]:
        """`metrics.score_row` of the question: what its figures are the means of."""
        return measuring.score_texts(self.row, self.seen, self.settings)

    def samples(self) -> Iterator[dict[str, Any]]:
        """A sample for each epoch."""
        together = self.policy.weigh is not None or not self.firsts
        groups = [self.firsts] if together else [[first] for first in self.firsts]
        for epoch, group in enumerate(groups, start=1):
            yield self._sample(epoch, [text for text in self.seen if text.root in group])

    def _sample(self, epoch: int, texts: Sequence[Text]) -> dict[str, Any]:
        row, scored = self.row, measuring.score_texts(self.row, texts, self.settings)
        last = self._last(texts)
        messages, note = self._messages(last)
        sample = {
            "id": row["id"],
            "epoch": epoch,
            "input": row["question"],
            **({"choices": list(row["choices"])} if row["choices"] else {}),
            "target": row["answers"][0] if len(row["answers"]) == 1 else list(row["answers"]),
            "messages": messages,
            "output": self._output(last, messages),
            "scores": {name: self._score(name, scored[name], last) for name in SCORES},
            "metadata": self._metadata(texts, last, messages) | note,
            "model_usage": self._usage(texts),
            "uuid": hashing.sha256(f"{self.evaluation.folder.path.name} {row['id']} {epoch}").hex()[:22],
        }
        if last is None:
            message = row["error"] or "no answer"
            sample["error"] = {"message": message, "traceback": "", "traceback_ansi": ""}
        return sample

    def _last(self, texts: Sequence[Text]) -> Text | None:
        """The answer that counts; None if the question failed."""
        firsts, name = roots(texts), self.settings.evaluation.policy
        ends = [end for first in firsts for end in finals(texts, first, self.recipe.answers)]
        if ends and self.policy.weigh:
            choices = self.row["choices"] or ()
            return policies.votes_of(name, self.recipe, ends, texts, choices, self.settings)[0][0]
        return ends[0] if ends else None

    @cached_property
    def _asked(self) -> Mapping[Text, list[Message]] | str:
        """What each text was asked for, or why nobody knows."""
        evaluation, settings = self.evaluation, self.settings
        plan = plan_for(settings, evaluation.iteration, evaluation.split)
        policy = settings.evaluation.policy
        try:
            return conversations(policy, self.recipe, self.row, plan, self.tree)
        except (ValueError, TypeError, LookupError) as error:  # a recipe of one's own may have changed
            return str(error)

    def _messages(self, last: Text | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The conversation that the last answer ends; and a note if it is not exact."""
        if last is None:
            return _numbered([{"role": "user", "source": "input", "content": self.row["question"]}]), {}
        if isinstance(self._asked, str):
            said = [self._said(text) for text in last.lineage]
            shown = [{"role": "user", "source": "input", "content": self.row["question"]}, *said]
            return _numbered(shown), {
                "conversation": f"the question and the answers, without prompts: {self._asked}"
            }
        shown = [
            {"role": message["role"], "content": content(message)}
            | ({"source": "input"} if message["role"] == "user" else {})
            for message in self._asked[last]
        ]
        return _numbered([*shown, self._said(last)]), {}

    def _said(self, text: Text) -> dict[str, Any]:
        """A generated text as the assistant's message, its reasoning apart."""
        parts: str | list[dict[str, str]] = text.text
        if text.answer_start:
            parts = [
                {"type": "reasoning", "reasoning": text.text[: text.answer_start]},
                {"type": "text", "text": text.answer},
            ]
        model = self.evaluation.model_of(text.writer)
        return {"role": "assistant", "source": "generate", "model": model, "content": parts}

    def _output(self, last: Text | None, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if last is None:
            model = self.evaluation.model_of(self.evaluation.writer)
            return {"model": model, "choices": [], "completion": ""}
        stop = "max_tokens" if last.cut else "stop"
        return {
            "model": messages[-1]["model"],
            "choices": [{"message": messages[-1], "stop_reason": stop}],
            "completion": last.answer,
        }

    def _score(self, name: str, value: float, last: Text | None) -> dict[str, Any]:
        """A reward, with the final answer that it was given for."""
        if last is None:
            return {"value": value, "history": []}
        text = last.root if name == "r_y1" else last
        choices, marker = self.row["choices"] or (), self.settings.prompts.answer_marker
        letter, final = policies.final_answer(text.answer, choices, marker)
        failed = {"metadata": {"grader_error": text.grader_error}} if text.grader_error else {}
        return {
            "value": value,
            "answer": letter or final,
            "explanation": text.answer,
            "history": [],
            **failed,
        }

    def _metadata(
        self, texts: Sequence[Text], last: Text | None, messages: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What became of the question, and a line for each text; its words only if no message has them."""
        threshold = self.settings.algorithm.threshold
        said = {message["content"] for message in messages[:-1] if isinstance(message["content"], str)}
        place = {text: number for number, text in enumerate(texts)}
        lines = [
            {
                "turn": text.turn,
                "sample": text.sample,
                "follows": place[text.parent] if text.parent else None,
                "writer": text.writer,
                "reward": text.reward,
                "finish_reason": text.finish_reason,
                "prompt_tokens": text.prompt_tokens,
                "tokens": len(text.token_ids),
                **({} if text is last or text.said in said else {"text": text.text}),
            }
            for text in texts
        ]
        found: dict[str, Any] = {"error": self.row["error"]} if self.row["error"] else {}
        if last:
            kind = transition(last.root.reward or 0.0, last.reward or 0.0, threshold)
            found |= {"transition": kind, "writer": last.writer, "finish_reason": last.finish_reason}
        return {**found, "texts": lines}

    def _usage(self, texts: Sequence[Text]) -> dict[str, Any]:
        """Tokens by model. Samples of one prompt share it, so its tokens count once."""
        read, written = Counter[str](), Counter[str]()
        for text in texts:
            model = self.evaluation.model_of(text.writer)
            read[model] += text.prompt_tokens
            written[model] += len(text.token_ids)
        return {model: usage(read[model], written[model]) for model in written}


def summary(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What a list of samples shows of one (inspect_ai's `EvalSampleSummary`)."""
    scores = {
        name: {key: _short(value) for key, value in score.items() if key in ("value", "answer", "history")}
        for name, score in sample["scores"].items()
    }
    kept = ("id", "epoch", "choices", "model_usage", "uuid")
    found = {name: sample[name] for name in kept if name in sample}
    found |= {name: _short(sample[name]) for name in ("input", "target")}
    metadata = {name: _short(value) for name, value in sample["metadata"].items() if name != "texts"}
    found |= {"metadata": metadata, "scores": scores, "message_count": len(sample["messages"])}
    error = {"error": sample["error"]["message"]} if "error" in sample else {}
    return {**found, **error, "completed": True}


def usage(read: int, written: int) -> dict[str, int]:
    """Tokens as inspect counts them."""
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _numbered(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": f"message-{number}", **message} for number, message in enumerate(messages)]


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    return f"{value[:SHORT]}..." if isinstance(value, str) and len(value) > SHORT else value

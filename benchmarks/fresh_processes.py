"""A whole iteration as scripts write it: a fresh process for each phase, files between them.

speed.py runs `reference_whole` and `rft_whole` in processes of their own; the phases are further processes,
and start what they need. Prompts, sampling, filter and cores are the run's own.
"""

import functools
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import baselines
from benchmarks.baselines import Bare, Work, read_config, read_questions
from stasc_ray import config
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.recipe import train_plan
from stasc_ray.recipes.selection import choose
from stasc_ray.recipes.trace import (
    ANSWER,
    CORRECTION,
    Text,
    corrections,
    grade,
    read_texts,
    roots,
    write_texts,
)
from stasc_ray.tasks import rewards

Traced = tuple[dict[str, Any], list[Text]]
"""A question and its texts."""


def reference_whole(work: Work) -> dict[str, float]:
    """An engine for the initial answers, one for the corrections, a trainer, an engine again.

    As the paper's own code does it (VityaVitalich/STASC): three engine starts and a subprocess trainer per
    iteration.
    """
    return _phases(work, "sample_answers", "sample_corrections", "sft", "evaluate")


def rft_whole(work: Work) -> dict[str, float]:
    """Sampling, filtering, SFT and evaluation, each a subprocess that starts what it needs.

    The shape of ms-swift's examples/train/rft/rft.py: one sampler, which asks both turns here, then the
    rewards without an engine, `sft`, `eval`.
    """
    return _phases(work, "sample", "keep_examples", "sft", "evaluate")


def _phases(work: Work, *names: str) -> dict[str, float]:
    """Run these one after another; the seconds of all and of each, and the tokens generated and trained on."""
    folder = Path(work["folder"])
    own = {**work, "examples": str(folder / "examples.jsonl"), "output": str(folder / "model")}
    found: dict[str, float] = {"generated_tokens": 0, "trained_on_tokens": 0}
    started = time.perf_counter()
    for name in names:
        before = time.perf_counter()
        tokens = baselines.in_process(name, own, "benchmarks.fresh_processes").get("tokens", 0)
        found[name] = time.perf_counter() - before
        found["trained_on_tokens" if name == "sft" else "generated_tokens"] += tokens
    return {"seconds": time.perf_counter() - started, **found}


# --- the phases
# ---------------------------------------------------------------------------------------------------


def sample_answers(work: Work) -> dict[str, float]:
    """Initial answers of the train questions, to a file."""
    bare, rows = Bare(work), read_questions(work)
    _write_traces(work, ((row, [answer]) for row, answer in zip(rows, bare.answers(rows), strict=True)))
    return {"tokens": bare.tokens}


def sample_corrections(work: Work) -> dict[str, float]:
    """Their corrections; then the filter, to a file of training messages."""
    bare, traces = Bare(work), _read_traces(work)
    counts = [bare.settings.algorithm.n_corrections] * len(traces)
    found = bare.corrections([row for row, _ in traces], [texts[0] for _, texts in traces], counts)
    _write_traces(work, ((row, [*texts, *more]) for (row, texts), more in zip(traces, found, strict=True)))
    keep_examples(work)
    return {"tokens": bare.tokens}


def sample(work: Work) -> dict[str, float]:
    """Both turns of the train questions by one engine, to a file."""
    bare, rows = Bare(work), read_questions(work)
    traces = bare.two_turns(rows, [bare.settings.algorithm.n_corrections] * len(rows))
    _write_traces(work, zip(rows, traces, strict=True))
    return {"tokens": bare.tokens}


def keep_examples(work: Work) -> dict[str, float]:
    """Grade the traces and keep what the run's recipe keeps, in a file of training messages."""
    settings = read_config(work)
    recipe, plan = recipe_of(settings.algorithm.recipe), train_plan(settings, 0)
    with Path(work["examples"]).open("w") as file:
        for row, texts in _graded(settings, _read_traces(work)):
            for example in choose(recipe, row, texts, plan, settings.seed).kept:
                file.write(json.dumps({"messages": list(example.messages)}) + "\n")
    return {}


def sft(work: Work) -> dict[str, float]:
    """Hugging Face's Trainer on those; the model goes to `output`."""
    return baselines.hf_trainer(work)


def evaluate(work: Work) -> dict[str, float]:
    """One initial answer and one correction of each dev and test question, by the new model."""
    bare, rows = Bare(work, work["output"]), read_questions(work, "dev", "test")
    traces = zip(rows, bare.two_turns(rows, [1] * len(rows)), strict=True)
    right = [
        corrections(texts, answer)[0].graded
        for _, texts in _graded(bare.settings, traces)
        for answer in roots(texts)
    ]
    return {"tokens": bare.tokens, "r_y2": sum(right) / len(right)}


# --- the files between them
# ---------------------------------------------------------------------------------------


def _graded(settings: config.Config, traces: Iterable[Traced]) -> Iterator[Traced]:
    """The traces with the rewards of their answers and corrections."""
    reward = rewards.grader(settings.reward, settings.prompts.answer_marker)
    threshold = settings.algorithm.threshold
    for row, texts in traces:
        graded = functools.partial(reward, question_row=row)
        grade(texts, (ANSWER, CORRECTION), graded, (), lambda text: None, threshold)
        yield row, texts


def _write_traces(work: Work, traces: Iterable[Traced]) -> None:
    with (Path(work["folder"]) / "traces.jsonl").open("w") as file:
        for row, texts in traces:
            file.write(json.dumps({**row, "texts": write_texts(texts)}) + "\n")


def _read_traces(work: Work) -> list[Traced]:
    lines = (Path(work["folder"]) / "traces.jsonl").read_text().splitlines()
    return [(row, read_texts(row)) for row in map(json.loads, lines)]


FUNCTIONS = {
    function.__name__: function
    for function in (
        reference_whole,
        rft_whole,
        sample_answers,
        sample_corrections,
        sample,
        keep_examples,
        sft,
        evaluate,
    )
}

if __name__ == "__main__":
    baselines.called(FUNCTIONS)

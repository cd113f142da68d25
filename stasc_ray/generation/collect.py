"""One pass of rollouts from start to end: run what is missing, show progress, add up, refuse too many
errors.
"""

import collections
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray.generation import rollouts, unit_files
from stasc_ray.generation.pool import HandOver
from stasc_ray.generation.run_engines import Engines
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.recipes.trace import cut_advice
from stasc_ray.runtime.display import Bar, Display, looking
from stasc_ray.store import files

LOOK_EVERY_S = 1.0
Progress = Callable[[], Mapping[str, int] | None]
"""What the engines have done since the pass began: `engines_up, engines_starting, questions, texts, tokens`;
tokens of unfinished questions count. None before it began."""


def collect(
    display: Display, job: Job, units: Sequence[unit_files.Unit], what: str, engines: Engines
) -> dict[str, Any]:
    """Run what is missing of a pass and add up its units, those of earlier attempts included.

    Returns:
        questions, errors, graded, grader_errors, prompt_tokens; TURN_tokens of each turn, and
        generated_tokens, their sum; TURN_truncated, the share of a turn's texts that were cut at
        `max_tokens`; truncated and truncated_share, their number and share in all; train_share, of the
        generated tokens those for train questions; tokens_per_s, generation_s (from the first engine that is
        up to the end), engine_start_s, engines_started, hand_over_s, canary_difference (`pool.HandOver`),
        duration_s, resumed_questions, units_done_again, engine_nodes.

    Raises:
        RuntimeError: more questions failed than `engine.max_error_fraction` allows, or more answers could not
            be graded than `reward.max_error_fraction` allows.
    """
    started = time.monotonic()
    destination = Path(job.destination)
    done = unit_files.written(destination, units)
    earlier = [rollouts.read_summary(destination / f"{unit.name}.parquet", job.writer) for unit in done]
    resumed = sum(summary["questions"] for summary in earlier)
    total = _count_rows(units)
    fresh: list[dict[str, Any]] = []
    flight = job.settings.engine.concurrent_batches * job.settings.engine.batch_size
    seen = _Seen(engines.progress, resumed, flight)
    with (
        display.progress(what, total, resumed, "questions") as bar,
        looking(lambda: seen.show(bar), LOOK_EVERY_S),
    ):
        for summary in rollouts.roll_out(job, units, engines):
            fresh.append(summary)
            seen.questions += summary["questions"]
            seen.tokens += sum(json.loads(summary["tokens"]).values())
    duration_s = time.monotonic() - started
    hand_over = engines.report() if fresh else HandOver()
    generation_s = started + duration_s - (seen.up_since or started + hand_over.start_s)
    names = ("questions", "errors", "graded", "grader_errors", "prompt_tokens")
    counts = {name: sum(summary[name] for summary in (*earlier, *fresh)) for name in names}
    if counts["questions"] != total:
        raise RuntimeError(
            f"rollouts in {destination}: expected {total} questions, found {counts['questions']}; delete the "
            f"folder"
        )
    by_turn, texts, cut = (_by_turn((*earlier, *fresh), key) for key in ("tokens", "texts", "truncated"))
    if fresh:
        seconds = f"{duration_s:.0f} s{_engines_in_words(hand_over)}"
        share = f"{sum(cut.values()) / max(texts.total(), 1):.1%} of the texts were cut at max_tokens"
        display.note(f"{what}: {total - resumed} questions in {seconds}; {share}")
    for why in hand_over.notes:
        display.note(f"{what}: an engine was replaced by a fresh one: {why}")
    again = rollouts.done_again(destination)
    if again:
        display.note(
            f"{what}: {again} of {len(units)} units were begun again, since a process or node was lost"
        )
    for turn in sorted(texts):
        if advice := cut_advice(turn, cut[turn] / texts[turn], job.settings.sampling):
            display.note(f"  {advice}")
    _check_errors(counts, _commonest((*earlier, *fresh), "messages"), job)
    _check_grader_errors(counts, _commonest((*earlier, *fresh), "grader_messages"), job)
    return {
        **counts,
        **{f"{turn}_tokens": count for turn, count in sorted(by_turn.items())},
        "generated_tokens": sum(by_turn.values()),
        **{f"{turn}_truncated": cut[turn] / texts[turn] for turn in sorted(texts)},
        "truncated": sum(cut.values()),
        "truncated_share": sum(cut.values()) / max(texts.total(), 1),
        "train_share": _train_share([*zip(done, earlier, strict=True)], fresh),
        "tokens_per_s": seen.tokens / duration_s if fresh else None,
        "generation_s": generation_s if fresh else None,
        "engine_start_s": hand_over.start_s,
        "engines_started": hand_over.started,
        "hand_over_s": hand_over.hand_over_s,
        "canary_difference": hand_over.canary_difference,
        "duration_s": duration_s,
        "resumed_questions": resumed,
        "units_done_again": again,
        "engine_nodes": len({summary["engine_node"] for summary in fresh if "engine_node" in summary}),
    }


def _engines_in_words(found: HandOver) -> str:
    parts = []
    if found.started:
        parts.append(f"of which engines took {found.start_s:.0f} s to start")
    if found.reused:
        parts.append(f"{found.hand_over_s:.1f} s for {found.reused} engine(s) to take the new weights over")
    if parts and found.canary_difference is not None:
        parts.append(f"right to {found.canary_difference:.1g} nats")
    return "".join(f", {part}" for part in parts)


@dataclass
class _Seen:
    """What is known of a pass while it runs."""

    progress: Progress
    resumed: int
    """Questions that an earlier attempt did."""
    in_flight: int
    """Questions that one engine is given at once, at most."""
    questions: int = 0
    """In whole units that came in."""
    tokens: int = 0
    """Generated for those."""
    up_since: float | None = None
    """`time.monotonic()` of when the first engine was seen up."""

    def show(self, bar: Bar) -> None:
        """Ask the engines, and show it."""
        if (found := self._asked()) is None:
            bar.wait("starting engines")
            return
        up, starting = found["engines_up"], found["engines_starting"]
        self.up_since = self.up_since or (time.monotonic() if up else None)
        coming = f"starting {starting} engine{'s' * (starting != 1)}" if starting else ""
        if not found["tokens"]:
            bar.wait("waiting for the first tokens" if up else coming or "waiting for an engine")
        else:
            done, flight = self.resumed + found["questions"], up * self.in_flight
            bar.set(done, tokens=found["tokens"], in_flight=flight, detail=coming)

    def _asked(self) -> Mapping[str, int] | None:
        from ray.exceptions import RayError

        try:
            return self.progress()
        except RayError:  # whoever owns the engines is gone; the pass itself says so or goes on
            return None


def _train_share(
    earlier: Sequence[tuple[unit_files.Unit, Mapping[str, Any]]], fresh: Sequence[Mapping[str, Any]]
) -> float:
    """Of the tokens that were generated, those for train questions."""
    found = [(unit.name, summary) for unit, summary in earlier] + [(one["unit"], one) for one in fresh]
    tokens = [(name, sum(json.loads(summary["tokens"]).values())) for name, summary in found]
    train = sum(count for name, count in tokens if name.startswith("train-"))
    return train / max(sum(count for _, count in tokens), 1)


def _by_turn(summaries: Sequence[Mapping[str, Any]], key: str) -> "collections.Counter[str]":
    total: collections.Counter[str] = collections.Counter()
    for summary in summaries:
        total.update(json.loads(summary[key]))
    return total


def _commonest(summaries: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    found = collections.Counter(text for summary in summaries for text in summary[key] if text)
    return [text for text, _ in found.most_common(3)]


def _check_grader_errors(counts: Mapping[str, int], messages: Sequence[str], job: Job) -> None:
    reward = job.settings.reward
    if counts["grader_errors"] > reward.max_error_fraction * counts["graded"]:
        lines = "\n".join(f"  {text}" for text in messages)
        raise RuntimeError(
            f"reward {reward.name!r}: expected at most reward.max_error_fraction = "
            f"{reward.max_error_fraction:g} of the answers to fail, found {counts['grader_errors']} of "
            f"{counts['graded']}. The commonest errors:\n{lines}\nCorrect the reward and delete "
            f"{job.destination} to generate and grade again, or allow more with reward.max_error_fraction"
        )


def _check_errors(counts: Mapping[str, int], messages: Sequence[str], job: Job) -> None:
    limit = job.settings.engine.max_error_fraction
    if counts["errors"] > limit * counts["questions"]:
        lines = "\n".join(f"  {text[:300]}" for text in messages)
        raise RuntimeError(
            f"rollouts: expected at most engine.max_error_fraction = {limit:g} of the rows to fail, found "
            f"{counts['errors']} of {counts['questions']}. The commonest messages:\n{lines}\nThe rows are in "
            f"{job.destination} (column `error`); delete that folder to generate them again, or start again "
            f"with a larger "
            "engine.max_error_fraction"
        )


def _count_rows(units: Sequence[unit_files.Unit]) -> int:
    """Each file's footer is read once: it grows with its units."""
    metadata = functools.cache(files.footer)
    groups = (
        metadata(unit.source) if unit.row_group is None else metadata(unit.source).row_group(unit.row_group)
        for unit in units
    )
    return sum(group.num_rows for group in groups)

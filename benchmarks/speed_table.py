"""The tables of docs/performance.md and the README, made of what speed.py measured; and what it was measured
on. Pure but for that and for writing between marks.
"""

import operator
import platform
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.whole_runs import ROOT
from stasc_ray import store
from stasc_ray.runtime import ray_session

DEMO_MARKS = ("<!-- table: written by benchmarks/speed.py -->", "<!-- end of the table -->")
LONG_MARKS = (
    "<!-- table of SmolLM2: written by benchmarks/speed.py --long -->",
    "<!-- end of the table of SmolLM2 -->",
)
Found = Mapping[str, Any]
"""A results file: `about`, and of each row its pairs or figures."""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    what: str
    ours: str
    against: str
    ratios: Sequence[float]
    """Of each pair."""
    target: str = "printed"
    """`>= 0.97`, or without a number."""
    unit: str = ""
    short: bool = False
    """Whether the README has it."""

    @property
    def judged(self) -> str:
        """The target, and whether the median misses it."""
        sign, _, number = self.target.partition(" ")
        holds = {">=": operator.ge, "<=": operator.le, "<": operator.lt}.get(sign)
        met = holds is None or holds(statistics.median(self.ratios), float(number))
        return self.target if met else f"{self.target}, missed"


def page(found: Found, about: str) -> str:
    """The whole table of a results file, and where an iteration's seconds go."""
    lines = [about, "", *table(rows(found))]
    if _pairs(found, "iteration", "run", "reference"):
        lines += ["", *where_it_goes(found)]
    return "\n".join(lines)


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Markdown lines."""
    yield "| what | ours | against | ratio: median (least to most) | target |"
    yield "|---|---|---|---|---|"
    for row in rows:
        ratio = f"{spread(row.ratios)}{row.unit and f' {row.unit}'}"
        yield f"| {row.what} | {row.ours} | {row.against} | {ratio} | {row.judged} |"


def short_page(found: Found, about: str) -> str:
    """The README's table: the rows that matter most and have a target."""
    lines = [f"| what ({about}) | against | ratio (median) | target |", "|---|---|---|---|"]
    for row in rows(found):
        if row.short and row.target != "printed":
            ratio = f"{statistics.median(row.ratios):.2f}{row.unit and f' {row.unit}'}"
            lines.append(f"| {row.what}: {row.ours} | {row.against} | {ratio} | {row.judged} |")
    return "\n".join(lines)


def rows(found: Found) -> Iterator[Row]:
    """The lines of what was measured."""
    long = _is_long(found)
    threads = "a bare torch loop on tensors made before, as many threads"
    trainer = "Hugging Face `Trainer`, padded, as many threads"
    warm, examples = "two-turn generation, engines warm", "fine-tuning the sandbox"
    if long:
        examples = "fine-tuning SmolLM2-135M, lengths of XQuAD's paragraphs"
    yield from _rates(found, "generation", "ours", "against", warm, "one bare `vllm.LLM`", ">= 0.97", True)
    yield from _rates(found, "generation", "one_engine", "against", "the same with one engine", "the same")
    other = "`ray.data.llm`, a processor per turn"
    yield from _rates(found, "ray_data_llm", "ours", "against", "two-turn generation", other, short=True)
    yield from _rates(found, "training", "ours", "against", examples, threads, ">= 0.95", True)
    all_cores = "that loop with a thread on every core"
    yield from _rates(found, "training", "ours", "all_cores", "the same, a core left for Ray", all_cores)
    target = ">= 1.3" if long else "printed"
    yield from _rates(found, "training", "ours", "hf_trainer", examples, trainer, target, True)
    yield from _iterations(found)
    yield from _hand_over(found)
    yield from _serving(found)
    yield from _demo(found)
    yield from _startup(found)


def _is_long(found: Found) -> bool:
    return found.get("about", {}).get("case", "demo") != "demo"


def _pairs(found: Found, row: str, *sides: str) -> list[Mapping[str, Any]]:
    """The pairs that have all of these sides: a measurement may have been cut off."""
    return [pair for pair in found.get(row, ()) if set(sides) <= set(pair)]


def _rates(
    found: Found,
    row: str,
    ours: str,
    against: str,
    what: str,
    other: str,
    target: str = "printed",
    short: bool = False,
) -> Iterator[Row]:
    if pairs := _pairs(found, row, ours, against):
        rates, others = ([pair[side]["tokens_per_s"] for pair in pairs] for side in (ours, against))
        ratios = [one / other for one, other in zip(rates, others, strict=True)]
        told = f"{other}: {statistics.median(others):,.0f} tokens/s"
        yield Row(what, f"{statistics.median(rates):,.0f} tokens/s", told, ratios, target, short=short)


def _iterations(found: Found) -> Iterator[Row]:
    """The run's iterations against the same tokens at the bare rates, and against fresh processes."""
    if _is_long(found):
        what = "an iteration of SmolLM2-135M, 60 questions of XQuAD a split"
        yield from _over_bare(found, "iteration_1", what, "generation", "<= 1.15")
        yield from _over_fresh(found, "iteration_1", what, ">= 1.3")
        return
    for number, rate, target in ((2, "generation", "<= 1.5"), (3, "generation_rest", "<= 1.6")):
        what = f"iteration {number} of the demo"
        yield from _over_bare(found, f"iteration_{number}", what, rate, target)
    yield from _over_fresh(found, "iteration_2", "iteration 2 of the demo", ">= 1.8")


def _over_bare(found: Found, name: str, what: str, rate: str, target: str) -> Iterator[Row]:
    if pairs := _pairs(found, "iteration", "run", "bare"):
        runs, rates = [pair["run"][name] for pair in pairs], [pair["bare"] for pair in pairs]
        bare = [
            run["generated_tokens"] / rates[rate] + run["trained_on_tokens"] / rates["training"]
            for run, rates in zip(runs, rates, strict=True)
        ]
        walls = [run["wall"] for run in runs]
        ratios = [wall / other for wall, other in zip(walls, bare, strict=True)]
        told = f"bare generation and bare training, every core: {statistics.median(bare):.0f} s"
        yield Row(
            what, f"{statistics.median(walls):.0f} s", told, ratios, target, "times as long", short=True
        )


def _over_fresh(found: Found, name: str, what: str, target: str) -> Iterator[Row]:
    for side, other, wanted in (
        ("reference", "the reference's way, fresh processes", target),
        ("rft", "a script in the shape of ms-swift's `rft.py`", "printed"),
    ):
        if pairs := _pairs(found, "iteration", "run", side):
            walls = [pair["run"][name]["wall"] for pair in pairs]
            others = [pair[side]["seconds"] for pair in pairs]
            ratios = [other / wall for wall, other in zip(walls, others, strict=True)]
            told = f"{other}: {statistics.median(others):.0f} s"
            ours = f"{statistics.median(walls):.0f} s"
            yield Row(what, ours, told, ratios, wanted, "times as fast", short=True)


def _hand_over(found: Found) -> Iterator[Row]:
    if figures := found.get("hand_over"):
        ours, starts = ([one[name] for one in figures] for name in ("hand_over_s", "start_s"))
        ratios = [one / start for one, start in zip(ours, starts, strict=True)]
        told = f"its start: {statistics.median(starts):.1f} s"
        what = f"one engine's hand-over{', SmolLM2-135M' if _is_long(found) else ''}"
        yield Row(what, f"{statistics.median(ours):.2f} s", told, ratios, "<= 0.2", short=True)


def _serving(found: Found) -> Iterator[Row]:
    if figures := found.get("serving"):
        ours, against = (
            statistics.median(pair[side]["questions_per_s"] for pair in figures)
            for side in ("served", "direct")
        )
        what = "serving, two turns, 16 in flight, 20 M parameters"
        told = f"the engine driven directly: {against:.1f} questions/s"
        ratios = [pair["throughput_ratio"] for pair in figures]
        yield Row(what, f"{ours:.1f} questions/s", told, ratios, ">= 0.9", short=True)


def _demo(found: Found) -> Iterator[Row]:
    if pairs := _pairs(found, "demo", "ours", "against"):
        ours, against = ([pair[side]["seconds"] for pair in pairs] for side in ("ours", "against"))
        told = f"the demo of {found['about']['against']}: {statistics.median(against):.0f} s"
        ratios = [one / other for one, other in zip(ours, against, strict=True)]
        what = "`make demo` after installation"
        yield Row(
            what, f"{statistics.median(ours):.0f} s", told, ratios, "<= 0.65", "times as long", short=True
        )


def _startup(found: Found) -> Iterator[Row]:
    first = "`stasc run` until 8 questions are corrected"
    for row, what, target in (("help_s", "`stasc --help`", "< 1"), ("first_answers_s", first, "printed")):
        if seconds := found.get(row):
            yield Row(what, f"{statistics.median(seconds):.2g} s", "", seconds, target, "s")


def where_it_goes(found: Found) -> Iterator[str]:
    """Markdown: the seconds of the iterations and of fresh processes, and the tokens of both."""
    pairs = _pairs(found, "iteration", "run", "reference")
    runs = [pair["run"] for pair in pairs]
    iterations = list(runs[0])
    parts = [name for name in runs[0][iterations[0]] if not name.endswith("tokens")]
    yield "| seconds, median | " + " | ".join(parts) + " |"
    yield "|---" * (len(parts) + 1) + "|"
    for one in iterations:
        values = (statistics.median(run[one][part] for run in runs) for part in parts)
        cells = " | ".join(f"{value:.1f}" for value in values)
        yield f"| {one.replace('_', ' ')} | {cells} |"
    yield ""
    first = iterations[0]
    yield f"{first.replace('_', ' ').capitalize()}: {_tokens([run[first] for run in runs])}."
    for side, name in (("reference", "The reference's way"), ("rft", "The script in ms-swift's shape")):
        if figures := [pair[side] for pair in pairs if side in pair]:
            yield f"{name}: {_phases(figures)}; {_tokens(figures)}."


def _phases(figures: Sequence[Mapping[str, float]]) -> str:
    names = [name for name in figures[0] if name != "seconds" and not name.endswith("tokens")]
    medians = {name: statistics.median(one[name] for one in figures) for name in names}
    return ", ".join(f"{name.replace('_', ' ')} {seconds:.0f} s" for name, seconds in medians.items())


def _tokens(figures: Sequence[Mapping[str, float]]) -> str:
    generated, trained = (
        statistics.median(one[name] for one in figures) for name in ("generated_tokens", "trained_on_tokens")
    )
    return f"{generated:,.0f} tokens generated, {trained:,.0f} trained on"


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}, n = {len(values)})"


# --- what it was measured on, and where it is written
# ------------------------------------------------------------


def machine() -> str:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(": ")[2] if names else processor
    versions = ", ".join(
        f"{name} {version}" for name, version in ray_session.versions().items() if name != "stasc-ray"
    )
    return f"{ray_session.cores()} CPU cores ({processor}, shared); {versions}."


def commit() -> str:
    """The last one that changed what is measured; with `+` where it has changes. `unknown` without git."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", "stasc_ray", "benchmarks", "jobs"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    try:
        return git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else "") or "unknown"
    except FileNotFoundError:
        return "unknown"


def marks(long: bool) -> tuple[str, str]:
    """Between which a table goes."""
    return LONG_MARKS if long else DEMO_MARKS


def check_marks(file: Path, marks: tuple[str, str]) -> tuple[str, str]:
    """What stands before and after the marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, _, rest = file.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not end:
        raise ValueError(
            f"{file}: expected the lines {marks[0]!r} and {marks[1]!r}, found at most one of them"
        )
    return before, after


def write_between_marks(file: Path, text: str, marks: tuple[str, str] = DEMO_MARKS) -> None:
    """Replace what lies between the marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, after = check_marks(file, marks)
    store.write_atomically(file, f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}")

"""A run folder -> one self-contained HTML page: rewards with intervals, transitions, training, speed,
transcripts.

Reads what history.py does, and a few row groups of one iteration's rollouts. Writes one HTML file without
scripts or anything from the network. A run that is still going gives a shorter page.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from stasc_ray.config import Algorithm, validate
from stasc_ray.recipes import chosen_by, recipe_of, section_of
from stasc_ray.recipes.trace import cut_advice
from stasc_ray.report import planned, transcripts
from stasc_ray.report.charts import number
from stasc_ray.report.figures import SPLITS, TRANSITIONS, Table, figures, name_of, with_interval
from stasc_ray.report.history import Run, chosen_iteration, read_run
from stasc_ray.store import fork, write_atomically

CONTROL_PICTURES = {
    code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"
}  # shown as signs, not obeyed
EVALUATION = {
    "r_y1": "r(Y1)",
    "r_y2": "r(Y2)",
    "delta": "delta",
    "c_to_c": "c->c",
    "c_to_i": "c->i",
    "i_to_c": "i->c",
    "i_to_i": "i->i",
    "cl": "CL",
    "cs": "CS",
    "rss": "RSS",
    "changed": "changed",
    "edit_ratio": "edit ratio",
    "questions": "questions",
}
VERDICTS = {
    "verdict_accuracy": "verdicts right",
    "verdict_balanced_accuracy": "balanced",
    "verdict_precision": "precision of wrong",
    "verdict_recall": "recall of wrong",
    "verdict_read": "readable",
}
WORK = {
    "rollouts/questions": "questions",
    "rollouts/errors": "errors",
    "rollouts/grader_errors": "grader errors",
    "rollouts/resumed_questions": "resumed",
    "rollouts/units_done_again": "units done again",
    "rollouts/generated_tokens": "generated tokens",
    "rollouts/truncated": "texts cut at max_tokens",
    "examples/left_out_truncated": "left out, cut",
    "examples/kept_mean_words": "mean words, kept",
    "examples/dropped_mean_words": "mean words, dropped",
    "rollouts/engines_started": "engines started",
    "rollouts/engine_start_s": "engine start, s",
    "rollouts/hand_over_s": "weights taken over, s",
    "rollouts/canary_difference": "canary's difference, nats",
    "examples/questions_with_examples": "questions with examples",
    "finetune/steps": "steps",
    "finetune/trained_tokens": "trained tokens",
    "finetune/left_out_no_target": "left out, no target",
    "finetune/left_out_too_long": "left out, too long",
}
GROUPS = {"i->c": "repaired", "c->i": "broken", "i->i": "still wrong", "c->c": "still right"}


def write_report(run_folder: Path, destination: Path | None = None) -> Path:
    """Write the page of `run_folder` to `destination` (default: report.html in the run folder) and return its
    path.

    Raises:
        FileNotFoundError: no run folder: it has no metrics.jsonl.
        ValueError: a file of the run folder is not the JSON it should be; the message names it.
    """
    run = read_run(Path(run_folder))
    destination = Path(destination) if destination else run.folder.path / "report.html"
    html = templates().get_template("page.html.j2").render(**contents(run))
    # A lone surrogate in a model's text cannot be written; it becomes a question mark.
    write_atomically(destination, html.translate(CONTROL_PICTURES).encode("utf-8", "replace").decode("utf-8"))
    return destination


def templates(**more: Any) -> jinja2.Environment:
    """The templates of this folder, which escape all that is put into them."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("stasc_ray", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **more,
    )


def contents(run: Run) -> dict[str, Any]:
    """Everything the template shows."""
    chosen = chosen_iteration(run)
    shown = _transcript_iteration(run, chosen)
    picked = [] if shown is None else _picked(run, shown)
    times = [line["time"] for line in run.stages.values() if isinstance(line.get("time"), int | float)]
    return {
        "name": run.raw_config.get("name") or run.folder.path.resolve().name,
        "variant": run.config.algorithm.variant if run.config else None,
        "algorithm": run.config.algorithm if run.config else None,
        "filter": getattr(run.config.algorithm, "filter", None) if run.config else None,
        "measure": _measure_in_words(run),
        "model": run.config.model.path if run.config else None,
        "revision": run.config.model.revision if run.config else None,
        "fork": ". ".join(fork.in_words(run.folder.fork())),
        "last_time": _moment(max(times)) if times else None,
        "last": run.measured[-1] if run.measured else None,
        "planned": run.config.algorithm.iterations if run.config else None,
        "chosen": chosen,
        "versions": run.versions,
        "latest": run.latest,
        "questions": {split: run.value(f"evaluation/{split}/questions", 0) for split in SPLITS},
        "result": {
            key: {i: run.value(f"evaluation/test/{key}", i) for i in run.measured} for key in ("r_y1", "r_y2")
        },
        "gain": _gain_in_words(run, chosen),
        "surely": run.config is not None and run.config.publish.when == "dev_improves_surely",
        "number": number,
        "summary": summary(run, chosen),
        "figures": figures(run, chosen),
        "evaluations": {name: _evaluation_table(run, split) for split, name in SPLITS.items()},
        "work": _work_table(run),
        "planned_table": _planned_table(run),
        "advice": _advice(run),
        "transcripts": len(picked),
        "transcripts_from": name_of(shown) if shown is not None else None,
        "groups": _transcript_groups(run, shown, picked),
        "config": _config_rows(run.raw_config),
        "environment": list(_flatten(run.environment)),
    }


def _picked(run: Run, iteration: int) -> list[transcripts.Transcript]:
    section = run.config.algorithm if run.config else Algorithm()
    answers = recipe_of(section.recipe).answers
    return transcripts.choose(run.folder.stage(iteration, "rollouts"), "test", section.threshold, answers)


def summary(run: Run, chosen: int | None) -> Table:
    """Test figures of the base model, the version chosen on dev and the last iteration, with intervals."""
    last = run.measured[-1] if run.measured else 0
    titles = {i: [name_of(i) if i == 0 else f"iteration {i}"] for i in sorted({0, chosen or 0, last})}
    if last > 0 and chosen is not None:
        titles[chosen].append("chosen on dev")
    if last > 0:
        titles[last].append("last")
    rows = [_summary_row(run, ", ".join(words), i) for i, words in titles.items()]
    return Table(["test split", "r(Y1)", "r(Y2)", "gain over base", "delta", "i->c", "c->i", "changed"], rows)


def _summary_row(run: Run, name: str, iteration: int) -> list[str]:
    keys = ("r_y1", "r_y2", "gain", "delta", "i_to_c", "c_to_i", "changed")
    return [name, *(with_interval(run, f"evaluation/test/{key}", iteration) for key in keys)]


def _evaluation_table(run: Run, split: str) -> Table:
    judged = any(
        run.value(f"evaluation/{split}/{key}", i) is not None for i in run.measured for key in VERDICTS
    )
    columns = EVALUATION | (VERDICTS if judged else {})
    rows = []
    for i in run.measured:
        values = {key: run.value(f"evaluation/{split}/{key}", i) for key in columns}
        rows.append(
            [name_of(i), *(number(value, 0 if key == "questions" else 3) for key, value in values.items())]
        )
    return Table(["iteration", *columns.values()], rows)


def _work_table(run: Run) -> Table:
    rows = [[name_of(i), *(number(run.value(key, i), 0) for key in WORK)] for i in run.iterations]
    return Table(["iteration", *WORK.values()], rows)


def _planned_table(run: Run) -> Table | None:
    """What `stasc plan` said beside what was measured; None if the run was not planned."""
    if not planned.read_plan(run.folder.path):
        return None
    rows = [
        [one.what, number(one.planned, 0), number(one.measured, 0), planned.as_percent(one.error)]
        for one in planned.compared(run.folder.path)
    ]
    return Table(["of the stages that are done", "planned", "measured", "error"], rows)


def _advice(run: Run) -> list[str]:
    """What the newest rollouts say about `max_tokens`."""
    lines = [line for (stage, _), line in sorted(run.stages.items()) if stage == "rollouts"]
    if not lines or run.config is None:
        return []
    shares = {name.removeprefix("rollouts/"): value for name, value in lines[-1].items()}
    turns = {name.removesuffix("_truncated"): shares[name] for name in shares if name.endswith("_truncated")}
    found = (cut_advice(turn, share, run.config.sampling) for turn, share in turns.items())
    return [advice for advice in found if advice]


def _config_rows(raw: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(dotted name, value, differs from the default) of every field; defaults are those of the run's own
    presets.
    """
    presets = {
        s: {"preset": raw[s]["preset"]} for s in ("prompts", "questions") if "preset" in raw.get(s, {})
    }
    recipe = {name: value for name, value in raw.get("algorithm", {}).items() if name == "recipe"}
    try:
        given = presets | {"algorithm": recipe}
        defaults = dict(_flatten(validate(given, section_of).model_dump(mode="json")))
    except ValueError:  # a preset this version does not know: nothing can be called a default
        defaults = {}
    return [(name, value, bool(defaults) and defaults.get(name) != value) for name, value in _flatten(raw)]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield (
                f"{prefix}{name}",
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            )


def _transcript_groups(
    run: Run, iteration: int | None, picked: Sequence[transcripts.Transcript]
) -> list[tuple[str, str, str, list[transcripts.Transcript]]]:
    """(transition, in words, true share in percent, transcripts) of each transition that was found."""
    keys = {words: f"evaluation/test/{key}" for key, words, _ in TRANSITIONS}
    groups = []
    for name, words in GROUPS.items():
        share = run.value(keys[name], iteration)
        members = [one for one in picked if one.transition == name]
        if members:
            groups.append((name, words, number(None if share is None else share * 100, 1), members))
    return groups


def _transcript_iteration(run: Run, chosen: int | None) -> int | None:
    """The chosen iteration if it learnt anything and its rollouts are committed, else the last one whose
    are.
    """
    candidates = [*([chosen] if chosen else []), *reversed(run.iterations)]
    return next((i for i in candidates if transcripts.committed(run.folder.stage(i, "rollouts"))), None)


def _gain_in_words(run: Run, chosen: int | None) -> str | None:
    """Of the chosen iteration over M0, with its interval; None for M0 and where none is known."""
    if not chosen or run.value("evaluation/test/gain", chosen) is None:
        return None
    sign = "+" if (run.value("evaluation/test/gain", chosen) or 0.0) > 0 else ""
    return sign + with_interval(run, "evaluation/test/gain", chosen)


def _measure_in_words(run: Run) -> str:
    """By what versions are chosen."""
    name = chosen_by(run.config.algorithm)[0] if run.config else "r_y2"
    measure = {"r_y1": "r(Y1)", "r_y2": "r(Y2)"}.get(name.rpartition("/")[2], name)
    return f"{measure} of the base model's answers" if name.startswith("base/") else measure


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")

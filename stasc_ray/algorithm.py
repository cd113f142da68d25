"""Algorithm 1 of "Self-Taught Self-Correction for Small Language Models" (arXiv 2503.08681), section 2.2.

M_0 is the base model, M_n the model after iteration n. Every stage is committed to the run folder, and a
committed stage is skipped, so the same command continues a run that was interrupted. Other recipes run the
same loop: a recipe says which turns are asked in steps 1 and 2, and what is kept in step 3.
"""

from typing import Any

from stasc_ray import stages
from stasc_ray.evaluation import choosing
from stasc_ray.recipes import chosen_by
from stasc_ray.stages import Run


def stasc(run: Run) -> dict[str, Any]:
    """Run Algorithm 1 to its end; returns `summary(run)`. With 0 iterations it measures the model.

    The variant is in three words of the config: `algorithm.initial_answers_from` (Fixed or Evolving
    initialization), `algorithm.filter` (Improving or Non-decreasing) and `algorithm.finetune_from` (Fixed or
    Evolving fine-tuning).

    Raises:
        NothingKeptError: the filter kept no correction.
        ValueError, RuntimeError, OSError: what the stages raise; the run folder stays resumable.
    """
    iterations = run.settings.algorithm.iterations
    choosing.check(run.settings)
    stages.repair_metrics(run.folder)
    stages.prepare_questions(run)
    for n in range(1, iterations + 1):
        # Steps 1 and 2: initial answers from M_0 or M_{n-1}, corrections from M_{n-1}; dev and test in the
        # same pass.
        stages.answer_and_correct(run, n - 1, learn=True)
        stages.start_trainer(run, n)
        evaluate_and_publish(run, n - 1)
        # Step 3: keep the corrections that raised the reward (or, non-decreasing, kept it high).
        stages.keep_improvements(run, n)
        # Step 4: fine-tune M_0 or M_{n-1} on them, loss on the correction's tokens only.
        stages.fine_tune(run, n)
    stages.answer_and_correct(run, iterations, learn=False)
    evaluate_and_publish(run, iterations)
    return summary(run)


def evaluate_and_publish(run: Run, iteration: int) -> None:
    """Measure M_iteration on questions it never learnt from, publish it, show the table so far."""
    stages.evaluate(run, iteration)
    stages.publish(run, iteration)
    run.display.table(stages.table_rows(run.folder))


def summary(run: Run) -> dict[str, Any]:
    """The version chosen on dev, with its test figures beside the base model's and the last iteration's."""
    rows = {row["iteration"]: row for row in stages.table_rows(run.folder)}
    best, last = choosing.chosen(run.folder, run.settings) or 0, max(rows)
    measure = chosen_by(run.settings.algorithm)[0]
    of_base = measure.startswith("base/")  # trained on corrections of M0's answers
    figures: dict[str, Any] = {}
    for name, iteration in (("base", 0), ("chosen", best), ("last", last)):
        of = "base/" if of_base and iteration else ""
        keys = ("r_y1", "r_y2", "r_y2_low", "r_y2_high")
        figures[name] = {key: rows[iteration][f"evaluation/test/{of}{key}"] for key in keys}
    # over M0; None for M0 itself, and where it was not measured
    gain = {key: rows[best].get(f"evaluation/test/{key}") for key in ("gain", "gain_low", "gain_high")}
    gain["gain_in"] = measure.rpartition("/")[2]
    versions = {"chosen_version": f"v{best:04d}", "chosen_iteration": best, "last_iteration": last}
    return {**versions, "of_base": of_base, **gain, **figures}

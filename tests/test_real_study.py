"""The study of a real model: its cells are runs, and what is kept of one is what the run measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness import as_sandbox, traces

from benchmarks import controls, real_report, real_study, study, study_figures
from stasc_ray import config
from stasc_ray.recipes import section_of


def test_every_cell_is_a_run_of_the_studys_config() -> None:
    cells = list(real_study.cells())
    assert len({cell.name for cell in cells}) == len(cells) == 3 * 4 + 5
    assert [cell.label for cell in cells[:6]] == ["rft", "ENE"] * 3, "what tells most comes first"
    for cell in cells:
        settings = config.load_config(real_study.CONFIG, cell.overrides, section_of)
        assert settings.finetune.trained_tokens and settings.publish.when == "dev_improves_surely"
        written = settings.algorithm.n_initial * (1 + settings.algorithm.n_corrections)
        assert settings.algorithm.finetune_from == "current", "tokens add up for all of them alike"
        assert written == (1 if cell.label in ("gold", "spans") else 3), "texts of a train question"


def test_prompts_are_asked_as_they_are_written() -> None:
    for name, fields in real_study.PROMPTS.items():
        found = config.load_config(real_study.CONFIG, real_study.prompts(name), section_of).prompts
        told = found.model_dump(mode="json", exclude_none=True)
        assert {field: told[field] for field in fields} == fields


def cell(label: str, seed: int, chosen: int, *rewards: list[float], of_base: bool = False) -> dict[str, Any]:
    """A line whose iterations have these r(Y2) question by question; first answers are right half of the time."""
    name = "base/r_y2" if of_base else "r_y2"

    def each(number: int, of: list[float]) -> dict[str, dict[str, float]]:
        own = {"r_y1": 0.5, "r_y2": 0.0 if of_base and number else of[0]}
        return {f"q{n}": own | {name if number else "r_y2": value} for n, value in enumerate(of)}

    test = {"changed": 0.5, "i_to_c": 0.1, "c_to_i": 0.2}
    iterations = [
        {"iteration": n, "trained_tokens": 100 * bool(n), "test": test} for n in range(len(rewards))
    ]
    return {
        "name": f"real-{label}-{seed}", "part": "real", "label": label, "seed": seed, "commit": "abc",
        "seconds": 1800, "cores": 2, "chosen": chosen, "iterations": iterations, "transcripts": [],
        "test": {str(number): each(number, of) for number, of in enumerate(rewards)},
    }  # fmt: skip


def test_the_page_compares_question_by_question_over_seeds(tmp_path: Path) -> None:
    zeros, ones, some = [0.0] * 40, [1.0] * 40, [1.0] * 30 + [0.0] * 10
    lines = [cell("rft", 0, 1, zeros, some), cell("rft", 1, 0, zeros, some)]
    lines += [cell("ENE", 0, 1, zeros, ones), cell("FNE", 0, 1, zeros, ones, of_base=True)]
    (tmp_path / study.CELLS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    real_report.write(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "{{" not in page and "4 cells, 4.0 core-hours in all. Commits: abc." in page
    chosen, last = (
        page[page.index(title) :].split("\n\n")[1] for title in ("## The versions", "## The last")
    )
    rows = {row.split("`")[1]: row for row in chosen.splitlines()[2:]}
    assert rows["rft"].startswith("| `rft` | 2 | 1 0 | 0.500 | 0.375 | **+0.375 [+0.3")
    assert rows["ENE"].startswith(
        "| `ENE` | 1 | 1 | 0.500 | 1.000 | **+1.000 [+1.000, +1.000]** | **+0.500 [+0.500, +0.500]** | **+0.625 [+0.5"
    )
    assert "| 1.000 | **+1.000" in rows["FNE"], "M0's answers corrected"
    assert "| `rft` | 2 | 1 1 | 0.500 | 0.750 |" in last


def test_without_cells_the_page_says_so(tmp_path: Path) -> None:
    real_report.write(tmp_path, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text().count(real_report.NOT_RUN) == 7


def test_the_controls_learn_what_they_say() -> None:
    text = "one two three four five six seven eight nine ten"
    row = {**traces.QUESTION, "documents": [text], "answers": ["five six"]}
    plan = traces.plan({"recipe": "benchmarks.controls:SPANS"})
    said = {controls.spans({**row, "id": f"q{n}"}, [], plan, 0)[0].messages[-1]["content"] for n in range(40)}
    assert len(said) == 6 and all(one in text and len(one.split()) == 2 for one in said)
    assert not any(word in one.split() for one in said for word in ("five", "six"))
    assert controls.spans({**row, "documents": ["five six seven"]}, [], plan, 0) == [], "no other words"
    plan = traces.plan({"recipe": "benchmarks.controls:MIXED"})
    found = controls.mixed(row, traces.answered([0, 1], [[1], [1]]), plan, 0)
    assert [one.kind for one in found] == ["i->c", "answer"] and len({one.id for one in found}) == 2


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cell_is_kept_with_what_each_question_was_worth(tmp_path: Path) -> None:
    """The sandbox stands in for the real model."""
    given = ("model.path=sandbox", *as_sandbox.QUESTIONS)
    where = real_study.Where(tmp_path / "kept", tmp_path / "work", given, tuple(as_sandbox.ASKED))
    where.folder.mkdir()
    (cell,) = (cell for cell in real_study.cells() if cell.name == "real-ENE-0")
    real_study.run_cell(cell, where)
    (line,) = study_figures.lines(where.folder / study.CELLS)
    for iteration in line["iterations"]:
        each = line["test"][str(iteration["iteration"])].values()
        assert len(each) == 30
        assert sum(one["r_y2"] for one in each) / 30 == pytest.approx(iteration["test"]["r_y2"], abs=1e-4)
    assert {one["transition"] for one in line["transcripts"]} >= {"i->i"}
    assert not (where.work / cell.name).exists() and str(tmp_path) not in json.dumps(line)

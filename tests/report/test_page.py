"""The report page, from a run folder as a real run writes it (arithmetic with a forgotten carry, three
iterations)."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness.pages import Page

from stasc_ray.config import to_json, validate
from stasc_ray.recipes import section_of
from stasc_ray.recipes.trace import Text, write_texts
from stasc_ray.report.charts import number
from stasc_ray.report.history import chosen_iteration, read_run
from stasc_ray.report.page import write_report
from stasc_ray.report.transcripts import ORDER, choose
from stasc_ray.store import step_log
from stasc_ray.store.rows import FORMAT, trace_schema

# per iteration: chance of a right first answer, of repairing a wrong one, of keeping a right one
SKILL = {0: (0.36, 0.15, 0.88), 1: (0.49, 0.28, 0.90), 2: (0.58, 0.44, 0.93), 3: (0.60, 0.43, 0.95)}
SIZES = {"train": 200, "dev": 200, "test": 500}
EVIL = "<script>alert('x')</script> = 7 <|im_end|> & \x07"


def make_run(folder: Path, iterations: int = 3, algorithm: dict[str, Any] | None = None) -> Path:
    """Write a run folder with the base model and `iterations` iterations; returns it."""
    rng, clock, lines = random.Random(0), 1_795_000_000.0, []
    settings = {
        "name": folder.name,
        "prompts": {"preset": "sandbox"},
        "algorithm": algorithm or {"variant": "ENF", "iterations": 3, "n_corrections": 4},
        "finetune": {"learning_rate": 1e-3, "batch_size": 16},
    }
    environment = {
        "ray": "2.60.0",
        "vllm": "0.29.0",
        "torch": "2.13.0",
        "git": {"commit": "0123abc", "clean": True},
    }
    (folder / "versions").mkdir(parents=True)
    stored = {"format": FORMAT, **json.loads(to_json(validate(settings, section_of)))}
    (folder / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    for k in range(iterations + 1):
        lines += _training_lines(k, clock, rng) if k else []
        rows = {split: _rows(split, n, k, rng) for split, n in SIZES.items()}
        name = f"iteration_{k:02d}" if k else "base"
        _write_rollouts(folder / name / "rollouts", rows)
        if k:
            write_steps(folder / name / "model", lines[-1]["finetune/losses"])
        lines += _measuring_lines(k, clock + 40, rows)
        manifest = {
            "version": f"v{k:04d}",
            "iteration": k,
            "model": f"{name}/model",
            "created": "2026-11-20T12:00:00Z",
        }
        (folder / "versions" / f"v{k:04d}.json").write_text(json.dumps(manifest), encoding="utf-8")
        clock += 60
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    (folder / "LATEST").write_text(f"v{iterations:04d}\n", encoding="utf-8")
    return folder


def write_steps(folder: Path, losses: list[float]) -> Path:
    """training.jsonl, as a trainer on a CPU writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"step": i, "time": 1e9, "loss": loss, "grad_norm": 2 * loss, "tokens_per_s": 400.0 + i, "mfu": None}
        for i, loss in enumerate(losses, 1)
    ]
    path = folder / step_log.NAME
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _line(stage: str, k: int, clock: float, values: dict[str, Any]) -> dict[str, Any]:
    named = {f"{stage}/{name}": value for name, value in values.items()}
    return {"stage": stage, "iteration": k, "time": clock, **named}


def _training_lines(k: int, clock: float, rng: random.Random) -> list[dict[str, Any]]:
    losses = [0.25 + 1.9 / k * math.exp(-step / 12) + rng.gauss(0, 0.05) for step in range(40 + 15 * k)]
    counts = {"i_to_c": 120 + 10 * k, "c_to_c": 90 + 80 * k, "c_to_i": 40, "i_to_i": 550 - 90 * k}
    kept = {"kept": 210 + 90 * k, "attempts": 800, "questions_with_examples": 150, "duration_s": 0.8}
    trained = {
        "losses": losses,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "steps": len(losses),
        "trained_tokens": 5200 + 900 * k,
        "tokens_per_s": 410.0 - 9 * k,
        "duration_s": 13.0 + 3 * k,
        "left_out_no_target": 0,
        "left_out_too_long": 1,
    }
    return [_line("examples", k, clock, counts | kept), _line("finetune", k, clock + 20, trained)]


def _measuring_lines(k: int, clock: float, rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    done = {
        "questions": sum(map(len, rows.values())),
        "errors": 0,
        "grader_errors": k % 2,
        "generated_tokens": 12_600 + k,
        "tokens_per_s": 640.0 + 15 * k,
        "duration_s": 24.0 - k,
        "engine_start_s": 6.5,
        "resumed_questions": 0,
        "units_done_again": k,
    }
    measured = _measure(rows["dev"], "dev") | _measure(rows["test"], "test") | {"duration_s": 1.2}
    return [_line("rollouts", k, clock, done), _line("evaluation", k, clock + 1, measured)]


def _rows(split: str, n: int, k: int, rng: random.Random) -> list[dict[str, Any]]:
    rows, (right, repair, keep) = [], SKILL[k]
    for i in range(n):
        a, b = rng.randrange(10, 500), rng.randrange(10, 500)
        r1 = float(rng.random() < right)
        r2 = float(rng.random() < (keep if r1 else repair))
        initial = a + b - (0 if r1 else 10)
        correction = a + b + (0 if r2 else rng.choice([-10, 100, -100]))
        row = {
            "id": f"{split}-{i:04d}",
            "question": f"What is {a} + {b}?",
            "answers": [str(a + b)],
            "split": split,
            "texts": _texts(f"{a}+{b}={initial}", f"{a}+{b}={correction}", r1, r2, k),
        }
        rows.append(row)
    return rows


def _texts(initial: str, correction: str, r1: float, r2: float, k: int) -> list[dict[str, Any]]:
    """A trace; with Fixed initialization M0's answer would stand beside it, as it does here from iteration 1
    on."""
    writer = f"iteration_{k:02d}" if k else "base"
    answer = Text("answer", initial, 0, None, writer, reward=r1)
    texts = [answer, Text("correction", correction, 0, answer, writer, reward=r2)]
    if k:
        given = Text("answer", "M0 wrote this", reward=0.0)
        texts += [given, Text("correction", "of what M0 wrote", 0, given, writer, reward=0.0)]
    return write_texts(texts)


def _rewards(row: dict[str, Any]) -> tuple[float, float]:
    """Of the model's answer and of its correction."""
    own = [text for text in row["texts"] if not text["text"].startswith(("M0", "of what"))]
    return own[0]["reward"], own[1]["reward"]


def _write_rollouts(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Units of 50 questions, as the actors write them, a failed row in each, and one file that was never
    committed."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for split, of_split in rows.items():
        failed = {**of_split[0], "texts": [], "error": "the prompt is too long"}
        for start in range(0, len(of_split), 50):
            names.append(f"{split}-{start // 50:05d}.parquet")
            table = pa.Table.from_pylist([failed, *of_split[start : start + 50]], schema=trace_schema())
            pq.write_table(table, folder / names[-1])
        stray = pa.Table.from_pylist([{**of_split[-1], "id": f"{split}-uncommitted"}], schema=trace_schema())
        pq.write_table(stray, folder / f"{split}-99999.parquet")
    (folder / "_COMMITTED.json").write_text(json.dumps({"line": {}, "files": names}), encoding="utf-8")


def _measure(rows: list[dict], split: str) -> dict[str, float]:
    pairs = [_rewards(row) for row in rows if row["split"] == split]
    n = len(pairs)
    y1, y2 = (sum(values) / n for values in zip(*pairs, strict=True))
    pairs_of = {"c_to_c": (1, 1), "c_to_i": (1, 0), "i_to_c": (0, 1), "i_to_i": (0, 0)}
    found = {name: sum(pair == wanted for pair in pairs) / n for name, wanted in pairs_of.items()}
    found |= {"r_y1": y1, "r_y2": y2, "delta": y2 - y1, "changed": 0.4, "edit_ratio": 0.1, "questions": n}
    found |= {"cl": 0.9, "cs": 0.2, "rss": 0.6}
    for name in ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i"):
        half = 1.96 * (max(abs(found[name]) * (1 - abs(found[name])), 0.0) / n) ** 0.5
        found |= {f"{name}_low": found[name] - half, f"{name}_high": found[name] + half}
    return {f"{split}/{name}": value for name, value in found.items()}


def _set(folder: Path, iteration: int, key: str, value: float) -> None:
    """Append a repeated line of the key's stage with one value changed: the later line counts."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    of = (key.partition("/")[0], iteration)
    line = next(line for line in reversed(lines) if (line["stage"], line["iteration"]) == of)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line | {key: value}) + "\n")


def test_page_of_a_finished_run_has_every_part(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "demo"))
    assert path == tmp_path / "demo" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    sections = ["Results on test", "Figures", "Transcripts", "Configuration", "Environment", "Versions (4)"]
    charts = [
        "Test reward",
        "Dev reward",
        "Test transitions",
        "Dev transitions",
        "Kept examples",
        "Training loss",
        "Gradient norm",
        "Training speed",
    ]
    charts += ["Time per stage, seconds", "Tokens per second"]
    values = ["ENF", "sandbox", "v0003 (iteration 3, best r(Y2) on dev)", "algorithm.n_corrections", "2.60.0"]
    assert [part for part in (*sections, *charts, *values) if part not in text] == []
    assert len(page.all("svg")) == len(page.all("figure")) == len(charts)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert len(page.all("article")) == 20
    assert not list(tmp_path.glob("**/*.partial"))


def test_the_headline_is_the_gain_over_the_base_model_with_its_interval(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    for end, value in (("", 0.0415), ("_low", -0.0125), ("_high", 0.0935)):
        _set(folder, 3, f"evaluation/test/gain{end}", value)
    text = " ".join(" ".join(Page(write_report(folder).read_text(encoding="utf-8")).text).split())
    interval = f"{number(0.0415)} [{number(-0.0125)}, {number(0.0935)}]"
    assert (
        f"Against the base model, question by question: +{interval} in r(Y2)" in text
        and text.count(interval) == 2
    ), "and in the table"


def test_where_a_gain_must_be_sure_the_chosen_one_is_the_last_that_was_published(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored["publish"]["when"] = "dev_improves_surely"
    (folder / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for k in range(4):
            file.write(json.dumps({"stage": "publish", "iteration": k, "publish/latest": k < 2}) + "\n")
    text = " ".join(" ".join(Page(write_report(folder).read_text(encoding="utf-8")).text).split())
    assert "v0001 (iteration 1, chosen by r(Y2) on dev)" in text


def test_summary_sets_the_version_chosen_on_dev_beside_base_and_last(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    _set(folder, iteration=1, key="evaluation/dev/r_y2", value=0.99)
    run = read_run(folder)
    html = write_report(folder, tmp_path / "elsewhere" / "page.html").read_text(encoding="utf-8")
    html = html[html.index('id="results"') : html.index('id="figures"')]
    rows = {title: cells for title, cells in re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)}
    for title, k in (("base", 0), ("iteration 1, chosen on dev", 1), ("iteration 3, last", 3)):
        assert number(run.value("evaluation/test/r_y2", k)) in rows[title]
        assert number(run.value("evaluation/test/r_y2_low", k)) in rows[title]


def test_base_is_chosen_when_no_iteration_is_better_on_dev(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", iterations=1)
    _set(folder, iteration=1, key="evaluation/dev/r_y2", value=0.0)
    assert chosen_iteration(read_run(folder)) == 0
    html = write_report(folder).read_text(encoding="utf-8")
    assert "no iteration is better than the base model" in html and "base, chosen on dev" in html
    assert "the model of iteration 1" in html  # the transcripts: what learning did


def test_model_text_is_escaped_everywhere(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", iterations=0)
    texts = {
        "question": EVIL,
        "answers": [EVIL],
        "choices": [EVIL],
        "texts": _texts(EVIL, EVIL + " no", 0.0, 0.0, 0),
    }
    rows = [
        {**row, **texts, "id": f"{i} {EVIL}"} for i, row in enumerate(_rows("test", 4, 0, random.Random(1)))
    ]
    _write_rollouts(folder / "base" / "rollouts", {"test": rows})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["prompts"]["system"] = EVIL
    (folder / "config.json").write_text(json.dumps({**config, "name": "x"}), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"</td><script>": EVIL}), encoding="utf-8")
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert "<script" not in html and not page.all("script") and "\x07" not in html
    assert html.count("&lt;script&gt;alert") > 8


def test_a_page_says_when_too_many_texts_were_cut_and_at_which_limit(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    _set(folder, 3, "rollouts/correction_truncated", 0.34)
    _set(folder, 3, "rollouts/answer_truncated", 0.05)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "34% of the corrections were cut at sampling.correction.max_tokens = 256: raise it" in text
    assert "of the answers were cut" not in text


def test_page_needs_no_network(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "demo")).read_text(encoding="utf-8")
    page = Page(html)
    assert re.findall(r"https?://[^\s\"<]+", html) == ["https://arxiv.org/abs/2503.08681"]
    assert not [
        tag
        for tag, attributes in page.tags
        if "src" in attributes or tag in ("link", "script", "iframe", "img", "object")
    ]
    assert "url(" not in html and "@import" not in html
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.all("meta"))


def test_unfinished_run_gives_a_shorter_page(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "demo", iterations=0)).read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    assert "Only the base model has been measured so far" in text and "0 of 3 iterations" in text
    assert "Training loss" not in text and "\N{EN DASH}" in text
    assert len(page.all("article")) == 20


def test_a_fine_tune_that_is_going_on_is_drawn_as_far_as_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", iterations=0)
    path = write_steps(folder / "iteration_01" / "training", [3.0, 2.0, 1.5])
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # it is writing
    html = write_report(folder).read_text(encoding="utf-8")
    for title in (
        "training loss 3.000 to 1.500",
        "gradient norm 6.000 to 3.000",
        "training speed 401 to 403",
    ):
        assert f"iteration 1: 3 steps, {title}" in html
    assert "Model-FLOPs utilization" not in html, "not known on a CPU"
    path.write_text(json.dumps({"step": 1, "loss": 2.5, "grad_norm": 1.0, "tokens_per_s": 9.0, "mfu": 0.42}))
    html = write_report(folder).read_text(encoding="utf-8")
    assert "iteration 1: 1 steps, model-FLOPs utilization 0.420 to 0.420" in html


def test_a_run_folder_of_another_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", iterations=0)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"format": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match="expected format 4, found format 1"):
        write_report(folder)


def test_nothing_but_a_cut_off_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "rollouts", "itera', encoding="utf-8")
    text = " ".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).text)
    assert "No model has been measured yet" in text and "Nothing to draw yet" in text


def test_missing_and_infinite_values_are_dashes(tmp_path: Path) -> None:
    lines = [
        {"stage": "evaluation", "iteration": k, "evaluation/test/r_y2": value}
        for k, value in enumerate([0.4, float("nan"), "x"])
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "nan" not in html.lower() and "0.400" in html


def test_what_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a run folder with metrics.jsonl"):
        write_report(tmp_path / "nothing")
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "environment.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"environment.json: expected JSON"):
        write_report(tmp_path)


def test_transcripts_are_balanced_committed_and_always_the_same(tmp_path: Path) -> None:
    rollouts = make_run(tmp_path / "demo", iterations=1) / "iteration_01" / "rollouts"
    picked = choose(rollouts, "test", 1.0)
    assert [sum(one.transition == name for one in picked) for name in ORDER] == [5, 5, 5, 5]
    assert all(one.id.startswith("test-") for one in picked) and len({one.id for one in picked}) == 20
    assert picked == choose(rollouts, "test", 1.0)
    shown = [
        "".join(piece.text for piece in side) for one in picked for side in (one.initial, one.correction)
    ]
    assert not [text for text in shown if "M0" in text], "the model's own answers"
    assert choose(rollouts, "nowhere", 1.0) == []


def test_places_of_a_rare_transition_go_to_the_others(tmp_path: Path) -> None:
    rows = [row for row in _rows("test", 60, 0, random.Random(0)) if not _rewards(row)[0]]
    _write_rollouts(tmp_path / "base" / "rollouts", {"test": rows})
    picked = choose(tmp_path / "base" / "rollouts", "test", 1.0)
    assert len(picked) == 20 and {one.transition for one in picked} == {"i->c", "i->i"}


def test_fixed_initialization_shows_corrections_of_the_base_models_answers_as_well(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", algorithm={"variant": "FIF", "iterations": 3})
    text = " ".join(Page(write_report(folder).read_text(encoding="utf-8")).text)
    assert "corrections of the base model's answers" not in text, "nothing of it was measured"
    for k in range(1, 4):
        _set(folder, k, "evaluation/test/base/r_y2", 0.5 + k / 100)
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    assert "Test reward, corrections of the base model's answers" in text and "0.530" in text
    assert "best r(Y2) of the base model's answers on dev" in text


VERDICT = {"verdict_accuracy": 0.61, "verdict_balanced_accuracy": 0.62, "verdict_precision": 0.63}
VERDICT |= {"verdict_recall": 0.64, "verdict_read": 0.65}


def test_a_verdict_run_shows_what_the_verdicts_said_and_how_right_they_were(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", iterations=1, algorithm={"recipe": "verdict", "n_corrections": 4})
    for name, value in VERDICT.items():
        _set(folder, 1, f"evaluation/test/{name}", value)
    rows = []
    for i, said in enumerate(["My answer is wrong.", "My answer is right."] * 3):
        answer = Text("answer", f"1+1={i}", 0, None, "iteration_01", reward=0.0)
        verdict = Text("verdict", f"I look at {i}. {said}", 0, answer, "iteration_01", reward=1.0)
        after = (
            [Text("correction", "1+1=2", 0, verdict, "iteration_01", reward=1.0)] if "wrong" in said else []
        )
        question = {"id": f"test-{i}", "question": "What is 1 + 1?", "answers": ["2"], "split": "test"}
        rows.append({**question, "texts": write_texts([answer, verdict, *after])})
    _write_rollouts(folder / "iteration_01" / "rollouts", {"test": rows})
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    for part in ("verdicts right", "balanced", "precision of wrong", "recall of wrong", "readable", "0.640"):
        assert part in text
    assert len(page.all("article")) == 6
    for i in range(6):  # a verdict that called an answer right ended the trace
        assert f"Verdict: I look at {i}." in text
    picked = choose(folder / "iteration_01" / "rollouts", "test", 1.0)
    assert {one.transition for one in picked} == {"i->c", "i->i"}
    assert {one.between[0][0] for one in picked} == {"verdict"}
    text = " ".join(Page(write_report(make_run(tmp_path / "other")).read_text(encoding="utf-8")).text)
    assert "verdicts right" not in text and "Verdict:" not in text


def test_all_that_stands_between_the_first_answer_and_the_last_is_shown(tmp_path: Path) -> None:
    """A run of several rounds; a turn of one's own recipe is called by its name."""
    answer = Text("answer", "1+1=1", reward=0.0)
    critique = Text("critique", "too little", parent=answer)
    second = Text("correction", "1+1=3", parent=critique, reward=0.0)
    last = Text("correction", "1+1=2", parent=second, reward=1.0)
    (row,) = _rows("test", 1, 0, random.Random(0))
    row["texts"] = write_texts([answer, critique, second, last])
    _write_rollouts(tmp_path / "base" / "rollouts", {"test": [row]})
    (one,) = choose(tmp_path / "base" / "rollouts", "test", 1.0)
    assert one.transition == "i->c"
    assert one.between == (("critique", "too little"), ("correction", "1+1=3"))

"""`stasc look`: what is wrong with a config or a run can be seen, token by token; texts are shown harmlessly."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness.pages import Page as Html
from harness.traces import settings
from rich.console import Console
from typer.testing import CliRunner

from stasc_ray import config, store
from stasc_ray.cli.main import app
from stasc_ray.look import Wanted, look_at_config, look_at_run
from stasc_ray.look.tokens import load_chat
from stasc_ray.recipes import RECIPES, recipe_of
from stasc_ray.recipes.recipe import train_plan
from stasc_ray.recipes.selection import choose
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, read_texts, write_texts
from stasc_ray.report.look_page import Page, Tokens, print_page, write_html
from stasc_ray.store.rows import EXAMPLE_SCHEMA, trace_schema

TOKENIZER = load_chat(settings()).tokenizer
SANDBOX = ("prompts.preset=sandbox", "reward.name=exact_match", "reward.scope=after_marker")
EVIL = "</p><script>alert(1)</script> [bold red]x[/] \x1b[31m\x07\r \u202e \u200b & <|im_end|>"


def text(
    turn: str, said: str, reward: float, parent: Text | None = None, sample: int = 0, **more: Any
) -> Text:
    ids = TOKENIZER.encode(said, add_special_tokens=False)
    ids += [] if more.get("finish_reason") == "length" else [TOKENIZER.eos_token_id]
    return Text(turn, said, sample, parent, reward=reward, token_ids=ids, **more)


def row(id: str, *texts: Text, answers: tuple[str, ...] = ("5",), **more: Any) -> dict[str, Any]:
    question = {"id": id, "question": "What is 2 + 3?", "answers": list(answers), "split": "train"}
    return {**question, "documents": [], "choices": [], "error": None, **more, "texts": write_texts(texts)}


def corrected(id: str, first: str, *corrections: tuple[str, float], **more: Any) -> dict[str, Any]:
    answer = text(ANSWER, first, 0.0)
    later = [text(CORRECTION, said, r, answer, k) for k, (said, r) in enumerate(corrections)]
    return row(id, answer, *later, **more)


def make_run(folder: Path, rows: list[dict[str, Any]], *overrides: str, learnt: bool = True) -> Path:
    """A run whose base model has answered; iteration 1 has chosen, but for the question `thinned`."""
    given = settings("name=looked", *overrides)
    kept = []
    for one in rows:
        texts = read_texts(one)
        if one["split"] == "train" and not any(text.grader_error for text in texts):
            recipe, plan = recipe_of(given.algorithm.recipe), train_plan(given, 0)
            kept += choose(recipe, one, texts, plan, given.seed + 1).kept
    chosen = [one.as_row() for one in kept]
    chosen = [one for one in chosen if not one["id"].startswith("thinned")]
    with store.open_run(folder, given) as run:
        for split in {one["split"] for one in rows}:
            of_split = [one for one in rows if one["split"] == split]
            write(run, run.stage(0, "rollouts"), f"{split}-000000.parquet", of_split, trace_schema())
        if learnt:
            write(run, run.stage(1, "examples"), "train-000000.parquet", chosen, EXAMPLE_SCHEMA)
    return folder


def write(
    run: store.RunFolder, stage: Path, name: str, rows: list[dict[str, Any]], schema: pa.Schema
) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), stage / name)
    run.commit(stage, {"line": {}, "files": sorted(file.name for file in stage.glob("*.parquet"))})


def lines(page: Page) -> str:
    written = io.StringIO()
    print_page(page, Console(file=written, highlight=False))
    return written.getvalue()


def words(page: Page) -> str:
    """The lines, wherever they are folded."""
    return " ".join(lines(page).split())


def learnt(page: Page) -> list[list[int]]:
    """The ids that are marked, of each example."""
    blocks = [block for part in page.parts for block in part.blocks if isinstance(block, Tokens)]
    return [[id for token in block.tokens if token.learnt for id in token.ids] for block in blocks]


def test_each_text_says_why_it_is_learnt_or_not(tmp_path: Path):
    answer = text(ANSWER, "=4", 0.0)
    cut = text(CORRECTION, "=5", 1.0, answer, 2, finish_reason="length")
    rows = [
        row(
            "all", answer, text(CORRECTION, "2+3=5", 1.0, answer), text(CORRECTION, "=6", 0.0, answer, 1), cut
        ),
        corrected("capped", "=1", ("2+3=5", 1.0), ("3+2=5", 1.0)),
        corrected("thinned", "=1", ("2+3=5", 1.0)),
        row("failed", text(ANSWER, "=5", 0.0, grader_error="TimeoutError: 5 s")),
        corrected("held-out", "=1", ("2+3=5", 1.0), split="dev"),
    ]
    folder = make_run(tmp_path / "run", rows, *SANDBOX, "algorithm.max_examples_per_question=1")
    said = {one["id"]: words(look_at_run(folder, Wanted(id=one["id"]))) for one in rows}
    assert "correction 0 of answer 0: reward 1, 6 tokens by base, kept as i->c" in said["all"]
    assert "correction 1 of answer 0: reward 0, 3 tokens by base, not chosen" in said["all"]
    assert "cut at max_tokens, 2 tokens by base, chosen, but cut at max_tokens (algorithm.keep" in said["all"]
    assert (
        said["capped"].count("kept as i->c") == said["capped"].count("chosen, but beyond algorithm.max") == 1
    )
    assert "chosen, then dropped: too many of its class" in said["thinned"]
    assert "the grader failed: TimeoutError: 5 s" in said["failed"]
    assert "not learnt, the grader failed on a text of this question" in said["failed"]
    assert said["held-out"].count("not learnt, a dev question") == 2
    assert "learns corrections with a higher reward than their initial answer" in said["all"]


def test_the_mask_marks_exactly_the_generated_tokens_of_a_kept_example(tmp_path: Path):
    folder = make_run(tmp_path / "run", [corrected("q1", "=4", ("2+3=5", 1.0), ("=5", 0.0))], *SANDBOX)
    page = look_at_run(folder, Wanted(kept=True))
    assert learnt(page) == [[*TOKENIZER.encode("2+3=5", add_special_tokens=False), TOKENIZER.eos_token_id]]
    assert "LEARNT  2\u2502+\u25023\u2502=\u25025\u2502\u27e6<|end|>\u27e7\n" in lines(page)


def test_questions_are_found_by_id_transition_and_what_was_kept(tmp_path: Path):
    rows = [
        corrected("better", "=4", ("=5", 1.0)),
        corrected("same", "=4", ("=3", 0.0)),
        corrected("dev", "=4", ("=5", 1.0), split="dev"),
    ]
    folder = make_run(tmp_path / "run", rows, *SANDBOX)

    def found(**wanted: Any) -> list[str]:
        return [part.title for part in look_at_run(folder, Wanted(**wanted)).parts[1:]]

    assert found() == ["better (train)", "same (train)", "dev (dev)"]
    assert found(transition="i->c") == found(transition="i_to_c") == ["better (train)", "dev (dev)"]
    assert found(transition="i->i") == ["same (train)"] and found(kept=True) == ["better (train)"]
    assert found(limit=1) == ["better (train)"] and found(id="dev", transition="i->c") == ["dev (dev)"]
    with pytest.raises(ValueError, match=r"--id: expected a question of .*run.* found none called 'q9'"):
        found(id="q9")
    with pytest.raises(FileNotFoundError, match=r"rollouts of iteration_03 in .* found those of base"):
        found(iteration=3)
    with pytest.raises(FileNotFoundError, match=r"expected config\.json"):
        look_at_run(tmp_path / "nothing", Wanted())


def test_a_run_that_has_not_chosen_yet_says_what_it_would_keep(tmp_path: Path):
    folder = make_run(tmp_path / "run", [corrected("q1", "=4", ("=5", 1.0))], *SANDBOX, learnt=False)
    assert "to be kept as i->c" in lines(look_at_run(folder, Wanted(kept=True)))


def test_disputed_answers_are_those_that_another_reward_grades_otherwise(tmp_path: Path):
    final = "Final Answer: "
    rows = [
        corrected("mentioned", "?", (f"Not Paris.\n{final}Rome", 1.0), answers=("Paris",)),
        corrected("agreed", "?", (f"{final}Paris", 1.0), answers=("Paris",)),
        corrected("letter", "?", (f"{final}B", 1.0), answers=("A",), choices=["red", "blue"]),
    ]
    page = look_at_run(make_run(tmp_path / "run", rows), Wanted(disputed=True))
    assert [part.title for part in page.parts[1:]] == ["mentioned (train)", "letter (train)"]
    first, second = (
        " ".join(table.rows[-1]) for part in page.parts[1:] for table in part.blocks if table_of(table)
    )
    assert first.startswith("correction 0 of answer 0 in_accuracy of the whole text (the run's) ")
    assert "in_accuracy of the final answer, exact_match of the final answer" in first and "math" not in first
    assert second.endswith("(the run's) choice of the final answer")
    assert "choice if there are choices, else in_accuracy, exact_match, f1, math" in words(page)


def table_of(block: Any) -> bool:
    return getattr(block, "header", ("",))[0] == "disputed"


def test_hostile_texts_are_shown_and_obeyed_by_nothing(tmp_path: Path):
    rows = [corrected(EVIL, EVIL, (EVIL, 1.0), answers=(EVIL,), question=EVIL, documents=[EVIL])]
    page = look_at_run(make_run(tmp_path / "run", rows), Wanted())
    shown = lines(page)
    assert shown.count("<script>alert(1)</script>") > 4 and "[bold red]x[/]" in shown
    html = write_html(page, tmp_path / "page.html").read_text(encoding="utf-8")
    read = Html(html)
    assert not read.all("script") and html.count("&lt;script&gt;") > 4
    for written in (shown, "".join(read.text)):
        assert not set(written) & {"\x1b", "\x07", "\r", "\u202e", "\u200b"}
        assert "\u241b[31m\u2407\u240d <U+202E> <U+200B>" in written
    assert "\u27e6<|im_end|>\u27e7" not in shown
    assert 'href="http' not in html and "src=" not in html


CONFIG = """
name = "mine"
questions.train.source = "{file}"
questions.dev.limit = 1
questions.test.limit = 1
prompts.preset = "sandbox"
reward = {{ name = "exact_match", scope = "after_marker" }}
algorithm.recipe = "{recipe}"
"""


def own_config(folder: Path, recipe: str = "stasc") -> Path:
    """Four sums, one of them twice, and a bad row in line 3."""
    rows = [{"question": f"What is {n} + 1?", "answers": [str(n + 1)]} for n in (1, 2, 4, 5, 5)]
    made = [json.dumps(one) for one in rows]
    (folder / "sums.jsonl").write_text(
        "\n".join([*made[:2], '{"question": "?"}', *made[2:]]), encoding="utf-8"
    )
    file = folder / "mine.toml"
    file.write_text(CONFIG.format(file=folder / "sums.jsonl", recipe=recipe), encoding="utf-8")
    return file


def look(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["look", *map(str, arguments)])
    return done.output if done.exit_code == 0 else f"exit {done.exit_code}: {done.output}"


def test_a_config_is_seen_before_anything_runs(tmp_path: Path):
    said = look(own_config(tmp_path), "reward.name=in_accuracy")
    assert "1 duplicates dropped" in said
    assert "! 1 bad rows: a run stops at them; repair them, or set questions.on_bad_row" in said
    assert "sums.jsonl, line 3: " in said.replace("\n", " ")
    for turn in ("answer", "correction"):
        assert said.count(f"prompt of the turn `{turn}`") == 3
    assert "\u27e6<|user|>\u27e7\u2502W\u2502h\u2502a\u2502t\u2502\u00b7" in said
    assert said.count("\nLEARNT") == 1 and "(i->c), with made-up texts" in said
    assert "a right answer, as asked" in said and "! " not in said.partition("graded by")[2]
    assert "train questions equal one" not in said
    assert "1 bad rows: left out" in look(own_config(tmp_path), "questions.on_bad_row=skip")


def test_train_questions_that_stand_in_test_are_seen(tmp_path: Path):
    made = own_config(tmp_path)
    test = tmp_path / "test.jsonl"
    test.write_text('{"question": "what is 2 + 1", "answers": ["3"]}', encoding="utf-8")
    given = (f"questions.test.source={test}", "questions.test.limit=none", "questions.on_bad_row=skip")
    said = look(made, *given)
    assert "! 1 train questions equal one of dev or test but for spelling (1)" in said
    assert "what is 2 + 1" in said.partition("the first of them")[2]


def test_a_config_that_a_run_would_refuse_is_seen_with_the_reason(tmp_path: Path):
    said = look(own_config(tmp_path), "prompts.answer_marker=Result:", "reward.example=<a>{answer}</a>")
    assert "! a run would stop: " in said and "! right, but not paid" in said


@pytest.mark.parametrize(("recipe", "turns"), [("verdict", 3), ("rft", 1)])
def test_every_turn_of_a_recipe_is_seen(tmp_path: Path, recipe: str, turns: int):
    page = look_at_config(
        config.load_config(own_config(tmp_path, recipe), [], lambda name: recipe_of(name).section)
    )
    assert sum(isinstance(block, Tokens) for block in page.parts[-1].blocks) == turns
    assert all(any(ids) for ids in learnt(page)[turns : -2 * turns]), (
        "examples come after the prompts of train"
    )


def test_a_page_is_written_instead(tmp_path: Path):
    page = tmp_path / "page.html"
    assert look(own_config(tmp_path), "--html", page).strip() == str(page)
    html = Html(page.read_text(encoding="utf-8"))
    assert [one for one in html.all("span") if (one.get("title") or "").endswith(", learnt")]
    assert html.all("mark") and [one for one in html.all("span") if one.get("class") == "control"]


def test_what_does_not_fit_is_refused(tmp_path: Path):
    made = own_config(tmp_path)
    assert "found an option for runs; leave it out" in look(made, "--kept")
    assert "quote it ('i->c') or write i_to_c" in look(tmp_path, "--transition", "i-")
    assert "found 'seed=1' for the run folder" in look(tmp_path, "seed=1")
    assert "--id: expected a question's id such as" in look(made, "--id", "nobody")
    assert "expected a TOML file, found nothing" in look(tmp_path / "no.toml")


def test_nothing_runs(tmp_path: Path):
    code = "import sys; from stasc_ray.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
    code += "print([name for name in ('ray', 'vllm') if name in sys.modules])"
    command = [sys.executable, "-c", code, "look", str(own_config(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_page_on_own_data_is_walked_up_to_the_look(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs/own-data.md").read_text(encoding="utf-8")
    program = page.partition('python3 -c "')[2].partition('" > sums.csv')[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (tmp_path / "sums.csv").write_text(done.stdout, encoding="utf-8")
    made = tmp_path / "sums.toml"
    made.write_text(page.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    said = look(made, f"questions.train.source={tmp_path / 'sums.csv'}")
    assert "train  400" in said and "nothing: one question of each split went through" in said
    assert "! " not in said


def test_both_sides_of_a_pair_are_seen(tmp_path: Path):
    rows = [corrected("q1", "=4", ("2+3=5", 1.0), ("=6", 0.0))]
    folder = make_run(tmp_path / "run", rows, *SANDBOX, "algorithm.recipe=preference")
    page = look_at_run(folder, Wanted())
    said, ids = words(page), TOKENIZER.encode
    assert "tokens by base, kept as c over i, chosen, i->c, chosen" in said
    assert "reward 0, 3 tokens by base, kept as c over i, rejected" in said
    assert "reward 0, 3 tokens by base, kept as i->c, rejected" in said
    assert "(c over i), the chosen side, 6 of" in said and "tokens count as what to avoid" in said
    ends = [TOKENIZER.eos_token_id]
    expected = [[*ids(one, add_special_tokens=False), *ends] for one in ("2+3=5", "=4", "2+3=5", "=6")]
    assert learnt(page) == expected
    assert "the rejected side, with made-up texts" in look(own_config(tmp_path, "preference"))


def test_weights_are_seen(tmp_path: Path):
    answers = [
        text(ANSWER, said, reward, None, n) for n, (said, reward) in enumerate([("=5", 1.0), ("=4", 0.0)])
    ]
    given = (*SANDBOX, "algorithm.recipe=harness.reinforce:REINFORCE")
    page = look_at_run(make_run(tmp_path / "run", [row("q1", *answers)], *given), Wanted())
    said = words(page)
    assert "kept as better, weight +0.5" in said and "kept as worse, weight -0.5" in said
    assert "(better), weight +0.5, 3 of" in said and "(worse), weight -0.5, 3 of" in said
    assert said.count("are learnt") == said.count("count as what to avoid") == 1


def test_what_the_objective_cannot_learn_is_seen_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wrong = dataclasses.replace(recipe_of("preference"), objective="sft")
    monkeypatch.setitem(RECIPES, "preference", wrong)
    said = " ".join(look(own_config(tmp_path, "preference")).split())
    assert (
        "a run would stop: recipe 'preference': objective 'sft' expects no pair, found a `rejected`" in said
    )

"""Run folders with evaluations that no engine made: a policy asks, made-up texts answer, the rest is real."""

import asyncio
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from harness.traces import settings

from stasc_ray import config, store
from stasc_ray.evaluation import measuring, metrics
from stasc_ray.generation import unit_files
from stasc_ray.recipes import policies, recipe_of
from stasc_ray.recipes.recipe import plan_for
from stasc_ray.recipes.trace import Text, grade, write_texts
from stasc_ray.store.rows import trace_schema
from stasc_ray.tasks import rewards

QUESTIONS = [
    {"id": f"q{number}", "question": f"What is {number} + 1?", "answers": [str(number + 1)]}
    for number in range(6)
]
TIME = 1_800_000_000.0


def make_run(
    folder: Path, *overrides: str, iterations: Sequence[int] = (0, 1), questions: Sequence[Any] = QUESTIONS
) -> store.RunFolder:
    """A run whose models of these iterations were measured on dev and test, and published.

    M0's first answers are right about every third question, later models' about every second, corrections
    about all but the last. A question with `fails` in it gets no texts, as if its prompt were too long.
    """
    told = settings(
        f"name={folder.name}", "prompts.preset=sandbox", "reward.name=exact_match",
        "reward.scope=after_marker", "evaluation.bootstrap_samples=50", *overrides,
    )  # fmt: skip
    with store.open_run(folder, told) as run:
        splits = ("dev", "test") if told.algorithm.iterations else ("test",)
        for split in splits:
            rows = [_row(question, split) for question in questions]
            unit_files.write_questions(rows, run.questions / f"{split}.parquet", 4)
        line = {"stage": "questions", "iteration": 0, "questions/train": 9, "questions/dev": 6}
        _commit(run, run.questions, line | {"questions/test": 6}, [])
        for number in iterations:
            _measured(run, told, number, questions, splits)
        versions = {"stasc-ray": "0.1.0", "transformers": "5.23.0"}
        environment = {"versions": versions, "command": [str(folder)], "git_commit": "abc"}
        run.write_environment(environment)
    return store.RunFolder(folder)


def _row(question: dict[str, Any], split: str) -> dict[str, Any]:
    return {"documents": [], "choices": [], **question, "split": split}


def _measured(
    run: store.RunFolder, told: config.Config, number: int, questions: Sequence[Any], splits: Sequence[str]
) -> None:
    stage, found, names = run.stage(number, "rollouts"), {}, []
    stage.mkdir(parents=True)
    fixed = told.algorithm.initial_answers_from == "base" and number > 0
    for split in splits:
        rows = [_traced(run, told, number, _row(question, split), fixed) for question in questions]
        for at in range(0, len(rows), 4):
            names.append(f"{split}-{at:06d}.parquet")
            pq.write_table(pa.Table.from_pylist(rows[at : at + 4], schema=trace_schema()), stage / names[-1])
        for of, writer in {"": number, **({"base/": 0} if fixed else {})}.items():
            score = functools.partial(
                measuring.score_file, settings=told, writer=store.iteration_name(writer)
            )
            scores = [row for name in names if name.startswith(split) for row in score(str(stage / name))]
            summary = metrics.summarize(scores, told.evaluation.bootstrap_samples, told.seed)
            found |= {f"evaluation/{split}/{of}{name}": value for name, value in summary.items()}
    line = {"stage": "evaluation", "iteration": number, **found}
    _commit(run, stage, {"stage": "rollouts", "iteration": number}, names)
    _commit(run, run.stage(number, "evaluation"), line, [])
    manifest = {"version": f"v{number:04d}", "iteration": number, "model": f"iteration_{number:02d}/model"}
    run.publish({**manifest, "created": store.now(), "metrics": {}}, move_latest=True)


def _commit(run: store.RunFolder, stage: Path, line: dict[str, Any], names: list[str]) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    run.commit(stage, {"line": {"time": TIME, "config": "feed", **line}, "files": names})
    run.log(run.committed(stage)["line"])  # type: ignore[index]


def _traced(
    run: store.RunFolder, told: config.Config, number: int, row: dict[str, Any], fixed: bool
) -> dict[str, Any]:
    """A graded row, as a pass writes it."""
    of, texts = recipe_of(told.algorithm.recipe), []
    trees: list[list[Text] | None] = (
        [[Text("answer", "=1", token_ids=(1, 2), prompt_tokens=9)]] if fixed else []
    )
    for given in [*trees, None]:
        ask = _Answers(row, number, given or [])
        if "fails" not in row["question"]:
            plan = plan_for(told, number, row["split"])
            asyncio.run(policies.answer(told.evaluation.policy, of, row, ask, plan, given))
        texts += ask.texts
    reward = rewards.grader(told.reward, told.prompts.answer_marker)
    says = functools.partial(of.says_right, told.algorithm)
    grade(texts, of.answers, lambda text: reward(text, row), of.verdicts, says, told.algorithm.threshold)
    error = None if texts else "PromptTooLongError: too long"
    return {**row, "texts": write_texts(texts), "error": error}


class _Answers:
    """An `Ask` that answers by rule, with no model behind it."""

    def __init__(self, row: dict[str, Any], number: int, given: list[Text]) -> None:
        self.row, self.number, self.texts = row, number, list(given)

    async def __call__(
        self, turn: str, messages: Any, *, n: int = 1, parent: Any = None, **_: Any
    ) -> list[Text]:
        place = int("".join(filter(str.isdigit, self.row["id"])))
        right = place < 5 if parent else place % (2 if self.number else 3) == 0
        said = f"so\n={self.row['answers'][0] if right else 'x'}"
        found = []
        for sample in range(n):
            text = Text(turn, said, sample, parent, store.iteration_name(self.number), (1, 2, 3))
            text.prompt_tokens = 0 if sample else 20
            found.append(text)
        self.texts += found
        return found


def add_model(run: store.RunFolder, number: int, source: Path) -> Path:
    """A committed model folder of an iteration, as export writes it: the files of `source` and what names
    this machine."""
    folder = run.stage(number, "model")
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "README.md").write_text(f"Started from {source}")
    (folder / "canary.json").write_text("{}")
    (folder / "training.jsonl").write_text("{}")
    (folder / ".half.partial").write_text("")
    for beside in ("adapter", "old"):
        (folder / beside).mkdir()
    (folder / "old" / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    adapter = folder / "adapter"
    values = {"peft_type": "LORA", "base_model_name_or_path": str(source)}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    (adapter / "adapter_model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (adapter / "README.md").write_text(f"base_model: {source}")
    line = {"stage": "finetune", "iteration": number, "finetune/steps": 3, "finetune/loss_last": 0.5}
    kept = {"stage": "examples", "iteration": number, "examples/kept": 4, "examples/attempts": 9}
    with store.hold_lease(run.path / "lease") as lease:
        run.lease = lease
        _commit(run, run.stage(number, "examples"), kept, [])
        _commit(run, folder, line, [])
        run.lease = None
    return folder

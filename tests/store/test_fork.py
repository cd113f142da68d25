"""`stasc fork` and longer runs, on run folders made by hand: what is shared, what is refused, what stays."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stasc_ray import config, store
from stasc_ray.recipes import section_of
from stasc_ray.store.fork import Forked, fork, origin

STAGES = (("rollouts", "rollouts"), ("evaluation", "evaluation"))


def settings(*overrides: str) -> config.Config:
    return config.load_config(None, ["algorithm.iterations=2", *overrides], section_of)


def commit(run: store.RunFolder, folder: Path, stage: str, iteration: int, **values: object) -> None:
    folder.mkdir(parents=True)
    (folder / "train-000000.parquet").write_text(f"{stage} {iteration}")
    line = {"stage": stage, "iteration": iteration, **values}
    run.commit(folder, {"line": line, "files": ["train-000000.parquet"]})
    run.log(line)


def make_run(path: Path, have: config.Config, iterations: int = 2) -> store.RunFolder:
    with store.open_run(path, have) as run:
        commit(run, run.questions, "questions", 0)
        for n in range(iterations + 1):
            if n:
                commit(run, run.stage(n, "examples"), "examples", n)
                commit(run, run.stage(n, "model"), "finetune", n)
                (run.stage(n, "model") / "adapter").mkdir()
                (run.stage(n, "model") / "adapter" / "weights").write_text(str(n))
            for stage, name in STAGES:
                commit(run, run.stage(n, name), stage, n)
            run.publish({"version": f"v{n:04d}", "model": "m"}, move_latest=n != 1)
            line = {"publish/version": f"v{n:04d}", "publish/latest": n != 1}
            run.log({"stage": "publish", "iteration": n, **line})
    return store.RunFolder(path)


def forked(run: store.RunFolder, iteration: int, target: Path, *overrides: str) -> Forked:
    have = store.read_config(run.path, section_of)
    new = config.with_overrides(have, ["name=other", *overrides], section_of)
    return fork(run.path, iteration, target, new, have)


def stages(path: Path) -> list[tuple[str, int]]:
    return [(line["stage"], line["iteration"]) for line in store.RunFolder(path).metrics()]


def test_a_fork_shares_what_led_to_the_model_and_outlives_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings())
    found = forked(run, 1, tmp_path / "other", "finetune.learning_rate=1e-5")
    assert not found.asks_again and found.linked == 8 and found.copied == 0
    shutil.rmtree(run.path)
    other = store.RunFolder(tmp_path / "other")
    assert (other.stage(1, "model") / "adapter" / "weights").read_text() == "1"
    assert other.committed(other.stage(1, "rollouts")) and not other.iteration(2).exists()
    upto = [("examples", 1), ("finetune", 1), ("rollouts", 1), ("evaluation", 1), ("publish", 1)]
    base = [("questions", 0), ("rollouts", 0), ("evaluation", 0), ("publish", 0)]
    assert stages(other.path) == base + upto
    assert other.latest() == "v0000", "v0002, which was LATEST, is not shared, and v0001 never was"
    assert [one["version"] for one in other.versions()] == ["v0000", "v0001"]
    about = origin(other.path)
    assert about and (about["iteration"], about["run"]) == (1, str(run.path))
    assert about["changed"] == {"finetune.learning_rate": ["7e-06", "1e-05"]}
    have = store.read_config(other.path, section_of)
    assert have.name == "other" and have.finetune.learning_rate == 1e-5
    with store.open_run(other.path, have) as opened:  # and it goes on as a run
        opened.log({"stage": "examples", "iteration": 2})


def test_a_model_that_is_asked_otherwise_is_asked_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings())
    assert forked(run, 1, tmp_path / "other", "sampling.correction.temperature=1.0").asks_again
    assert stages(tmp_path / "other")[-2:] == [("examples", 1), ("finetune", 1)]
    other = store.RunFolder(tmp_path / "other")
    assert (
        not other.iteration(1).joinpath("rollouts").exists()
        and not other.iteration(1).joinpath("evaluation").exists()
    )


@pytest.mark.parametrize(
    ("iteration", "override", "expected"),
    [
        (1, "questions.train.limit=5", "questions.train.limit: the questions, their splits"),
        (1, "seed=3", "seed: the questions"),
        (1, "engine.batch_size=3", "engine.batch_size: the questions"),
        (1, "model.path=/m", "model.path: M0 is shared"),
        (0, "reward.name=f1", "reward.name: the figures and rewards"),
        (1, "algorithm.threshold=0.5", "algorithm.threshold: the figures"),
        (2, "algorithm.iterations=1", "algorithm.iterations: expected at least 2, found 1"),
        (3, "finetune.epochs=2", "0 to 2 (no finished iteration_03/model)"),
    ],
)
def test_what_would_make_the_shared_part_a_lie_is_refused_and_leaves_nothing(
    tmp_path: Path, iteration: int, override: str, expected: str
) -> None:
    run = make_run(tmp_path / "run", settings())
    with pytest.raises(ValueError) as refused:
        forked(run, iteration, tmp_path / "other", override)
    assert expected in str(refused.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_m0s_answers_of_fixed_initialization_and_an_adapter_that_is_continued_stay(tmp_path: Path) -> None:
    lora = ("algorithm.finetune_from=current", "finetune.method=lora")
    run = make_run(tmp_path / "run", settings("algorithm.initial_answers_from=base", *lora))
    for override in ("sampling.initial.top_p=0.5", "algorithm.n_initial=3", "finetune.lora.rank=8"):
        with pytest.raises(ValueError, match=override.partition("=")[0]):
            forked(run, 1, tmp_path / "other", override)
    forked(run, 1, tmp_path / "a", "sampling.correction.top_p=0.5")
    forked(run, 0, tmp_path / "b", "sampling.initial.top_p=0.5")


def test_a_run_may_grow_but_loses_nothing_and_a_refusal_names_the_fork(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings())
    for more in ("algorithm.iterations=5", "engine.max_num_seqs=8", "publish.when=always"):
        with store.open_run(run.path, settings(more)):
            pass
    for override, expected in (
        ("algorithm.iterations=1", "iteration 2 has begun in the folder, 1 now; expected at least 2"),
        ("finetune.epochs=2", f"stasc fork {run.path} NAME --from 2 finetune.epochs=2"),
    ):
        with pytest.raises(ValueError) as refused, store.open_run(run.path, settings(override)):
            pass
        assert expected in str(refused.value) and "--fresh" in str(refused.value)
    assert len(list((run.path / "configs").iterdir())) == 4, "each attempt's config is kept"


def test_the_newest_line_of_a_stage_that_was_opened_again_counts(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", settings()) as run:
        for line in ({"n": float("nan")}, {"n": float("nan")}, {"n": 2}, {"n": 2}):
            run.log({"stage": "rollouts", "iteration": 2, **line})
        run.log({"stage": "evaluation", "iteration": 2})
        assert [line.get("n") for line in run.metrics()] == [2, None]
        assert len(run.metrics_lines()) == 3


def test_the_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings())
    command = [sys.executable, "-m", "stasc_ray.cli", "fork", str(run.path), "--from", "2"]

    def stasc_fork(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)

    done = stasc_fork("other", "finetune.epochs=2")
    assert done.returncode == 0 and f"stasc run {tmp_path / 'other'}" in done.stdout, done.stderr
    assert json.loads((tmp_path / "other" / "config.json").read_text())["finetune"]["epochs"] == 2
    for words, expected in ((("other",), "expected a new folder"), (("../x",), "name")):
        done = stasc_fork(*words)
        assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "run"]

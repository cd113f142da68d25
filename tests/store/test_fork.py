"""`stasc fork` on folders: what is shared, what may differ, and that a refusal leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stasc_ray import config, store
from stasc_ray.recipes import chosen_by, section_of
from stasc_ray.store import fork

DEV = (0.1, 0.2, 0.3, 0.25)
"""r(Y2) on dev of M0 and the models after it."""


def made_run(folder: Path, *overrides: str, finished: int = 3) -> store.RunFolder:
    """A run folder as it is after its last pass, with small files of any content."""
    settings = config.load_config(None, ["algorithm.iterations=3", *overrides], section_of)
    with store.open_run(folder, settings) as run:
        commit(run, run.questions, "questions", 0, ["train.parquet", "dev.parquet"])
        for n in range(finished + 1):
            if n:
                commit(run, run.stage(n, "examples"), "examples", n, ["train-000000.parquet"])
                commit(run, run.stage(n, "model"), "finetune", n, [], "adapter/weights.safetensors")
            splits = ["dev", "train"] if n < settings.algorithm.iterations else ["dev"]
            commit(run, run.stage(n, "rollouts"), "rollouts", n, [f"{one}-000000.parquet" for one in splits])
            (run.stage(n, "rollouts") / ".dev-000000.abc.begun").touch()
            commit(run, run.stage(n, "evaluation"), "evaluation", n, [], r_y2=DEV[n])
            moves = n == 0 or DEV[n] > max(DEV[:n])
            run.publish({"version": f"v{n:04d}", "model": f"{n}"}, move_latest=moves)
            version = {"publish/version": f"v{n:04d}", "publish/latest": moves}
            run.log({"stage": "publish", "iteration": n} | version)
    return store.RunFolder(folder)


def commit(
    run: store.RunFolder,
    folder: Path,
    stage: str,
    n: int,
    files: list[str],
    *more: str,
    r_y2: float | None = None,
) -> None:
    run.fresh_stage(folder)
    for name in (*files, *more):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{stage} {n} {name}")
    line = {"stage": stage, "iteration": n} | ({} if r_y2 is None else {"evaluation/dev/r_y2": r_y2})
    run.commit(folder, {"line": line, "files": files})
    run.log(line)


def forked(origin: store.RunFolder, iteration: int, *overrides: str, name: str = "b") -> store.RunFolder:
    folder = origin.path.parent / name
    fork.make(origin.path, name, iteration, overrides, section_of, folder)
    return store.RunFolder(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def stages_of(run: store.RunFolder) -> set[tuple[str, int]]:
    return {(line["stage"], line["iteration"]) for line in run.metrics()}


def test_what_led_to_the_model_is_shared_and_outlives_the_first_run(tmp_path: Path) -> None:
    origin = made_run(tmp_path / "a")
    before = files_of(origin.path)
    run = forked(origin, 2, "finetune.learning_rate=1e-6", "algorithm.filter=non_decreasing")
    assert files_of(origin.path) == before, "the first run stays as it is"
    assert (run.stage(2, "model") / "adapter" / "weights.safetensors").stat().st_nlink == 2
    found = files_of(run.path)
    (new,) = [name for name in found if name.startswith("configs/") and name not in before]
    own = {"config.json", "fork.json", "metrics.jsonl", "LATEST", new}
    kept = [
        name
        for name in before
        if name.startswith(("questions/", "base/", "iteration_01", "iteration_02", "configs/"))
    ]
    versions = [f"versions/v{n:04d}.json" for n in range(3)]
    assert set(found) == {name for name in kept if ".begun" not in name} | own | set(versions)
    assert all(found[name] == before[name] for name in found if name not in own)
    assert stages_of(run) == {one for one in stages_of(origin) if one[1] <= 2}
    assert run.latest() == "v0002"
    shutil.rmtree(origin.path)
    assert files_of(run.path) == found, "no file of it was a link to the first run's"
    settings = store.read_config(run.path, section_of)
    assert settings.finetune.learning_rate == 1e-6 and settings.name == "b"
    with store.open_run(run.path, settings) as opened:  # its own config opens it
        assert opened.committed(opened.stage(2, "rollouts"))


def test_a_field_that_decides_what_is_asked_has_the_last_pass_asked_again(tmp_path: Path) -> None:
    run = forked(made_run(tmp_path / "a"), 2, "sampling.correction.temperature=0.9")
    assert run.committed(run.stage(1, "rollouts")) and not run.stage(2, "rollouts").exists()
    assert {stage for stage, n in stages_of(run) if n == 2} == {"examples", "finetune"}
    assert [one["version"] for one in run.versions()] == ["v0000", "v0001"] and run.latest() == "v0001"
    measures = chosen_by(store.read_config(run.path, section_of).algorithm)
    assert run.best_on_dev(measures) is None, "figures of other texts do not compare"
    with store.open_run(run.path, store.read_config(run.path, section_of)) as opened:
        opened.log({"stage": "evaluation", "iteration": 2, "evaluation/dev/r_y2": 0.01})
    assert run.best_on_dev(measures) == 2
    assert "do not compare" in fork.in_words(run.fork())[1]


def test_the_last_pass_of_a_run_is_kept_and_only_its_train_questions_are_missing(tmp_path: Path) -> None:
    run = forked(made_run(tmp_path / "a"), 3, "algorithm.iterations=4")
    assert run.committed(run.stage(3, "rollouts")) is None, (
        "not finished: keep_improvements would find no train"
    )
    assert (run.stage(3, "rollouts") / "dev-000000.parquet").is_file()
    assert ("rollouts", 3) not in stages_of(run) and ("evaluation", 3) in stages_of(run)
    done = forked(made_run(tmp_path / "c"), 3, name="d")
    assert done.committed(done.stage(3, "rollouts")), "nothing more is asked of it"


def test_a_fork_of_a_fork_knows_each_models_config(tmp_path: Path) -> None:
    b = forked(made_run(tmp_path / "a", finished=2), 1, "sampling.correction.temperature=0.9")
    with store.open_run(b.path, store.read_config(b.path, section_of)) as run:
        for n in (1, 2):
            if n == 2:
                commit(run, run.stage(n, "model"), "finetune", n, [])
            commit(run, run.stage(n, "rollouts"), "rollouts", n, ["train-000000.parquet"])
    c = forked(b, 2, "finetune.learning_rate=1e-6", name="c")

    def temperature(run: store.RunFolder, n: int) -> float:
        return fork.config_of(run.path, section_of, n).sampling.correction.temperature

    assert [temperature(c, n) for n in range(4)] == [0.6, 0.9, 0.9, 0.9]
    assert [fork.config_of(c.path, section_of, n).finetune.learning_rate for n in (1, 2)] == [7e-6, 1e-6]
    assert c.fork()["compares_from"] == 1 and not c.fork()["asked_again"]
    back = forked(c, 1, "sampling.correction.temperature=0.6", name="d")
    assert back.fork()["compares_from"] == 1, "M1's pass in c was asked at 0.9"
    old = forked(c, 0, "sampling.correction.temperature=0.6", name="e")
    assert not old.fork()["asked_again"] and old.committed(old.stage(0, "rollouts"))


LORA = ("finetune.method=lora", "algorithm.finetune_from=current")
REFUSED = [
    ((), 2, ["seed=1"], "seed: it chose"),
    ((), 2, ["questions.train.limit=9"], "questions.train.limit: the questions are shared"),
    ((), 2, ["model.path=other"], "model.path: the shared models"),
    ((), 2, ["reward.name=f1"], "reward.name: the shared texts are graded"),
    ((), 2, ["algorithm.recipe=rft"], "the turns of the other"),
    ((), 2, ["prompts.preset=math"], "prompts.preset"),
    ((), 2, ["algorithm.iterations=1"], "2 is the least"),
    ((), 2, ["finetune.learning_rat=1"], "did you mean 'learning_rate'"),
    ((), 2, ["name=c"], "NAME and --run-dir"),
    (["algorithm.variant=FIE"], 2, ["sampling.initial.temperature=1.0"], "--from 0 asks them again"),
    (LORA, 2, ["finetune.lora.rank=4"], "the model's adapter is continued"),
    (LORA, 2, ["finetune.method=full"], "the model's adapter is continued"),
    ((), 4, [], r"\(0, 1, 2, 3; 0 is the base model\), found 4"),
]


@pytest.mark.parametrize(
    ("of_origin", "iteration", "overrides", "says"), REFUSED, ids=lambda one: str(one)[:40]
)
def test_what_would_make_the_shared_part_a_lie_is_refused_and_leaves_nothing(
    tmp_path: Path, of_origin: list[str], iteration: int, overrides: list[str], says: str
) -> None:
    origin = made_run(tmp_path / "a", *of_origin)
    with pytest.raises(ValueError, match=says):
        forked(origin, iteration, *overrides)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_same_fields_are_free_where_nothing_shared_rests_on_them(tmp_path: Path) -> None:
    fixed = made_run(tmp_path / "a", "algorithm.variant=FIE")
    assert forked(fixed, 0, "sampling.initial.temperature=1.0").fork()["asked_again"]
    lora = made_run(tmp_path / "c", *LORA)
    assert forked(lora, 2, "algorithm.finetune_from=base", "finetune.lora.rank=4", name="d")
    assert forked(lora, 2, "reward.max_error_fraction=0.5", "engine.actors=2", name="e")


def test_a_folder_that_is_there_and_a_fork_cut_short_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = made_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="choose another NAME"):
        forked(origin, 1)
    assert files_of(tmp_path / "b") == {"thesis.tex": b"years of work"}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(OSError, match="No space"):
        forked(origin, 1, name="c")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_files_are_copied_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", none)
    run = forked(made_run(tmp_path / "a"), 1)
    file = run.stage(1, "model") / "adapter" / "weights.safetensors"
    assert file.stat().st_nlink == 1 and file.read_text().startswith("finetune 1")


def test_a_running_run_is_forked_from_what_is_committed(tmp_path: Path) -> None:
    origin = made_run(tmp_path / "a", finished=2)
    shutil.rmtree(origin.stage(2, "evaluation"))  # the pass is done, it is being measured
    with store.open_run(origin.path, store.read_config(origin.path, section_of)):
        run = forked(origin, 2)
    assert run.committed(run.stage(2, "rollouts")) and not run.committed(run.stage(2, "evaluation"))
    assert [one["version"] for one in run.versions()] == ["v0000", "v0001"], "its version follows the figures"


def test_the_command_says_how_to_go_on_and_the_printed_ways_work(tmp_path: Path) -> None:
    origin = made_run(tmp_path / "a", "name=a")
    ways = fork.ways_on(origin.path, "a", 1, ["finetune.learning_rate=7e-07"])
    command, _, go_on = ways.partition(" && ")
    stasc = [sys.executable, "-m", "stasc_ray.cli"]
    done = subprocess.run([*stasc, *command.split()[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == f"go on: {go_on}", done.stderr
    assert json.loads((tmp_path / "a-2" / "fork.json").read_text())["origin"] == str(origin.path.resolve())
    assert "a-3" in fork.ways_on(origin.path, "a", 1, [])
    refused = subprocess.run(
        [*stasc, "run", str(tmp_path / "a-2"), "seed=3"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1 and "seed: 0 in the folder, 3 now" in refused.stderr

"""The run folder: leases, commit marks, resuming, refusing."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from stasc_ray import config, store
from stasc_ray.recipes import chosen_by, section_of
from stasc_ray.store import lease

SETTINGS = config.load_config(None, [], section_of)
MARK = {"line": {"stage": "questions", "iteration": 0}, "files": []}


def test_a_stage_counts_only_when_it_is_committed(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        folder = run.fresh_stage(run.stage(1, "examples"))
        (folder / "half.parquet").write_text("half")
        assert run.committed(folder) is None
        run.commit(folder, MARK)
        assert run.committed(folder) == MARK
        assert run.fresh_stage(folder) == folder
        assert list(folder.iterdir()) == []


def test_the_same_name_with_another_config_is_refused_and_names_the_fields(tmp_path: Path) -> None:
    changed = config.validate({"finetune": {"learning_rate": 1e-3}, "seed": 7}, section_of)
    with store.open_run(tmp_path / "run", changed):
        pass
    with store.open_run(tmp_path / "run", SETTINGS) as run:  # nothing had been done with the other one
        run.commit(run.questions, MARK)
    with store.open_run(
        tmp_path / "run", config.validate({"engine": {"actors": 2, "max_error_fraction": 0.5}}, section_of)
    ):
        pass  # how a run is carried out is not what it is
    with (
        pytest.raises(ValueError, match="another config") as refused,
        store.open_run(tmp_path / "run", changed),
    ):
        pass
    text = str(refused.value)
    assert (
        "finetune.learning_rate: 7e-06 in the folder, 0.001 now" in text
        and "seed: 0 in the folder, 7 now" in text
    )
    assert "--fresh" in text and "name=" in text and f"stasc fork {tmp_path / 'run'} --from N" in text
    with store.open_run(tmp_path / "run", changed, fresh=True) as run:
        assert store.read_config(run.path, section_of) == changed


def of(*overrides: str) -> config.Config:
    return config.load_config(None, list(overrides), section_of)


def test_how_a_run_is_carried_out_may_change_and_each_config_is_kept(tmp_path: Path) -> None:
    later = of("engine.device=cpu", "engine.max_num_seqs=8", "publish.when=always", "serve.replicas=2")
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        run.commit(run.questions, MARK)
    for settings in (later, later, SETTINGS, later):
        with store.open_run(tmp_path / "run", settings) as run:
            assert store.read_config(run.path, section_of) == settings
    kept = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "run" / "configs").iterdir()}
    assert set(kept) == {config.fingerprint(SETTINGS), config.fingerprint(later)}
    for settings in (SETTINGS, later):
        values = kept[config.fingerprint(settings)]
        assert values.pop("format") and config.validate(values, section_of) == settings


@pytest.mark.parametrize(
    "override", ["engine.batch_size=8", "engine.dtype=bfloat16", "reward.rehearse=false"]
)
def test_a_field_that_is_not_marked_belongs_to_the_run(tmp_path: Path, override: str) -> None:
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        run.commit(run.questions, MARK)
    before = (tmp_path / "run" / "config.json").read_text()
    with (
        pytest.raises(ValueError, match=override.partition("=")[0]),
        store.open_run(tmp_path / "run", of(override)),
    ):
        pass
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_iterations_may_grow_and_shrink_only_to_what_has_begun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with store.open_run(folder, SETTINGS) as run:
        for stage in (run.questions, run.stage(0, "rollouts"), run.stage(2, "examples")):
            run.commit(stage, MARK)
        run.stage(3, "examples").mkdir(parents=True)  # begun, but nothing of it is committed
    for iterations in (6, 2, 12):
        with store.open_run(folder, of(f"algorithm.iterations={iterations}")):
            assert store.read_config(folder, section_of).algorithm.iterations == iterations
    for iterations, why in (
        (1, "iteration_02 has begun, so expected at least 2"),
        (0, "test questions only"),
    ):
        with (
            pytest.raises(ValueError, match="another config") as refused,
            store.open_run(folder, of(f"algorithm.iterations={iterations}")),
        ):
            pass
        text = str(refused.value)
        assert f"algorithm.iterations: 12 in the folder, {iterations} now; " in text and why in text
        assert all(way in text for way in ("its own config", "stasc fork", "--fresh", "name="))


def test_a_run_that_only_measured_has_no_train_questions_to_grow_with(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", of("algorithm.iterations=0")) as run:
        run.commit(run.questions, MARK)
    with (
        pytest.raises(ValueError, match="0 in the folder, 1 now"),
        store.open_run(tmp_path / "run", of("algorithm.iterations=1")),
    ):
        pass


def test_another_recipe_in_the_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        run.commit(run.questions, MARK)
    verdict = config.load_config(None, ["algorithm.recipe=verdict"], section_of)
    with (
        pytest.raises(ValueError, match="another config") as refused,
        store.open_run(tmp_path / "run", verdict),
    ):
        pass
    text = str(refused.value)
    assert "algorithm.recipe: 'stasc' in the folder, 'verdict' now" in text and "--fresh" in text
    assert "n_verdicts" not in text, "the recipe's words say nothing that its name doesn't"
    with store.open_run(tmp_path / "run", verdict, fresh=True) as run:
        assert store.read_config(run.path, section_of) == verdict


@pytest.mark.parametrize("found", [None, 1, 3])
def test_a_run_folder_of_another_format_is_refused_with_the_ways_out(
    tmp_path: Path, found: int | None
) -> None:
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        run.commit(run.questions, MARK)
    file = tmp_path / "run" / "config.json"
    stored = json.loads(file.read_text())
    assert stored.pop("format") == 4
    file.write_text(json.dumps(stored if found is None else {"format": found, **stored}))
    before = file.read_text()

    def open_it() -> None:
        with store.open_run(tmp_path / "run", SETTINGS):
            pass

    for read in (open_it, lambda: store.read_config(tmp_path / "run", section_of)):
        with pytest.raises(ValueError, match=f"expected format 4, found format {found or 1},") as refused:
            read()
        assert all(way in str(refused.value) for way in ("--fresh", "name=", "--run-dir", "model.path=RUN"))
    assert file.read_text() == before, "and nothing in it was touched"
    with store.open_run(tmp_path / "run", SETTINGS, fresh=True) as run:
        assert store.read_config(run.path, section_of) == SETTINGS


def test_what_a_killed_start_leaves_is_begun_anew(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        run.commit(run.stage(0, "rollouts"), MARK)
        (run.path / "config.json").unlink()  # --fresh deletes it first, and was killed right after
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        assert (
            run.committed(run.stage(0, "rollouts")) is None
            and store.read_config(run.path, section_of) == SETTINGS
        )


def test_who_was_taken_over_fails_for_that_reason_in_workers_too(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="has taken this run over from attempt 1"),
        store.open_run(tmp_path, SETTINGS) as run,
    ):
        assert run.lease
        worker = pickle.loads(pickle.dumps(run.lease))
        worker.check()
        (run.lease.folder / "0002").write_text("{}")
        assert worker.lost
        raise ValueError("whatever fails first then")


def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="other files"), store.open_run(tmp_path, SETTINGS, fresh=True):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", SETTINGS):
        with (
            pytest.raises(RuntimeError, match="in use by process"),
            store.open_run(tmp_path / "run", SETTINGS),
        ):
            pass
        with (
            pytest.raises(RuntimeError, match="in use"),
            store.open_run(tmp_path / "run", SETTINGS, fresh=True),
        ):
            pass
    with store.open_run(tmp_path / "run", SETTINGS):  # given back: free at once
        pass


def test_a_killed_drivers_lease_is_taken_over_at_once(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from stasc_ray import config, store
        from stasc_ray.recipes import chosen_by, section_of
        with store.open_run(Path({str(tmp_path / "run")!r}), config.load_config(None, [], section_of)):
            print("held", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == "held\n"
        driver.kill()
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        run.log({"stage": "examples", "iteration": 1})


def test_a_paused_driver_cannot_write_after_a_take_over(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", SETTINGS) as paused:
        assert paused.lease is not None
        # What a driver under SIGSTOP looks like: alive, but its lease is no longer renewed.
        os.utime(paused.lease.file, (0, time.time() - 10 * store.LEASE_TIMEOUT_S))
        with store.open_run(tmp_path / "run", SETTINGS) as successor:
            for write in (
                lambda: paused.commit(paused.stage(1, "examples"), MARK),
                lambda: paused.log({"stage": "examples", "iteration": 1}),
                lambda: paused.publish({"version": "v0001"}, move_latest=True),
                lambda: paused.fresh_stage(paused.stage(1, "examples")),
            ):
                with pytest.raises(RuntimeError, match="taken this run over"):
                    write()
            assert paused.latest() is None
            successor.publish({"version": "v0001"}, move_latest=True)
            assert successor.latest() == "v0001"


def test_a_take_over_is_seen_through_a_listing_that_is_old(tmp_path: Path, monkeypatch) -> None:
    """NFS keeps a folder's listing for up to a minute; at 05a8cae a paused driver could write for as long."""
    with store.open_run(tmp_path / "run", SETTINGS) as paused:
        assert paused.lease is not None
        os.utime(paused.lease.file, (0, time.time() - 10 * store.LEASE_TIMEOUT_S))
        with store.open_run(tmp_path / "run", SETTINGS) as successor:
            assert successor.lease is not None and not successor.lease.lost
        monkeypatch.setattr(lease, "_newest_attempt", lambda _: 1)
        assert pickle.loads(pickle.dumps(paused.lease)).lost
        with pytest.raises(RuntimeError, match="attempt 2 has taken this run over from attempt 1"):
            paused.lease.check()
        (paused.lease.folder / "0001").write_text("")
        assert not paused.lease.lost, "a file that is just being written says nothing"
        monkeypatch.undo()
    assert "released" not in (tmp_path / "run" / "lease" / "0001").read_text()


def _race(folder: str, results: "multiprocessing.Queue[bool]") -> None:
    try:
        with store.hold_lease(Path(folder)):
            results.put(True)
            time.sleep(1)
    except RuntimeError:
        results.put(False)


def test_of_many_drivers_at_once_exactly_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[bool] = context.Queue()
    drivers = [context.Process(target=_race, args=(str(tmp_path / "lease"), results)) for _ in range(4)]
    for driver in drivers:
        driver.start()
    won = [results.get(timeout=60) for _ in drivers]
    for driver in drivers:
        driver.join()
    assert won.count(True) >= 1
    numbers = sorted(int(file.name) for file in (tmp_path / "lease").iterdir() if file.name.isdigit())
    assert numbers == list(range(1, won.count(True) + 1)), "every winner had a number of its own"


def test_a_line_is_logged_once_and_half_lines_do_no_harm(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        run.log({"stage": "rollouts", "iteration": 0, "rollouts/questions": 5})
        with run.metrics_file.open("a") as file:
            file.write('{"stage": "evalu')  # a driver killed while it wrote
        run.log({"stage": "evaluation", "iteration": 0})
        run.log({"stage": "evaluation", "iteration": 0})
        assert [line["stage"] for line in run.metrics()] == ["rollouts", "evaluation"]


def test_of_a_stage_that_was_completed_later_the_newest_line_counts(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        for stage in ("rollouts", "evaluation"):
            run.log({"stage": stage, "iteration": 1, "of": 5, "nothing": float("nan")})
        before = run.metrics_file.read_bytes()
        run.log({"stage": "rollouts", "iteration": 1, "of": 5, "nothing": float("nan")})
        assert run.metrics_file.read_bytes() == before, "the same line again writes nothing"
        run.log({"stage": "rollouts", "iteration": 1, "of": 8})
        assert [(line["stage"], line["of"]) for line in run.metrics()] == [("rollouts", 8), ("evaluation", 5)]
        run.log({"stage": "rollouts", "iteration": 1, "of": 8})
        assert run.metrics_file.read_bytes().startswith(before), "what a tracker has read stays where it was"
        assert [line["of"] for line in run.metrics_lines()] == [5, 5, 8]


def test_atomic_writing_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    file = tmp_path / "LATEST"
    store.write_atomically(file, "v0001")
    with pytest.raises(UnicodeEncodeError):
        store.write_atomically(file, "\ud800")
    assert file.read_text() == "v0001" and [entry.name for entry in tmp_path.iterdir()] == ["LATEST"]


def test_a_manifest_with_garbage_names_the_file(tmp_path: Path) -> None:
    with store.open_run(tmp_path / "run", SETTINGS) as run:
        run.publish({"version": "v0001"}, move_latest=True)
        (run.path / "versions" / "v0001.json").write_text("{garbage")
        with pytest.raises(ValueError, match=r"v0001\.json: expected JSON"):
            run.versions()


def test_the_config_in_the_folder_reads_back(tmp_path: Path) -> None:
    settings = config.validate({"algorithm": {"variant": "FNF"}, "prompts": {"preset": "math"}}, section_of)
    with store.open_run(tmp_path / "run", settings) as run:
        assert store.read_config(run.path, section_of) == settings
        assert json.loads((run.path / "config.json").read_text())["algorithm"]["filter"] == "non_decreasing"


def test_a_fixed_run_is_chosen_by_its_corrections_of_the_base_models_answers(tmp_path: Path) -> None:
    """M0 has only its own answers; with one turn M0's answers would measure M0 alone."""
    fixed = config.validate({"algorithm": {"variant": "FNE"}}, section_of)
    assert chosen_by(fixed.algorithm) == ("base/r_y2", "r_y2")
    assert chosen_by(config.validate({}, section_of).algorithm) == ("r_y2",)
    rft = config.validate({"algorithm": {"recipe": "rft", "initial_answers_from": "base"}}, section_of)
    assert chosen_by(rft.algorithm) == ("r_y1",)
    with store.open_run(tmp_path / "run", fixed) as run:
        for iteration, own, of_base in ((0, 0.4, None), (1, 0.9, 0.5), (2, 0.3, 0.7), (3, 0.2, 0.7)):
            line = {"stage": "evaluation", "iteration": iteration, "evaluation/dev/r_y2": own}
            run.log(line if of_base is None else line | {"evaluation/dev/base/r_y2": of_base})
        assert run.best_on_dev(chosen_by(fixed.algorithm)) == 2
        assert run.best_on_dev(chosen_by(fixed.algorithm), up_to=1) == 1
        assert run.best_on_dev(("r_y2",)) == 1
        assert run.best_on_dev(("missing",)) is None

"""SIGKILL of every kind of process, in generation and in training, on a cluster of three nodes: the run
completes by itself."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faulty_runs import (
    BUSY_ENGINE,
    CONTROLLER,
    ENGINE,
    GRADER,
    POOL,
    TRAINER,
    VLLM_CHILD,
    FaultyRun,
    check_run,
    faulty_run,
    kill_node_with,
    kill_one,
)
from benchmarks.ray_cluster import RayCluster, command_of, ray_cluster
from stasc_ray import store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(2, 2) as found:
        yield found


@pytest.mark.parametrize(
    ("moment", "title"),
    [
        pytest.param(
            FaultyRun.generating, BUSY_ENGINE, id="an engine's actor in generation", marks=pytest.mark.ci
        ),
        pytest.param(FaultyRun.generating, POOL, id="the pool of engines in generation"),
        pytest.param(FaultyRun.training, ENGINE, id="an engine that waits for the trainer"),
        pytest.param(FaultyRun.handing_over, ENGINE, id="an engine that takes new weights over"),
        pytest.param(FaultyRun.generating, GRADER, id="a Ray Data worker in grading"),
        pytest.param(FaultyRun.training, TRAINER, id="a Ray Train worker in training", marks=pytest.mark.ci),
        pytest.param(FaultyRun.exporting, TRAINER, id="a Ray Train worker in export"),
    ],
)
def test_a_killed_worker_costs_work_in_flight_only(
    cluster: RayCluster, tmp_path: Path, moment, title: str
) -> None:
    with faulty_run(cluster, tmp_path / "run") as run:
        run.wait_until(lambda: moment(run))
        kill_one(run, title)
        run.finish()
    check_run(tmp_path / "run")
    lines = store.RunFolder(tmp_path / "run").metrics()
    again = sum(line.get("rollouts/units_done_again", 0) for line in lines)
    in_flight = 2  # engine.concurrent_batches=1, and one that waits
    # At least none: a kill right before a unit begins, or as its result leaves, costs nothing. That units are
    # done again, and counted, is the next test's: an engine whose child is gone fails the unit that it has
    # begun.
    assert again <= in_flight


def test_a_killed_engine_process_of_vllm(tmp_path: Path) -> None:
    """On GPUs vLLM's engine core is a child of the actor; the variable that vLLM reads makes it one on CPUs
    too."""
    with (
        ray_cluster(2, 2, VLLM_ENABLE_V1_MULTIPROCESSING="1") as own,
        faulty_run(own, tmp_path / "run") as run,
    ):
        run.wait_until(run.generating)
        kill_one(run, VLLM_CHILD)
        run.finish()
    check_run(tmp_path / "run")
    assert "were begun again, since a process or node was lost" in run.output.read_text()


@pytest.mark.parametrize(("moment", "title"), [(FaultyRun.generating, ENGINE), (FaultyRun.training, TRAINER)])
def test_a_lost_node(cluster: RayCluster, tmp_path: Path, moment, title: str) -> None:
    with faulty_run(cluster, tmp_path / "run") as run:
        run.wait_until(lambda: moment(run))
        kill_node_with(run, title)
        cluster.add_node(2)  # the autoscaler's part
        run.finish()
    check_run(tmp_path / "run")


def test_a_node_that_joins_gets_an_engine_and_may_leave_again(tmp_path: Path) -> None:
    values = ["engine.actors=[1,3]", "questions.train.limit=800"]
    with ray_cluster(2) as small, faulty_run(small, tmp_path / "run", *values) as run:
        run.wait_until(run.generating)
        joined = small.add_node(2)
        run.wait_until(lambda: any(BUSY_ENGINE in command_of(pid) for pid in joined.processes()))
        joined.kill()
        small.nodes.remove(joined)
        run.finish()
    check_run(tmp_path / "run")


def test_a_killed_controller_of_training(cluster: RayCluster, tmp_path: Path) -> None:
    with faulty_run(cluster, tmp_path / "run") as run:
        run.wait_until(run.training)
        kill_one(run, CONTROLLER)
        status = run.driver.wait(timeout=300)
    if status != 0:  # it may end the run, but never the work: the same command goes on
        with faulty_run(cluster, tmp_path / "run") as run:
            run.finish()
    check_run(tmp_path / "run")


@pytest.mark.parametrize("moment", [FaultyRun.generating, FaultyRun.publishing, FaultyRun.training])
def test_the_driver_of_a_cluster_run(cluster: RayCluster, tmp_path: Path, moment) -> None:
    with faulty_run(cluster, tmp_path / "run") as run:
        run.wait_until(lambda: moment(run))
        run.driver.kill()
    with faulty_run(cluster, tmp_path / "run") as run:
        run.finish()
    check_run(tmp_path / "run")


def test_a_driver_that_was_only_paused_cannot_write_after_another_took_over(
    cluster: RayCluster, tmp_path: Path
) -> None:
    one = "engine.actors=1"
    with faulty_run(cluster, tmp_path / "run", one) as paused:
        paused.wait_until(paused.generating)
        paused.driver.send_signal(signal.SIGSTOP)
        more = cluster.add_node(
            2
        )  # the paused driver gives back nothing that Ray leased to it, up to all CPUs there were
        with faulty_run(cluster, tmp_path / "run", one) as second:
            assert (
                second.driver.wait(timeout=120) == 1 and "is in use by process" in second.output.read_text()
            )
        time.sleep(store.LEASE_TIMEOUT_S)
        with faulty_run(cluster, tmp_path / "run", one) as successor:
            successor.wait_until(successor.training)
            paused.driver.send_signal(signal.SIGCONT)
            assert paused.driver.wait(timeout=300) == 1
            successor.finish()
        assert (
            "has taken this run over from attempt 1; this one stops without writing"
            in paused.output.read_text()
        )
    more.kill()
    cluster.nodes.remove(more)
    rollouts = tmp_path / "run" / "base" / "rollouts"
    committed = (rollouts / store.COMMIT_MARK).stat().st_mtime
    assert all(file.stat().st_mtime <= committed for file in rollouts.iterdir()), (
        "the paused driver's workers wrote nothing either"
    )
    check_run(tmp_path / "run")


def test_elastic_training_goes_on_with_the_workers_that_are_left(cluster: RayCluster, tmp_path: Path) -> None:
    with faulty_run(cluster, tmp_path / "run", "engine.actors=1", "finetune.workers=[1, 3]") as run:
        saved = run.folder / "iteration_01" / "training" / "iteration_01" / "checkpoint_manager_snapshot.json"
        run.wait_until(saved.exists)
        kill_node_with(run, TRAINER)
        run.finish()
    (line,) = [line for line in store.RunFolder(tmp_path / "run").metrics() if line["stage"] == "finetune"]
    assert line["finetune/workers"] in (1, 2) and line["finetune/resumed_from_step"] >= 2
    assert len(line["finetune/losses"]) == line["finetune/steps"]
    check_run(tmp_path / "run")
    cluster.add_node(2)

"""SIGKILL of every kind of process, in generation and in training, on a cluster of three nodes: the run completes by itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_runs import CONTROLLER, ENGINE, GRADER, TRAINER, FaultyRun, check_run, faulty_run, kill_node_with, kill_one
from ray_cluster import RayCluster, ray_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(2, 2) as found:
        yield found


@pytest.mark.parametrize(
    ("moment", "title"),
    [
        pytest.param(FaultyRun.generating, ENGINE, id="an engine's actor in generation"),
        pytest.param(FaultyRun.generating, GRADER, id="a Ray Data worker in grading"),
        pytest.param(FaultyRun.training, TRAINER, id="a Ray Train worker in training"),
        pytest.param(FaultyRun.exporting, TRAINER, id="a Ray Train worker in export"),
    ],
)
def test_a_killed_worker_costs_work_in_flight_only(cluster: RayCluster, tmp_path: Path, moment, title: str) -> None:
    with faulty_run(cluster, tmp_path / "run") as run:
        run.wait_until(lambda: moment(run))
        kill_one(run, title)
        run.finish()
    check_run(tmp_path / "run")


@pytest.mark.parametrize(("moment", "title"), [(FaultyRun.generating, ENGINE), (FaultyRun.training, TRAINER)])
def test_a_lost_node(cluster: RayCluster, tmp_path: Path, moment, title: str) -> None:
    with faulty_run(cluster, tmp_path / "run") as run:
        run.wait_until(lambda: moment(run))
        kill_node_with(run, title)
        cluster.add_node(2)  # the autoscaler's part
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


def test_the_driver_of_a_cluster_run(cluster: RayCluster, tmp_path: Path) -> None:
    with faulty_run(cluster, tmp_path / "run") as run:
        run.wait_until(run.generating)
        run.driver.kill()
    with faulty_run(cluster, tmp_path / "run") as run:
        run.finish()
    check_run(tmp_path / "run")

"""`stasc submit` and `stasc jobs`: what is pure here, and once for real on a cluster of three nodes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import served_runs

from benchmarks.ray_cluster import RayCluster, free_port, growing_cluster, ray_cluster
from stasc_ray import config
from stasc_ray.recipes import section_of
from stasc_ray.runtime import ray_session, submission
from stasc_ray.tasks import prompts

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "jobs" / "configs" / "demo.toml"
STASC = [sys.executable, "-m", "stasc_ray.cli"]
SMALL = [
    "questions.train.limit=120",
    "questions.dev.limit=40",
    "questions.test.limit=40",
    "engine.kv_cache_gb=0.25",
    "engine.batch_size=20",
    "engine.actors=2",
    "algorithm.iterations=1",
]


def stasc(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, "RAY_AUTH_MODE": "disabled", **environment}
    return subprocess.run(
        [*STASC, *arguments], capture_output=True, text=True, timeout=580, check=False, env=everything
    )


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ({}, ("stasc-a-1f-1", False)),
        ({"stasc-a-1f-1": "RUNNING"}, ("stasc-a-1f-1", True)),
        ({"stasc-a-1f-1": "PENDING", "stasc-a-2e-7": "FAILED"}, ("stasc-a-1f-1", True)),
        ({"stasc-a-1f-1": "SUCCEEDED"}, ("stasc-a-1f-1", True)),
        ({"stasc-a-1f-1": "FAILED"}, ("stasc-a-1f-2", False)),
        ({"stasc-a-1f-10": "STOPPED", "stasc-a-1f-9": "SUCCEEDED"}, ("stasc-a-1f-11", False)),
        ({"stasc-a-1f-1-1": "RUNNING", "raysubmit_x": "RUNNING", "": "RUNNING"}, ("stasc-a-1f-1", False)),
    ],
)
def test_a_repeated_submit_attaches_and_a_failed_one_is_tried_again(
    statuses: dict[str, str], expected: tuple[str, bool]
) -> None:
    assert submission.choose_attempt("stasc-a-1f", statuses) == expected


def test_only_what_the_config_names_is_uploaded(tmp_path: Path) -> None:
    for name in ("data/train.jsonl", "data/other.jsonl", "judges.py", "secret.txt", "my_model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "run.toml").write_text("name = 'x'")
    named = ["questions.train.source=data/train.jsonl", "reward.name=judges:strict", "model.path=./my_model"]
    settings = config.load_config(
        None,
        [*named, "questions.dev.source=/shared/dev.jsonl", "questions.test.source=../test.jsonl"],
        section_of,
    )
    size = submission.pack(settings, tmp_path / "run.toml", tmp_path / "packed", tmp_path, 1000)
    found = {
        str(file.relative_to(tmp_path / "packed")): file.stat().st_size
        for file in (tmp_path / "packed").rglob("*.*")
    }
    assert set(found) == {"config.toml", "data/train.jsonl", "judges.py", "my_model/config.json"}
    assert size == sum(found.values())
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    assert submission.pack(config.Config(), run_folder, tmp_path / "none", tmp_path, 0) == 0, "it lies there"


def test_a_large_upload_is_refused_and_the_largest_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "big.jsonl").write_bytes(b"x" * 5000)
    settings = config.load_config(None, ["questions.train.source=big.jsonl"], section_of)
    with pytest.raises(
        ValueError,
        match=r"expected at most 2.9 KiB to upload, found .* in 2 files \(largest: big.jsonl 4.9 KiB",
    ):
        submission.pack(settings, DEMO, tmp_path / "packed", tmp_path, 3000)


def test_storage_that_would_go_away_with_the_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="expected an absolute path that every node of the cluster sees, found 'runs'"
    ):
        submission.check_storage(config.Config())
    inside = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    with pytest.raises(ValueError, match="temporary working directory"):
        ray_session.run_folder(config.Config(), inside / "runs" / "a")
    assert ray_session.run_folder(config.Config(name="a", storage=str(tmp_path)), None) == tmp_path / "a"


def test_wrong_addresses_are_explained() -> None:
    done = stasc("submit", str(DEMO), "--address", "head:8265", "storage=/tmp")
    assert (
        done.returncode == 1 and "expected the Jobs API as http://HEAD:8265, found 'head:8265'" in done.stderr
    )
    done = stasc("jobs", "list", "--address", "http://127.0.0.1:9", RAY_ADDRESS="http://127.0.0.1:10")
    assert done.returncode == 1 and "expected Ray's Jobs API at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_needs_in_words() -> None:
    def needed(*overrides: str) -> str:
        return submission.needs(config.load_config(None, list(overrides), section_of))

    assert needed("engine.device=cpu", "engine.actors=3") == "4 CPUs"
    assert (
        needed("engine.actors=[2, 9]", "engine.tensor_parallel_size=4", "finetune.workers=6")
        == "6 CPUs and 8 GPUs"
    )
    assert needed("engine.actors=all") == "2 CPUs and 1 GPUs"
    assert needed("engine.device=cpu", "engine.reserve_gpus=true", "engine.actors=3") == "4 CPUs and 3 GPUs"


@pytest.fixture(scope="module")
def three_nodes():
    with ray_cluster(2, 2) as found:
        yield found


@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_a_submitted_run_spreads_over_nodes_and_a_second_submit_attaches(
    three_nodes: RayCluster, tmp_path: Path
) -> None:
    at = ["--address", three_nodes.jobs_address]
    command = ["submit", str(DEMO), *at, *SMALL, f"storage={tmp_path}", "name=two"]
    with subprocess.Popen(
        [*STASC, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=three_nodes.environment,
    ) as first:
        assert first.stdout and first.stderr
        begun = first.stdout.readline()
        job, _, told = begun.partition(": ")
        assert job.startswith("stasc-two-") and told.startswith("uploaded ") and told.endswith("bytes\n"), (
            begun
        )
        second = stasc(*command)
        output, errors = first.communicate(timeout=580)
    assert first.returncode == second.returncode == 0, output + errors + second.stdout + second.stderr
    assert second.stdout.startswith(f"{job}: attached, nothing uploaded\n")
    for text in (output, second.stdout):
        assert text.count("two: stasc ENE, 1 iterations") == 1 and text.count("is chosen on dev") == 1, (
            "the whole log, once"
        )
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    nodes = [line["rollouts/engine_nodes"] for line in lines if line["stage"] == "rollouts"]
    assert max(nodes) > 1, f"engines ran on {nodes} nodes"
    listed = stasc("jobs", "list", *at).stdout
    assert listed.count("stasc-two-") == 1 and "SUCCEEDED" in listed and str(tmp_path) in listed
    assert stasc("jobs", "logs", job, *at).stdout in output.replace(begun, "")


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_stopped_job_and_one_that_fails_have_their_own_exit_status(
    three_nodes: RayCluster, tmp_path: Path
) -> None:
    at = ["--address", three_nodes.jobs_address]
    command = ["submit", str(DEMO), *at, *SMALL, f"storage={tmp_path}", "name=stopped"]
    started = stasc(*command, "--detach")
    job = started.stdout.partition(":")[0]
    assert started.returncode == 0 and f"stasc jobs stop {job}" in started.stdout
    assert stasc("jobs", "stop", job, *at).stdout == f"{job}: STOPPED\n"
    assert stasc("jobs", "logs", job, *at, "--follow").returncode == 130
    again = stasc(*command, "--detach")
    assert again.stdout.startswith(f"{job.removesuffix('1')}2: uploaded")
    stasc("jobs", "stop", f"{job.removesuffix('1')}2", *at)
    failed = stasc(
        "submit", str(DEMO), *at, *SMALL, f"storage={tmp_path}", "name=failed", "engine.device=cuda"
    )
    assert failed.returncode == 1 and "expected at most the 0 engine(s)" in failed.stdout
    unknown = stasc("jobs", "logs", "nothing", *at)
    assert unknown.returncode == 1 and "expected one of this cluster's (stasc-" in unknown.stderr
    shutil.rmtree(tmp_path)


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_generate_finetune_and_evaluate_as_jobs_of_their_own(three_nodes: RayCluster, tmp_path: Path) -> None:
    """Four workers on two nodes, sharded inside a node and replicated across, learn what one worker
    learns."""

    def job(script: str, *arguments: str) -> str:
        command = [sys.executable, str(ROOT / "jobs" / script), *arguments, "--address", three_nodes.address]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=400, check=False, env=three_nodes.environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    job("generate.py", str(DEMO), *SMALL, "--output", str(tmp_path / "rollouts"))
    rows = pq.read_table(tmp_path / "rollouts" / "base" / "rollouts").to_pylist()
    turns = [{text["turn"] for text in row["texts"]} for row in rows]
    assert len(rows) == 200 and all(found == {"answer", "correction"} for found in turns)

    texts = config.load_config(DEMO, [], section_of).prompts
    messages = [
        [
            *prompts.correction_messages(row, row["texts"][0]["text"], texts),
            prompts.assistant(row["answers"][0]),
        ]
        for row in rows[:60]
    ]
    examples = [{"id": row["id"], "messages": one} for row, one in zip(rows, messages, strict=False)]
    (tmp_path / "examples").mkdir()
    pq.write_table(pa.Table.from_pylist(examples), tmp_path / "examples" / "part.parquet")
    from_examples = [str(DEMO), "--examples", str(tmp_path / "examples"), "finetune.batch_size=16"]
    four = ["finetune.workers=4", "finetune.sharding=hybrid", "--output", str(tmp_path / "four")]
    found = [
        json.loads(job("finetune.py", *from_examples, *options).splitlines()[-1])
        for options in (four, ["--output", str(tmp_path / "one")])
    ]
    assert [one["workers"] for one in found] == [4, 1]
    assert found[0]["losses"] == pytest.approx(found[1]["losses"], abs=1e-3)

    (tmp_path / "data.jsonl").write_text('{"question": "What is 2 + 3?", "answers": ["5"]}\n')
    measured = job(
        "evaluate.py",
        "--model",
        str(tmp_path / "four"),
        "--data",
        str(tmp_path / "data.jsonl"),
        "engine.kv_cache_gb=0.25",
    )
    assert "questions 1, failed 0" in measured


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_an_endpoint_that_was_deployed_stays_when_its_job_has_ended(
    three_nodes: RayCluster, tmp_path: Path
) -> None:
    run, port = served_runs.make_run(tmp_path / "served"), free_port()
    served_runs.publish(run, served_runs.make_model(tmp_path / "model"))
    command = [sys.executable, str(ROOT / "jobs" / "serve.py"), str(run.path), "--port", str(port)]
    for attempt in (1, 2):  # the second takes the place of the first
        done = subprocess.run(
            [*command, "--address", three_nodes.address],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=three_nodes.environment,
        )
        assert done.returncode == 0 and "serve shutdown" in done.stdout, (attempt, done.stdout + done.stderr)
        reply = httpx.post(
            f"http://127.0.0.1:{port}/v1/correct", json={"question": "What is 2 + 3?"}, timeout=60
        )
        assert reply.status_code == 200 and reply.json()["model_version"] == "v0000", reply.text
    shutdown = [
        str(Path(sys.executable).with_name("serve")),
        "shutdown",
        "--address",
        three_nodes.jobs_address,
        "--yes",
    ]
    subprocess.run(shutdown, check=True, env=three_nodes.environment, capture_output=True, timeout=120)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/health", timeout=30)
    refused = subprocess.run(
        command, capture_output=True, text=True, check=False, env=three_nodes.environment
    )
    assert refused.returncode == 1 and "--detach: expected --address or RAY_ADDRESS" in refused.stderr


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_gpus_that_are_only_declared_are_scheduled_as_real_ones(tmp_path: Path) -> None:
    """Each node has CPUs for three engines or workers, and one GPU: GPUs decide, in generation and in
    training."""
    with ray_cluster(3, 3, gpus=1) as found:
        command = [
            "run",
            str(DEMO),
            "--address",
            found.address,
            *SMALL,
            "engine.device=cpu",
            "engine.reserve_gpus=true",
        ]
        refused = stasc(*command, "engine.actors=3", "--run-dir", str(tmp_path / "refused"))
        assert (
            refused.returncode == 1
            and "expected at most the 2 engine(s)" in refused.stderr
            and "found 3;" in refused.stderr
        )
        assert "or reserve none (engine.reserve_gpus=false)" in refused.stderr
        done = stasc(*command, "engine.actors=all", "finetune.workers=2", "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["rollouts/engine_nodes"] for line in lines if line["stage"] == "rollouts"} == {2}
    assert {line["finetune/workers"] for line in lines if line["stage"] == "finetune"} == {2}
    started = [line["rollouts/engines_started"] for line in lines if line["stage"] == "rollouts"]
    assert started == [2, 0], "two workers trained on the cards of two engines that slept"


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_cluster_without_workers_grows_for_a_run(tmp_path: Path) -> None:
    with growing_cluster(worker_cpus=2, most=2) as found:
        command = [
            "run",
            str(DEMO),
            "--address",
            found.address,
            *SMALL,
            "engine.actors=[2, 3]",
            "--run-dir",
            str(tmp_path / "run"),
        ]
        done = stasc(*command, "engine.start_timeout_s=300", "finetune.start_timeout_s=300")
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            "expected at most the 0 engine(s)" in done.stdout and "Waiting for the autoscaler" in done.stdout
        )
    assert "is chosen on dev" in done.stdout, "the head has no CPU: all of it was done on nodes that came"


@pytest.mark.cluster
def test_a_cluster_with_a_token_and_a_job_that_waits_for_resources() -> None:
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    with ray_cluster(head_cpus=1, **secret) as found:
        at = ["--address", found.jobs_address]
        for wrong in ({}, {**secret, "RAY_AUTH_TOKEN": "fedcba9876543210" * 4}):
            refused = stasc("jobs", "list", *at, **wrong)
            assert refused.returncode == 1 and "expected Ray to accept our token" in refused.stderr, (
                refused.stderr
            )
            assert "Traceback" not in refused.stderr
        assert stasc("jobs", "list", *at, **secret).returncode == 0

        request = {
            "entrypoint": "true",
            "submission_id": "stasc-big-0-1",
            "entrypoint_num_cpus": 64,
            "metadata": {"needs": "64 CPUs"},
        }
        script = f"from ray.job_submission import JobSubmissionClient as C; C({found.jobs_address!r}).submit_job(**{request!r})"
        subprocess.run(
            [sys.executable, "-c", script], check=True, env={**os.environ, **secret}, capture_output=True
        )
        follow = [*STASC, "jobs", "logs", "stasc-big-0-1", *at, "--follow"]
        with subprocess.Popen(
            follow, stderr=subprocess.PIPE, text=True, env={**os.environ, **secret}
        ) as following:
            assert following.stderr
            told = following.stderr.readline()
            following.terminate()
        assert "is pending" in told and "needs 64 CPUs; the cluster has 1 CPUs" in told

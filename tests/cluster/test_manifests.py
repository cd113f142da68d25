"""What cluster/, jobs/configs/ and docs/clusters.md name exists: paths, commands, options, versions, images,
variables."""

import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import threading
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from benchmarks.ray_cluster import free_port
from stasc_ray.config import load_config
from stasc_ray.recipes import section_of

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = [CLUSTER / "kuberay" / f"{name}.yaml" for name in ("rayjob", "raycluster", "rayservice")]
RAY_UP = [CLUSTER / "ray-up" / f"{name}.yaml" for name in ("aws", "gcp")]
SBATCH = CLUSTER / "slurm" / "stasc.sbatch"
COMPOSE = CLUSTER / "docker" / "docker-compose.yaml"
DOCKERFILE = CLUSTER / "docker" / "Dockerfile"
WITH_RAY = [*KUBERAY, *RAY_UP, SBATCH, COMPOSE, DOCKERFILE]
DOCS = ROOT / "docs" / "clusters.md"
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.toml"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lock_version(device: str, package: str = "ray") -> str:
    [version] = re.findall(
        rf"^{package}==(\S+)(?: \\)?$", (ROOT / "requirements" / f"{device}.txt").read_text(), re.MULTILINE
    )
    return version


def test_every_file_that_the_image_for_gpus_installs_is_known_by_its_hash() -> None:
    text = (ROOT / "requirements" / "cuda.txt").read_text()
    requirements = re.split(r"\n(?=\S)", text)
    assert len(requirements) > 200
    for requirement in requirements:
        assert re.fullmatch(r"\S+==\S+.* \\(\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+\n?", requirement)
    install = DOCKERFILE.read_text()
    assert 'cuda) index="--require-hashes"' in install and "--no-deps ${index} -r" in install


def ray_requirement() -> str:
    [requirement] = [text for text in PYPROJECT["dependencies"] if text.startswith("ray[")]
    return requirement.partition("]")[2]


@pytest.mark.parametrize("path", WITH_RAY, ids=lambda path: path.name)
def test_every_file_names_the_locks_ray_version(path: Path) -> None:
    pattern = (
        r'rayVersion: "([\d.]+)"|-ray([\d.]+)-c|RAY_VERSION=([\d.]+)|ray_version=([\d.]+)|Ray (\d+\.\d+\.\d+)'
    )
    found = {version for groups in re.findall(pattern, path.read_text()) for version in groups if version}
    assert found == {lock_version("cpu")} == {lock_version("cuda")}
    assert lock_version("cpu") in SpecifierSet(ray_requirement())


def test_images_agree() -> None:
    texts = "\n".join(path.read_text() for path in [*WITH_RAY, DOCS])
    images = set(re.findall(r"registry\.example\.com/[\w.-]+:[\w.-]+", texts))
    tag = f"registry.example.com/stasc-ray:{PYPROJECT['version']}-ray{lock_version('cpu')}"
    assert images == {f"{tag}-cpu", f"{tag}-cuda"}


@pytest.mark.parametrize("path", [*WITH_RAY, DOCS, *CONFIGS], ids=lambda path: path.name)
def test_every_path_and_command_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    for name in set(
        re.findall(r"(?<![\w/])(?:jobs|cluster|docs|benchmarks|requirements|tests)/[\w./-]+\.[a-z]+\b", text)
    ):
        assert (ROOT / name).is_file(), f"{path.name} names {name}"
    for config, overrides in re.findall(r"(jobs/configs/\S+\.toml)((?: +[a-z_.]+=[^\s`]+)*)", text):
        load_config(ROOT / config, overrides.split(), section_of)
    targets = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), f"{path.name} names make {target}"
    cli = "\n".join(file.read_text() for file in (ROOT / "stasc_ray" / "cli").glob("*.py"))
    for command in set(
        re.findall(r"(?:^|[`\s])stasc (run|submit|serve|evaluate|report|config|ask|jobs|keys)\b", text)
    ):
        assert re.search(rf"def {command}\b|[\"']{command}[\"']", cli), f"{path.name} names stasc {command}"


def test_every_ray_option_exists() -> None:
    from ray.scripts.scripts import start

    options = {option for parameter in start.params for option in parameter.opts}
    for path in KUBERAY:
        spec = next(yaml.safe_load_all(path.read_text()))["spec"]
        cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert {f"--{name}" for name in group["rayStartParams"]} <= options
    for path in [*RAY_UP, COMPOSE]:
        for command in re.findall(r"ray start (.*?)(?:\n\S|\n\n|$)", path.read_text(), re.DOTALL):
            assert set(re.findall(r"(--[a-z-]+)", command)) <= options, path.name


def test_the_service_has_a_replica_for_each_gpu_pod_and_time_to_end() -> None:
    service, *others = yaml.safe_load_all((CLUSTER / "kuberay" / "rayservice.yaml").read_text())
    serve = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = serve["applications"]
    options = load_config(None, application["args"]["overrides"], section_of).serve
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (options.replicas, options.max_replicas) == (group["minReplicas"], group["maxReplicas"])
    assert options.swap == "in_place", "a second engine would need a second GPU in the pod"
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    drain = {one["name"]: one.get("value") for one in container["env"]}[
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    ]
    assert pod["terminationGracePeriodSeconds"] > float(drain) > options.grace >= options.request_timeout_s
    assert options.request_timeout_s < serve["http_options"]["request_timeout_s"]
    selector = {"ray.io/group": group["groupName"]}
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == selector
    kinds = {one["kind"]: one["spec"] for one in others}
    assert set(kinds) == {"PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"}
    assert kinds["PodDisruptionBudget"]["selector"]["matchLabels"] == selector
    ports = {port["port"] for rule in kinds["NetworkPolicy"]["ingress"] for port in rule.get("ports", ())}
    assert serve["http_options"]["port"] in ports


def test_every_environment_variable_is_read_by_someone() -> None:
    texts = "\n".join(path.read_text() for path in [*WITH_RAY, DOCS])
    named = set(re.findall(r"\b(?:RAY|STASC|VLLM|HF)_[A-Z][A-Z_0-9]+\b", texts)) - {
        "RAY_VERSION"
    }  # a build argument
    readers = {"RAY": "ray", "VLLM": "vllm", "HF": "huggingface_hub", "STASC": "stasc_ray"}
    for prefix, package in readers.items():
        wanted = {name for name in named if name.startswith(prefix + "_")}
        assert wanted - read_in(package, wanted) == set(), f"{package} never reads them"


def read_in(package: str, names: set[str]) -> set[str]:
    """Which of the names occur in a package's source, found without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations
    found: set[str] = set()
    for file in Path(spec.submodule_search_locations[0]).rglob("*.py"):
        if not names - found:
            break
        found |= set(re.findall(r"\b[A-Z]+_[A-Z0-9_]+\b", file.read_text(errors="ignore"))) & names
    return found


def test_dockerfile_copies_what_exists_and_the_lock_of_each_device() -> None:
    text = DOCKERFILE.read_text()
    allowed = {
        line[1:]
        for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
        if line[:1] == "!"
    }
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for source in sources.replace("${DEVICE}", "cpu").split():
            assert (ROOT / source).exists() and source.split("/")[0] in allowed
    assert (ROOT / "requirements" / "cuda.txt").is_file()
    # the build may see what `pip install /src` needs, and all that changes with the code is in one last layer
    assert {"jobs", "stasc_ray", "pyproject.toml", "README.md", "LICENSE"} <= allowed
    layers = re.findall(r"^(?:RUN|COPY) (?:[^\n]*\\\n)*[^\n]*", text, re.MULTILINE)
    (code,) = [layer for layer in layers if "/src" in layer]
    assert code == layers[-1] and "target=/src,rw" in code
    [python] = re.findall(r"^ARG PYTHON_VERSION=(\S+)$", text, re.MULTILINE)
    assert python in SpecifierSet(PYPROJECT["requires-python"])


@pytest.mark.skipif(shutil.which("wget") is None, reason="needs wget, as the image has it")
def test_the_images_health_is_that_of_ray_and_of_what_answers_on_its_port(tmp_path) -> None:
    [command] = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE)
    shell, option, script = json.loads(command)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()  # it has no /healthz: 404
    fake = tmp_path / "pgrep"
    fake.write_text("#!/bin/sh\nexit $NO_RAY\n")
    fake.chmod(0o755)

    def healthy(port: int, ray: bool) -> bool:
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NO_RAY": str(int(not ray))}
        here = script.replace("8000", str(port))
        return subprocess.run([shell, option, here], env=environment, check=False).returncode == 0

    silent = free_port()
    assert healthy(silent, ray=True) and not healthy(silent, ray=False)
    assert not healthy(server.server_port, ray=True)
    (tmp_path / "healthz").write_text("{}")
    server.RequestHandlerClass = functools.partial(  # type: ignore[assignment]
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path)
    )
    assert healthy(server.server_port, ray=True) and not healthy(server.server_port, ray=False)
    server.shutdown()
    server.server_close()


# --- the published configs
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_says_how_to_run_it(path: Path) -> None:
    settings = load_config(path, [], section_of)
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header and f"stasc run jobs/configs/{path.name}" in header[0]
    assert (
        settings.sampling.initial.max_tokens + settings.sampling.correction.max_tokens
        < settings.engine.max_model_len_tokens
    )


def test_the_nq_config_is_the_papers_setting() -> None:
    settings = load_config(ROOT / "jobs" / "configs" / "nq_qwen2.5_1.5b.toml", [], section_of)
    algorithm, finetune = settings.algorithm, settings.finetune
    assert (algorithm.variant, algorithm.iterations, algorithm.n_initial, algorithm.n_corrections) == (
        "EIE",
        10,
        5,
        5,
    )
    assert (finetune.method, finetune.learning_rate, finetune.batch_size, finetune.epochs) == (
        "full",
        7e-6,
        8,
        1,
    )
    assert (finetune.weight_decay, finetune.schedule, finetune.warmup_fraction) == (0.1, "cosine", 0.03)
    assert (settings.questions.train.limit, settings.questions.dev.limit, settings.questions.test.limit) == (
        500,
        500,
        500,
    )
    for turn in (settings.sampling.initial, settings.sampling.correction):
        assert (turn.temperature, turn.top_p, turn.max_tokens) == (0.6, 0.9, 256)
    assert (settings.reward.name, settings.reward.scope) == ("in_accuracy", "whole_text")

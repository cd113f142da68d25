"""The manifests in cluster/ match KubeRay's and Ray's schemas, are safe, and no misspelt field gets
through."""

import copy
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from stasc_ray.config import load_config
from stasc_ray.recipes import section_of

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "kuberay"
KUBERAY = [CLUSTER / "kuberay" / f"{name}.yaml" for name in ("rayjob", "raycluster", "rayservice")]
RAY_UP = [CLUSTER / "ray-up" / f"{name}.yaml" for name in ("aws", "gcp")]
COMPOSE = CLUSTER / "docker" / "docker-compose.yaml"

# KubeRay v1.7.0's own fields that we use; the full schemas (../shared/kuberay) are not part of this
# repository.
FIELDS: dict[str, set[str]] = {
    "RayJob": {"entrypoint", "submissionMode", "submitterConfig", "backoffLimit", "preRunningDeadlineSeconds"}
    | {"activeDeadlineSeconds", "deletionStrategy", "rayClusterSpec"},
    "RayService": {
        "upgradeStrategy",
        "rayClusterDeletionDelaySeconds",
        "excludeHeadPodFromServeSvc",
        "serveConfigV2",
    }
    | {"rayClusterConfig"},
    "RayCluster": {
        "rayVersion",
        "authOptions",
        "gcsFaultToleranceOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
    }
    | {"headGroupSpec", "workerGroupSpecs"},
    "head": {"rayStartParams", "template"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    "pod": {
        "restartPolicy",
        "securityContext",
        "affinity",
        "nodeSelector",
        "tolerations",
        "containers",
        "volumes",
    }
    | {"terminationGracePeriodSeconds", "imagePullSecrets", "topologySpreadConstraints"},
    "container": {
        "name",
        "image",
        "imagePullPolicy",
        "ports",
        "resources",
        "env",
        "securityContext",
        "volumeMounts",
    },
}


CLOUD_FIELDS: dict[str, set[str]] = {  # the nodes': EC2's RunInstances, Compute Engine's instances.insert
    "aws": {
        "type",
        "region",
        "availability_zone",
        "cache_stopped_nodes",
        "InstanceType",
        "ImageId",
        "BlockDeviceMappings",
    }
    | {"DeviceName", "Ebs", "VolumeSize", "VolumeType", "InstanceMarketOptions", "MarketType"},
    "gcp": {
        "type",
        "region",
        "availability_zone",
        "project_id",
        "cache_stopped_nodes",
        "machineType",
        "disks",
        "boot",
    }
    | {"autoDelete", "initializeParams", "diskSizeGb", "sourceImage", "scheduling", "provisioningModel"}
    | {"instanceTerminationAction", "onHostMaintenance"},
}
CLAIM_FIELDS = {
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "spec",
    "accessModes",
    "resources",
    "requests",
    "storage",
}
COMPOSE_FIELDS: dict[str, set[str]] = {
    "service": {
        "image",
        "network_mode",
        "shm_size",
        "ulimits",
        "restart",
        "stop_grace_period",
        "environment",
        "secrets",
    }
    | {"volumes", "profiles", "command", "deploy"},
    "ulimits": {"nofile"},
    "deploy": {"resources", "reservations", "devices", "driver", "count", "capabilities"},
}


def load(path: Path) -> dict[str, Any]:
    return next(yaml.safe_load_all(path.read_text()))  # the first, of a file with several


def ray_cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = ray_cluster(manifest)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for group in groups(manifest) for container in group["template"]["spec"]["containers"]]


def gib(quantity: str) -> float:
    return float(quantity.removesuffix("Gi"))


def keys(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every mapping key below a node."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from keys(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from keys(value, (*path, index))


def misspell(document: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """The document with one letter of the key at `path` doubled."""
    changed = copy.deepcopy(document)
    parent: Any = changed
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1] + path[-1][-1]] = parent.pop(path[-1])
    return changed


# --- KubeRay
# -----------------------------------------------------------------------------------------------------


def schema(manifest: dict[str, Any]) -> Draft202012Validator:
    path = SCHEMAS / f"{manifest['kind']}.v1.schema.json"
    if not path.is_file():
        pytest.skip(
            "needs KubeRay's strict schemas in ../shared/kuberay, which this checkout does not have beside it"
        )
    return Draft202012Validator(json.loads(path.read_text()))


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_manifests_match_the_strict_schemas(path: Path) -> None:
    manifest = load(path)
    assert [error.message for error in schema(manifest).iter_errors(manifest)] == []


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_every_misspelt_kuberay_field_fails_the_schema(path: Path) -> None:
    manifest = load(path)
    validator = schema(manifest)
    free = {"rayStartParams", "requests", "limits", "metadata", "matchLabels"}  # maps of names, not of fields
    first = {
        key[-1]: key
        for key in reversed(list(keys(manifest)))
        if key[0] == "spec" and not free & set(key[:-1])
    }
    assert len(first) > 60
    assert [key for key in first.values() if validator.is_valid(misspell(manifest, key))] == []


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_fields_are_known_without_the_schemas(path: Path) -> None:
    manifest = load(path)
    assert unknown_fields(manifest) == set()
    typo = copy.deepcopy(manifest)
    typo["spec"]["backofLimit"] = 1
    groups(typo)[1]["maxReplica"] = 1
    groups(typo)[0]["template"]["spec"]["containers"][0]["resource"] = {}
    assert unknown_fields(typo) == {"backofLimit", "maxReplica", "resource"}


def unknown_fields(manifest: dict[str, Any]) -> set[str]:
    cluster, kind = ray_cluster(manifest), manifest["kind"]
    unknown = (set(manifest["spec"]) - FIELDS[kind]) | (
        set(cluster) - FIELDS["RayCluster"] - set(manifest["spec"])
    )
    for group in groups(manifest):
        unknown |= set(group) - FIELDS["worker" if "groupName" in group else "head"]
        unknown |= set(group["template"]["spec"]) - FIELDS["pod"]
        for container in group["template"]["spec"]["containers"]:
            unknown |= set(container) - FIELDS["container"]
    return unknown


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_clusters_are_safe(path: Path) -> None:
    manifest = load(path)
    cluster = ray_cluster(manifest)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "stasc-ray-token"}
    assert cluster["autoscalerOptions"]["version"] == "v2" and cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    claims = {
        claim["metadata"]["name"]
        for claim in yaml.safe_load_all((CLUSTER / "kuberay" / "storage.yaml").read_text())
    }
    for group in groups(manifest):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        container = pod["containers"][0]
        assert pod["securityContext"]["runAsNonRoot"] and pod["restartPolicy"] == "Never"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes.values()
            if "persistentVolumeClaim" in volume
        } == claims
        # The object store lies in /dev/shm, which counts towards the container's memory.
        shared = gib(volumes["shared-mem"]["emptyDir"]["sizeLimit"])
        assert (
            int(group["rayStartParams"]["object-store-memory"]) / 2**30
            < shared
            < gib(container["resources"]["limits"]["memory"]) / 1.5
        )
        for variable in container["env"]:
            assert "valueFrom" in variable or not re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"])


def test_rayjob_passes_the_operators_own_checks() -> None:
    """Rules that KubeRay's controller holds and no schema expresses (ValidateRayJobSpec)."""
    spec = load(KUBERAY[0])["spec"]
    rules = spec["deletionStrategy"]["deletionRules"]
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & set(spec)
    assert "DeleteWorkers" not in {rule["policy"] for rule in rules}  # refused with the autoscaler
    assert all(len({"jobStatus", "jobDeploymentStatus"} & set(rule["condition"])) == 1 for rule in rules)
    succeeded = {
        rule["policy"]: rule["condition"]["ttlSeconds"] for rule in rules if "jobStatus" in rule["condition"]
    }
    assert succeeded["DeleteCluster"] <= succeeded["DeleteSelf"]
    assert spec["backoffLimit"] > 0 and len(load(KUBERAY[0])["metadata"]["name"]) <= 47


def test_rayjob_entrypoint_is_a_valid_run_that_fits_its_cluster() -> None:
    manifest = load(KUBERAY[0])
    python, script, config, *overrides = manifest["spec"]["entrypoint"].split()
    assert python == "python" and (ROOT / script.removeprefix("/app/")).is_file()
    settings = load_config(ROOT / config.removeprefix("/app/"), overrides, section_of)
    gpus = sum(
        group["replicas"]
        * int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
        for group in groups(manifest)[1:]
    )
    assert settings.engine.actors * settings.engine.tensor_parallel_size == settings.finetune.workers == gpus
    assert settings.storage in {mount["mountPath"] for mount in containers(manifest)[0]["volumeMounts"]}
    assert "--fresh" not in manifest["spec"]["entrypoint"]


def test_rayservice_serves_an_application_that_exists() -> None:
    from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    from stasc_ray.serving import proxy

    manifest = load(KUBERAY[2])
    serve = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(serve)  # lets unknown keys pass, hence the next lines
    [application] = serve["applications"]
    assert set(serve) <= set(ServeDeploySchema.model_fields)
    assert set(serve["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    options = load_config(None, application["args"]["overrides"], section_of).serve
    assert serve["controller_options"] == proxy.controller_options(options), "as `stasc serve` starts it"
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    module, _, name = application["import_path"].partition(":")
    build = getattr(importlib.import_module(module), name)
    [parameter] = inspect.signature(build, eval_str=True).parameters.values()
    if hasattr(parameter.annotation, "model_validate"):
        parameter.annotation.model_validate(application["args"])
    assert serve["http_options"]["request_timeout_s"] < manifest["spec"]["rayClusterDeletionDelaySeconds"]


def test_the_claims_of_storage_use_known_fields() -> None:
    claims = list(yaml.safe_load_all((CLUSTER / "kuberay" / "storage.yaml").read_text()))
    assert {key[-1] for claim in claims for key in keys(claim)} == CLAIM_FIELDS
    assert all(claim["apiVersion"] == "v1" and claim["kind"] == "PersistentVolumeClaim" for claim in claims)


# --- ray up
# ------------------------------------------------------------------------------------------------------


def ray_up_schema() -> Draft202012Validator:
    import ray

    return Draft202012Validator(
        json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    )


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_up_files_match_rays_schema_and_no_typo_does(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    manifest, validator = load(path), ray_up_schema()
    assert [error.message for error in validator.iter_errors(manifest)] == []
    validate_config(prepare_config(copy.deepcopy(manifest)))
    free = {"node_config", "file_mounts", "provider", "available_node_types"}  # the cloud's fields, or names
    fields = [key for key in keys(manifest) if not free & {str(step) for step in key[:-1]}]
    fields += [
        ("available_node_types", "head", "resources"),
        ("available_node_types", "gpu-spot", "min_workers"),
    ]
    assert [key for key in fields if validator.is_valid(misspell(manifest, key))] == []


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_the_clouds_own_fields_are_known_and_no_typo_is(path: Path) -> None:
    """Ray passes these on as they are; its schema knows none of them, and AWS takes a misspelt spot market
    for none."""
    manifest = load(path)
    assert unknown_cloud_fields(manifest, path.stem) == set()
    fields = [key for key in keys(manifest) if key[0] == "provider" or "node_config" in key[:-1]]
    assert len(fields) > 15
    assert [key for key in fields if not unknown_cloud_fields(misspell(manifest, key), path.stem)] == []


def unknown_cloud_fields(manifest: dict[str, Any], cloud: str) -> set[str]:
    blocks = [
        manifest.get("provider"),
        *(node_type.get("node_config") for node_type in manifest["available_node_types"].values()),
    ]
    return {key[-1] for block in blocks for key in keys(block)} - CLOUD_FIELDS[cloud] | (
        {"provider"} - set(manifest)
    )


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_up_keeps_work_off_the_head_and_the_token_on_every_node(path: Path) -> None:
    manifest = load(path)
    types = manifest["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0} and manifest["head_node_type"] == "head"
    assert re.search("spot", json.dumps(types["gpu-spot"]["node_config"]), re.IGNORECASE)
    assert "spot" not in json.dumps(types["head"]).lower()
    assert (
        "~/.ray/auth_token" in manifest["file_mounts"]
        and "-e RAY_AUTH_MODE=token" in manifest["docker"]["run_options"]
    )


# --- Docker
# --------------------------------------------------------------------------------------------------------


def test_compose_services_use_known_fields_and_rays_options() -> None:
    compose = load(COMPOSE)
    assert set(compose) == {"name", "x-ray", "services", "secrets"}
    for service in compose["services"].values():
        assert set(service) <= COMPOSE_FIELDS["service"]
        for block in ("ulimits", "deploy"):
            assert {key[-1] for key in keys(service.get(block, {}))} <= COMPOSE_FIELDS[block]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{service['secrets'][0]}"
        assert set(service["secrets"]) <= set(compose["secrets"])

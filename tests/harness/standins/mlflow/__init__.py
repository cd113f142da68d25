"""Stands in for MLflow's package where it is not installed: the calls that a run makes, over MLflow's REST
interface, with its names and its errors' shape. It does not stand in for MLflow's own retries.
"""

import os
from types import SimpleNamespace
from typing import Any

import httpx


class MlflowException(Exception):
    pass


def _record(*names: str) -> Any:
    return lambda *values: dict(zip(names, values, strict=True))


entities = SimpleNamespace(Metric=_record("key", "value", "timestamp", "step"), Param=_record("key", "value"))


class MlflowClient:
    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        url = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}"
        try:
            found = httpx.request(
                method, url, timeout=float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]), **arguments
            )
        except httpx.HTTPError as error:
            raise MlflowException(f"API request to {url} failed with exception {error}") from error
        if found.status_code == 404 and found.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST":
            return {}
        if found.status_code != 200:
            raise MlflowException(f"API request to {path} failed: {found.text}")
        return found.json()

    def get_experiment_by_name(self, name: str) -> Any:
        found = self._call("GET", "experiments/get-by-name", params={"experiment_name": name})
        return SimpleNamespace(**found["experiment"]) if found else None

    def create_experiment(self, name: str) -> str:
        return self._call("POST", "experiments/create", json={"name": name})["experiment_id"]

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        found = self._call("POST", "runs/create", json={"experiment_id": experiment_id, "run_name": run_name})
        return SimpleNamespace(info=SimpleNamespace(**found["run"]["info"]))

    def update_run(self, run_id: str, status: str) -> None:
        self._call("POST", "runs/update", json={"run_id": run_id, "status": status})

    def set_terminated(self, run_id: str, status: str) -> None:
        self.update_run(run_id, status)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self._call(
            "POST",
            "runs/log-batch",
            json={"run_id": run_id, "metrics": list(metrics), "params": list(params)},
        )

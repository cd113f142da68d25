"""Metrics to TensorBoard, MLflow and Weights & Biases: one function per sink, beside metrics.jsonl, which is
always written.

Each takes the lines of metrics.jsonl as they are committed; the step is the iteration.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stasc_ray import config

Sink = Callable[[Mapping[str, Any]], None]


@contextmanager
def sinks(settings: config.Config, folder: Path) -> Iterator[Sink]:
    """One function that sends a line to every sink that `tracking` names.

    Raises:
        ImportError: a sink's package is not installed; the message says how to install it.
    """
    with ExitStack() as stack:
        opened = [
            stack.enter_context(SINKS[name](settings, folder))
            for name in SINKS
            if getattr(settings.tracking, name)
        ]

        def send(line: Mapping[str, Any]) -> None:
            for sink in opened:
                sink(line)

        yield send


@contextmanager
def tensorboard(settings: config.Config, folder: Path) -> Iterator[Sink]:
    """Event files in <run>/tensorboard."""
    _require("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def send(line: Mapping[str, Any]) -> None:
            for name, value in scalars(line).items():
                writer.add_scalar(name, value, line["iteration"])
            writer.flush()

        yield send


@contextmanager
def mlflow(settings: config.Config, folder: Path) -> Iterator[Sink]:
    """A run of the experiment `stasc`; a resumed run goes on in the same one."""
    client = _require("mlflow")
    client.set_experiment("stasc")
    file = folder / "mlflow_run_id"
    run_id = file.read_text(encoding="utf-8") if file.is_file() else None
    with client.start_run(run_id=run_id, run_name=settings.name) as run:
        file.write_text(run.info.run_id, encoding="utf-8")
        if run_id is None:
            client.log_params(
                {name: config.as_text(value)[:500] for name, value, *_ in config.walk(settings)}
            )
        yield lambda line: client.log_metrics(scalars(line), step=line["iteration"])


@contextmanager
def wandb(settings: config.Config, folder: Path) -> Iterator[Sink]:
    """A run of the project `stasc`; a resumed run goes on in the same one."""
    client = _require("wandb")
    identity = f"{settings.name}-{config.fingerprint(settings)}"
    with client.init(
        project="stasc",
        name=settings.name,
        id=identity,
        resume="allow",
        dir=str(folder),
        config=settings.model_dump(mode="json"),
    ) as run:
        yield lambda line: run.log({**scalars(line), "iteration": line["iteration"]})


SINKS = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics line, under their names."""
    return {
        name: float(value) for name, value in line.items() if "/" in name and isinstance(value, (int, float))
    }


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"tracking.{package}: expected the package {package}; pip install 'stasc-ray[{package}]'"
        ) from error

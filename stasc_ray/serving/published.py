"""Versions in a run folder: where a model lies, whether its files may be served, which one is pinned.

The pin is a file in the run folder, so every replica follows it, also one that starts later.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from stasc_ray import store
from stasc_ray.generation import canary
from stasc_ray.runtime import model_folder

LATEST = "latest"
"""Stands for "follow the run" where a version's name is expected."""


def pin_file(run_folder: Path) -> Path:
    """Holds the name of the pinned version; absent: follow LATEST."""
    return run_folder / "PINNED"


def read_pin(run_folder: Path) -> str | None:
    """The pinned version's name."""
    with contextlib.suppress(FileNotFoundError):
        return pin_file(run_folder).read_text(encoding="utf-8").strip() or None
    return None


def pin(run_folder: Path, version: str | None) -> None:
    """Pin every replica to `version`; None: follow LATEST.

    Raises:
        OSError: the run folder cannot be written to.
    """
    if version:
        store.write_atomically(pin_file(run_folder), f"{version}\n")
    else:
        pin_file(run_folder).unlink(missing_ok=True)


def model_path(run_folder: Path, manifest: dict[str, Any]) -> str:
    """Folder or Hub id of a version's model; manifests name folders relative to the run folder."""
    local = run_folder / manifest["model"]
    return str(local) if manifest["iteration"] or local.is_dir() else manifest["model"]


def canary_of(run_folder: Path, manifest: dict[str, Any]) -> canary.Canary | None:
    """A version's canary; None if the manifest names none, as for the base model.

    Raises:
        ValueError: it is named, but missing or not readable.
    """
    return canary.read(run_folder / manifest["canary"]) if manifest.get("canary") else None


def state_of_files(run_folder: Path, manifest: dict[str, Any]) -> str:
    """Changes when the version's manifest or model folder does."""
    folder = Path(model_path(run_folder, manifest))
    files = sorted(folder.rglob("*")) if folder.is_dir() else []
    states = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([manifest, states], sort_keys=True, default=str)


def check_files(model: str) -> None:
    """Refuse a folder that lacks something, or has weights that are not all there yet.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a safetensors file is incomplete.
    """
    model_folder.check_model(model)
    check_weights(Path(model))
    index = Path(model) / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := named - {file.name for file in Path(model).iterdir()}:
            raise FileNotFoundError(
                f"expected the weights that {index.name} names, found no {', '.join(sorted(missing))}"
            )


def check_weights(folder: Path) -> None:
    """Refuse safetensors files that are incomplete: ValueError."""
    for file in folder.glob("*.safetensors"):
        model_folder.weights(file)


def check_tokenizer(tokenizer: Any, reference: Any) -> None:
    """Refuse a tokenizer that is not the run's, as training never changes it; `reference` None: let it pass.

    Raises:
        ValueError: vocabulary or chat template differ.
    """
    if reference and (
        reference.get_vocab() != tokenizer.get_vocab() or reference.chat_template != tokenizer.chat_template
    ):
        raise ValueError(
            "its tokenizer is not the run's: vocabulary or chat template differ from the base model's"
        )

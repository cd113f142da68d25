"""Versions in a run folder: what is published, where a model lies, whether its files may be served."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from stasc_ray import store
from stasc_ray.generation import canary
from stasc_ray.runtime import model_folder
from stasc_ray.store.files import read_json

LATEST = "latest"
"""Stands for "follow the run" where a version's name is expected."""


class Manifest(BaseModel):
    """What an endpoint needs of a version's manifest."""

    version: Annotated[str, Field(strict=True)]
    iteration: Annotated[int, Field(strict=True)]
    model: Annotated[str, Field(strict=True)]
    created: Annotated[
        str, Field(strict=True), AfterValidator(lambda text: datetime.fromisoformat(text) and text)
    ]
    canary: str | None = None
    metrics: dict[str, Any] = {}


@dataclass(frozen=True)
class Snapshot:
    """What a run folder said about its versions when it was last read; empty before that."""

    manifests: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """By version, oldest first; those that can be read."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """By version, why its manifest cannot be read."""
    latest: str | None = None
    files: Mapping[str, str | None] = field(default_factory=dict)
    """`state_of_files` of the versions that were asked about; None: they could not be read."""
    problem: str | None = None
    """Why the folder could not be read; then the rest is what it said before."""

    @property
    def base(self) -> dict[str, Any] | None:
        """The manifest of M0."""
        return next((one for one in self.manifests.values() if one["iteration"] == 0), None)


class Published:
    """Reads a run folder again and again; a manifest that did not change is not read again.

    `look` blocks on storage: call it in a thread. `snapshot` is what it found last.
    """

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder
        self.snapshot = Snapshot()
        self._read: dict[str, tuple[tuple[int, int], dict[str, Any] | str]] = {}

    def look(self, about: Collection[str]) -> Snapshot:
        """Read the folder, and the state of the files of the versions `about`."""
        try:
            self.snapshot = self._look(about)
        except (OSError, ValueError) as error:
            self.snapshot = replace(self.snapshot, files={}, problem=f"{type(error).__name__}: {error}")
        return self.snapshot

    def _look(self, about: Collection[str]) -> Snapshot:
        folder = self.run_folder
        found = {file.stem: self._manifest(file) for file in sorted((folder / "versions").glob("v*.json"))}
        manifests = {version: one for version, one in found.items() if isinstance(one, dict)}
        return Snapshot(
            manifests=manifests,
            unreadable={version: one for version, one in found.items() if isinstance(one, str)},
            latest=store.RunFolder(folder).latest(),
            files={one: self.state_of(manifests[one]) for one in about if one in manifests},
        )

    def state_of(self, manifest: dict[str, Any]) -> str | None:
        """`state_of_files`; None if they cannot be read."""
        try:
            return state_of_files(self.run_folder, manifest)
        except OSError:
            return None

    def has_gone(self, manifest: dict[str, Any]) -> bool:
        """Whether the version's folder is not there."""
        return not Path(model_path(self.run_folder, manifest)).exists()

    def _manifest(self, file: Path) -> dict[str, Any] | str:
        """The manifest, or why it cannot be read: one that is broken hides no other."""
        try:
            state = file.stat()
            seen = (state.st_mtime_ns, state.st_size)
            known = self._read.get(file.stem)
            if known and known[0] == seen:
                return known[1]
            found = read_json(file)
            if Manifest.model_validate(found).version != file.stem:
                raise ValueError(f"{file}: expected version {file.stem!r} in it, found {found['version']!r}")
        except (OSError, ValueError, RecursionError) as error:
            return str(error)  # not kept: a network file system may do better the next time
        self._read[file.stem] = seen, found
        return found


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

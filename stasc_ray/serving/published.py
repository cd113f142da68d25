"""What a run has published, and whether a version may be served, as far as that can be known without an engine."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

from stasc_ray import store
from stasc_ray.generation.samples import Adapter
from stasc_ray.runtime import model_folder
from stasc_ray.serving import verification
from stasc_ray.serving.engines import EngineSpec


class Published:
    """The versions of a run folder."""

    def __init__(self, run: store.RunFolder, spec: EngineSpec) -> None:
        self._run, self._spec = run, spec
        self._numbers = itertools.count(1)

    def weights(self, manifest: dict[str, Any]) -> tuple[str, Adapter | None]:
        """What an engine loads for a version: its model; for LoRA the base model, and the adapter on it.

        Where the base model has gone, the version's merged weights take its place.
        """
        model = verification.model_path(self._run.path, manifest)
        folder, base = Path(model) / "adapter", self._base_model()
        if self._spec.lora_rank and manifest["iteration"] and base and folder.is_dir():
            number = next(
                self._numbers
            )  # vLLM keeps what it read under a number or a name, even if the files change
            return base, Adapter(f"{manifest['version']}-{number}", number, str(folder))
        return model, None

    def check(
        self, manifest: dict[str, Any], reference: Any = None
    ) -> tuple[Any, verification.Canary | None]:
        """Tokenizer and canary of a version; `reference` is a tokenizer of the run, the base model's where None.

        Raises:
            OSError, ValueError: this version must not be served.
        """
        model = verification.model_path(self._run.path, manifest)
        verification.check_files(model)
        if self.weights(manifest)[1]:
            verification.check_weights(Path(model) / "adapter")
        canary = verification.read_canary(self._run.path, manifest)
        tokenizer = self._tokenizer(model)
        verification.check_tokenizer(tokenizer, reference or self._tokenizer_of_the_base())
        return tokenizer, canary

    def _base_model(self) -> str | None:
        """Folder or Hub id of M0; None where it has gone since."""
        base = next((manifest for manifest in self._run.versions() if manifest["iteration"] == 0), None)
        with contextlib.suppress(OSError):
            if base:
                model = verification.model_path(self._run.path, base)
                model_folder.check_model(model)
                return model
        return None

    def _tokenizer_of_the_base(self) -> Any:
        with contextlib.suppress(OSError, ValueError):
            base = self._base_model()
            return self._tokenizer(base) if base else None
        return None

    def _tokenizer(self, path: str) -> Any:
        model = self._spec.model
        return model_folder.load_tokenizer(
            path, revision=model_folder.revision(path, model), trust_remote_code=model.trust_remote_code
        )

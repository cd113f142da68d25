"""A published version becomes an engine that answers: check its files, load it, verify it by its canary."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.generation import canary
from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.generation.samples import Adapter
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.runtime import model_folder
from stasc_ray.serving import published
from stasc_ray.serving.engines import EngineHandle, verify
from stasc_ray.tasks.chat import Chat


@dataclass(eq=False)
class Loaded:
    """A version with its engine."""

    manifest: dict[str, Any]
    engine: EngineHandle
    verified: str
    """How, in words."""
    engine_pid: int = 0
    files: str | None = None
    """State of its files when it was loaded."""
    since: float = field(default_factory=time.monotonic)
    in_flight: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def version(self) -> str:
        """v0003 and the like."""
        return self.manifest["version"]

    @property
    def is_base(self) -> bool:
        """Whether it is M0."""
        return self.manifest["iteration"] == 0

    @contextlib.contextmanager
    def held(self) -> Iterator["Loaded"]:
        """Keep the engine for the length of the block."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def drained(self) -> None:
        """Return once no request holds it."""
        while self.in_flight:
            await self._idle.wait()


class Loader:
    """Prepares the engines of one replica. `loaded` are the versions that answer now."""

    def __init__(
        self,
        found: published.Published,
        settings: config.Config,
        spec: EngineSpec,
        observe: Callable[..., None],
    ) -> None:
        self._published, self._settings, self._spec, self._observe = found, settings, spec, observe
        self._run_folder = found.run_folder
        self._numbers = itertools.count(1)
        self.engine_starts = 0

    async def prepare(self, manifest: dict[str, Any], loaded: Sequence[Loaded]) -> Loaded:
        """A version on an engine that is up and verified.

        Raises:
            EngineDiedError: the engine did not come up.
            OSError, ValueError: this version must not be served.
        """
        tokenizer, expected = await self.check(manifest, loaded)
        weights = await asyncio.to_thread(self._weights, manifest)
        engine = self._engine(weights, tokenizer, loaded)
        limit_s = self._settings.engine.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                pid = await engine.pid()
                await engine.load_adapter()
                return Loaded(manifest, engine, await self._verify(engine, expected), pid)
        except TimeoutError:
            engine.release()
            message = f"its engine was not up after engine.start_timeout_s = {limit_s:g} s"
            raise EngineDiedError(message) from None
        except BaseException:
            engine.release()
            raise

    async def exchange(self, old: Loaded, manifest: dict[str, Any], expected: canary.Canary | None) -> Loaded:
        """A version on the engine of `old`, whose weights are exchanged; nothing may be in flight on it.

        Raises:
            EngineDiedError, RuntimeError, ValueError: the engine is unusable now.
        """
        if expected is None:
            raise ValueError("without a canary nobody would notice that an exchange went wrong")
        before = await canary.difference(old.engine.logprobs, expected)
        await old.engine.reload(await asyncio.to_thread(published.model_path, self._run_folder, manifest))
        verified = await self._verify(old.engine, expected, before)
        return Loaded(manifest, old.engine, verified, old.engine_pid)

    async def check(
        self, manifest: dict[str, Any], loaded: Sequence[Loaded]
    ) -> tuple[Any, canary.Canary | None]:
        """Tokenizer and canary of a version.

        Raises:
            OSError, ValueError: this version must not be served.
        """
        reference = loaded[0].engine.chat.tokenizer if loaded else None
        return await asyncio.to_thread(self._check, manifest, reference)

    async def running(self, manifest: dict[str, Any], loaded: Sequence[Loaded]) -> EngineHandle | None:
        """The engine that holds a version's model already; for LoRA, its base model."""
        model, _ = await asyncio.to_thread(self._weights, manifest)
        return _holding(model, loaded)

    def _engine(
        self, weights: tuple[str, Adapter | None], tokenizer: Any, loaded: Sequence[Loaded]
    ) -> EngineHandle:
        model, adapter = weights
        if running := _holding(model, loaded):
            return running.with_adapter(adapter)
        self.engine_starts += 1
        return EngineHandle(model, self._spec, Chat.of(tokenizer, self._settings), adapter)

    def _weights(self, manifest: dict[str, Any]) -> tuple[str, Adapter | None]:
        """What an engine loads: the version's model; for LoRA the base model, and the adapter on it.

        If the base model has gone, the version's merged weights take its place.
        """
        model = published.model_path(self._run_folder, manifest)
        folder, base = Path(model) / "adapter", self._base_model()
        if self._spec.lora_rank and manifest["iteration"] and base and folder.is_dir():
            # vLLM keeps what it read under a number or a name, even if the files change.
            number = next(self._numbers)
            return base, Adapter(f"{manifest['version']}-{number}", number, str(folder))
        return model, None

    def _check(self, manifest: dict[str, Any], reference: Any) -> tuple[Any, canary.Canary | None]:
        model = published.model_path(self._run_folder, manifest)
        published.check_files(model)
        if self._weights(manifest)[1]:
            published.check_weights(Path(model) / "adapter")
        expected = published.canary_of(self._run_folder, manifest)
        tokenizer = self._tokenizer(model)
        published.check_tokenizer(tokenizer, reference or self._base_tokenizer())
        return tokenizer, expected

    def _base_model(self) -> str | None:
        """Folder or Hub id of M0; None if it has gone since."""
        base = self._published.snapshot.base
        with contextlib.suppress(OSError):
            if base:
                model = published.model_path(self._run_folder, base)
                model_folder.check_model(model)
                return model
        return None

    def _base_tokenizer(self) -> Any:
        with contextlib.suppress(OSError, ValueError):
            base = self._base_model()
            return self._tokenizer(base) if base else None
        return None

    def _tokenizer(self, path: str) -> Any:
        model = self._spec.model
        return model_folder.load_tokenizer(
            path, revision=model_folder.revision(path, model), trust_remote_code=model.trust_remote_code
        )

    async def _verify(
        self, engine: EngineHandle, expected: canary.Canary | None, before: float | None = None
    ) -> str:
        dtype = self._settings.engine.dtype
        full = dtype == "float32" or (dtype == "auto" and not self._spec.on_cuda)
        if engine.adapter and expected:  # computed with merged weights, rounded to the base model's type
            full = full and expected["dtype"] == "float32"
        tolerance = self._settings.serve.canary_tolerance or canary.tolerance(full)
        try:
            return await verify(engine, expected, tolerance, before)
        except canary.CanaryError:
            self._observe("canary_failure", 1)
            raise


def _holding(model: str, loaded: Sequence[Loaded]) -> EngineHandle | None:
    return next((one.engine for one in loaded if one.engine.model == model), None)

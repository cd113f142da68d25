"""Whether a version may be served: its files are whole, its tokenizer is the run's, its engine computes what the trainer did."""

import json
from pathlib import Path
from typing import Any, TypedDict

from stasc_ray import config
from stasc_ray.generation.samples import Request
from stasc_ray.runtime import model_folder
from stasc_ray.serving.engines import EngineHandle


class CanaryPrompt(TypedDict):
    """A text; `logprobs` (T - n_prompt,) are those of token_ids[n_prompt:], each given all tokens before it."""

    token_ids: list[int]
    n_prompt: int
    logprobs: list[float]


class Canary(TypedDict):
    """What learning/export.py writes into a model's folder."""

    dtype: str
    """Of the weights that the log-probabilities were computed with; the computation is in float32."""
    prompts: list[CanaryPrompt]


class CanaryError(ValueError):
    """The engine does not compute what the trainer computed."""


def model_path(run_folder: Path, manifest: dict[str, Any]) -> str:
    """Folder or Hub id of a version's model; manifests name folders relative to the run folder."""
    local = run_folder / manifest["model"]
    return str(local) if manifest["iteration"] or local.is_dir() else manifest["model"]


def check_files(model: str) -> None:
    """Refuse a folder that lacks something, or whose weights are not all there yet.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a safetensors file is shorter than its header says.
    """
    model_folder.check_model(model)
    check_weights(Path(model))
    index = Path(model) / "model.safetensors.index.json"
    if index.is_file():
        missing = {
            name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        } - set(file.name for file in Path(model).iterdir())
        if missing:
            raise FileNotFoundError(
                f"expected the weights that {index.name} names, found no {', '.join(sorted(missing))}"
            )


def check_weights(folder: Path) -> None:
    """Refuse safetensors files that are not all there: ValueError."""
    for file in folder.glob("*.safetensors"):
        size, expected = file.stat().st_size, _size_in_header(file)
        if size != expected:
            raise ValueError(
                f"{file.name}: expected {expected} bytes as its header says, found {size}: copied by half?"
            )


def _size_in_header(file: Path) -> int:
    """Size that a safetensors file has when it is whole: 8 bytes, a JSON header of the length they give, the data."""
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        try:
            header = json.loads(data.read(min(length, 100_000_000)))
            return (
                8
                + length
                + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{file.name}: expected a safetensors header, found something else: copied by half?"
            ) from None


def read_canary(run_folder: Path, manifest: dict[str, Any]) -> Canary | None:
    """A version's canary; None where the manifest names none, as for the base model.

    Raises:
        ValueError: it is named, but not there or not readable.
    """
    if manifest.get("canary") is None:
        return None
    try:
        canary = json.loads((run_folder / manifest["canary"]).read_text(encoding="utf-8"))
        if not canary["prompts"]:
            raise ValueError("it holds no prompts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"canary: expected {manifest['canary']}, found {error}") from error
    return canary


def check_tokenizer(tokenizer: Any, reference: Any) -> None:
    """Refuse a tokenizer that is not the run's: training never changes it. `reference` None: nothing to compare with.

    Raises:
        ValueError: vocabulary or chat template differ.
    """
    if reference and (
        reference.get_vocab() != tokenizer.get_vocab() or reference.chat_template != tokenizer.chat_template
    ):
        raise ValueError(
            "its tokenizer is not the run's: vocabulary or chat template differ from the base model's"
        )


async def verify(engine: EngineHandle, canary: Canary | None, tolerance: float) -> str:
    """How the engine was verified, in words.

    Raises:
        CanaryError: its log-probabilities are not those that the trainer computed.
    """
    probe = Request(config.Sampling(temperature=0.0, max_tokens=1), 1, 0)
    if canary is None:
        await engine.generate(list(engine.tokenizer.encode("probe", add_special_tokens=False)), probe)
        return "answered a probe (this version has no canary)"
    differences: list[float] = []
    for prompt in canary["prompts"]:
        found = (await engine.logprobs(prompt["token_ids"]))[prompt["n_prompt"] - 1 :]
        differences += [abs(a - b) for a, b in zip(found, prompt["logprobs"], strict=True)]
    mean = sum(differences) / len(differences)
    if not mean <= tolerance:  # NaN is refused too
        raise CanaryError(
            f"canary: expected log-probabilities within {tolerance:g} of the trainer's, found a mean difference of {mean:.4g}"
        )
    await engine.generate(canary["prompts"][0]["token_ids"], probe)
    return f"canary: mean difference of log-probabilities {mean:.2g}, tolerance {tolerance:g}"


def tolerance(full_precision: bool) -> float:
    """Mean absolute difference that float32 in another order, or 16-bit arithmetic, explains."""
    return 0.01 if full_precision else 0.1


def state_of_files(run_folder: Path, manifest: dict[str, Any]) -> str:
    """Changes when the version's manifest or model folder does."""
    folder = Path(model_path(run_folder, manifest))
    files = sorted(folder.rglob("*")) if folder.is_dir() else []
    states = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([manifest, states], sort_keys=True, default=str)

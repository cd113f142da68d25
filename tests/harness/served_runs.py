"""Run folders with published versions of the tiny sandbox model, for the serving tests."""

import json
import shutil
from pathlib import Path
from typing import Any

from stasc_ray import config, store
from stasc_ray.learning import encoding, export
from stasc_ray.recipes import section_of
from stasc_ray.recipes.recipe import written
from stasc_ray.runtime import model_folder
from stasc_ray.tasks import chat, prompts, sandbox


def make_run(folder: Path, *overrides: str) -> store.RunFolder:
    """An empty run folder with the sandbox's prompts and settings that suit a small machine."""
    given = [
        "name=served",
        "prompts.preset=sandbox",
        "engine.max_model_len_tokens=256",
        "engine.max_num_seqs=64",
    ]
    given += [
        "engine.kv_cache_gb=0.25",
        "sampling.initial.max_tokens=32",
        "sampling.correction.max_tokens=32",
        "serve.poll_s=0.3",
    ]
    settings = config.load_config(None, [*given, *overrides], section_of)
    with store.open_run(folder, settings):
        return store.RunFolder(folder)


def make_model(folder: Path, *, noise: float = 0.0, seed: int = 0, tied: bool = False) -> Path:
    """The sandbox model, with noise on its weights so that it answers otherwise, with its canary."""
    import torch
    from transformers import AutoModelForCausalLM

    source = str(sandbox.model_path())
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if tied:
        state = model.state_dict()
        state["model.embed_tokens.weight"] = state["lm_head.weight"]
        model.config.tie_word_embeddings = True
        model = AutoModelForCausalLM.from_config(model.config)
        model.load_state_dict(state)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    return _with_tokenizer_and_canary(folder)


def make_lora_model(folder: Path, *, noise: float, seed: int) -> Path:
    """The sandbox model with a random adapter, as the trainer exports it: merged, and the adapter beside
    it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)  # peft draws lora_A
    model: Any = AutoModelForCausalLM.from_pretrained(str(sandbox.model_path()), dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += noise * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder)
    return _with_tokenizer_and_canary(folder)


def _with_tokenizer_and_canary(folder: Path) -> Path:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(sandbox.model_path())).save_pretrained(folder)
    (folder / "canary.json").write_text(
        json.dumps(export.canary(folder, canary_examples(), "cpu")), encoding="utf-8"
    )
    return folder


def canary_examples() -> list[dict[str, Any]]:
    """Encoded examples as the trainer passes them to `export.canary`."""
    tokenizer = model_folder.load_tokenizer(str(sandbox.model_path()))
    texts = config.Prompts(preset="sandbox")
    pairs = [("47+385+12", "434", "444"), ("1+2+3", "6", "6"), ("99+1+50", "140", "150")]
    found = (
        encoding.encode(
            chat.Chat(tokenizer), [*prompts.correction_messages({"question": q}, y1, texts), written(y2)], 256
        )
        for q, y1, y2 in pairs
    )
    return [dict(sequence) for sequences in found if not isinstance(sequences, str) for sequence in sequences]


SPOILT = ("half_copied", "other_weights", "other_tokenizer", "no_canary")
"""What may be wrong with a version."""


def spoilt(models: Path, what: str, folder: Path) -> Path:
    """A copy of model b with something wrong; other weights are those of model a."""
    shutil.copytree(models / "b", folder)
    weights = folder / "model.safetensors"
    match what:
        case "half_copied":
            weights.write_bytes(weights.read_bytes()[:-100_000])
        case "other_weights":
            shutil.copy(models / "a" / "model.safetensors", weights)
        case "other_tokenizer":
            tokenizer = json.loads((folder / "tokenizer.json").read_text())
            vocabulary = tokenizer["model"]["vocab"]
            vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        case "no_canary":
            (folder / "canary.json").unlink()
    return folder


def publish(run: store.RunFolder, model: Path | None, *, move_latest: bool = True) -> str:
    """Publish a copy of `model` (None: the base model, which has no canary) as the next version; returns its
    name."""
    number = len(list((run.path / "versions").glob("v*.json")))
    version = f"v{number:04d}"
    place = run.stage(number, "model")
    if model:
        shutil.copytree(model, place)
    manifest = {
        "version": version,
        "iteration": number,
        "model": str(place.relative_to(run.path)) if model else str(sandbox.model_path()),
        "config_fingerprint": "test",
        "metrics": {
            f"evaluation/{split}/{name}": 0.5 for split in ("dev", "test") for name in ("r_y1", "r_y2")
        },
        "created": store.now(),
        "canary": str((place / "canary.json").relative_to(run.path)) if model else None,
    }
    store.write_atomically(run.path / "versions" / f"{version}.json", json.dumps(manifest))
    if move_latest:
        store.write_atomically(run.path / "LATEST", f"{version}\n")
    return version

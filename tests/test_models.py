"""Model folders that cannot work are refused before anything starts."""

import shutil
from pathlib import Path

import pytest

from stasc_ray import models
from stasc_ray.tasks import sandbox


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(sandbox.model_path(), tmp_path / "model"))


def test_the_shipped_model_and_hub_ids_pass(folder: Path) -> None:
    models.check_model(str(folder))
    models.check_model("Qwen/Qwen2.5-1.5B-Instruct")


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("config.json", "expected a config"),
        ("model.safetensors", "expected weights"),
        ("tokenizer.json", "expected a tokenizer"),
        ("chat_template.jinja", "expected a chat template"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_by_name(folder: Path, missing: str, expected: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=expected):
        models.check_model(str(folder))


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        models.check_model(str(tmp_path / "none"))


def test_the_end_of_a_turn_is_the_tokenizers_and_the_generation_configs() -> None:
    tokenizer = models.load_tokenizer(str(sandbox.model_path()))
    assert models.stop_token_ids(str(sandbox.model_path()), tokenizer) == [tokenizer.eos_token_id]

"""Model folders that cannot work are refused before anything starts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stasc_ray.runtime import model_folder
from stasc_ray.tasks import sandbox


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(sandbox.model_path(), tmp_path / "model"))


def test_the_shipped_model_and_hub_ids_pass(folder: Path) -> None:
    model_folder.check_model(str(folder))
    model_folder.check_model("Qwen/Qwen2.5-1.5B-Instruct")


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
        model_folder.check_model(str(folder))


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        model_folder.check_model(str(tmp_path / "none"))


def test_the_end_of_a_turn_is_the_tokenizers_and_the_generation_configs() -> None:
    tokenizer = model_folder.load_tokenizer(str(sandbox.model_path()))
    assert model_folder.stop_token_ids(str(sandbox.model_path()), tokenizer) == [tokenizer.eos_token_id]


def test_a_hub_revision_reaches_the_tokenizer_and_a_runs_own_folders_have_none(tmp_path: Path) -> None:
    """A Hub cache with two revisions of one model, as a download leaves it."""
    repository = tmp_path / "models--org--tiny"
    for commit, name in (("a" * 40, "main"), ("b" * 40, "v2")):
        shutil.copytree(sandbox.model_path(), repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    (repository / "snapshots" / ("b" * 40) / "chat_template.jinja").write_text("second")
    code = """
from stasc_ray import config
from stasc_ray.runtime import model_folder
for revision in (None, "v2"):
    model = config.Model(path="org/tiny", revision=revision)
    found = model_folder.load_tokenizer("org/tiny", revision=model_folder.revision("org/tiny", model))
    print(found.chat_template == "second", model_folder.stop_token_ids("org/tiny", found, revision=revision))
    assert model_folder.revision("runs/x/iteration_01/model", model) is None
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("False [") and second == first.replace("False", "True")

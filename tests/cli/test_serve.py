import subprocess
import sys

import pytest
from harness import served_runs

from stasc_ray import config
from stasc_ray.cli import serve
from stasc_ray.recipes import section_of
from stasc_ray.serving import app
from stasc_ray.serving.keys import add_key


def test_another_address_needs_keys_or_a_word(tmp_path):
    with pytest.raises(ValueError, match="--insecure"):
        serve.check_open("0.0.0.0", None, insecure=False)
    serve.check_open("0.0.0.0", None, insecure=True)
    serve.check_open("127.0.0.1", None, insecure=False)
    add_key(tmp_path / "keys.json", "me")
    serve.check_open("0.0.0.0", tmp_path / "keys.json", insecure=False)


def test_the_command_line_names_a_published_version_or_none(tmp_path):
    run = served_runs.make_run(tmp_path)
    serve.check_version(run, None)
    with pytest.raises(ValueError, match="none yet"):
        serve.check_version(run, "v0000")
    served_runs.publish(run, None)
    with pytest.raises(ValueError, match="expected one of v0000"):
        serve.check_version(run, "v0007")
    serve.check_version(run, "v0000")


def test_a_serve_config_file_needs_keys_or_a_word():
    with pytest.raises(ValueError, match="insecure: true"):
        app.build(app.BuildArguments(run="/runs/demo"))


def test_overrides_reach_the_stored_config():
    stored = config.load_config(None, ["algorithm.recipe=verdict"], section_of)
    changed = config.with_overrides(stored, ["serve.max_queue=3"], section_of)
    assert changed.serve.max_queue == 3 and changed.algorithm == stored.algorithm
    with pytest.raises(ValueError, match="max_queue"):
        config.with_overrides(stored, ["serve.max_quee=3"], section_of)


def test_the_commands_load_nothing_heavy():
    code = "import sys, stasc_ray.cli.main; print([m for m in ('ray', 'torch', 'fastapi', 'httpx') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

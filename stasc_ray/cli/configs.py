"""What a command works with: a TOML file, or the run folder that holds a config already."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stasc_ray.config import Config


def settings_of(
    source: Path, overrides: Sequence[str], run_dir: Path | None = None
) -> tuple["Config", Path | None]:
    """The settings that a TOML file or a run folder holds, with overrides; and the folder to run in, if it is
    given.

    Raises:
        ValueError: as `config.load_config` and `store.read_config`; or a run folder and another --run-dir.
    """
    from stasc_ray import config, store
    from stasc_ray.recipes import section_of

    if not source.is_dir():
        return config.load_config(source, overrides, section_of), run_dir
    if run_dir and run_dir.resolve() != source.resolve():
        raise ValueError(
            f"--run-dir: expected none beside the run folder {source}, found {run_dir}; leave it out, or "
            "make another run of it with `stasc fork`"
        )
    stored = store.read_config(source, section_of)
    return config.with_overrides(stored, overrides, section_of), source

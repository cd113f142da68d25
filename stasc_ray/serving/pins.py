"""The version that an operator chose: a file in the run folder, so that every replica follows it, also one that starts later."""

import contextlib
from pathlib import Path

from stasc_ray import store

LATEST = "latest"
"""Stands for "follow the run" where a version's name is expected."""


def pin_file(run_folder: Path) -> Path:
    """Holds the version that an operator chose; absent: follow LATEST. In the run folder, so every replica sees it."""
    return run_folder / "PINNED"


def read_pin(run_folder: Path) -> str | None:
    """The pinned version's name."""
    with contextlib.suppress(FileNotFoundError):
        return pin_file(run_folder).read_text(encoding="utf-8").strip() or None
    return None


def pin(run_folder: Path, version: str | None) -> None:
    """Pin every replica, also those that start later, to `version`; None: follow LATEST.

    Raises:
        OSError: the run folder cannot be written to.
    """
    if version:
        store.write_atomically(pin_file(run_folder), f"{version}\n")
    else:
        pin_file(run_folder).unlink(missing_ok=True)

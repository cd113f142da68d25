"""`stasc datasets`: the datasets that ship with the package."""

import json
from typing import Annotated, Any

import typer

from stasc_ray import config
from stasc_ray.cli.errors import errors_for_people

WIDTH = 160
"""Of the table in a log file, which has no width."""


def datasets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the datasets that ship: a name for `questions.preset` and `--preset`, and what it stands for."""
    with errors_for_people(debug):
        rows = [_row(name) for name in config.DATASETS]
        if as_json:
            typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
            return
        from rich.console import Console
        from rich.table import Table

        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=WIDTH)
        table = Table(*rows[0], box=None, pad_edge=False)
        table.columns[0].no_wrap = True  # it is what one copies
        for row in rows:
            table.add_row(*row.values())
        console.print(table, markup=False)


def _row(name: str) -> dict[str, str]:
    known = config.dataset(name)
    hub: dict[str, Any] = known.get("hub", {})
    splits: dict[str, str] = known.get("splits", {})
    return {
        "name": name,
        "title": known.get("title", ""),
        "on the Hub": " ".join(filter(None, (hub.get("id"), hub.get("config")))),
        "train, dev, test there": ", ".join(splits.get(split, "-") for split in ("train", "dev", "test"))
        if splits
        else "",
        "prompts": known["suits"].get("prompts.preset", ""),
        "reward": known["suits"].get("reward.name", ""),
        "licence": known.get("licence", ""),
    }

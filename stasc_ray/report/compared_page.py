"""The pages of `stasc compare`: strategies on the same questions, and two runs side by side. One HTML file
each, without scripts or anything from the network.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stasc_ray.evaluation.paired import p_value
from stasc_ray.report import charts
from stasc_ray.report.charts import number
from stasc_ray.report.figures import Table
from stasc_ray.report.page import CONTROL_PICTURES, templates
from stasc_ray.store import write_atomically

FILE = "compare.html"
NONE = "\N{EN DASH}"


def write_page(found: Mapping[str, Any], folder: Path) -> Path:
    """Write FILE into a comparison's folder.

    Args:
        found: what `comparing.contest` gives.
    """
    return _write("compare.html.j2", folder / FILE, found=found, cells=table(found), plot=plot(found))


def write_runs_page(found: Mapping[str, Any], page: Path) -> Path:
    """Write the page of two runs.

    Args:
        found: what `comparing.two_runs` gives.
    """
    return _write("compare_runs.html.j2", page, found=found)


def _write(template: str, page: Path, **contents: Any) -> Path:
    html = templates().get_template(template).render(number=number, p_value=p_value, **contents)
    write_atomically(page, html.translate(CONTROL_PICTURES).encode("utf-8", "replace").decode("utf-8"))
    return page


def table(found: Mapping[str, Any]) -> Table:
    """The cells' figures, numbered as in the plot; intervals in brackets."""
    header = ("", "strategy", "n", "reward", "first answers", "against the first", "only it / only the first")
    header += ("McNemar p", "CL", "CS", "tokens", "calls", "seconds", "failed")
    several = several_versions(found)
    return Table(header, [(str(place), *_row(cell, several)) for place, cell in enumerate(found["cells"], 1)])


def as_lines(found: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    row = "{:<34}{:>4}  {:<22}{:>6}{:>7}{:>9}{:>7}  {}"
    lines = [
        f"{found['questions']} questions, {found['budget_tokens']:.1f} generated tokens each to spend",
        row.format("strategy", "n", "reward", "CL", "CS", "tokens", "calls", "against the first"),
    ]
    for cell in found["cells"]:
        against = cell["against_first"]
        figures = (
            f"{cell['version']} {cell['strategy']}{'*' if cell['needs_reward'] else ''}",
            cell["n"],
            f"{cell['reward']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]",
            *("-" if cell[one] is None else f"{cell[one]:.3f}" for one in ("cl", "cs")),
            *(f"{cell[one]:.1f}" for one in ("tokens", "calls")),
            _told(against) if against else "",
        )
        lines.append(row.format(*figures).rstrip())
    if any(cell["needs_reward"] for cell in found["cells"]):
        lines.append("* knows which answer is right: no endpoint can answer so")
    return "\n".join(lines)


def _told(against: Mapping[str, Any]) -> str:
    interval = "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**against)
    return f"{interval}, p {p_value(against['p'])}"


def several_versions(found: Mapping[str, Any]) -> bool:
    """Whether more than one version was compared."""
    return len({cell["version"] for cell in found["cells"]}) > 1


def name_of(cell: Mapping[str, Any], with_version: bool) -> str:
    """What a cell is called."""
    name = f"{cell['version']} {cell['strategy']}" if with_version else cell["strategy"]
    return f"{name}*" if cell["needs_reward"] else name


def _row(cell: Mapping[str, Any], with_version: bool) -> Sequence[str]:
    many = f"{cell['n']} {cell['grows'][: None if cell['n'] > 1 else -1]}" if cell["grows"] else NONE
    return (
        name_of(cell, with_version),
        many,
        f"{number(cell['reward'])} [{number(cell['low'])}, {number(cell['high'])}]",
        number(cell["first_reward"]),
        *_against(cell["against_first"]),
        number(cell["cl"]),
        number(cell["cs"]),
        number(cell["tokens"], 1),
        number(cell["calls"], 1),
        number(cell["seconds"], 2),
        str(cell["failed"]),
    )


def _against(found: Mapping[str, Any] | None) -> Sequence[str]:
    if found is None:
        return (NONE,) * 3
    return (
        f"{number(found['difference'])} [{number(found['low'])}, {number(found['high'])}]",
        f"{found['gained']} / {found['lost']}",
        p_value(found["p"]),
    )


def plot(found: Mapping[str, Any]) -> Markup:
    """Mean reward over generated tokens per question, a point with its interval for each cell."""
    several = several_versions(found)
    points = [
        charts.Point(name_of(cell, several), cell["tokens"], cell["reward"], cell["low"], cell["high"])
        for cell in found["cells"]
    ]
    return charts.scatter(
        "Reward over generated tokens", "generated tokens a question", points, found["budget_tokens"]
    )

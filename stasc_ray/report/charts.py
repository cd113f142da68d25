"""Small hand-written SVG charts: figures in, inline SVG text out. Pure; reads and writes nothing.

Colours are CSS classes (`y1`, `y2`, ...) of the page around them, so that light and dark mode need no second
drawing. Every mark carries a `<title>` (tooltip); every string is escaped. A value of None is a gap, never a
zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 22, 38
LABEL_GAP = 15  # least distance between two of those names
Values = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """One quantity per iteration: `values[i]` belongs to x position i; `low`/`high` are its interval, where
    known.
    """

    name: str
    css: str
    values: Values
    low: Values = field(default=())
    high: Values = field(default=())


@dataclass(frozen=True)
class Frame:
    """The plotting area: maps slot numbers and y values to SVG units."""

    slots: int
    y_low: float
    y_high: float
    right: int = RIGHT

    @property
    def step(self) -> float:
        """Width of one slot."""
        return (WIDTH - LEFT - self.right) / max(self.slots, 1)

    def x(self, slot: float) -> float:
        """Centre of a slot."""
        return LEFT + (slot + 0.5) * self.step

    def y(self, value: float) -> float:
        """Height of a value; SVG counts downwards."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def number(value: float | None, digits: int = 3) -> str:
    """A figure for people: fixed digits below 1000, grouped above; an en dash for a missing one."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def compact(value: float) -> str:
    """An axis label: 0.25, 40, 1.5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) that cover [low, high]."""
    span = high - low if high > low else max(abs(high), 1.0)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def reward_ticks(groups: Sequence[Sequence[Series]]) -> list[float]:
    """One y axis for several reward charts, so that they can be compared; a little room around the
    intervals.
    """
    known = [
        v for series in groups for one in series for v in (*one.values, *one.low, *one.high) if v is not None
    ]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = max(0.05 - (high - low) / 2, 0.0)  # a flat curve stays flat: at least 0.1 of reward is shown
    return ticks(max(low - room, min(low, 0.0)), min(high + room, max(high, 1.0)))


def interval_chart(
    label: str,
    names: Sequence[str],
    series: Sequence[Series],
    y_ticks: Sequence[float],
    mark: int | None = None,
) -> Markup:
    """Lines with 95% whiskers; `mark` is the slot of the chosen iteration."""
    # the names stand at the ends of the lines
    room = 12 + 8 * max((len(one.name) for one in series), default=0)
    frame = Frame(len(names), y_ticks[0], y_ticks[-1], room)
    body = [_axes(frame, names, y_ticks)]
    if mark is not None:
        width = min(frame.step * 0.8, 44)
        body.insert(
            0,
            _tag(
                "rect",
                "",
                css="chosen",
                x=frame.x(mark) - width / 2,
                y=TOP,
                width=width,
                height=HEIGHT - TOP - BOTTOM,
                rx=3,
            ),
        )
        body.append(_tag("text", "chosen", css="note", x=frame.x(mark), y=TOP - 7, text_anchor="middle"))
    for position, one in enumerate(series):
        # whiskers side by side, not on top of each other
        shift = (position - (len(series) - 1) / 2) * min(7.0, frame.step / 4)
        body.append(_line(frame, names, one, shift))
    body.append(_end_labels(frame, series))
    return _svg(label, body)


def bar_chart(
    label: str, names: Sequence[str], parts: Sequence[Series], y_high: float | None = None, digits: int = 3
) -> Markup:
    """Stacked bars, first part at the bottom; `y_high` fixes the top of the axis."""
    totals = [sum(part.values[slot] or 0.0 for part in parts) for slot in range(len(names))]
    y_ticks = ticks(0.0, y_high or max(totals, default=0.0) or 1.0)
    frame = Frame(len(names), 0.0, y_ticks[-1])
    width = min(frame.step * 0.66, 46)
    body = [_axes(frame, names, y_ticks)]
    for slot, name in enumerate(names):
        base = 0.0
        for part in parts:
            value = part.values[slot]
            if value is None or value <= 0:
                continue
            top, bottom = frame.y(base + value), frame.y(base)
            shown = number(value, digits)
            tip = Markup("<title>{}, iteration {}: {}</title>").format(part.name, name, shown)
            area = {
                "x": frame.x(slot) - width / 2,
                "y": top,
                "width": width,
                "height": max(bottom - top, 0.5),
            }
            body.append(_tag("rect", tip, css=f"bar {part.css}", **area))
            text = shown.removeprefix("0") if digits > 1 and value < 1 else shown
            if bottom - top >= 13 and width >= 6.2 * len(text):
                body.append(
                    _tag(
                        "text",
                        text,
                        css=f"inside {part.css}",
                        x=frame.x(slot),
                        y=(top + bottom) / 2 + 3.7,
                        text_anchor="middle",
                    )
                )
            base += value
    return _svg(label, body)


def steps_chart(
    label: str, found: Mapping[str, Sequence[float]], digits: int = 3, points: int = 240
) -> Markup:
    """A figure over optimizer steps, one block per iteration, each averaged down to its share of `points`."""
    steps = sum(len(values) for values in found.values())
    known = [value for values in found.values() for value in values]
    y_ticks = ticks(0.0, max(known, default=1.0))
    frame = Frame(max(steps, 1), 0.0, y_ticks[-1])
    body = [_axes(frame, [], y_ticks)]
    start, crowded = 0, len(found) > 8
    for position, (name, values) in enumerate(found.items()):
        left, right = LEFT + start * frame.step, LEFT + (start + len(values)) * frame.step
        size = max(1, math.ceil(steps / points))
        chunks = [values[i : i + size] for i in range(0, len(values), size)]
        path = [
            (frame.x(start + i * size + (len(chunk) - 1) / 2), frame.y(sum(chunk) / len(chunk)))
            for i, chunk in enumerate(chunks)
        ]
        first, last = number(values[0], digits), number(values[-1], digits)
        tip = f"iteration {name}: {len(values)} steps, {label[0].lower()}{label[1:]} {first} to {last}"
        area = {"x": left, "y": TOP, "width": max(right - left, 0.5), "height": HEIGHT - TOP - BOTTOM}
        body.insert(0, _tag("rect", "", css=f"block{position % 2}", **area))  # behind the grid
        body.append(_path(path, "steps"))
        body.append(_tag("rect", Markup("<title>{}</title>").format(tip), css="hit", **area))
        if not crowded or position % math.ceil(len(found) / 8) == 0:
            body.append(
                _tag(
                    "text",
                    name,
                    css="tick",
                    x=(left + right) / 2,
                    y=HEIGHT - BOTTOM + 15,
                    text_anchor="middle",
                )
            )
        start += len(values)
    body.append(
        _tag(
            "text", "iteration", css="axis", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle"
        )
    )
    return _svg(label, body)


def _axes(frame: Frame, names: Sequence[str], y_ticks: Sequence[float]) -> Markup:
    parts = []
    for value in y_ticks:
        y, css = frame.y(value), "zero" if value == y_ticks[0] else "grid"
        parts.append(_tag("line", "", css=css, x1=LEFT, x2=WIDTH - frame.right, y1=y, y2=y))
        parts.append(_tag("text", compact(value), css="tick", x=LEFT - 6, y=y + 4, text_anchor="end"))
    every = math.ceil(len(names) / 11)
    for slot, name in enumerate(names):
        if slot % every == 0:
            parts.append(
                _tag("text", name, css="tick", x=frame.x(slot), y=HEIGHT - BOTTOM + 15, text_anchor="middle")
            )
    if names:
        middle = (LEFT + WIDTH - frame.right) / 2
        parts.append(_tag("text", "iteration", css="axis", x=middle, y=HEIGHT - 5, text_anchor="middle"))
    return Markup("").join(parts)


def _line(frame: Frame, names: Sequence[str], one: Series, shift: float) -> Markup:
    parts, run = [], []
    for slot, value in enumerate([*one.values, None]):
        if value is not None:
            run.append((frame.x(slot) + shift, frame.y(value)))
        elif run:  # a gap ends the line
            parts.append(_path(run, f"line {one.css}"))
            run = []
    for slot, value in enumerate(one.values):
        if value is None:
            continue
        x, low, high = frame.x(slot) + shift, _at(one.low, slot), _at(one.high, slot)
        tip, marks = f"{one.name}, iteration {names[slot]}: {number(value)}", []
        if low is not None and high is not None:
            tip += f" (95% interval {number(low)} to {number(high)})"
            marks.append(_path([(x, frame.y(low)), (x, frame.y(high))], f"whisker {one.css}"))
            marks += [
                _path([(x - 3, frame.y(end)), (x + 3, frame.y(end))], f"whisker {one.css}")
                for end in (low, high)
            ]
        if one.css in ("y1", "rollouts"):  # two shapes: the curves differ without colour too
            marks.append(_tag("circle", "", css=f"dot {one.css}", cx=x, cy=frame.y(value), r=4))
        else:
            marks.append(
                _tag(
                    "rect", "", css=f"dot {one.css}", x=x - 3.8, y=frame.y(value) - 3.8, width=7.6, height=7.6
                )
            )
        hit = _tag("rect", "", css="hit", x=x - 6, y=TOP, width=12, height=HEIGHT - TOP - BOTTOM)
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(tip, hit, Markup("").join(marks)))
    return Markup("").join(parts)


def _end_labels(frame: Frame, series: Sequence[Series]) -> Markup:
    ends = []
    for one in series:
        known = [value for value in one.values if value is not None]
        if known:
            ends.append((frame.y(known[-1]), one))
    ends.sort(key=lambda end: end[0])
    parts, lowest = [], -math.inf
    for y, one in ends:
        lowest = max(y, lowest + LABEL_GAP)
        parts.append(_tag("text", one.name, css=f"name {one.css}", x=WIDTH - frame.right + 4, y=lowest + 4))
    return Markup("").join(parts)


def _at(values: Values, slot: int) -> float | None:
    return values[slot] if slot < len(values) else None


def _path(points: Sequence[tuple[float, float]], css: str) -> Markup:
    return _tag("polyline", "", css=css, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))


def _tag(name: str, content: str | Markup, css: str, **attributes: float | str) -> Markup:
    text = Markup("")
    for key, value in {"class": css, **attributes}.items():
        shown = f"{value:.1f}" if isinstance(value, float) else value
        text += Markup(' {}="{}"').format(key.replace("_", "-"), shown)
    return Markup("<{}{}>{}</{}>").format(name, text, content, name)


def _svg(label: str, body: Sequence[Markup]) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, HEIGHT, f"{label} (a chart; the table below it has the same figures)"
    )
    return opening + Markup("").join(body) + Markup("</svg>")


@dataclass(frozen=True)
class Point:
    """A place in `scatter`, with the interval of its height."""

    name: str
    x: float
    y: float
    low: float
    high: float


def scatter(label: str, x_label: str, points: Sequence[Point], mark: float) -> Markup:
    """Points with 95% whiskers, numbered in their order; `mark` is a place on the x axis."""
    known = [value for point in points for value in (point.low, point.high)]
    y_ticks = ticks(min(known), max(max(known), min(known) + 0.1))
    x_ticks = ticks(0.0, max(mark, *(point.x for point in points)), 6)
    frame = Frame(1, y_ticks[0], y_ticks[-1])
    across = (WIDTH - LEFT - RIGHT) / x_ticks[-1]
    body = [_axes(frame, [], y_ticks)]
    for tick in x_ticks:
        at = LEFT + tick * across
        body.append(
            _tag("text", compact(tick), css="tick", x=at, y=HEIGHT - BOTTOM + 16, text_anchor="middle")
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    body.append(_tag("text", x_label, css="axis", x=middle, y=HEIGHT - 5, text_anchor="middle"))
    at = LEFT + mark * across
    body.append(_path([(at, TOP), (at, HEIGHT - BOTTOM)], "zero"))
    for place, point in enumerate(points, start=1):
        x, y = LEFT + point.x * across, frame.y(point.y)
        tip = Markup("<title>{}: {} [{}, {}], {} tokens</title>").format(
            point.name, number(point.y), number(point.low), number(point.high), number(point.x, 1)
        )
        body.append(_path([(x, frame.y(point.low)), (x, frame.y(point.high))], "whisker y1"))
        body.append(_tag("circle", tip, css="dot y1", cx=x, cy=y, r=3.2))
        # to the left and to the right in turn, since strategies that spend the budget crowd beside its line
        side = {"x": x + 5, "text_anchor": "start"} if place % 2 else {"x": x - 5, "text_anchor": "end"}
        body.append(_tag("text", str(place), css="note", y=y - 4, **side))
    return _svg(label, body)

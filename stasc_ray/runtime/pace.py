"""How fast a stage goes and how long it still takes, from what was finished so far. Pure: callers give the
time.
"""

from collections import deque

WINDOW_S = 60.0
LEAST_POINTS = 5
"""Kept however old they are: with steps of a minute a window of a minute holds one."""
LEAST_SPAN_S = 2.0
"""Below this a rate is chance."""
STALL_S = 30.0


class Pace:
    """The rate of some work over the last minute, and the time that the rest takes.

    Only changes are kept. So the clock alone changes no rate, and what passes before the first piece of work
    (an engine's start, a first step that compiles) counts for nothing.
    """

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()  # (time in s, work done)
        self._left: tuple[float, float, float] | None = None  # when it was said, seconds left, least left

    def saw(self, now: float, work: float) -> bool:
        """Take note of the work done so far; returns whether it has changed. Less than before begins anew."""
        points = self._points
        if points and work == points[-1][1]:
            return False
        if points and work < points[-1][1]:
            points.clear()
        points.append((now, work))
        while len(points) > LEAST_POINTS and points[1][0] <= now - WINDOW_S:
            points.popleft()
        return True

    @property
    def rate(self) -> float | None:
        """Work per second; None as long as too little was seen."""
        if len(self._points) < 2:
            return None
        (began, first), (ended, last) = self._points[0], self._points[-1]
        return (last - first) / (ended - began) if ended - began >= LEAST_SPAN_S else None

    def expect(self, now: float, rest: float) -> None:
        """Say after a change how much work is left: `left` counts down from there."""
        if self.rate:
            piece = min(rest, self._points[-1][1] - self._points[-2][1])
            self._left = (now, rest / self.rate, (rest - piece) / self.rate)

    def left(self, now: float) -> float | None:
        """Seconds left. Between changes it only falls, down to what the pieces after the present one take."""
        if self._left is None:
            return None
        said, seconds, least = self._left
        return max(seconds - (now - said), least)

    def still_for(self, now: float) -> float:
        """Seconds without a change, 0 before the first."""
        return now - self._points[-1][0] if self._points else 0.0


def rest_of_tokens(tokens: float, done: int, total: int, in_flight: int) -> float | None:
    """How many tokens the questions that are not done will still be given; None before the first is done.

    Questions in flight are taken as half done: without them, the first ones to finish, which are short and
    few, would stand for all.

    Args:
        tokens: generated so far, those of unfinished questions included.
        done: questions finished, out of `total`.
        in_flight: questions that engines work on at once, at most.
    """
    if not done:
        return None
    begun = done + min(in_flight, total - done) / 2
    return max(0.0, tokens / begun * total - tokens)


def words(seconds: float) -> str:
    """A time as a person reads it."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

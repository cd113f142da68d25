"""The `math` reward: equality of values, in a child process that may hang or crash where it takes computing.

Most answers are decided here: equal texts, exact rational numbers, and lists, intervals and words of them
(tasks/math). A child (`python -m stasc_ray.tasks.math_grader`, JSON lines in and out) compares the rest:
by value to 60 digits where our reader knows the whole expression, by math-verify where it holds a sum, an
integral or the like. math-verify runs SymPy on whatever a model wrote: it can loop for hours, eat memory, or
overflow the C stack, and its own time limit needs SIGALRM in a main thread, which a Ray worker can't give. So
the child is killed at a wall-clock limit and replaced when next needed.
"""
# Why not pebble.ProcessPool (5.2.3)? Tried in Ray tasks and actors: its timeouts, memory limit and restarts
# work there. But:
# - If its parent gets SIGKILL outside Ray while SymPy holds the interpreter lock, its child lives on.
#   Ours ends itself.
# - A spawned child starts as `python -c`, so it imports a `pickle.py` of the working folder. Ours has -P.
# - A spawned child imports the Ray worker's `__main__`, and with it Ray: 106 MiB and 1.9 s, against our
#   57 MiB and 0.9 s.

import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from stasc_ray.tasks.math import expressions
from stasc_ray.tasks.math.reading import Node, read
from stasc_ray.tasks.math.values import equal, reference_expression

START_TIMEOUT_S = 180.0
"""Importing SymPy takes a second, on a busy machine many; it does not count against an answer's time."""
CHILD_MEMORY_BYTES = 4 << 30

_FOR_SYMPY = re.compile(r"\\(?:sum|prod|int|iint|lim|det|gcd|lcm|max|min|Re|Im|arg|operatorname)(?![a-zA-Z])")
"""What math-verify alone reads. Nothing else goes there: it skips what it does not know."""
_EQUATION = re.compile(r"(?<![<>!=\\])=(?!=)")


class MathReward:
    """`math` as a reward function: 1.0 if the answer equals one of the references mathematically, else 0.0.

    Holds one child process, started when first needed. Safe to call from several threads (one answer at a
    time), can be pickled (the copy starts its own child). `close` ends the child; so does the end of this
    process.
    """

    def __init__(self, timeout_s: float):
        """Set the wall-clock limit of one answer, in seconds; start nothing."""
        self.timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["MathReward"], tuple[float]]:
        """Pickle as a fresh instance: a process and a lock do not travel."""
        return MathReward, (self.timeout_s,)

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """Grade one answer.

        Raises:
            TimeoutError: math-verify took longer than `timeout_s`; the child was killed.
            RuntimeError: the child died, or could not start, or math-verify raised.
        """
        verdicts = [decide_quickly(answer, reference) for reference in references]
        if True in verdicts:
            return 1.0
        open_references = [ref for ref, verdict in zip(references, verdicts, strict=True) if verdict is None]
        if not open_references or not answer.strip():
            return 0.0
        with self._lock:
            return self._ask({"answer": answer, "references": open_references, "timeout_s": self.timeout_s})

    def close(self) -> None:
        """End the child process, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, request: dict[str, Any]) -> float:
        if self._child is None:
            self._child = _start()
            self._receive(START_TIMEOUT_S, doing="start")
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # it died between two answers: `_receive` finds its output ended
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
        reply = self._receive(self.timeout_s, doing="grade an answer")
        if "error" in reply:
            raise RuntimeError(f"math-verify: {reply['error']}")
        return float(reply["equal"])

    def _receive(self, timeout_s: float, doing: str) -> dict[str, Any]:
        """Read one line from the child, or kill it."""
        assert self._child is not None and self._child.stdout is not None
        deadline, line = time.monotonic() + timeout_s, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close()
                    raise TimeoutError(f"math grader: took longer than {timeout_s:g} s to {doing}; killed")
                chunk = os.read(self._child.stdout.fileno(), 65536)
                if not chunk:
                    status = self._child.wait()
                    self.close()
                    raise RuntimeError(f"math grader: died with exit status {status} while it had to {doing}")
                line += chunk
        return json.loads(line)


def decide_quickly(answer: str, reference: str) -> bool | None:
    """Compare without computing: True or False where texts and exact numbers settle it, None where they do
    not.
    """
    return equal(answer, reference, _by_reading)


def can_match(reference: str) -> bool:
    """Whether anything is left of a reference once delimiters and space are gone."""
    return bool(reference_expression(reference))


def _by_reading(given: str, wanted: str) -> bool | None:
    """False if one of two expressions cannot be read at all, else None: they must be computed."""
    if any(_FOR_SYMPY.search(text) for text in (given, wanted)):
        return None
    sides = [_EQUATION.split(text) for text in (given, wanted)]
    if len(sides[0]) != len(sides[1]) or len(sides[0]) > 2:
        return False
    readable = all(read(side) for side in (*sides[0], *sides[1]))
    return None if readable else False


def _start() -> subprocess.Popen[bytes]:
    # A Ray worker finds packages by a sys.path of its own making (runtime_env): hand it on. -P: never from
    # the working folder, where a question set may lie next to a `math.py`.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "stasc_ray.tasks.math_grader"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=environment,
    )


def _serve() -> None:
    """The child: answer requests until the input ends."""
    import faulthandler
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES))
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library that prints must not break the protocol
    import math_verify  # noqa: F401  (the slow import: before "ready")

    output.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        # If the parent is gone while SymPy hangs, nobody kills this process: it ends itself. The watchdog is
        # a C thread, which needs neither signals nor the interpreter lock.
        faulthandler.dump_traceback_later(2 * request["timeout_s"] + 1, exit=True)
        output.write(json.dumps(_compare(request["answer"], request["references"])) + "\n")
        faulthandler.cancel_dump_traceback_later()


def _compare(answer: str, references: Sequence[str]) -> dict[str, Any]:
    try:
        return {"equal": any(equal(answer, reference, _by_value) for reference in references)}
    except Exception as error:
        # SymPy's parsers raise nearly anything on odd input; the parent turns this into a counted grader
        # error.
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def _by_value(given: str, wanted: str) -> bool:
    """Compare two expressions or two equations by what they are worth."""
    if _by_reading(given, wanted) is False:
        return False
    try:
        left, right = (_one_side(text) for text in (given, wanted))
        if left is None or right is None:
            return _by_sympy(given, wanted)
        if _EQUATION.search(given):
            return expressions.proportional(left, right)
        # exact values that are too big to write out are SymPy's
        exact = [expressions.exact(node) for node in (left, right)]
    except expressions.TooBig:
        return _by_sympy(given, wanted)
    if expressions.equal_values(left, right):
        return True
    return any(
        text_value is not None and expressions.rounded_alike(text, text_value)
        for text, value, text_value in (
            (given, exact[1], expressions.value_of(right)),
            (wanted, exact[0], expressions.value_of(left)),
        )
        if value is None
    )


def _one_side(text: str) -> Node | None:
    """An expression, or an equation's left side minus its right."""
    sides = [read(side) for side in _EQUATION.split(text)]
    if None in sides:
        return None
    return sides[0] if len(sides) == 1 else ("add", sides[0], ("negative", sides[1]))


def _by_sympy(given: str, wanted: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    left, right = (
        parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
        for text in (given, wanted)
    )
    # float_rounding is of decimal places: at 6, 1/2004! is 0
    return bool(left and right and verify(right, left, float_rounding=40, timeout_seconds=None))


if __name__ == "__main__":
    _serve()

"""The `math` reward: symbolic equality by math-verify, in a child process that may hang or crash.

math-verify runs SymPy on whatever a model wrote: it can loop for hours, eat memory, or overflow the C stack,
and its own time limit needs SIGALRM in a main thread, which a Ray worker can't give. So a child runs it
(`python -m stasc_ray.tasks.math_grader`, JSON lines in and out). It is killed at a wall-clock limit and
replaced when next needed. Most answers never need the child: equal text and plain numbers are decided here.
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
from fractions import Fraction
from typing import Any

START_TIMEOUT_S = 180.0
"""Importing SymPy takes a second, on a busy machine many; it does not count against an answer's time."""
CHILD_MEMORY_BYTES = 4 << 30

_NUMBER = re.compile(r"[-+]?(?:\d+|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_NOISE = re.compile(r"\s+|\\[!,;: ()\[\]]|\\(?:left|right)(?![a-zA-Z])|\$")


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
    r"""Compare without SymPy: True or False where text or plain numbers settle it, None where they do not.

    The answer's last `\boxed{...}`, if it has one, is what is compared.
    """
    given, wanted = _tidy(_last_boxed(answer)), _tidy(reference)
    if not given or not wanted:
        return None if wanted else False
    if given == wanted:
        return True
    left, right = _number(given), _number(wanted)
    return None if left is None or right is None else left == right


def can_match(reference: str) -> bool:
    """Whether anything is left of a reference once delimiters and space are gone."""
    return bool(_tidy(reference))


def _last_boxed(text: str) -> str:
    r"""Content of the last `\boxed{...}` with its braces balanced; the text itself if there is none."""
    for match in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for position in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if not depth:
                return text[match.end() : position]
    return text


def _tidy(text: str) -> str:
    """Drop what has no mathematical meaning: space, dollar signs, delimiters, sizing commands, the final
    period.
    """
    text = text.replace("\\$", "").replace("dfrac", "frac").replace("tfrac", "frac")
    return _NOISE.sub("", text).rstrip(".")


def _number(text: str) -> Fraction | None:
    if len(text) > 100 or not _NUMBER.fullmatch(text):
        return None
    return Fraction(text.replace(",", ""))


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
    from math_verify import parse, verify

    try:
        given = parse(answer, parsing_timeout=None)  # type: ignore[arg-type]
        for reference in references:
            wanted = parse(_delimited(reference), parsing_timeout=None)  # type: ignore[arg-type]
            if verify(wanted, given, timeout_seconds=None):
                return {"equal": True}
    except Exception as error:
        # SymPy's parsers raise nearly anything on odd input; the parent turns this into a counted grader
        # error.
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"equal": False}


def _delimited(reference: str) -> str:
    """math-verify reads LaTeX only between delimiters, and references come bare."""
    return reference if "$" in reference or "\\boxed" in reference else f"${reference}$"


if __name__ == "__main__":
    _serve()

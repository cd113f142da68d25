"""Why an engine did not start, or died: what its processes have written to stdout and stderr.

vLLM raises "Engine core initialization failed. See root cause above". In a Ray worker "above" is a log file
on the engine's node, which the person who started the run does not see.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

TAIL_BYTES = 200_000
"""Of each file; the last traceback is far shorter."""
_ELSEWHERE = "root cause"
"""What vLLM's errors say that only point at an earlier one."""
_PREFIX = re.compile(r"^\([^)]*pid=\d+\) (?:[A-Z]+ [\d-]+ [\d:]+ \[[^]]*\] ?)?")
_ERROR = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)(?:: |$)")
_FRAME = re.compile(r'^\s*File "(?:.*/)?([^"/]+)", line (\d+),? in (\S+)')
_FATAL = re.compile(r"^Fatal Python error: (.+)")
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Add the cause to an error of vLLM that only points at its processes' output; it is the last line.

    Nothing is added if the output goes to a terminal or a pipe: there it stands above.

    Raises:
        RuntimeError: vLLM's message, the files with all of the output, and the cause.
    """
    before = {file: file.stat().st_size for file in _files()}
    try:
        yield
    except RuntimeError as error:
        if _ELSEWHERE not in str(error) or not before:
            raise
        text = "\n".join(_written(file, start) for file, start in before.items())
        names = " and ".join(os.path.realpath(file) for file in before)
        raise RuntimeError(f"{error}\nAll of its output: {names}\n{cause(text)}") from error


def cause(output: str) -> str:
    """The error that stopped vLLM's processes, in one line; if they wrote none, their last words."""
    lines = [_PREFIX.sub("", _COLOURS.sub("", line)).rstrip() for line in output.splitlines()]
    lines = [line for line in lines if line]
    for i, line in enumerate(lines):
        if fatal := _FATAL.match(line):  # a signal; Python's frames follow, the innermost first
            frame = next(filter(None, map(_FRAME.match, lines[i:])), None)
            return f"{fatal[1]} in {frame[3]} ({frame[1]}:{frame[2]})" if frame else fatal[1]
    errors = [i for i, line in enumerate(lines) if _ERROR.match(line) and _ELSEWHERE not in line]
    if not errors:
        return "It wrote no error; killed for lack of memory? Its last line: " + (
            lines[-1] if lines else "none"
        )
    found = lines[errors[-1]]
    # an assert says nothing by itself
    return found if ": " in found else f"{found} {_place(lines[: errors[-1]])}".rstrip()


def last_words(pid: int) -> str | None:
    """Why a worker of this node's Ray died, by its log, and the log's name; None if there is none.

    Call it in a worker: Ray puts the logs of all of a node's workers into one folder.
    """
    folder = Path(os.path.realpath("/proc/self/fd/2")).parent
    logs = sorted(folder.glob(f"worker-*-{pid}.out")) + sorted(folder.glob(f"worker-*-{pid}.err"))
    return f"{cause(''.join(_written(log, 0) for log in logs))} ({logs[-1]})" if logs else None


def _place(traceback: list[str]) -> str:
    """The innermost frame and its code."""
    for i in range(len(traceback) - 1, -1, -1):
        if frame := _FRAME.match(traceback[i]):
            code = traceback[i + 1].strip() if i + 1 < len(traceback) else ""
            return f"in {frame[3]} ({frame[1]}:{frame[2]}): {code}"
    return ""


def _files() -> list[Path]:
    """Those of stderr and stdout that are files; one if both are the same. vLLM logs to stdout."""
    found: dict[tuple[int, int], Path] = {}
    for descriptor in (2, 1):
        with contextlib.suppress(OSError):  # closed
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                found.setdefault((status.st_dev, status.st_ino), Path(f"/proc/self/fd/{descriptor}"))
    return list(found.values())


def _written(file: Path, start: int) -> str:
    with file.open("rb") as output:
        size = output.seek(0, os.SEEK_END)
        output.seek(max(start if start <= size else 0, size - TAIL_BYTES))  # smaller: Ray began a new file
        return output.read().decode("utf-8", "replace")

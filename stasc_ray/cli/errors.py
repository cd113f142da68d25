"""How an error reaches a person: one message, an exit status, and where the logs are; the traceback only when
asked for.
"""

import contextlib
import os
import re
import signal
import threading
import traceback
from collections.abc import Iterator

import typer

WRITABLE = "expected a folder that can be written to; choose another storage=... or --run-dir"
ADVICE = {
    "No space left on device": "the disk is full: free some space, and the same command continues",
    "Read-only file system": WRITABLE,
    "Permission denied": WRITABLE,
}
"""What to do about what the operating system says."""
_CAUSED = "The above exception was the direct cause of the following exception"

EXIT_ERROR, EXIT_NOTHING_KEPT = 1, 3
GOES_ON = "what was committed is kept, and the same command goes on from there"
END_S = 25.0
"""For a stopped run to end, since Kubernetes and Slurm kill it after 30 s. Ray waits for a minute where the
signal ended its own processes too, and then ends the run without a word."""


@contextlib.contextmanager
def errors_for_people(debug: bool, end_s: float | None = None, stopped: str = "") -> Iterator[None]:
    """Turn an error into one message and an exit status; a stopped command says by which signal.

    Args:
        end_s: after a signal the process ends itself if it has not ended by then.
        stopped: what becomes of a command that a signal stops.
    """
    stop = _Stop(end_s, stopped)
    with stop.listening():
        try:
            yield
        except KeyboardInterrupt:
            stop.say()
            raise typer.Exit(stop.status) from None
        except Exception as error:  # the one place where every error ends: a message for a person
            if stop.number:  # it took workers too, and their loss was seen first
                stop.say()
                raise typer.Exit(stop.status) from None
            raise typer.Exit(_tell(error, debug)) from None


def _tell(error: Exception, debug: bool) -> int:
    """Show the error; returns the exit status."""
    if debug:
        traceback.print_exc()
    else:
        typer.echo(f"error: {message(error)}", err=True)
        for note in getattr(error, "__notes__", []):
            typer.echo(note, err=True)
    return EXIT_NOTHING_KEPT if type(error).__name__ == "NothingKeptError" else EXIT_ERROR


def message(error: BaseException) -> str:
    """What went wrong, without the layers that Ray puts around an error of a worker, and what to do about the
    usual ones.
    """
    text = _innermost(error)
    advice = [advice for sign, advice in ADVICE.items() if sign in text]
    return "; ".join([text, *advice])


def _innermost(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error.__cause__
    if type(error).__module__.startswith("ray."):
        if _CAUSED in str(error):  # the cause lost its type on the way between processes; its text is left
            return _raised(str(error).split(_CAUSED)[0])
        if isinstance(cause, BaseException):
            return _innermost(cause)
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    speaks = isinstance(error, (ValueError, RuntimeError, OSError, ImportError)) and str(error)
    return str(error) if speaks else f"{type(error).__name__}: {error}"


def _raised(trace: str) -> str:
    """The message at the end of a traceback's text."""
    found = list(re.finditer(r"^([A-Za-z_][\w.]*): ", trace, flags=re.MULTILINE))
    return trace[found[-1].end() :].strip() if found else trace.strip().splitlines()[-1]


class _Stop:
    """The signal that stopped a command, and the one line that says so."""

    def __init__(self, end_s: float | None, stopped: str) -> None:
        self.number: int | None = None
        self._stopped = stopped
        self._end_s, self._timer, self._said = end_s, None, False
        self._terminal = os.dup(2)  # a run sends fd 2 to its log

    @property
    def status(self) -> int:
        """Exit status, as a shell shows a signal's."""
        return 128 + (self.number or signal.SIGINT)

    def say(self) -> None:
        """Say it, unless it was said."""
        if not self._said:
            self._said = True
            name = signal.Signals(self.number or signal.SIGINT).name
            follows = f"; {self._stopped}" if self._stopped else ""
            os.write(self._terminal, f"stopped by {name}{follows}\n".encode())

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT interrupt the block."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as a shell's background ignores SIGINT
                signal.signal(number, self._interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._timer:
                self._timer.cancel()
            os.close(self._terminal)

    def _interrupt(self, number: int, _: object) -> None:
        if self.number is not None and self._end_s is not None:
            return  # it ends already, in bounded time: a second signal would break off what ends it in order
        if self.number is None:
            self.number = number
            if self._end_s is not None:
                self._begin_to_end(self._end_s)
        raise KeyboardInterrupt

    def _begin_to_end(self, end_s: float) -> None:
        self._timer = threading.Timer(end_s, self._end)
        self._timer.daemon = True
        self._timer.start()
        # At once, since a signal that ended Ray's processes too makes Ray end this one without a word. Not on
        # a terminal: there a bar is taken away first, and Ctrl-C leaves Ray's processes alone.
        if not os.isatty(self._terminal):
            self.say()

    def _end(self) -> None:
        self.say()
        os._exit(self.status)

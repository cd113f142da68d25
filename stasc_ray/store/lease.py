"""The lease: one driver at a time writes into a run folder."""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from stasc_ray.store.files import read_json, write_atomically

LEASE_TIMEOUT_S = 30.0
LEASE_RENEWAL_S = 5.0
TAKEN_OVER_BY = "taken_over_by"


class Lease:
    """The right to write into a run folder: the highest-numbered file in `folder` is its holder's.

    The number is a fencing token: who was paused and finds a higher one must stop; workers, which may go on
    while their driver is paused, carry it too. Creation is exclusive (O_EXCL), so two drivers that start at
    once cannot both win.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number

    @property
    def file(self) -> Path:
        """This attempt's own file."""
        return self.folder / f"{self.number:04d}"

    @property
    def lost(self) -> bool:
        """Whether another driver has taken over."""
        return self._successor() is not None

    def check(self) -> None:
        """Raises RuntimeError when another driver has taken over."""
        if (successor := self._successor()) is not None:
            raise RuntimeError(
                f"run folder {self.folder.parent}: attempt {successor} has taken this run "
                f"over from attempt "
                f"{self.number}; this one stops without writing"
            )

    def _successor(self) -> int | None:
        """The attempt that took over.

        NFS may show a listing that is a minute old, but an existing file is asked for anew when it is opened:
        hence the mark that a successor leaves in this attempt's file.
        """
        if (newest := _newest_attempt(self.folder)) != self.number:
            return newest
        try:
            return read_json(self.file).get(TAKEN_OVER_BY)
        except (FileNotFoundError, ValueError):  # created but not yet filled in
            return None


@contextlib.contextmanager
def hold_lease(folder: Path) -> Iterator[Lease]:
    """Take the lease, renew it from a thread, give it back.

    Raises:
        RuntimeError: it is held by a driver that is alive (renewed within LEASE_TIMEOUT_S, and no dead
            process of this host).
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = _newest_attempt(folder)
    if number and (holder := _living_holder(folder / f"{number:04d}")):
        raise RuntimeError(
            f"run folder {folder.parent} is in use by {holder}; wait for it, stop it, or choose another "
            f"name=... "
            f"(a dead driver's lease ends {LEASE_TIMEOUT_S:.0f} s after its last sign of life)"
        )
    lease = Lease(folder, number + 1)
    try:
        with lease.file.open("x", encoding="utf-8") as file:
            json.dump({"host": os.uname().nodename, "boot": _boot_id(), "pid": os.getpid()}, file)
    except FileExistsError:
        raise RuntimeError(
            f"run folder {folder.parent}: another driver started at the same moment; it goes on"
        ) from None
    if number:
        write_atomically(folder / f"{number:04d}", json.dumps({TAKEN_OVER_BY: lease.number}))
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease.file, stop), name="lease", daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        stop.set()
        renewal.join()
        if not lease.lost:  # the mark of who took over stays
            write_atomically(lease.file, json.dumps({"released": time.time()}))


def newest_lease(folder: Path) -> Lease:
    """The lease of whoever may write now, to see whether it is lost."""
    return Lease(folder, _newest_attempt(folder))


def _renew(file: Path, stop: threading.Event) -> None:
    while not stop.wait(LEASE_RENEWAL_S):
        with contextlib.suppress(OSError):  # a slow or full storage is the writers' to report
            os.utime(file)


def _newest_attempt(folder: Path) -> int:
    return max((int(file.name) for file in folder.iterdir() if file.name.isdigit()), default=0)


def _living_holder(file: Path) -> str | None:
    """Who holds a lease, in words; None when released, dead on this host, or silent for LEASE_TIMEOUT_S."""
    try:
        holder = read_json(file)
    except (ValueError, OSError):  # created but not yet filled in: alive unless old
        holder = {}
    if "released" in holder:
        return None
    if holder.get("boot") == _boot_id() and not Path(f"/proc/{holder['pid']}").exists():
        return None
    probe = file.with_name(f".probe-{uuid.uuid4().hex}")
    probe.touch()  # its time and the lease's come from the same clock, the storage's
    silent_s = probe.stat().st_mtime - file.stat().st_mtime
    probe.unlink()
    if silent_s > LEASE_TIMEOUT_S:
        return None
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return f"{who} (last sign of life {max(silent_s, 0):.0f} s ago)"


def _boot_id() -> str:
    """Tells machines, and their restarts, apart; pids only mean something within one. Containers: with their
    pid namespace.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()}/{namespace.readlink()}" if boot.exists() else os.uname().nodename

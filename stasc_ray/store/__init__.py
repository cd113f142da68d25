"""The run folder: what rests on disk, who may write it, and how it is read."""

from stasc_ray.store.files import write_atomically
from stasc_ray.store.lease import LEASE_TIMEOUT_S, Lease, hold_lease
from stasc_ray.store.run_folder import (
    COMMIT_MARK,
    RunFolder,
    iteration_name,
    now,
    open_run,
    read_config,
)

__all__ = [
    "COMMIT_MARK",
    "LEASE_TIMEOUT_S",
    "Lease",
    "RunFolder",
    "hold_lease",
    "iteration_name",
    "now",
    "open_run",
    "read_config",
    "write_atomically",
]

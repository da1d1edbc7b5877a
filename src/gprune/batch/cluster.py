"""The Ray that a job runs on: a cluster, or processes of this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayError

_ACCEPTED = (
    "accepted are HOST:PORT, as `ray start --head` prints it, and auto, on a machine of the cluster; left out, the job "
    "runs on this machine alone"
)
_TIMEOUT = 10.0
"""Seconds to reach the first machine of a cluster."""


def check_address(address: str | None) -> None:
    """Whether something answers where a cluster is to be; Ray itself would try for some eight minutes.

    Args:
        address: HOST:PORT, or "auto" for what Ray finds; None is this machine, where Ray is started.

    Raises:
        ValueError: nothing does, or this is no address.
    """
    if address is None:
        return
    found = address
    try:
        # What `ray.init` does to an address: "auto" is also what a cluster that is gone has left in a file.
        found = canonicalize_bootstrap_address(address) or address
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), port), _TIMEOUT).close()
    except (OSError, ValueError) as error:
        where = address if found == address else f"{address}, which is {found}"
        raise ValueError(f"there is no Ray cluster at {where} ({error}); {_ACCEPTED}") from error


@contextmanager
def ray_running(address: str | None, cpus: int) -> Iterator[None]:
    """The Ray that this process is connected to, or else one for the time of the block.

    Args:
        address: see `check_address`.
        cpus: that a Ray on this machine has at least.

    Raises:
        ValueError: the cluster lets nobody in without its token, or is of another version.
    """
    if ray.is_initialized():
        yield
        return
    # Only so does Ray send nothing to its makers, and leave to its logs what is of no use here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None:
        cpus = max(os.cpu_count() or 1, cpus)
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    else:
        _connect(address)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    # Attempts to connect, of up to 40 seconds each; of themselves they are 20, without a token as well.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, RayError) as error:
        # Ray quotes a whole trace, whose last line begins with the reason and goes on with much advice.
        reason = str(error.__cause__ or error).strip().splitlines()[-1].partition(". ")[0].rstrip(".")
        raise ValueError(
            f"the Ray cluster at {address} cannot be used ({reason}); if it has a token, set RAY_AUTH_MODE=token and "
            f"have the token in ~/.ray/auth_token or RAY_AUTH_TOKEN; its Ray and Python must be of the version of this "
            f"machine's ({ray.__version__}), which must belong to it"
        ) from error

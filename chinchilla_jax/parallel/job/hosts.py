"""Which processes belong together, and which of them is this? Read from flags and environment; no network, no JAX."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Mapping

from chinchilla_jax.base.config_values import ConfigError

PEER_SECONDS = 100
JOIN_SECONDS = 300
_VARIABLES = {"coordinator": "JAX_COORDINATOR_ADDRESS", "processes": "JAX_NUM_PROCESSES", "process": "JAX_PROCESS_ID"}
_GOOGLE = "0x1ae0"  # PCI vendor


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to find the other processes."""

    coordinator: str = ""  # HOST:PORT where process 0 listens; empty to have JAX find out by `detection`
    processes: int | None = None  # in all
    process: int | None = None  # which of them this is
    peer_timeout: int = PEER_SECONDS  # without a sign of life a process is given up, and with it the job
    join_timeout: int = JOIN_SECONDS  # to wait for all processes at the start
    detection: str = ""  # name of JAX's cluster detection (`gketpu`, `gcetpu`, `k8s`), or empty


def host_settings(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    peer_timeout: int = PEER_SECONDS,
    join_timeout: int = JOIN_SECONDS,
    environment: Mapping[str, str] = os.environ,
) -> Settings | None:
    """Settings from flags, from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or from the
    variables of a Cloud TPU slice or a Kubernetes job, in this order. None for a process on its own.

    A `ConfigError` names flag and variable of a setting that is missing or impossible.
    """
    flags = {"coordinator": coordinator, "processes": processes, "process": process}
    values = {n: environment.get(_VARIABLES[n], "") if flag is None else str(flag) for n, flag in flags.items()}
    if values["processes"] == "1":
        return None
    missing = [name for name, value in values.items() if not value]
    if len(missing) == len(values):
        cluster = _detect(environment)
        return Settings(peer_timeout=peer_timeout, join_timeout=join_timeout, detection=cluster) if cluster else None
    if missing:
        present = next(name for name in values if name not in missing)
        raise ConfigError(
            flag_name(missing[0]),
            f"is missing; with {flag_name(present)} all three of "
            "--coordinator=HOST:PORT, --processes=N and --process=I are needed",
        )
    counts = {}
    for name in ("processes", "process"):
        try:
            counts[name] = int(values[name])
        except ValueError:
            raise ConfigError(flag_name(name), f"expected a whole number, got {values[name]!r}") from None
    number, count, address = counts["process"], counts["processes"], values["coordinator"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(flag_name("coordinator"), f"expected HOST:PORT, got {address!r}")
    if count < 1:
        raise ConfigError(flag_name("processes"), f"must be positive, got {count}")
    if not 0 <= number < count:
        raise ConfigError(flag_name("process"), f"must lie in 0 .. {count - 1}, got {number}")
    return Settings(address, count, number, peer_timeout, join_timeout)


def flag_name(setting: str) -> str:
    """A setting as messages name it: its flag and its variable."""
    return f"--{setting} ({_VARIABLES[setting]})"


def _detect(environment: Mapping[str, str]) -> str:
    """The cluster detection of JAX that fits the environment, or empty. Nothing is asked of a network."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if not platforms or "tpu" in platforms:
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
        slices = environment.get("MEGASCALE_NUM_SLICES") or "1"
        if len(hosts.split(",")) > 1 or (hosts and slices != "1"):
            return "gketpu"
        if not hosts and "TPU_SKIP_MDS_QUERY" not in environment and is_cloud_tpu():
            return "gcetpu"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        if importlib.util.find_spec("kubernetes") is None:
            raise ConfigError(
                "JAX_COORDINATOR_ADDRESS",
                "this is a pod of an indexed Kubernetes job, and the package kubernetes, which would find the other "
                f"pods, is not installed: set {', '.join(_VARIABLES.values())} in the job's template, or "
                "JAX_NUM_PROCESSES=1 for pods that train each on its own",
            )
        return "k8s"
    return ""


def is_cloud_tpu() -> bool:
    """Whether this machine has TPU chips, by the PCI bus; without importing JAX, before there is a child."""
    from chinchilla_jax.base.chips import CHIPS  # a command that trains nothing starts without the table

    chips = {chip.slices.pci for chip in CHIPS.values() if chip.slices}
    return any(
        path.read_text().strip() == _GOOGLE and path.with_name("device").read_text().strip() in chips
        for path in pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    )

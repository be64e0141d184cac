"""Where a figure was measured: the line and the JSON block that every result carries."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import recserve
from recserve.errors import ConfigError


def environment(packages: tuple[str, ...]) -> dict[str, str | int]:
    """Returns the machine, the interpreter and the versions of ``packages`` (those that are installed)."""
    found: dict[str, str | int] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "recserve": recserve.__version__,
    }
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_compiled() -> None:
    """Raises ConfigError where Numba is switched off: what would be timed is Python."""
    from numba import config

    if config.DISABLE_JIT:
        raise ConfigError("NUMBA_DISABLE_JIT", found="set", expected="not set, to time the kernels")


def machine_line(found: dict[str, str | int]) -> str:
    """Returns the environment as one line."""
    return "  ".join(f"{name} {value}" for name, value in found.items())


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()

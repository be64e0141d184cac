"""Where a figure was measured: the line and the JSON block that every result carries."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import recserve
from recserve.errors import ConfigError

CPU_FOLDER = Path("/sys/devices/system/cpu/cpu0")
N_SPINS = 60
SPIN_LOOPS = 20_000


def describe(packages: tuple[str, ...]) -> dict[str, str | int]:
    """Returns :func:`environment` and what else a figure may depend on.

    caches, instruction set, frequency governor, usable cores, threads that OpenMP was told, git revision ("+"
    where files differ from it), and noise: how much longer than the least the same Python loop took, at the
    90th percentile, just now.
    """
    return environment(packages) | {
        "usable_cores": len(os.sched_getaffinity(0)),
        "caches": _caches(),
        "isa": _isa(),
        "governor": _read(CPU_FOLDER / "cpufreq" / "scaling_governor") or "not told",
        "omp_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "revision": _revision(),
        "noise": f"{noise():.0%}",
    }


def noise() -> float:
    """Returns by what share of the shortest run the 90th percentile of equal runs is longer."""
    times = []
    for _ in range(N_SPINS):
        start = time.perf_counter()
        sum(range(SPIN_LOOPS))
        times.append(time.perf_counter() - start)
    return statistics.quantiles(times, n=10)[-1] / min(times) - 1


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


def _caches() -> str:
    found = []
    for index in sorted((CPU_FOLDER / "cache").glob("index*")):
        if (kind := _read(index / "type")) != "Instruction":
            found.append(f"L{_read(index / 'level')}{'d' * (kind == 'Data')} {_read(index / 'size')}")
    return " ".join(found) or "not told"


def _isa() -> str:
    from recserve.kernels.isa import PORTABLE, choose

    best = choose(None)
    return best.name if best else PORTABLE


def _revision() -> str:
    folder = Path(__file__).resolve().parent
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()

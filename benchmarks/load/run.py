"""One run of ``bench load``: the target asked at one load, at several, or at the highest that holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks.environment import describe
from recserve.benchmarks.load.embedded import run_embedded
from recserve.benchmarks.load.messages import Workload, draw
from recserve.benchmarks.load.options import (
    DEFAULT_PERCENTILES,
    EMBED,
    Asked,
    Client,
    Pace,
    Slo,
    Target,
)
from recserve.benchmarks.load.process import Samples, run_processes
from recserve.benchmarks.load.search import highest_rate
from recserve.benchmarks.load.summary import summarise
from recserve.engine.bundle import open_bundle
from recserve.errors import InvalidRequest

SCHEMA = 1
PLAIN, ONE_PROCESS = Asked(), Client()
PACKAGES = ("numpy", "grpcio", "protobuf", "pygrpc-native", "onnxruntime-gpu", "onnxruntime", "hpack")


@dataclass(frozen=True, slots=True)
class Ids:
    """Who and what can be asked for."""

    users: Sequence[str]
    items: Sequence[str] = ()


class Load:
    """A target and everything about the requests except how many."""

    def __init__(
        self,
        target: Target,
        ids: Ids,
        asked: Asked = PLAIN,
        client: Client = ONE_PROCESS,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        slos: Sequence[Slo] = (),
        seed: int = 7,
        recorded: Workload | None = None,
    ) -> None:
        """``recorded``: what is asked, and when, instead of what ``asked`` draws from ``ids``."""
        self.target = target
        self._asked = asked
        self._client = client
        self._percentiles = percentiles
        self._slos = slos
        self._workload = recorded or draw(asked, ids.users, ids.items, seed)

    def measure(self, pace: Pace) -> dict[str, Any]:
        """Asks at one pace and returns its figures (summary.py)."""
        samples = self.sample(pace)
        embedded = self.target.scheme == EMBED
        point = summarise(samples, pace, self._percentiles, self._slos, embedded=embedded)
        return point | {"arrivals": str(pace.arrivals) if pace.rate else None}

    def sample(self, pace: Pace) -> Samples:
        """Asks at one pace, with a bar on stderr."""
        seconds = pace.warm_up + (pace.duration or pace.requests / (pace.rate or 1))
        name = f"{pace.rate:,.0f} req/s" if pace.rate else f"{pace.concurrency} in flight"
        with console.progress(name, total=max(1, round(seconds))) as update:
            on_tick = _whole_seconds(update)
            if self.target.scheme == EMBED:
                path = Path(self.target.path)
                return run_embedded(path, self._asked, self._workload, pace, self._client, on_tick)
            return run_processes(self.target, self._asked, self._workload, pace, self._client, on_tick)


def run_once(load: Load, pace: Pace) -> dict[str, Any]:
    """Measures one load."""
    return result_of(load, pace, [load.measure(pace)])


def run_sweep(load: Load, pace: Pace, rates: Sequence[float]) -> dict[str, Any]:
    """Measures an open loop at each of ``rates``."""
    return result_of(load, pace, [load.measure(replace(pace, rate=rate)) for rate in rates])


def run_find_max(load: Load, pace: Pace, slos: Sequence[Slo], precision: float) -> dict[str, Any]:
    """Looks for the highest rate that keeps all ``slos``, from ``pace.rate`` on."""
    if not slos:
        raise InvalidRequest(
            "--find-max", found="without --slo", expected="a promise, such as --slo p99:20ms"
        )
    points: list[dict[str, Any]] = []

    def holds(rate: float) -> bool:
        points.append(load.measure(replace(pace, rate=rate)))
        return all(points[-1]["slos"].values()) and not points[-1]["errors"]

    rate, broke_at = highest_rate(holds, pace.rate, precision)
    result = result_of(load, pace, sorted(points, key=lambda point: float(point["rate"])))
    slo_names = [str(slo) for slo in slos]
    result["found"] = {"rate": rate, "broke_at": broke_at, "lowest": pace.rate, "slos": slo_names}
    return result


def result_of(load: Load, pace: Pace, points: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole result, ready for JSON."""
    return {
        "schema": SCHEMA,
        "bench": "load",
        "environment": describe(PACKAGES),
        "target": str(load.target),
        "seed": pace.seed,
        "points": points,
    }


def read_ids(target: Target, bundle: Path | None, n_users: int) -> Ids:
    """Returns the ids of a bundle (the target's own where it is one), else of users "1" to "N"."""
    if target.scheme == EMBED:
        bundle = Path(target.path)
    if bundle is not None:
        opened = open_bundle(bundle)
        vocabulary = opened.catalogue.vocabulary
        items = vocabulary.ids(range(opened.manifest.n_items))
        return Ids(list(opened.histories.vocabulary) or [""], items)
    if n_users < 1:
        raise InvalidRequest("--users", found=n_users, expected="1 or more, or --bundle")
    return Ids([str(i) for i in range(1, n_users + 1)])


def _whole_seconds(update: Callable[[int], None]) -> Callable[[float], None]:
    shown = 0

    def on_tick(seconds: float) -> None:
        nonlocal shown
        update(max(0, int(seconds)) - shown)
        shown = max(0, int(seconds))

    return on_tick

"""Samples → the figures of one load: latency, errors, stages, and what makes the figures doubtful."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.rpc import code_pb2
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from recserve.benchmarks.load.connection import OK
from recserve.benchmarks.load.options import Pace, Slo
from recserve.benchmarks.load.process import Samples
from recserve.benchmarks.statistics import NOISY, intervals, percentiles, spread

N_CDF = 200
HDR_DIGITS = 3
HDR_MAX_US = 3_600_000_000
STAGE_PERCENTILES = (50.0, 99.0)
QUEUE = "queue"
BUSY = 0.9
LATE_MS = 1.0
LATE_SHARE = 0.2
BEHIND = 0.95


def summarise(
    samples: Samples, pace: Pace, wanted: Sequence[float], slos: Sequence[Slo] = (), *, embedded: bool = False
) -> dict[str, Any]:
    """Returns the figures of the measured part; times in milliseconds.

    ``latency_ms`` is from the due time to the answer, of good answers; ``service_ms`` from sending.
    ``answered_per_second`` counts good answers that came within the measured part.
    """
    warm = samples.due < pace.warm_up
    good = ~warm & (samples.code == OK)
    latency = 1e3 * (samples.done - samples.due)
    end = _end(samples, pace)
    seconds = max(end - pace.warm_up, 1e-9)
    point: dict[str, Any] = {
        "loop": "open" if pace.rate else "closed",
        "rate": pace.rate or None,
        "concurrency": pace.concurrency or None,
        "requests": int((~warm).sum()),
        "seconds": seconds,
        "warm_up": _warm_up(samples, latency, warm, pace),
        "asked_per_second": float((~warm).sum() / seconds),
        "answered_per_second": float((good & (samples.done <= end)).sum() / seconds),
        "errors": _errors(samples.code[~warm]),
        "latency_ms": _figures(latency[good], wanted),
        "interval_ms": _intervals(latency[good], samples.due[good], wanted),
        "service_ms": _figures(1e3 * (samples.done - samples.sent)[good], wanted),
        "kinds": _by_kind(samples, latency, ~warm, wanted),
        "stages_ms": stage_times(samples, good),
        "spread": spread(latency[good], samples.due[good]) if good.any() else None,
        "cdf": _cdf(latency[good]),
        "histogram": _histogram(latency[good]),
        "client": {
            "busy": samples.busy,
            "late_p99_ms": _late(samples, ~warm),
            "reconnects": samples.reconnects,
            "unreadable": samples.unreadable,
        },
    }
    if slos:
        # A request without an answer took for ever.
        everything = np.where(samples.code == OK, latency, math.inf)[~warm]
        point["slos"] = {
            str(slo): bool(percentiles(everything, [slo.percentile])[0] <= slo.limit_ms) for slo in slos
        }
        within = good & (latency <= min(slo.limit_ms for slo in slos)) & (samples.done <= end)
        point["goodput_per_second"] = float(within.sum() / seconds)
    point["warnings"] = warnings(point, embedded=embedded)
    return point


def _by_kind(
    samples: Samples, latency: NDArray[np.float64], counted: NDArray[np.bool_], wanted: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Returns the figures of each kind of request, where there are several."""
    kinds = np.unique(samples.kind).tolist()
    if len(kinds) < 2:
        return {}
    found = {}
    for kind in kinds:
        own = counted & (samples.kind == kind)
        found[kind] = {
            "requests": int(own.sum()),
            "errors": _errors(samples.code[own]),
            "latency_ms": _figures(latency[own & (samples.code == OK)], wanted),
        }
    return found


def warnings(point: dict[str, Any], *, embedded: bool) -> list[str]:
    """Returns what makes the figures of a point doubtful, a sentence each."""
    client, found = point["client"], []
    if not embedded:
        if client["busy"] > BUSY:
            found.append(
                f"The client is the bottleneck: a process of it was busy {client['busy']:.0%} of the time. "
                "Give more --processes, or measure from another machine."
            )
        late, slow = client["late_p99_ms"], point["latency_ms"]["max"] or 0.0
        slow = point["latency_ms"].get("p99") or slow
        if point["loop"] == "open" and late > max(LATE_MS, LATE_SHARE * slow):
            found.append(
                f"The schedule is the bottleneck: the client noticed 1 % of the due times {late:.1f} ms late "
                "or more, which is part of the latencies."
            )
    if client["unreadable"]:
        found.append(
            f"{client['unreadable']:,} of the sampled replies are no slates: the target is no recserve."
        )
    answered, asked = point["answered_per_second"], point["asked_per_second"]
    if point["loop"] == "open" and answered < BEHIND * asked:
        found.append(
            f"The target is overloaded: {answered:,.0f} of {asked:,.0f} requests per second were answered; "
            "latencies grow with the length of the run."
        )
    if point["spread"] is not None and point["spread"] > NOISY:
        found.append(
            f"Noisy: half of the slices of time have medians that lie {point['spread']:.0%} of the median "
            "apart. Run it on a quiet machine, or longer."
        )
    return found


def stage_times(samples: Samples, wanted: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Returns where the time went, in order: client, network, the server's stages.

    Of the sampled replies; the network is what the server did not account for. A server that does not tell
    how long a request waited has its queue there too.
    """
    numbers = [number for number in samples.stages if wanted[number] and samples.stages[number]]
    if not numbers:
        return {}
    names = list(dict.fromkeys(name for number in numbers for name in samples.stages[number]))
    rows = np.array([[samples.stages[number].get(name, 0) for name in names] for number in numbers]) / 1e6
    index = np.array(numbers)
    known = 1e3 * (samples.done - samples.sent)[index] - rows.sum(axis=1)
    columns = {
        "client late": 1e3 * (samples.noticed - samples.due)[index],
        "wait for a stream": 1e3 * (samples.sent - samples.noticed)[index],
        "network" if QUEUE in names else "network and server queue": known,
        **{name: rows[:, i] for i, name in enumerate(names)},
    }
    return {
        name: {"mean": float(values.mean()), **_by_name(values, STAGE_PERCENTILES)}
        for name, values in columns.items()
    }


def _end(samples: Samples, pace: Pace) -> float:
    """When the measured part ends: as planned, or with the last request of a run by count."""
    if pace.duration and not pace.requests:
        return pace.warm_up + pace.duration
    last = samples.due.max(initial=0.0) if pace.rate else np.nanmax(samples.done, initial=0.0)
    return float(last)


def _warm_up(
    samples: Samples, latency: NDArray[np.float64], warm: NDArray[np.bool_], pace: Pace
) -> dict[str, Any]:
    good = warm & (samples.code == OK)
    return {
        "seconds": pace.warm_up,
        "requests": int(warm.sum()),
        "errors": _errors(samples.code[warm]),
        "p50_ms": percentiles(latency[good], [50.0])[0] if good.any() else None,
    }


def _errors(codes: NDArray[np.int16]) -> dict[str, int]:
    names = Counter(code_name(code) for code in codes.tolist() if code != OK)
    return dict(names.most_common())


def code_name(code: int) -> str:
    """Returns the name of a gRPC code."""
    return str(code_pb2.Code.Name(code)) if code in code_pb2.Code.values() else f"CODE_{code}"


def _figures(values: NDArray[np.float64], wanted: Sequence[float]) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(["mean", *(f"p{percent:g}" for percent in wanted), "max"])
    return {"mean": float(values.mean()), **_by_name(values, wanted), "max": float(values.max())}


def _by_name(values: NDArray[np.float64], wanted: Sequence[float]) -> dict[str, float]:
    return {
        f"p{percent:g}": value for percent, value in zip(wanted, percentiles(values, wanted), strict=True)
    }


def _intervals(
    values: NDArray[np.float64], times: NDArray[np.float64], wanted: Sequence[float]
) -> dict[str, tuple[float, float]]:
    if not len(values):
        return {}
    found = intervals(values, times, wanted)
    return {f"p{percent:g}": bounds for percent, bounds in zip(wanted, found, strict=True)}


def _late(samples: Samples, measured: NDArray[np.bool_]) -> float:
    late = (samples.noticed - samples.due)[measured]
    return 1e3 * percentiles(late, [99.0])[0] if len(late) else 0.0


def _cdf(values: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Returns pairs of latency and share of answers that took at most so long; finer towards the slow end."""
    if not len(values):
        return []
    tail = 1 - np.geomspace(1, max(1e-5, 1 / len(values)), N_CDF)
    shares = np.unique(np.append(tail, 1.0))
    return list(zip(percentiles(values, (100 * shares).tolist()), shares.tolist(), strict=True))


def _histogram(values: NDArray[np.float64]) -> str:
    """Returns the latencies (µs) as a HdrHistogram (V2, base64), which other tools read and add."""
    histogram = HdrHistogram(1, HDR_MAX_US, HDR_DIGITS)
    whole, counts = np.unique(np.maximum(np.rint(1e3 * values), 1).astype(np.int64), return_counts=True)
    for value, count in zip(whole.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)
    return bytes(histogram.encode()).decode()

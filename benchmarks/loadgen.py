"""MLPerf's LoadGen: a third client, with a schedule and a clock of its own.

Optional, and in no extra: ``pip install -c constraints.txt mlcommons-loadgen``.
"""

import functools
import importlib
import importlib.util
import re
import tempfile
from pathlib import Path
from typing import Any

import grpc

from recserve.benchmarks.h2load import FRAME_BYTES, PATH, TIMEOUT_SECONDS, Answered
from recserve.errors import CheckFailed, ConfigError

MODULE = "mlperf_loadgen"
SUMMARY = "mlperf_log_summary.txt"


def require() -> None:
    """Raises :class:`ConfigError` where LoadGen is not installed."""
    if importlib.util.find_spec(MODULE) is None:
        raise ConfigError(
            "LoadGen",
            found="not installed",
            expected="installed",
            cure="Run: pip install -c constraints.txt mlcommons-loadgen",
        )


def server_scenario(address: str, body: Path, rate: float, seconds: float) -> Answered:
    """Asks at Poisson times for ``seconds`` and returns what LoadGen found; latency counts from the due time.

    ``body``: a file of h2load.write_body. Raises :class:`CheckFailed` if a call fails.
    """
    loadgen: Any = importlib.import_module(MODULE)
    settings, logs = loadgen.TestSettings(), loadgen.LogSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.Server, loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.min_duration_ms = settings.max_duration_ms = round(1e3 * seconds)
    settings.min_query_count = 1
    with tempfile.TemporaryDirectory() as folder, _Server(loadgen, address, body) as server:
        logs.log_output.outdir = folder
        logs.enable_trace = False
        asked = loadgen.ConstructSUT(server.issue, lambda: None)
        samples = loadgen.ConstructQSL(1, 1, lambda _: None, lambda _: None)
        try:
            loadgen.StartTestWithLogSettings(asked, samples, settings, logs)
        finally:
            loadgen.DestroyQSL(samples)
            loadgen.DestroySUT(asked)
        summary = (Path(folder) / SUMMARY).read_text(encoding="utf-8")
    if server.failed:
        raise CheckFailed("calls of LoadGen", found=str(server.failed[0]), expected="answers")
    figures = [
        figure(summary, name)
        for name in (
            "Completed samples per second",
            "50.00 percentile latency (ns)",
            "99.00 percentile latency (ns)",
        )
    ]
    return Answered(figures[0], 1e-3 * figures[1], 1e-3 * figures[2])


class _Server:
    """What LoadGen asks: calls that are on their way while it issues the next."""

    def __init__(self, loadgen: Any, address: str, body: Path) -> None:
        self.failed: list[grpc.RpcError] = []
        self._loadgen = loadgen
        self._message = body.read_bytes()[FRAME_BYTES:]
        self._channel = grpc.insecure_channel(address)
        self._ask = self._channel.unary_unary(PATH)

    def __enter__(self) -> "_Server":
        self._ask(self._message, timeout=TIMEOUT_SECONDS)  # connects
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def issue(self, samples: Any) -> None:
        """Sends one call per sample."""
        for sample in samples:
            call = self._ask.future(self._message, timeout=TIMEOUT_SECONDS)
            call.add_done_callback(functools.partial(self._done, sample.id))

    def _done(self, identity: int, call: Any) -> None:
        if (error := call.exception()) is not None:
            self.failed.append(error)
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(identity, 0, 0)])


def figure(summary: str, name: str) -> float:
    """Returns one figure of LoadGen's summary; raises :class:`CheckFailed` without it."""
    found = re.search(rf"^{re.escape(name)}\s*:\s*([\d.e+]+)", summary, re.MULTILINE)
    if found is None:
        raise CheckFailed("summary of LoadGen", found=summary[:200], expected=f"a line {name!r}")
    return float(found[1])

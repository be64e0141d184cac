"""MLPerf's LoadGen asks a real server, and what it writes is read."""

import argparse
import importlib.util
from pathlib import Path

import pytest

from recserve.benchmarks import loadgen
from recserve.benchmarks.h2load import write_body
from recserve.benchmarks.load.messages import Question, grpc_message
from recserve.benchmarks.load.options import Asked
from recserve.benchmarks.serving import serving
from recserve.engine.traces import RECOMMEND
from recserve.errors import CheckFailed, ConfigError

SUMMARY = """Completed samples per second    : 94.31
50.00 percentile latency (ns)   : 1438313
"""


def test_figures_are_read_from_its_summary() -> None:
    assert loadgen.figure(SUMMARY, "Completed samples per second") == 94.31
    assert loadgen.figure(SUMMARY, "50.00 percentile latency (ns)") == 1438313
    with pytest.raises(CheckFailed, match=r"99\.00 percentile"):
        loadgen.figure(SUMMARY, "99.00 percentile latency (ns)")


def test_without_it_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints\.txt mlcommons-loadgen"):
        loadgen.require()


def test_its_server_scenario_asks_a_server(tmp_path: Path) -> None:
    pytest.importorskip(loadgen.MODULE)
    body = write_body(grpc_message(Asked(), Question(RECOMMEND, "1")).body, tmp_path)
    with serving("chain", "grpcio", argparse.Namespace(batcher_threads=None)) as address:
        found = loadgen.server_scenario(address, body, 100.0, 1.0)
    assert found.per_second > 0
    assert 0 < found.p50_us <= found.p99_us

"""The benchmark of ONNX Runtime's options, one round of it."""

from pathlib import Path

from recserve.benchmarks.sessions import OPTIONS, held, time_options
from recserve.engine.bundle import open_bundle
from recserve.engine.config import SessionConfig


def test_every_option_is_timed_against_the_defaults(bundle_folder: Path) -> None:
    rows = time_options(open_bundle(bundle_folder), rounds=2)
    assert [row["option"] for row in rows] == list(OPTIONS)
    assert rows[0]["ratio_1"] == rows[0]["ratio_32"] == 1
    assert all(row["load_ms"] > 0 and row["ms_1"] > 0 and row["ms_32"] > 0 for row in rows)
    defaults, *changed = OPTIONS.values()
    assert defaults == SessionConfig()
    assert SessionConfig() not in changed


def test_memory_is_that_of_this_process(bundle_folder: Path) -> None:
    assert held(open_bundle(bundle_folder), SessionConfig(), calls=1) > 10e6

"""Results become one page that needs nothing else."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.benchmarks.pages import panels_of, pareto
from recserve.errors import DataError
from tests.benchmarks.test_compare import result_of

pytest.importorskip("matplotlib")
RunCli = Callable[..., tuple[int, str, str]]
VARIANTS = {
    "rows": [
        {"variant": "fp32", "ndcg@10": 0.09, "p50_ms": 0.7},
        {"variant": "<int8>", "ndcg@10": 0.08, "p50_ms": 0.5},
    ]
}
SEARCH: dict[str, Any] = {
    "cases": [],
    "approximate": [
        {"method": "hnsw", "recall": 0.9, "median_ms": {"1": 0.1}},
        {"method": "recserve", "recall": 1.0, "median_ms": {"1": 0.2}},
    ],
}


@pytest.fixture
def page(run_cli: RunCli, tmp_path: Path) -> Path:
    """A page with every panel."""
    load = result_of(1) | {"target": "grpc://h:1"}
    load["points"][0]["warnings"] = ["<b>Noisy</b>"]
    paths = []
    for name, result in (("load", load), ("kernels", SEARCH), ("variants", VARIANTS)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(result))
    made = tmp_path / "report.html"
    code, _, err = run_cli("bench", "report", *paths, "--html", made, "--png", tmp_path / "report.png")
    assert (code, err) == (0, "")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    return made


def test_a_page_refers_to_nothing_outside_and_escapes_what_it_shows(page: Path) -> None:
    text = page.read_text()
    for title in ("latency from the due time", "throughput and latency", "recall and latency", "quality and"):
        assert title in text
    assert re.findall(r'(?:src|href)="(?!#|data:)', text) == []
    assert "@import" not in text
    assert "<!DOCTYPE svg" not in text
    assert "&lt;b&gt;Noisy" in text
    assert "<int8>" not in text


def test_a_browser_without_a_network_has_nothing_to_complain_about(page: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    picture = tmp_path / "seen.png"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--window-size=1200,1600"]
    command += [f"--screenshot={picture}", page.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert [line for line in seen.stderr.splitlines() if "CONSOLE" in line] == []
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    assert pixels.shape == (1600, 1200, 3)
    # Lines and text of every panel: ink in each quarter from the top, and never more ink than paper.
    ink = [(part.min(axis=2) < 0.9).mean() for part in np.array_split(pixels, 4)]
    assert all(0.005 < share < 0.5 for share in ink[:3]), ink


def test_the_front_is_what_nothing_beats() -> None:
    assert pareto([(3, 5), (1, 1), (2, 4), (2.5, 3), (4, 5)]) == [(1, 1), (2, 4), (3, 5)]


def test_results_without_figures_to_draw(run_cli: RunCli, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without anything to draw"):
        panels_of({"x": {"rows": []}})
    assert run_cli("bench", "report", tmp_path / "x.json")[0] == 2
    assert run_cli("bench", "report", tmp_path / "x.json", "--html", tmp_path / "x.txt")[0] == 2

"""The demo from an empty folder, and again: what a person sees, on data that needs no network."""

import subprocess
import sys
from pathlib import Path

import pytest

SHOP = "synthetic-shop:n_items=1000,n_users=200,n_events=6000,seed=1"


@pytest.mark.slow
def test_the_demo_shows_every_step_and_starts_again_from_what_is_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recserve.engine.cli", "demo", "--data", SHOP, "--out", "shown"]

    def run() -> tuple[str, str]:
        finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout, finished.stderr

    shown, told = run()
    for expected in (
        "NDCG@10",
        "popularity",
        "identical top-10 lists",
        "gRPC answer for user",
        "after the click",
    ):
        assert expected in shown
    for expected in ("cleaning report", "training", "encode", "Try next:"):
        assert expected in told
    again, told_again = run()
    assert "using them" in told_again
    assert "training" not in told_again
    assert "gRPC answer for user" in again

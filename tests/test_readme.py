"""The README is true: its Python blocks run as they stand, its commands too."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAX_LINES = 150
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def block(language: str, text: str) -> str:
    [found] = [body for kind, body in BLOCKS if kind == language and text in body]
    return found


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A working folder where ``demo/bundle`` is a bundle."""
    shutil.copytree(bundle_folder, tmp_path / "demo" / "bundle")
    return tmp_path


def run_python(code: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def run_shell(code: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_it_stays_short_and_names_every_block_in_a_test() -> None:
    assert len(README.splitlines()) <= MAX_LINES
    assert [kind for kind, _ in BLOCKS] == ["bash", "python", "bash", "python", "bash"]


def test_the_two_commands_are_make_targets() -> None:
    for line in block("bash", "make demo").splitlines():
        target = line.partition("#")[0].split()[1]
        dry_run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
        assert dry_run.returncode == 0, target


def test_the_embedding_example_runs(folder: Path) -> None:
    assert len(run_python(block("python", "Engine.load"), folder).splitlines()) == 10


def test_the_grpc_example_runs(folder: Path) -> None:
    # The README's port may be taken here: the server takes a free one, and the client is told.
    serve = block("bash", "recserve serve").split()
    command = [sys.executable, "-m", "recserve.engine.cli", *serve[1:]]
    command[command.index("--port") + 1] = "0"
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            code = block("python", "RecommenderClient")
            assert '"127.0.0.1:50051"' in code
            # Beside other tests a connection may take longer than the example's second.
            code = code.replace("127.0.0.1:50051", address).replace("timeout=1.0", "timeout=30.0")
            output = run_python(code, folder)
        finally:
            server.terminate()
    assert len(output.splitlines()) == 6
    assert server.returncode == 0


def test_the_commands_for_your_own_data_run(tmp_path: Path) -> None:
    """Columns named customer, sku, when, qty: trained and served through the mapping alone."""
    rng = np.random.default_rng(2)
    lines = ["customer,sku,when,qty"]
    for customer in range(60):
        start = int(rng.integers(0, 40))
        for step in range(8):
            day = f"2026-03-{step + 1:02d} {int(rng.integers(0, 24)):02d}:00:00"
            lines.append(f"C{customer},S{(start + step) % 40},{day},{int(rng.integers(1, 4))}")
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = run_shell(block("bash", "--columns"), tmp_path)
    assert "NDCG@10" in output
    assert "bundles/shop: every file is what the manifest says" in output
    assert len(re.findall(r"│ +\d+ +│ S\d+ +│", output)) == 5

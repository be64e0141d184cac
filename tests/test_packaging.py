"""Wheel and sdist are complete, and the serving install has no torch."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel and an sdist built from what git tracks."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(".typing"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    # --no-isolation: the build back end of the environment, so that no index is asked.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def expected_files() -> set[str]:
    """The paths that the wheel must hold for the files of the fixed folders."""
    found = {"recserve/py.typed", "recserve/__init__.py", "recserve/errors.py", "recserve/console.py"}
    for folder in ("proto", "engine", "kernels", "training", "exporters", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if "_root" not in path.parts:
                found.add(f"recserve/{path.relative_to(ROOT)}")
    for pattern in ("*.proto", "*.pyi"):
        found |= {f"recserve/proto/{path.name}" for path in (ROOT / "proto").glob(pattern)}
    return found


def test_the_wheel_holds_every_module_and_nothing_at_top_level(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert expected_files() - names == set()
    assert {name.split("/")[0] for name in names} == {"recserve", wheel.name.split("-py3")[0] + ".dist-info"}


def test_the_sdist_can_build_the_wheel_again(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "proto/recommender.proto",
        "engine/_root/py.typed",
    }
    assert needed - names == set()


@pytest.mark.slow
def test_the_serving_install_serves_without_torch(built: Path, bundle_folder: Path, tmp_path: Path) -> None:
    [wheel] = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "-c", str(constraints), str(wheel)], check=True
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert run("-c", "import torch").returncode == 1
    assert run("-c", "import recserve.engine").returncode == 0
    recommended = run("-m", "recserve.engine.cli", "recommend", str(bundle_folder), "--json")
    assert recommended.returncode == 0, recommended.stderr
    help_text = run("-m", "recserve.engine.cli", "--help").stdout
    assert "serve" in help_text
    assert "train " not in help_text
    refused = run("-m", "recserve.engine.cli", "train", "--data", "x.csv")
    assert refused.returncode == 3
    assert "pip install 'recserve[train]'" in refused.stderr
    command = [str(python), "-m", "recserve.engine.cli", "serve", str(bundle_folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        answered = run("-m", "recserve.engine.cli", "recommend", "--server", address, "--json")
        server.terminate()
    assert answered.returncode == 0, answered.stderr
    assert server.returncode == 0

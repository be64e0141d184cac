"""Where candidates are searched for: chosen by the settings, and what a machine without a GPU does."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.engine import Engine, EngineConfig
from recserve.engine.search_device import SearchDevice
from recserve.errors import ConfigError
from recserve.exporters.assemble import export_run
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.loop import Trainer
from recserve.training.run import create_run

HERE = Path(__file__).parent
N_ITEMS = 33
has_cuda_target = importlib.util.find_spec("numba_cuda") is not None


@pytest.mark.parametrize(("graphs_on", "device"), [("cpu", "cpu"), ("cuda", "cuda"), ("tensorrt", "cuda")])
def test_auto_is_where_the_graphs_run(graphs_on: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    for is_installed in (True, False):
        found = find("json") if is_installed else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        assert SearchDevice("auto", graphs_on).name == (device if is_installed else "cpu")
        assert SearchDevice("cpu", graphs_on).name == "cpu"
        assert SearchDevice("cuda", graphs_on).name == "cuda"


def test_a_machine_without_a_gpu_refuses_cuda(bundle_folder: Path) -> None:
    if has_cuda_target and importlib.import_module("numba.cuda").is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=r"engine\.retrieval_device is cuda, which does not work"):
        Engine.load(bundle_folder, EngineConfig(retrieval_device="cuda"))
    with pytest.raises(ConfigError, match=r"engine\.retrieval_device is tpu; expected auto, cpu or cuda"):
        EngineConfig(retrieval_device="tpu")


def test_an_engine_on_the_cpu_never_loads_the_cuda_target(bundle_folder: Path) -> None:
    code = (
        "import sys; from recserve.engine import Engine, EngineConfig\n"
        f"with Engine.load({str(bundle_folder)!r}, EngineConfig(provider='cpu')) as engine:\n"
        "    assert engine.loaded.retriever.device.name == 'cpu'\n"
        "    assert not engine.loaded.retriever.device.fell_back\n"
        "assert not [name for name in sys.modules if name.startswith(('numba_cuda', 'numba.cuda'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(not has_cuda_target, reason="numba-cuda is not installed (extra [cuda])")
def test_an_engine_on_a_gpu_in_the_simulator(tmp_path: Path) -> None:
    config = run_config("als", "leave-one-out", {"embedding_size": 4, "epochs": 1, "seed": 3})
    rng = np.random.default_rng(3)
    rows = [(f"u{user}", f"i{item}", user) for user in range(30) for item in rng.permutation(N_ITEMS)[:9]]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(tmp_path / "events.csv")
    prices = {"item": [f"i{item}" for item in range(N_ITEMS)], "price": rng.random(N_ITEMS) * 100}
    pl.DataFrame(prices).write_csv(tmp_path / "items.csv")
    data = load_dataset(tmp_path / "events.csv", items_path=tmp_path / "items.csv")
    run = create_run(tmp_path / "run", config, data)
    Trainer(run.new_model(), run.split(), run.folder, config.loop).fit()
    export_run(run, tmp_path / "bundle")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "BUNDLE": str(tmp_path / "bundle")}
    environment.pop("PYTEST_ADDOPTS", None)
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, str(HERE / "simulated_search_device.py")]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

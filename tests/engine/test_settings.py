"""Settings: flag > environment > file > default; unknown keys name the nearest known one."""

import itertools
from pathlib import Path

import pytest

from recserve.engine import Boost, Engine, Pin, PipelineConfig, Request
from recserve.engine.config import EngineConfig, SessionConfig
from recserve.engine.server.config import ServerConfig
from recserve.engine.settings import load_settings
from recserve.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "recserve.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_those_of_the_embedded_engine() -> None:
    settings = load_settings(None, {})
    assert settings.engine == EngineConfig()
    assert settings.server == ServerConfig()


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "[server]\nport = 1\nworker_threads = 11\n[engine]\nmax_k = 111\n")
    assert load_settings(file, {}).server.port == 1
    monkeypatch.setenv("RECSERVE__SERVER__PORT", "2")
    from_environment = load_settings(file, {})
    assert (from_environment.server.port, from_environment.server.worker_threads) == (2, 11)
    assert from_environment.engine.max_k == 111
    flags = {"server": {"port": 3, "worker_threads": None}}
    from_flag = load_settings(file, flags)
    assert (from_flag.server.port, from_flag.server.worker_threads) == (3, 11)


SOURCES = {"file": 1, "environment": 2, "flag": 3}


@pytest.mark.parametrize(
    "given", [c for n in range(4) for c in itertools.combinations(SOURCES, n)], ids="+".join
)
def test_the_strongest_source_given_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    file = write(tmp_path, "[server]\nport = 1\n") if "file" in given else None
    if "environment" in given:
        monkeypatch.setenv("RECSERVE__SERVER__PORT", "2")
    flags = {"server": {"port": 3 if "flag" in given else None}}
    expected = max((SOURCES[source] for source in given), default=ServerConfig().port)
    assert load_settings(file, flags).server.port == expected


def test_a_table_inside_a_section_has_the_same_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, "[engine.session]\nthreads = 2\narena = true\n")
    monkeypatch.setenv("RECSERVE__ENGINE__SESSION__THREADS", "3")
    assert load_settings(file, {}).engine.session == SessionConfig(threads=3, arena=True)


def test_low_limits_do_not_keep_the_engine_from_loading(bundle_folder: Path) -> None:
    limits = EngineConfig(max_k=1, max_requests=1, max_history=1, max_exclude=1)
    with Engine.load(bundle_folder, limits) as engine:
        assert len(engine.recommend(Request(k=1)).items) == 1


@pytest.mark.parametrize(
    ("text", "named", "cure"),
    [
        ("[server]\nprot = 1\n", "server.prot", "'port'"),
        ("[sever]\nport = 1\n", "section sever", "'server'"),
        ("server = 1\n", "section server", "a table of keys"),
        ("[server]\nport = 'x'\n", "server.port", "integer"),
        ("[server]\nport = 70000\n", "server.port", "0 to 65535"),
        ("[engine]\nprovider = 'gpu'\n", "engine.provider", "auto, cpu, cuda, tensorrt"),
        ("[server\n", "recserve.toml", "TOML"),
        ("[server]\nport = 1.5\n", "server.port is 1.5; expected a valid integer", ""),
        ("[engine]\nmax_k = [1]\n", "engine.max_k is [1]", "integer"),
        ("[engine.session]\nspining = true\n", "engine.session.spining", "'spinning'"),
        ("[engine.session]\nthreads = 0\n", "engine.session.threads", "1 or more"),
        ("[engine.session]\noptimisation = 'most'\n", "engine.session.optimisation", "none, basic"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, named: str, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, text), {})
    assert named in str(caught.value)
    assert cure in str(caught.value)
    assert "; expected " in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not readable"):
        load_settings(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RECSERVE__SERVER__PROT", "'port'"),
        ("RECSERVE__ENGIN__MAX_K", "'engine'"),
        ("RECSERVE__ENGINE__MAXK", "'max_k'"),
        ("RECSERVE__ENGINE__SESSION__THREDS", "'threads'"),
    ],
)
def test_wrong_environment_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"Did you mean {nearest}"):
        load_settings(None, {})


def test_a_wrong_value_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSERVE__SERVER__PORT", "many")
    with pytest.raises(ConfigError, match=r"server\.port is many; expected a valid integer"):
        load_settings(None, {})


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["a folder", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "recserve.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"recserve\.toml is not readable; expected a TOML file"):
        load_settings(path, {})


PIPELINE = """[pipeline]
filter = "price < 100"
caps = { brand = 2 }
boosts = [{ filter = "price < 5", weight = 0.5 }]
pins = [{ item_id = "a", rank = 1 }]
rerank = "dpp"
diversity = 0.25
"""


def test_the_pipeline_is_a_section_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = PipelineConfig(
        filter="price < 100",
        caps={"brand": 2},
        boosts=[Boost("price < 5", 0.5)],
        pins=[Pin("a", 1)],
        rerank="dpp",
        diversity=0.25,
    )
    assert load_settings(write(tmp_path, PIPELINE), {}).engine.pipeline == expected
    monkeypatch.setenv("RECSERVE__PIPELINE__CANDIDATES", "50")
    assert load_settings(None, {}).engine.pipeline.candidates == 50


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("divers = 1", "pipeline.divers"),
        ("diversity = 1.5", "pipeline.diversity is 1.5"),
        ("boosts = [{ filter = 'price < 5', weigth = 1 }]", "pipeline.boosts.0"),
        ("caps = { brand = 'two' }", "pipeline.caps.brand"),
    ],
)
def test_a_wrong_pipeline_is_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(write(tmp_path, f"[pipeline]\n{line}\n"), {})


def test_engine_pipeline_is_no_second_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.pipeline"):
        load_settings(write(tmp_path, "[engine.pipeline]\ndiversity = 0.5\n"), {})

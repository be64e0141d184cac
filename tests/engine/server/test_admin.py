"""``recserve.v1.Admin`` and ``recserve models`` on a real server over a repository, on each transport."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from recserve.engine import Request, cli
from recserve.engine.client import RecommenderClient
from recserve.engine.config import EngineConfig
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.models import Models
from recserve.engine.server.remembering import Remembering
from recserve.engine.state.config import StateConfig
from recserve.engine.wire.status import RemoteError, error_from_call
from recserve.proto import admin_pb2 as pb
from recserve.proto import admin_pb2_grpc
from tests.engine.models.versions import flip_bit, is_of, make_version
from tests.engine.server.http_client import HttpCaller

MODEL = "shop"
TIMEOUT_SECONDS = 60
N_SWAPS = 30
N_CLIENTS = 4


@pytest.fixture
def repository_folder(bundle_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / MODEL).mkdir(parents=True)
    for day, version in enumerate(("v1", "v2"), start=1):
        make_version(bundle_folder, folder / MODEL / version, version, day=day)
    return folder


class ModelServer:
    """A server over a repository, with a stub of its Admin service."""

    def __init__(self, folder: Path, transport: str) -> None:
        remembering = Remembering(StateConfig(), EngineConfig(), ServerConfig())
        # Without trials, which are a process each: test_trial.py and test_faults.py have them.
        config = RepositoryConfig(folder=str(folder), poll_seconds=0.05, trial=False)
        self.models = Models(config, EngineConfig(), remembering)
        self.server = Server(
            ServerConfig(
                port=0,
                transport=transport,
                admin_address="127.0.0.1:0",
                default_deadline_ms=30_000,
                max_in_flight=1000,
            ),
            router=self.models.router,
            manager=self.models.manager,
            http=HttpConfig(metrics_port=0),
            extra_methods=self.models.admin.methods(),
        )
        self.address = self.server.start()
        self.models.start()
        self.server.serve()
        self.channel = grpc.insecure_channel(self.server.admin_address)
        self.stub = admin_pb2_grpc.AdminStub(self.channel)

    def ask(self, method: str, message: Any) -> Any:
        try:
            return getattr(self.stub, method)(message, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise error_from_call(error) from None

    def refuses(self, method: str, message: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(RemoteError) as caught:
            self.ask(method, message)
        return caught.value.code, caught.value.reason

    def states(self) -> dict[str, str]:
        [model] = self.ask("ListModels", pb.ListModelsRequest()).models
        return {entry.version: pb.ModelVersion.State.Name(entry.state) for entry in model.versions}

    def close(self) -> None:
        self.channel.close()
        self.server.stop()
        self.models.close()


@pytest.fixture
def server(repository_folder: Path, transport: str) -> Iterator[ModelServer]:
    server = ModelServer(repository_folder, transport)
    yield server
    server.close()


@pytest.fixture
def client(server: ModelServer) -> Iterator[RecommenderClient]:
    with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS) as client:
        yield client


def test_every_operation(server: ModelServer, client: RecommenderClient) -> None:
    assert client.recommend(Request()).bundle_version == "v2"
    assert server.states() == {"v1": "UNLOADED", "v2": "ACTIVE"}
    loaded = server.ask("LoadModel", pb.LoadModelRequest(model=MODEL, version="v1"))
    assert (loaded.version, loaded.state) == ("v1", pb.ModelVersion.READY)
    route = server.ask("Activate", pb.ActivateRequest(model=MODEL, version="v1"))
    assert [arm.version for arm in route.arms] == ["v1"]
    assert client.recommend(Request()).bundle_version == "v1"
    assert server.ask("Rollback", pb.RollbackRequest(model=MODEL)).arms[0].version == "v2"
    assert client.recommend(Request()).bundle_version == "v2"
    split = pb.SetSplitRequest(
        model=MODEL,
        arms=[pb.Arm(version="v2", weight=1), pb.Arm(name="new", version="v1", weight=1)],
        # More than this test asks: on a busy machine an arm may look slow.
        guard=pb.Guard(min_requests=1000),
    )
    route = server.ask("SetSplit", split)
    assert (route.guard.min_requests, route.guard.max_latency_ratio) == (1000, 1.5)
    slates = [client.recommend(Request(user_id=f"user-{i}")) for i in range(20)]
    assert {(slate.arm, slate.bundle_version) for slate in slates} == {("v2", "v2"), ("new", "v1")}
    many = client.recommend_many([Request(user_id=f"user-{i}") for i in range(20)])
    assert [slate.arm for slate in many] == [slate.arm for slate in slates]  # type: ignore[union-attr]
    items = [slate.items[0].item_id for slate in slates]
    assert set(client.get_items(items)) == set(items), "items of one of the arms are unknown"
    server.ask("Activate", pb.ActivateRequest(model=MODEL, version="v2"))
    shadowed = server.ask(
        "SetShadow", pb.SetShadowRequest(model=MODEL, shadow=pb.Shadow(version="v1", share=1.0))
    )
    assert shadowed.shadow.version == "v1"
    assert client.recommend(Request()).bundle_version == "v2"
    [model] = server.ask("ListModels", pb.ListModelsRequest()).models
    assert (model.name, model.is_default) == (MODEL, True)
    assert [(stats.arm, stats.requests, stats.errors) for stats in model.arm_stats] == [("main", 1, 0)]
    assert not server.ask("SetShadow", pb.SetShadowRequest(model=MODEL)).HasField("shadow")
    server.ask("UnloadModel", pb.UnloadModelRequest(model=MODEL))
    with pytest.raises(RemoteError, match="loading") as caught:
        client.recommend(Request())
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_refusals_have_their_status(server: ModelServer, repository_folder: Path) -> None:
    not_found = (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
    assert server.refuses("Activate", pb.ActivateRequest(model="shup")) == not_found
    assert server.refuses("Activate", pb.ActivateRequest(model=MODEL, version="v9")) == not_found
    assert server.refuses("Rollback", pb.RollbackRequest(model=MODEL)) == (
        grpc.StatusCode.ABORTED,
        "CONFLICT",
    )
    invalid = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert server.refuses("LoadModel", pb.LoadModelRequest(model="../etc")) == invalid
    assert server.refuses("SetSplit", pb.SetSplitRequest(model=MODEL)) == invalid
    nan = pb.SetSplitRequest(model=MODEL, arms=[pb.Arm(version="v1", weight=float("nan"))])
    assert server.refuses("SetSplit", nan) == invalid
    flip_bit(repository_folder / MODEL / "v1" / "items.arrow")
    assert server.refuses("Activate", pb.ActivateRequest(model=MODEL, version="v1")) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "BUNDLE_FILE_DIGEST",
    )
    assert server.states() == {"v1": "FAILED", "v2": "ACTIVE"}
    [model] = server.ask("ListModels", pb.ListModelsRequest()).models
    assert [entry.reason for entry in model.versions if entry.version == "v1"] == ["BUNDLE_FILE_DIGEST"]
    with HttpCaller(server.server.urls["metrics"]) as caller:
        assert b'recserve_bundles_refused_total{reason="BUNDLE_FILE_DIGEST"} 1.0' in caller.get("/metrics")[2]


def test_a_request_names_its_model(server: ModelServer, repository_folder: Path, bundle_folder: Path) -> None:
    (repository_folder / "films").mkdir()
    make_version(bundle_folder, repository_folder / "films" / "f1", "f1", day=5)
    server.models.manager.activate("films")
    with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS, model="films") as films:
        slate = films.recommend(Request(k=3))
        assert slate.bundle_version == "f1"
        assert is_of("f1", [item.item_id for item in films.similar_items(slate.items[0].item_id).items])
        assert list(films.get_items([slate.items[0].item_id]))
        assert films.recommend_many([Request()])[0].bundle_version == "f1"  # type: ignore[union-attr]
    with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS, model="flims") as nobody:
        with pytest.raises(RemoteError, match="expected one of films, shop"):
            nobody.recommend(Request())
        [error] = nobody.recommend_many([Request()])
        assert isinstance(error, RemoteError)
        assert error.reason == "UNKNOWN_MODEL"


class Callers:
    """Clients that ask without a pause and keep what was wrong with an answer."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.answers: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(N_CLIENTS)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with RecommenderClient(self._address, timeout=TIMEOUT_SECONDS) as client:
            i = 0
            while not self._stop.is_set():
                i += 1
                try:
                    slate = client.recommend(Request(user_id=f"{number}-{i}", k=10))
                except RemoteError as error:
                    self.failures.append(str(error))
                    continue
                if not is_of(slate.bundle_version, [item.item_id for item in slate.items]):
                    self.failures.append(f"a mix: {slate}")
                self.answers[slate.bundle_version] = self.answers.get(slate.bundle_version, 0) + 1


def storm(server: ModelServer, n_swaps: int) -> Callers:
    """Swaps v1 and v2 while clients ask."""
    with Callers(server.address) as callers:
        for i in range(n_swaps):
            server.ask("Activate", pb.ActivateRequest(model=MODEL, version=("v1", "v2")[i % 2]))
    return callers


def test_a_storm_of_swaps_fails_nobody(server: ModelServer) -> None:
    callers = storm(server, N_SWAPS)
    assert callers.failures == []
    assert set(callers.answers) == {"v1", "v2"}
    assert [engine.manifest.bundle_version for engine in server.models.router.registry.engines()] == ["v2"]


@pytest.mark.slow
def test_a_long_storm_of_swaps_fails_nobody(server: ModelServer) -> None:
    assert storm(server, 200).failures == []


def test_broken_bundles_under_load_fail_nobody(
    server: ModelServer, repository_folder: Path, bundle_folder: Path
) -> None:
    with Callers(server.address) as callers:
        for i, name in enumerate(("items.arrow", "item_embeddings.npy", "manifest.json", "popularity.npy")):
            # Broken before it arrives: the watcher must not find it whole.
            broken = make_version(bundle_folder, repository_folder.parent / f"bad{i}", f"bad{i}", day=20)
            flip_bit(broken / name)
            broken.rename(repository_folder / MODEL / f"bad{i}")
            with pytest.raises(RemoteError):
                server.ask("Activate", pb.ActivateRequest(model=MODEL, version=f"bad{i}"))
    assert callers.failures == []
    assert set(callers.answers) == {"v2"}


def test_the_command_line(
    server: ModelServer, capfd: pytest.CaptureFixture[str], repository_folder: Path
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        try:
            # The server of this test logs to the same stdout.
            with capture_logs():
                cli.main(["models", *arguments, "--server", server.server.admin_address])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capfd.readouterr().out

    def answer(*arguments: str) -> Any:
        code, out = run(*arguments, "--json")
        assert code == 0
        return json.loads(out)

    [model] = answer("list")["models"]
    assert [(entry["version"], entry["state"]) for entry in model["versions"]] == [
        ("v1", "UNLOADED"),
        ("v2", "ACTIVE"),
    ]
    assert answer("load", MODEL, "v1") == {"version": "v1", "state": "READY"}
    assert answer("activate", MODEL, "v1")["arms"][0]["version"] == "v1"
    assert answer("rollback", MODEL)["arms"][0]["version"] == "v2"
    split = answer("split", MODEL, "v2=9", "canary:v1=1", "--guard")
    assert [(arm["name"], arm["weight"]) for arm in split["arms"]] == [("v2", 9.0), ("canary", 1.0)]
    assert split["guard"]["min_requests"] == 100
    code, table = run("list")
    assert (code, "10.0% canary" in table) == (0, True)
    assert answer("activate", MODEL, "v2")["arms"][0]["version"] == "v2"
    assert answer("shadow", MODEL, "v1", "--share", "0.5")["shadow"] == {"version": "v1", "share": 0.5}
    assert "shadow" not in answer("shadow", MODEL)
    assert answer("unload", MODEL) == {}
    assert run("activate", MODEL, "v9")[0] == 1
    assert run("split", MODEL, "v1")[0] == 2


def test_the_server_of_a_repository_as_a_process(
    repository_folder: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    published = tmp_path / "published"
    (published / MODEL).mkdir(parents=True)
    command = [sys.executable, "-m", "recserve.engine.cli", "serve", "--port", "0"]
    command += ["--repository", str(repository_folder), "--source", str(published)]
    command += ["--config", str(tmp_path / "recserve.toml")]
    (tmp_path / "recserve.toml").write_text("[repository]\npoll_seconds = 0.1\n")
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with RecommenderClient(address, timeout=TIMEOUT_SECONDS) as client:
                assert client.recommend(Request()).bundle_version == "v2"
                v3 = make_version(bundle_folder, tmp_path / "v3", "v3", day=3)
                shutil.copytree(v3, published / MODEL / "v3")
                # What tries the version first has a low priority.
                end = time.monotonic() + 4 * TIMEOUT_SECONDS
                while (version := client.recommend(Request()).bundle_version) != "v3":
                    assert (version, process.poll()) == ("v2", None)
                    assert time.monotonic() < end
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()


WRONG: dict[str, Callable[[Path], list[str]]] = {
    "nothing to serve": lambda folder: [],
    "both": lambda folder: [str(folder), "--repository", str(folder)],
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_serve_wants_a_bundle_or_a_repository(
    arguments: Callable[[Path], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", *arguments(tmp_path)])
    assert end.value.code == 2
    assert "one of the two" in capfd.readouterr().err

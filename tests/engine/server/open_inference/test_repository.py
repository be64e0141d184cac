"""The protocol over a model repository: load, unload, index, versions, splits."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from recserve.engine.config import EngineConfig
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.models.routing import Arm, Route
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.models import Models
from recserve.engine.server.remembering import Remembering
from recserve.engine.state.config import StateConfig
from recserve.proto import open_inference_pb2 as pb
from tests.engine.models.versions import make_version
from tests.engine.server.open_inference.messages import Client, ask

MODEL = "shop"


@pytest.fixture
def models(bundle_folder: Path, tmp_path: Path) -> Iterator[Models]:
    """A repository of one model with the versions v1 and v2, of which v2 is the newer one."""
    folder = tmp_path / "repository"
    (folder / MODEL).mkdir(parents=True)
    for day, version in enumerate(("v1", "v2"), start=1):
        make_version(bundle_folder, folder / MODEL / version, version, day=day)
    remembering = Remembering(StateConfig(), EngineConfig(), ServerConfig())
    config = RepositoryConfig(folder=str(folder), poll_seconds=60, trial=False)
    models = Models(config, EngineConfig(), remembering)
    models.start()
    yield models
    models.close()


@pytest.fixture
def client(models: Models, transport: str) -> Iterator[Client]:
    """Speaks to the admin address, which has everything."""
    config = ServerConfig(
        port=0, transport=transport, admin_address="127.0.0.1:0", default_deadline_ms=30_000
    )
    server = Server(config, router=models.router, manager=models.manager)
    server.start()
    try:
        server.serve()
        with grpc.insecure_channel(server.admin_address) as channel:
            yield Client(channel)
    finally:
        server.stop()


def states(client: Client, *, ready: bool = False) -> dict[str, tuple[str, str]]:
    return {m.version: (m.state, m.reason) for m in client.RepositoryIndex(ready=ready).models}


def test_load_and_unload_change_what_answers(client: Client, models: Models) -> None:
    assert "model_repository" in client.ServerMetadata().extensions
    assert states(client) == {"v1": ("UNAVAILABLE", "unloaded"), "v2": ("READY", "")}
    models.manager.activate(MODEL, "v1")
    assert client.ModelInfer(ask(["a", "b"], model=MODEL)).model_version == "v1"
    # Load: the newest version, as after a push to the repository.
    client.RepositoryModelLoad(model_name=MODEL)
    assert client.ModelInfer(ask(["a", "b"], model=MODEL)).model_version == "v2"
    assert states(client, ready=True) == {"v2": ("READY", "")}
    parameters = {"unload_dependents": pb.ModelRepositoryParameter(bool_param=False)}
    client.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=MODEL, parameters=parameters))
    assert states(client) == {"v1": ("UNAVAILABLE", "unloaded"), "v2": ("UNAVAILABLE", "unloaded")}
    assert states(client, ready=True) == {}
    assert not client.ModelReady(name=MODEL).ready
    assert client.fails("ModelInfer", ask(["a"], model=MODEL))[0] is grpc.StatusCode.UNAVAILABLE
    client.RepositoryModelLoad(model_name=MODEL)
    assert client.ModelReady(name=MODEL, version="v2").ready
    assert client.fails("RepositoryModelLoad", model_name="x")[0] is grpc.StatusCode.NOT_FOUND
    assert client.fails("RepositoryModelLoad")[0] is grpc.StatusCode.NOT_FOUND


def test_a_version_of_a_split_can_be_named(client: Client, models: Models) -> None:
    models.manager.split(MODEL, Route(arms=(Arm(name="a", version="v1"), Arm(name="b", version="v2"))))
    assert list(client.ModelMetadata(name=MODEL).versions) == ["v1", "v2"]
    users = [f"user {i}" for i in range(20)]
    for version in ("v1", "v2"):
        replies = [client.ModelInfer(ask([user], model=MODEL, model_version=version)) for user in users]
        assert {reply.model_version for reply in replies} == {version}
    chosen = {client.ModelInfer(ask([user], model=MODEL)).model_version for user in users}
    assert chosen == {"v1", "v2"}
    # A batch has one version, that of its first user.
    for user in users:
        alone = client.ModelInfer(ask([user], model=MODEL)).model_version
        assert client.ModelInfer(ask([user, *users], model=MODEL)).model_version == alone
    code, details = client.fails("ModelInfer", ask(["a"], model=MODEL, model_version="v3"))
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "version is v3; expected one of v1, v2.")
    stats = {s.version: s for s in client.ModelStatistics(name=MODEL).model_stats}
    assert set(stats) == {"v1", "v2"}
    assert all(s.inference_stats.success.count >= 20 for s in stats.values())
    [one] = client.ModelStatistics(name=MODEL, version="v1").model_stats
    assert one == stats["v1"]

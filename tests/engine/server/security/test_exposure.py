"""What a server refuses to be: open to other machines without TLS and a policy; and what leaks out of it."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.engine.credentials import Credentials
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.wire.status import RemoteError
from recserve.errors import ConfigError
from tests.engine.server.security.conftest import Estate

TIMEOUT_SECONDS = 60
CANARY = "CANARYdf9b2c7e"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "server.host is 0.0.0.0; .*TLS and a policy.*--insecure-bind"),
        ({"host": "0.0.0.0", "policy": "p"}, "server.host"),
        ({"host": "0.0.0.0", "tls_certificate": "c", "tls_key": "k"}, "server.host"),
        ({"host": "example.com"}, "server.host"),
        ({"admin_address": "0.0.0.0:1"}, "server.admin_address is 0.0.0.0:1"),
        ({"admin_address": "50052"}, "HOST:PORT or unix:PATH"),
        ({"admin_address": "127.0.0.1:99999"}, "HOST:PORT or unix:PATH"),
        ({"tls_certificate": "c"}, "server.tls_key is missing"),
        ({"tls_key": "k"}, "server.tls_certificate is missing"),
        ({"tls_client_ca": "a"}, "server.tls_client_ca is alone"),
        ({"tls_client_ca": "a", "tls_certificate": "c", "tls_key": "k"}, "server.policy"),
        ({"transport": "native", "tls_certificate": "c", "tls_key": "k"}, "none with --transport native"),
    ],
)
def test_settings_that_do_not_go_together_refuse_to_start(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerConfig(**settings)


def test_tls_and_a_policy_may_be_reached_from_anywhere() -> None:
    whole: dict[str, Any] = {"tls_certificate": Path("c"), "tls_key": Path("k"), "policy": Path("p")}
    exposed = ServerConfig(host="0.0.0.0", admin_address="unix:/run/admin.sock", **whole)
    assert not exposed.is_exposed
    assert not exposed.with_reflection
    admin = exposed.for_admin()
    assert (admin.host, admin.tls, admin.policy) == ("unix:/run/admin.sock", None, Path("p"))
    assert ServerConfig(admin_address="[::1]:7", **whole).for_admin().address(7) == "[::1]:7"
    insecure = ServerConfig(host="0.0.0.0", insecure_bind=True)
    assert insecure.is_exposed
    assert not insecure.with_reflection


def test_an_insecure_bind_is_said_loudly(capfd: pytest.CaptureFixture[str]) -> None:
    server = Server(ServerConfig(host="0.0.0.0", insecure_bind=True, port=0))
    server.start()
    server.stop()
    said = capfd.readouterr()
    assert "INSECURE BIND" in said.out + said.err


def test_a_unix_socket_is_its_owner_s(tmp_path: Path) -> None:
    server = Server(ServerConfig(host=f"unix:{tmp_path}/a.sock", admin_address=f"unix:{tmp_path}/b.sock"))
    server.start()
    try:
        assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.sock", "b.sock")] == [0o600] * 2
    finally:
        server.stop()


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_a_secret_leaves_no_trace(
    bundle_folder: Path, estate: Estate, tmp_path: Path, transport: str
) -> None:
    key = estate.new_key("recommend")
    bad = [f"Bearer {CANARY}", f"Bearer rsk_{CANARY}", f"Basic {CANARY}", f"Bearer eyJ{CANARY}.e30.x"]
    command = [sys.executable, "-m", "recserve.engine.cli", "serve", str(bundle_folder), "--port", "0"]
    command += ["--policy", str(estate.policy), "--audit-log", str(tmp_path / "audit.jsonl")]
    command += ["--transport", transport]
    errors = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with RecommenderClient(
                address, timeout=TIMEOUT_SECONDS, credentials=Credentials(token=key)
            ) as client:
                assert client.recommend(Request(k=1)).items
                with pytest.raises(RemoteError) as denied:
                    client.get_items(["1"])
                errors.append(str(denied.value))
            for text in bad:
                token = text.partition(" ")[2]
                with (
                    RecommenderClient(
                        address, timeout=TIMEOUT_SECONDS, credentials=Credentials(token=token)
                    ) as client,
                    pytest.raises(RemoteError) as caught,
                ):
                    client.recommend(Request(k=1))
                errors.append(str(caught.value))
            proc = Path(f"/proc/{process.pid}")
            cmdline = (proc / "cmdline").read_text()
            limits = (proc / "limits").read_text()
            process.send_signal(signal.SIGTERM)
            output, log = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0
    traces = [*errors, cmdline, output, log, (tmp_path / "audit.jsonl").read_text()]
    secret = key.split("_", 2)[2]
    assert [trace for trace in traces if CANARY in trace or secret in trace] == []
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    assert (tmp_path / "audit.jsonl").read_text().count('"refusal"') == 5


def test_the_library_leaves_the_process_alone() -> None:
    before = (resource.getrlimit(resource.RLIMIT_CORE), os.umask(0o022))
    os.umask(before[1])
    server = Server(ServerConfig(port=0))
    server.start()
    server.stop()
    after = (resource.getrlimit(resource.RLIMIT_CORE), os.umask(before[1]))
    os.umask(before[1])
    assert after == before

"""The audit log: what is in it, what a change does, and what happens when it cannot be written."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.server.admission import Admission
from recserve.engine.server.chain import Chain
from recserve.engine.server.methods import Method, MethodTable
from recserve.engine.server.security.audit import AuditLog, verify
from recserve.engine.server.security.auditor import MAX_REFUSALS_PER_SECOND, Auditor
from recserve.engine.server.security.authoriser import Authoriser
from recserve.engine.server.security.policy import read_policy
from recserve.errors import CheckFailed, PermissionDenied, Unauthenticated, Unavailable
from tests.engine.server.local import LocalCall, echo_method
from tests.engine.server.security.conftest import Estate


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, n_records: int) -> list[bytes]:
    path.unlink(missing_ok=True)
    log = AuditLog(path)
    for number in range(n_records):
        log.append({"event": "refusal", "number": number, "text": "ü\n" * number})
    return path.read_bytes().splitlines(keepends=True)


@given(st.data())
def test_every_change_of_a_line_is_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    lines = written(path, 5)
    last = verify(path)
    assert last.n_records == 5
    at = data.draw(st.integers(0, 4))
    kind = data.draw(st.sampled_from(["flip", "drop", "swap", "repeat"]))
    changed, broken = list(lines), at + 1
    if kind == "flip":
        position = data.draw(st.integers(0, len(lines[at]) - 1))
        bit = data.draw(st.integers(0, 7))
        line = bytearray(lines[at])
        line[position] ^= 1 << bit
        changed[at] = bytes(line)
        if b"\n" in changed[at][:-1]:
            broken = 0
    elif kind == "drop":
        del changed[at]
    elif kind == "swap":
        other = at - 1 if at else 1
        changed[at], changed[other] = changed[other], changed[at]
        broken = min(at, other) + 1
    else:
        changed.insert(at, changed[at])
        broken = at + 2
    path.write_bytes(b"".join(changed))
    if kind == "drop" and at == 4:
        assert verify(path).n_records == 4
        with pytest.raises(CheckFailed, match="cut off"):
            verify(path, contains=last.last_hash)
        return
    with pytest.raises(CheckFailed, match=f"line {broken or ''}"):
        verify(path)


def test_threads_share_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    def write() -> None:
        log = AuditLog(path)
        for number in range(25):
            log.append({"number": number})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(path).n_records == 100
    assert path.stat().st_mode & 0o777 == 0o600


class Office:
    """A chain with a policy and an audit log, around one method."""

    def __init__(self, estate: Estate, path: Path, scope: str) -> None:
        self.path = path
        self.ran = 0
        self.method = echo_method(self._run, scope=scope)
        self.now = 0.0
        self.auditor = Auditor(AuditLog(path), clock=lambda: self.now)
        policy = read_policy(estate.policy)
        self.chain = Chain(
            MethodTable([self.method]),
            Admission(10),
            default_deadline_seconds=30,
            max_message_bytes=100,
            principal_of=Authoriser(lambda: policy, self.auditor),
            observers=[self.auditor],
        )

    def ask(self, token: str = "", **fields: Any) -> LocalCall:
        metadata = [("authorization", f"Bearer {token}"), ("x-request-id", "r-1")]
        call = LocalCall(self.method, metadata=metadata if token else (), peer="ipv4:1.2.3.4:5", **fields)
        self.chain.dispatch(call, b"user-42")
        return call

    def _run(self, request: bytes, call: Any) -> None:
        self.ran += 1
        call.reply(request)


@pytest.fixture
def office(estate: Estate, tmp_path: Path) -> Any:
    made: list[Office] = []

    def make(scope: str) -> Office:
        made.append(Office(estate, tmp_path / "audit.jsonl", scope))
        return made[-1]

    yield make
    for one in made:
        one.chain.close()


def test_an_admin_action_has_its_beginning_and_its_end(
    office: Callable[[str], Office], estate: Estate
) -> None:
    key = estate.new_key("model:admin")
    made = office("model:admin")
    assert made.ask(key).result() == b"user-42"
    before, after = records(made.path)
    assert [before[name] for name in ("event", "method", "principal", "rule", "authorised")] == [
        "action",
        "/test.Echo/Say",
        "key:test",
        "scope model:admin",
        True,
    ]
    assert (before["peer"], before["request_id"]) == ("ipv4:1.2.3.4:5", "r-1")
    assert (after["event"], after["result"], after["request_id"]) == ("result", "OK", "r-1")
    assert verify(made.path).last_hash == after["hash"]


def test_refusals_say_why_to_the_log_and_not_to_the_caller(
    office: Callable[[str], Office], estate: Estate
) -> None:
    wrong, revoked = estate.new_key("metrics:read"), estate.new_key("recommend", revoked=True)
    made = office("recommend")
    words = set()
    for token in ("", "garbage", "rsk_x", revoked):
        with pytest.raises(Unauthenticated) as caught:
            made.ask(token).result()
        words.add(str(caught.value))
    assert len(words) == 1
    with pytest.raises(PermissionDenied, match="scope is not granted; expected recommend"):
        made.ask(wrong).result()
    rules = [record["rule"] for record in records(made.path)]
    assert rules[0] == "no credentials"
    assert "revoked" in rules[3]
    assert rules[4] == "scope recommend"
    assert {record["authorised"] for record in records(made.path)} == {False}
    text = made.path.read_text()
    assert not any(secret in text for secret in ("user-42", "garbage", revoked, wrong))


def test_an_audit_log_that_fails_blocks_administrators_only(
    office: Callable[[str], Office], estate: Estate
) -> None:
    admin_key, key = estate.new_key("model:admin"), estate.new_key("recommend")
    admin, user = office("model:admin"), office("recommend")
    admin.path.mkdir()
    with pytest.raises(Unavailable, match="audit log is not writable"):
        admin.ask(admin_key).result()
    assert admin.ran == 0
    assert user.ask(key).result() == b"user-42"
    with pytest.raises(Unauthenticated):
        user.ask("garbage").result()


def test_nothing_is_added_to_a_torn_line(office: Callable[[str], Office], estate: Estate) -> None:
    key = estate.new_key("model:admin")
    made = office("model:admin")
    made.ask(key).result()
    made.path.write_bytes(made.path.read_bytes()[:-10])
    with pytest.raises(CheckFailed, match="move it away"):
        AuditLog(made.path).append({})
    with pytest.raises(Unavailable):
        made.ask(key).result()
    assert made.ran == 1


def test_a_flood_of_refusals_is_counted_instead_of_written(office: Callable[[str], Office]) -> None:
    made = office("recommend")
    for _ in range(MAX_REFUSALS_PER_SECOND + 7):
        made.ask("garbage")
    assert len(records(made.path)) == MAX_REFUSALS_PER_SECOND
    made.now = 1.0
    made.ask("garbage")
    assert records(made.path)[-1]["skipped"] == 7
    made.auditor.close()
    assert len(records(made.path)) == MAX_REFUSALS_PER_SECOND + 1


def test_a_server_without_policy_audits_its_administrators(tmp_path: Path) -> None:
    auditor = Auditor(AuditLog(tmp_path / "audit.jsonl"))
    method: Method = echo_method(lambda request, call: None, scope="model:admin")
    call = LocalCall(method)
    assert str(Authoriser(None, auditor)(call)) == "anonymous"
    auditor.on_answered(call, grpc.StatusCode.CANCELLED, 0.1)
    assert [record["event"] for record in records(tmp_path / "audit.jsonl")] == ["action", "result"]

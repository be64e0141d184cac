"""The process of a log dies: who waits hears of it, another one goes on, and memory is what the log has."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recserve.engine import threads
from recserve.engine.client import RecommenderClient
from recserve.engine.feedback_client import FeedbackClient, new_event
from recserve.engine.retry import NO_RETRY, RetryPolicy
from recserve.engine.server.feedback import SERVICE
from recserve.engine.state import distant, writing_process
from recserve.engine.state.config import StateConfig
from recserve.engine.state.distant import AnyState
from recserve.engine.state.events import Event
from recserve.engine.state.group_commit import Outcome
from recserve.engine.state.items import ItemChange
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.state.state import read_log
from recserve.engine.threads import MAX_DEATHS
from recserve.engine.types import Request
from recserve.engine.wire.status import RemoteError
from recserve.errors import StorageFailed, Unavailable
from tests.engine.online.world import learn_all, learn_from, new_learner, settings, state_of, visits
from tests.engine.server.distant import (
    Heard,
    event,
    life_of,
    memory,
    open_distant,
    open_here,
    opened,
    process_of,
    run_dying,
    run_failing,
    run_of_another_log,
    shown,
)
from tests.engine.server.killing import TIMEOUT_SECONDS, serving

pytest.importorskip("apsw")
pytest.importorskip("cryptography")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def _quick_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that have imported what they need: each test starts some."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "recserve.engine.wire.events", "tests.engine.server.distant"])
    monkeypatch.setattr(writing_process, "CONTEXT", context)
    monkeypatch.setattr(distant, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def config(tmp_path: Path) -> StateConfig:
    return StateConfig(url=f"sqlite:///{tmp_path}/events")


def kill(config: StateConfig) -> None:
    os.kill(process_of(config), signal.SIGKILL)


def known(state: AnyState) -> tuple[dict[str, Any], dict[str, Any]]:
    return memory(state), shown(state)


def known_of(config: StateConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a server would know that starts now."""
    with opened(open_here, config) as state:
        return known(state)


def heard_of(state: AnyState) -> Heard:
    heard = Heard()
    state.listeners.append(heard)
    return heard


def record(state: AnyState, heard: Heard, events: list[Event]) -> Outcome:
    """Records as a client does: again, after UNAVAILABLE."""
    for _ in range(20):
        n_before = heard.n_stored
        try:
            return state.record(events)
        except Unavailable:
            heard.wait_until(n_before + 1)
    raise AssertionError("the log did not come back")


def of_processes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "recserve-log"]


def test_a_killed_process_is_replaced_and_nobody_sees_an_emptied_memory(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    take = ObservedEvents.take
    with opened(open_distant, config) as state:
        heard = heard_of(state)

        def taken(observed: ObservedEvents, other: ObservedEvents) -> None:
            seen.append(known(state))
            take(observed, other)

        monkeypatch.setattr(ObservedEvents, "take", taken)
        state.record([event(i) for i in range(30)])
        now = int(time.time())
        state.record([event(40 + i, action="impression", timestamp=now) for i in range(3)])
        state.erase("u0").result(TIMEOUT_SECONDS)
        state.change_items([ItemChange(item_id="i1", is_served=False)]).result(TIMEOUT_SECONDS)
        before, codes, n_heard = known(state), state.observed.item_ids(0), heard.n_stored
        kill(config)
        with pytest.raises(
            Unavailable, match=r"is dead; expected running\. .*event_id makes them count once"
        ):
            state.record([event(31)])
        heard.wait_until(n_heard + 1)
        assert seen == [before]
        assert before[0]["u0"] is None
        assert before[0]["u1"]
        assert before[1]["u1"]
        assert known(state) == before
        # What engines have made of codes goes on meaning the same.
        assert state.observed.item_ids(0)[: len(codes)] == codes
        assert state.live_items.n_changed_with([]) == 1
        # The new process numbers items anew, and knows what the other one has written.
        assert state.record([event(29), event(31), event(32)]).n_stored == 2
        assert state.events_of("u1").result(TIMEOUT_SECONDS)[0]
        assert {key.hex() for key in heard.gone} == {state.user_key("u0")}
        after = known(state)
    assert after == known_of(config)


def test_a_kill_between_commits_loses_nothing_and_counts_nothing_twice(config: StateConfig) -> None:
    batches = [[event(number) for number in range(20 * i, 20 * i + 20)] for i in range(40)]
    answers: list[Future[Any]] = [Future() for _ in batches]
    with opened(open_distant, config) as state:
        heard = heard_of(state)
        for number, (batch, answer) in enumerate(zip(batches, answers, strict=True)):
            if number == 20:
                answers[3].result(TIMEOUT_SECONDS)
                os.kill(process_of(config), signal.SIGSTOP)
            state.append(partial(tuple, batch), answer.set_result)
        kill(config)
        lost = [isinstance(answer.result(TIMEOUT_SECONDS), Unavailable) for answer in answers]
        assert not any(lost[:4])
        assert all(lost[20:])
        for batch, is_lost in zip(batches, lost, strict=True):
            if is_lost:
                record(state, heard, batch)
        for batch in batches:
            assert len(state.record(batch).duplicates) == len(batch)
        found = known(state)
    logged = [logged.event.event_id for logged in read_log(config)]
    assert sorted(logged) == sorted(one.event_id for batch in batches for one in batch)
    assert found == known_of(config)


def test_what_was_committed_and_never_told_is_known_once(config: StateConfig) -> None:
    with opened(partial(open_distant, run=partial(run_dying, "add")), config) as state:
        heard = heard_of(state)
        with pytest.raises(Unavailable):
            state.record([event(0)])
        heard.wait_until(1)
        found = memory(state)
        assert found["u0"] == [("i0", 1_750_000_000, "nan")]
        assert state.record([event(0)]).duplicates == [0]
        assert memory(state) == found


def test_an_erasure_that_was_never_told_reaches_everybody(config: StateConfig) -> None:
    with opened(partial(open_distant, run=partial(run_dying, "erase")), config) as state:
        heard = heard_of(state)
        state.record([event(0), event(1)])
        n_heard = heard.n_stored
        with pytest.raises(Unavailable):
            state.erase("u0").result(TIMEOUT_SECONDS)
        heard.wait_until(n_heard + 1)
        assert [key.hex() for key in heard.gone] == [state.user_key("u0")]
        assert memory(state)["u0"] is None
        assert memory(state)["u1"]
        # Its rows are gone: the start has ended what was half done.
        assert state.erase("u0").result(TIMEOUT_SECONDS) == 0


def test_a_change_of_an_item_that_was_never_told_is_served(config: StateConfig) -> None:
    with opened(partial(open_distant, run=partial(run_dying, "items")), config) as state:
        heard = heard_of(state)
        with pytest.raises(Unavailable):
            state.change_items([ItemChange(item_id="i1", is_served=False)]).result(TIMEOUT_SECONDS)
        heard.wait_until(1)
        assert state.live_items.n_changed_with([]) == 1


def test_one_that_dies_while_it_reads_the_log_is_replaced_too(config: StateConfig) -> None:
    # All was told but the end of the load.
    with opened(partial(open_distant, run=partial(run_dying, "answer", lives=(2,))), config) as state:
        state.record([event(i) for i in range(9)])
        heard, before = heard_of(state), known(state)
        kill(config)
        heard.wait_until(1)
        assert known(state) == before
        assert state.record([event(8), event(9)]).n_stored == 1


def test_what_does_not_come_to_memory_is_read_again(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(open_distant, config) as state:
        heard = heard_of(state)
        with monkeypatch.context() as patched:
            patched.setattr(ObservedEvents, "add_packed", Mock(side_effect=MemoryError))
            with pytest.raises(Unavailable):
                state.record([event(0)])
        assert record(state, heard, [event(0), event(1)]).duplicates == [0]
        assert known(state)[0]["u0"] == [("i0", 1_750_000_000, "nan")]


def test_who_closes_does_not_wait_until_the_log_is_read(config: StateConfig) -> None:
    stopping = partial(run_dying, "answer", lives=(2,), number=signal.SIGSTOP)
    with ThreadPoolExecutor(1) as closer, closing(open_distant(config, run=stopping)) as state:
        state.load()
        heard = heard_of(state)
        state.erase("u0").result(TIMEOUT_SECONDS)
        kill(config)
        # Told at the end of the load, which never ends.
        heard.wait_until(0, n_gone=2)
        closer.submit(state.close).result(TIMEOUT_SECONDS)
        assert not of_processes()
        with pytest.raises(Unavailable, match="is closed"):
            state.erase("u0")


def test_there_is_a_pause_before_the_next_one_tries_the_same(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distant, "PAUSE_SECONDS", 1000.0)
    with opened(partial(open_distant, run=partial(run_dying, "answer", lives=(2,))), config) as state:
        [first] = of_processes()
        kill(config)
        first.join(TIMEOUT_SECONDS)
        [second] = of_processes()
        second.join(TIMEOUT_SECONDS)
        [third] = of_processes()
        with pytest.raises(Unavailable, match="Another one starts"):
            state.record([event(0)])
        state.close()
        assert not third.is_alive()
    assert life_of(config) == 3


def test_an_interrupt_while_it_opens_leaves_no_process(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Future, "result", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_distant(config)
    for thread in of_processes():
        thread.join(TIMEOUT_SECONDS)
    assert not of_processes()


def test_too_many_deaths_within_a_minute_are_final(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MAX_DEATHS", 1)
    failed = threading.Event()
    with opened(open_distant, config) as state:
        heard = heard_of(state)
        state.on_failed = failed.set
        for number in range(2):
            assert record(state, heard, [event(number)]).n_stored == 1
            assert not failed.is_set()
            kill(config)
        assert failed.wait(TIMEOUT_SECONDS)
        for _ in range(2):
            with pytest.raises(StorageFailed, match="is dying again and again; expected running"):
                state.record([event(9)])
        with pytest.raises(StorageFailed):
            state.erase("u0")
        found = known(state)
    assert found == known_of(config)


def test_a_log_that_none_comes_to_the_end_of_is_given_up(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if each read for a minute.
    monkeypatch.setattr(threads, "DEATHS_WITHIN_SECONDS", 0.0)
    monkeypatch.setattr(distant, "MAX_DEATHS", 1)
    failed = threading.Event()
    dying = partial(run_dying, "answer", lives=range(2, 99))
    with closing(open_distant(config, run=dying)) as state:
        state.load()
        state.on_failed = failed.set
        kill(config)
        assert failed.wait(TIMEOUT_SECONDS)
        with pytest.raises(StorageFailed, match="is dying again and again"):
            state.record([event(0)])
        assert life_of(config) == 1 + 2 + 1


def test_after_a_failure_that_was_reported_none_takes_its_place(config: StateConfig) -> None:
    with opened(partial(open_distant, run=run_failing), config) as state:
        with pytest.raises(StorageFailed, match="is failing"):
            state.record([event(0)])
        kill(config)
        # Each process has a thread, and the next thread begins before the last one ends.
        for thread in of_processes():
            thread.join(TIMEOUT_SECONDS)
        assert not of_processes()
        with pytest.raises(StorageFailed, match="is failing"):
            state.record([event(0)])


def test_a_log_of_other_pseudonyms_is_not_taken(config: StateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MAX_DEATHS", 1)
    failed = threading.Event()
    with opened(partial(open_distant, run=run_of_another_log), config) as state:
        state.on_failed = failed.set
        state.record([event(0)])
        kill(config)
        assert failed.wait(TIMEOUT_SECONDS)
        assert memory(state)["u0"] == [("i0", 1_750_000_000, "nan")]
        with pytest.raises(StorageFailed):
            state.record([event(1)])


def test_a_learner_misses_nothing_and_learns_nothing_twice(config: StateConfig, tmp_path: Path) -> None:
    with opened(open_distant, config) as state:
        heard = heard_of(state)
        learner = learn_from(state, settings(), tmp_path)
        n_events = 0
        for number, some in enumerate(visits(1, 60)):
            if number == 30:
                kill(config)
            n_events += record(state, heard, some).n_stored
        assert n_events == len(list(read_log(config)))
        assert learner.wait_until(n_events, TIMEOUT_SECONDS)
        learner.close()
    oracle = learn_all(new_learner(settings()), list(read_log(config)), page=1)
    assert state_of(learner.learner) == state_of(oracle)


def test_a_server_records_again_until_its_log_dies_too_often(
    bundle_folder: Path, config: StateConfig
) -> None:
    patient = RetryPolicy(max_attempts=1000, max_pause=0.1)
    sent = [new_event(user_id="u", item_id="i", event_id=f"e{number}") for number in range(MAX_DEATHS + 1)]
    with (
        serving(bundle_folder, config.url, Path(f"{config.path}.out")) as (_, address),
        FeedbackClient(address, timeout=TIMEOUT_SECONDS, retry=patient) as client,
        FeedbackClient(address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as hasty,
        RecommenderClient(address, timeout=TIMEOUT_SECONDS) as recommender,
        grpc.insecure_channel(address) as channel,
    ):
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=4 * TIMEOUT_SECONDS)
        assert next(watch).status == SERVING
        for number, one in enumerate(sent):
            assert client.record([one]).n_stored == 1
            assert [event.event_id for event in client.export_user("u")] == [
                event.event_id for event in sent[: number + 1]
            ]
            kill(config)
            assert recommender.recommend(Request(user_id="u", k=3)).items
        assert next(watch).status == NOT_SERVING
        with pytest.raises(RemoteError) as refused:
            hasty.record(sent)
        assert refused.value.reason == "STORAGE_FAILED"
        assert recommender.recommend(Request(user_id="u", k=3)).items

"""Events from Kafka and to Kafka, over the mock cluster of librdkafka: real clients, real protocol."""

import itertools
import json
import queue
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recserve.engine.server.kafka.sink import KafkaSink
from recserve.engine.server.kafka.source import KafkaSource
from recserve.engine.server.kafka.topic import Topic, new_consumer, parse_topic
from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import LEARN, Event
from recserve.engine.state.group_commit import Outcome
from recserve.engine.state.state import State, open_state, read_log
from recserve.errors import ConfigError, StorageFull, Unavailable
from tests.engine.server.killing import serving

kafka = pytest.importorskip("confluent_kafka")
pytest.importorskip("apsw")
TIMEOUT_SECONDS = 30
PARTITIONS = range(4)
NAMES = map("topic-{}".format, itertools.count())


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    """The addresses of a mock cluster."""
    owner = kafka.Producer({"test.mock.num.brokers": 2, "log_level": "2"})
    found = owner.list_topics(timeout=TIMEOUT_SECONDS).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in found)
    del owner


@pytest.fixture
def topic(brokers: str) -> Topic:
    """A topic that nobody used."""
    return parse_topic("state.sink", f"kafka://{brokers}/{next(NAMES)}")


@pytest.fixture
def config(tmp_path: Path) -> StateConfig:
    return StateConfig(url=f"sqlite:///{tmp_path}/events")


@pytest.fixture
def state(config: StateConfig) -> Iterator[State]:
    with open_state(config) as state:
        state.load()
        yield state


def event(number: int, **fields: Any) -> Event:
    return Event(
        **{"user_id": f"user-{number % 3}", "item_id": f"i{number}", "event_id": f"e{number}", **fields}
    )


def published(topic: Topic, n: int) -> list[Any]:
    """Reads ``n`` messages of a topic from its beginning."""
    consumer = kafka.Consumer({"bootstrap.servers": topic.brokers, "group.id": "test", "log_level": "2"})
    beginning = [kafka.TopicPartition(topic.name, number, kafka.OFFSET_BEGINNING) for number in PARTITIONS]
    consumer.assign(beginning)
    found: list[Any] = []
    for _ in range(300):
        found += [message for message in consumer.consume(n, timeout=0.3) if not message.error()]
        if len(found) >= n:
            break
    consumer.close()
    assert len(found) == n
    return found


def produce(topic: Topic, *values: bytes) -> None:
    producer = kafka.Producer({"bootstrap.servers": topic.brokers, "log_level": "2"})
    for value in values:
        producer.produce(topic.name, key="one partition", value=value)
    assert producer.flush(TIMEOUT_SECONDS) == 0


def message(number: int, **fields: Any) -> bytes:
    return json.dumps({"userId": "u", "itemId": f"i{number}", "eventId": f"e{number}", **fields}).encode()


def committed(topic: Topic) -> set[int]:
    """Returns the offsets that the group of a topic would go on from."""
    consumer = new_consumer(topic)
    places = [kafka.TopicPartition(topic.name, number) for number in PARTITIONS]
    offsets = {place.offset for place in consumer.committed(places, timeout=TIMEOUT_SECONDS)}
    consumer.close()
    return offsets - {kafka.OFFSET_INVALID}


class Recorded:
    """The outcomes of what a source records, which may be made to fail first."""

    def __init__(self, state: State, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        waiting, record = list(errors), state.record

        def told(events: list[Event]) -> Outcome:
            if waiting:
                raise waiting.pop(0)
            outcome = record(events)
            self.outcomes.put(outcome)
            return outcome

        monkeypatch.setattr(state, "record", told)

    def total(self, n: int) -> Outcome:
        """Waits for the outcomes of ``n`` events; returns their sum."""
        total = Outcome("power")
        while total.n_stored + len(total.duplicates) + len(total.refused) < n:
            one = self.outcomes.get(timeout=TIMEOUT_SECONDS)
            total.n_stored += one.n_stored
            total.duplicates += one.duplicates
            total.refused += one.refused
        return total


def test_what_was_acknowledged_is_published_in_the_order_of_each_user(state: State, topic: Topic) -> None:
    state.record([event(number) for number in range(6)])
    state.record([event(6, purposes=LEARN), event(7, item_id="last")])
    sink = KafkaSink(state, topic)
    messages = published(topic, 7)
    sink.stop()
    by_user: dict[bytes, list[str]] = {}
    for one in messages:
        body = json.loads(one.value())
        by_user.setdefault(one.key(), []).append(body["eventId"])
        assert body["userId"].encode() == one.key()
        assert b"user-" not in one.value() + one.key()
    assert sorted(by_user.values()) == [["e0", "e3"], ["e1", "e4", "e7"], ["e2", "e5"]]
    assert "last" in {json.loads(one.value())["itemId"] for one in messages}


def test_a_sink_goes_on_where_it_was(config: StateConfig, topic: Topic) -> None:
    for start in (0, 3, 6):
        with open_state(config) as state:
            state.load()
            state.record([event(number) for number in range(start, start + 3)])
            sink = KafkaSink(state, topic)
            published(topic, start + 3)
            sink.stop()


def test_a_crash_before_the_cursor_moved_publishes_again_and_loses_nothing(
    state: State, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.record([event(number) for number in range(3)])

    def crash(name: str, seq: int) -> None:
        raise Unavailable("log", found="gone", expected="there")

    with monkeypatch.context() as broken:
        broken.setattr(state, "move_cursor", crash)
        # A sink that tries again by itself would publish more than this test counts.
        broken.setattr("recserve.engine.server.kafka.sink.RETRY_SECONDS", 600.0)
        sink = KafkaSink(state, topic)
        published(topic, 3)
        sink.stop()
    sink = KafkaSink(state, topic)
    ids = [json.loads(one.value())["eventId"] for one in published(topic, 6)]
    sink.stop()
    assert sorted(ids) == ["e0", "e0", "e1", "e1", "e2", "e2"]


def test_what_others_produce_is_recorded_once(
    config: StateConfig, state: State, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(state, monkeypatch, StorageFull("disk", found="full", expected="room"))
    monkeypatch.setattr("recserve.engine.server.kafka.source.RETRY_SECONDS", 0.0)
    produce(topic, message(1, timestamp=5), b"no json", message(1), message(2), message(3, action="clik"))
    produce(topic, b'{"userId": "u", "itemId": "i4"}')
    # A source that ends before its offsets have moved: all of it comes again.
    with monkeypatch.context() as broken:
        broken.setattr(KafkaSource, "_commit", lambda source, messages: None)
        source = KafkaSource(state, topic)
        first = recorded.total(5)
        source.stop()
    assert (first.n_stored, len(first.duplicates), len(first.refused)) == (3, 1, 1)
    assert committed(topic) == set()
    # Another group, because the mock cluster takes long to give partitions to a second member of one.
    other = replace(topic, settings={"group.id": "other"})
    source = KafkaSource(state, other)
    again = recorded.total(5)
    assert (again.n_stored, len(again.duplicates)) == (0, 4)
    produce(topic, message(9))
    assert recorded.total(1).n_stored == 1
    source.stop()
    assert committed(other) == {7}
    logged = [one.event for one in read_log(config)]
    assert [one.item_id for one in logged] == ["i1", "i2", "i4", "i9"]
    assert logged[0].timestamp == 5
    # Without an id and a time it has those of its place in the topic, and of when it came there.
    assert re.fullmatch(rf"{topic.name}/\d/5/\d{{13}}", logged[2].event_id)
    assert logged[2].timestamp > 1_700_000_000


def test_a_server_reads_and_publishes(
    bundle_folder: Path, tmp_path: Path, brokers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming, outgoing = (f"kafka://{brokers}/{next(NAMES)}" for _ in range(2))
    monkeypatch.setenv("RECSERVE__STATE__SOURCE", incoming)
    monkeypatch.setenv("RECSERVE__STATE__SINK", outgoing)
    produce(parse_topic("source", incoming), message(1), message(2))
    with serving(bundle_folder, f"sqlite:///{tmp_path}/events", tmp_path / "log"):
        messages = published(parse_topic("sink", outgoing), 2)
    assert [json.loads(one.value())["itemId"] for one in messages] == ["i1", "i2"]


@pytest.mark.parametrize("url", ["http://b/t", "kafka://b", "kafka:///t", "kafka://b/t/u", "kafka://b/"])
def test_a_url_that_names_no_topic_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"state\.sink is .*; expected kafka://BROKER:PORT/TOPIC"):
        parse_topic("state.sink", url)


def test_a_setting_that_librdkafka_does_not_know_is_named(
    state: State, brokers: str, capfd: pytest.CaptureFixture[str]
) -> None:
    topic = parse_topic("state.sink", f"kafka://{brokers}/t?sasl.pasword=secret")
    with pytest.raises(ConfigError, match=r'No such configuration property: "sasl.pasword"') as caught:
        KafkaSink(state, topic)
    assert "secret" not in str(caught.value) + repr(topic) + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "kafka://b/t"},
        {"url": "memory://", "source": "kafka://b/t", "sink": "kafka://b/t"},
    ],
)
def test_topics_without_a_log_or_in_a_circle_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="expected different topics, beside a log"):
        StateConfig(**settings)

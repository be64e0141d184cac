"""What others put into Kafka is recorded like what callers record."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import structlog

from recserve.engine.server.http.json_codec import message_from_json
from recserve.engine.server.kafka.topic import Topic, import_kafka, new_consumer
from recserve.engine.state.distant import AnyState
from recserve.engine.state.events import Event
from recserve.engine.wire.events import event_from_message
from recserve.errors import MalformedRequest, RecserveError
from recserve.proto import feedback_pb2 as pb

log = structlog.get_logger("recserve.kafka")

BATCH = 1000
LOOK_SECONDS = 0.2
RETRY_SECONDS = 1.0


class KafkaSource:
    """Records the events of a topic on a thread of its own, until :meth:`stop`.

    Offsets move when the events before them are durable: after a crash some come again and, their ids being
    the same, have no further effect. Servers of one group share the partitions.
    """

    def __init__(self, state: AnyState, topic: Topic) -> None:
        """Raises :class:`ConfigError` for settings that librdkafka does not know."""
        self._state, self._topic = state, topic
        self._kafka = import_kafka()
        self._consumer = new_consumer(topic)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recserve-kafka-source", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has left the group."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        self._consumer.subscribe([self._topic.name])
        while not self._stopped.is_set():
            try:
                found = self._consumer.consume(BATCH, timeout=LOOK_SECONDS)
                for message in found:
                    if error := message.error():
                        log.error("topic cannot be read", topic=self._topic.name, error=error.name())
                messages = [message for message in found if not message.error()]
                if messages and self._record(messages):
                    self._commit(messages)
            except self._kafka.KafkaException as error:
                log.error("topic cannot be read", topic=self._topic.name, error=error.args[0].name())
                self._stopped.wait(RETRY_SECONDS)
        self._consumer.close()

    def _record(self, messages: Sequence[Any]) -> bool:
        """Tries until the events are durable; returns False when it was stopped before."""
        refused: Counter[str] = Counter()
        events: list[Event] = []
        for message in messages:
            try:
                events.append(read_event(message))
            except MalformedRequest as error:
                refused[type(error).__name__] += 1
        is_failing = False
        while not self._stopped.is_set():
            try:
                outcome = self._state.record(events)
            except RecserveError as error:
                if not is_failing:
                    log.error("events of a topic are not recorded, trying again", error=str(error))
                is_failing = True
                self._stopped.wait(RETRY_SECONDS)
                continue
            refused.update(type(error).__name__ for _, error in outcome.refused)
            if refused:
                log.warning("events of a topic refused", topic=self._topic.name, **refused)
            return True
        return False

    def _commit(self, messages: Sequence[Any]) -> None:
        ends = {(message.topic(), message.partition()): message.offset() + 1 for message in messages}
        offsets = [self._kafka.TopicPartition(*place, end) for place, end in ends.items()]
        self._consumer.commit(offsets=offsets, asynchronous=False)


def read_event(message: Any) -> Event:
    """Reads a ``recserve.v1.Event`` in JSON; raises :class:`MalformedRequest`.

    Without an id of its own an event has that of its place in the topic; without a time, that of the message.
    """
    event = message_from_json(pb.Event, message.value() or b"")
    if not event.event_id:
        # With its time: a topic that is made anew counts its offsets from 0 again.
        place = f"{message.topic()}/{message.partition()}/{message.offset()}"
        event.event_id = f"{place}/{message.timestamp()[1]}"
    if not event.HasField("timestamp"):
        event.timestamp = message.timestamp()[1] // 1000
    return event_from_message(event)

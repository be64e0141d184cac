"""What is recorded goes to Kafka as well, from the log."""

import threading
from typing import Any

import structlog

from recserve.engine.server.http.json_codec import message_to_json
from recserve.engine.server.kafka.topic import Topic, import_kafka, new_producer
from recserve.engine.state.distant import AnyState
from recserve.engine.state.events import EXPORT
from recserve.engine.wire.events import event_to_message
from recserve.errors import RecserveError, Unavailable

log = structlog.get_logger("recserve.kafka")

PAGE = 1000
LOOK_SECONDS = 0.1
RETRY_SECONDS = 1.0


class KafkaSink:
    """Produces every event whose user agreed to exports, at least once, on a thread of its own.

    A cursor in the log says how far it came; it moves when all replicas have what is before it. One user's
    events stay in order: the key is the pseudonym.
    """

    def __init__(self, state: AnyState, topic: Topic) -> None:
        """Raises :class:`ConfigError` for settings that librdkafka does not know."""
        self._state, self._topic = state, topic
        self._producer = new_producer(topic)
        self._errors = import_kafka().KafkaException
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recserve-kafka-sink", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended; the next start goes on where it was."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        is_failing = False
        pause = 0.0
        while not self._stopped.wait(pause):
            try:
                pause = 0.0 if self._publish() else LOOK_SECONDS
                is_failing = False
            except (RecserveError, BufferError, self._errors) as error:
                if not is_failing:
                    log.error(
                        "events are not published, trying again", topic=self._topic.name, error=str(error)
                    )
                is_failing, pause = True, RETRY_SECONDS

    def _publish(self) -> bool:
        """Produces the next events; returns whether there were any."""
        name = f"kafka {self._topic.name}"
        after = self._state.cursor(name).result()
        logged, last = self._state.events_after(after, limit=PAGE).result()
        if not last:
            return False
        failures: list[Any] = []
        for one in logged:
            if (one.event.purposes or 0) & EXPORT:
                self._producer.produce(
                    self._topic.name,
                    key=one.event.user_id,
                    value=message_to_json(event_to_message(one.event)),
                    on_delivery=lambda error, _: failures.append(error) if error else None,
                )
        while self._producer.flush(LOOK_SECONDS):
            if self._stopped.is_set():
                return False
        if failures:
            raise Unavailable(
                f"topic {self._topic.name}", found=f"not writable ({failures[0].name()})", expected="writable"
            )
        self._state.move_cursor(name, last).result()
        return True

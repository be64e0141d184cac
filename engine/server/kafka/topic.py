"""One topic of Kafka, named by URL, and librdkafka's clients for it."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from recserve.errors import ConfigError

DEFAULT_GROUP = "recserve"


@dataclass(frozen=True, slots=True)
class Topic:
    """kafka://BROKER:PORT,BROKER:PORT/NAME?SETTING=VALUE; settings are librdkafka's (TLS, group.id)."""

    brokers: str
    name: str
    # May be secrets.
    settings: dict[str, str] = field(repr=False)


def parse_topic(setting: str, url: str) -> Topic:
    """Reads a URL; raises :class:`ConfigError` naming the setting that it comes from."""
    parts = urlsplit(url)
    name = parts.path.removeprefix("/")
    if parts.scheme != "kafka" or not parts.netloc or not name or "/" in name:
        raise ConfigError(setting, found=url.partition("?")[0], expected="kafka://BROKER:PORT/TOPIC")
    return Topic(parts.netloc, name, dict(parse_qsl(parts.query, keep_blank_values=True)))


def new_producer(topic: Topic) -> Any:
    """Returns a producer that keeps the order and waits for all replicas."""
    return _client("Producer", topic, {"enable.idempotence": "true"})


def new_consumer(topic: Topic) -> Any:
    """Returns a consumer that starts with the oldest event, and whose offsets are moved by hand."""
    group = {"group.id": DEFAULT_GROUP, "auto.offset.reset": "earliest"}
    return _client("Consumer", topic, {**group, "enable.auto.commit": "false"})


def import_kafka() -> Any:
    """Returns the module; raises :class:`ConfigError` where it is missing."""
    try:
        import confluent_kafka
    except ImportError as error:
        raise ConfigError(
            "state.source or state.sink",
            found="given without confluent-kafka",
            expected="an installation with the extra [kafka]",
            cure="Run: pip install 'recserve[kafka]'",
        ) from error
    return confluent_kafka


def _client(kind: str, topic: Topic, settings: dict[str, str]) -> Any:
    kafka = import_kafka()
    settings = {**settings, **topic.settings, "bootstrap.servers": topic.brokers}
    try:
        # What librdkafka has to say is said by the events that it gives to its callers.
        return getattr(kafka, kind)({**settings, "log_level": "2"})
    except kafka.KafkaException as error:
        raise ConfigError(
            f"settings of topic {topic.name}", found="not usable", expected=error.args[0].str()
        ) from error

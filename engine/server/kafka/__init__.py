"""Events from Kafka and to Kafka (``[state] source`` and ``sink``)."""

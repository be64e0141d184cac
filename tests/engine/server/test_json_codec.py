"""JSON ↔ messages: what is no message is refused with the name of the field that is to blame."""

import json
import random
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.server.http.json_codec import message_from_json, message_to_json
from recserve.errors import MalformedRequest
from recserve.proto import recommender_pb2 as pb
from tests.engine.server.fuzzing import Messages

BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "request is not JSON"),
    "a list": (b"[]", "request is a list"),
    "UTF-16": ('{"k": 1}'.encode("utf-16"), "request is not JSON"),
    "NaN": (b'{"k": NaN}', "request is with the number NaN"),
    "a key twice": (b'{"k": 1, "k": 2}', "repeated key"),
    "an unknown key": (b'{"userld": "u"}', "Did you mean 'userId'?"),
    "text for a number": (b'{"k": "many"}', "k is text; expected a whole number"),
    "k beyond 32 bits": (b'{"k": 99999999999}', "k is a number; expected a whole number in its range"),
    "a wrong list": (b'{"history": [1]}', "history is a list; expected a list, each valid text"),
    "a lone surrogate": (b'{"userId": "\\ud800"}', "user_id is text; expected valid text"),
    "a wrong map": (b'{"context": {"a": 1}}', "context is an object; expected an object, each value"),
    "nested deeply": (b'{"a":' * 5000, "request is not JSON"),
    "a long number": (b'{"k": ' + b"9" * 5000 + b"}", "request is not JSON"),
}


@pytest.mark.parametrize(("body", "sentence"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_names_its_fault(body: bytes, sentence: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        message_from_json(pb.RecommendRequest, body)
    assert sentence in str(caught.value)


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["userId", "k", "history", "context", "x", "requests"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_a_message_or_malformed(data: bytes) -> None:
    for kind in (pb.RecommendRequest, pb.RecommendManyRequest):
        try:
            message = message_from_json(kind, data)
        except MalformedRequest:
            continue
        assert message_from_json(kind, message_to_json(message)) == message


REPLIES = (
    pb.Slate,
    pb.RecommendManyResponse,
    pb.RecommendPageResponse,
    pb.RankResponse,
    pb.WhyNotResponse,
    pb.GetItemsResponse,
    pb.RecommendRequest,
)


@pytest.mark.parametrize("kind", REPLIES, ids=lambda kind: kind.DESCRIPTOR.name)
def test_messages_are_written_as_protobuf_itself_writes_them(kind: Any) -> None:
    messages = Messages(random.Random(7), ["a", "b"])
    n_written = 0
    for _ in range(50):
        message = messages.new(kind)
        try:
            expected = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
        except TypeError:  # A google.protobuf.Any of a message that nobody knows.
            continue
        assert json.loads(message_to_json(message)) == expected
        n_written += 1
    assert n_written >= 10


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5))
def test_numbers_come_back_as_they_were(scores: list[float]) -> None:
    slate = pb.Slate(items=[pb.SlateItem(score=score) for score in scores])
    written = [item["score"] for item in json.loads(message_to_json(slate))["items"]]
    assert np.array_equal(np.array(written, np.float32), np.array(scores, np.float32))
    assert all(len(repr(one)) <= len(repr(score)) for one, score in zip(written, scores, strict=True))

"""Reading only the fields that are set gives what reading all of them gives."""

from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.bundle.rules import Pin
from recserve.engine.explain.explanation import EXPLAIN_NONE
from recserve.engine.types import DEFAULT_K, Request
from recserve.engine.wire.convert import request_from_message
from recserve.proto import recommender_pb2 as pb

TEXTS = st.text(max_size=8)
NUMBERS = st.integers(-(2**31), 2**31 - 1)
LONG = st.integers(-(2**63), 2**63 - 1)
MESSAGES = st.builds(
    pb.RecommendRequest,
    user_id=TEXTS,
    k=st.none() | NUMBERS,
    history=st.lists(TEXTS, max_size=3),
    history_timestamps=st.lists(LONG, max_size=3),
    exclude=st.lists(TEXTS, max_size=3),
    context=st.dictionaries(TEXTS, TEXTS, max_size=2),
    variant=TEXTS,
    include_seen=st.booleans(),
    model=TEXTS,
    filter=TEXTS,
    predict=TEXTS,
    weights=st.dictionaries(TEXTS, st.floats(allow_nan=False), max_size=2),
    rules=st.none() | st.builds(pb.Rules, pins=st.just([pb.Pin(item_id="i", rank=2)])),
    explain=TEXTS,
    page_token=st.none() | TEXTS,
    seed=st.none() | LONG,
    budget_ms=st.none() | NUMBERS,
)
# What most messages say.
PLAIN = st.builds(
    pb.RecommendRequest, user_id=TEXTS, k=st.none() | NUMBERS, history=st.just(()) | st.just(["i"])
)


@given(MESSAGES | PLAIN)
def test_a_request_has_what_its_message_says(message: pb.RecommendRequest) -> None:
    request = request_from_message(pb.RecommendRequest.FromString(message.SerializeToString()))
    assert (request.rules is not None) == message.HasField("rules")
    if request.rules is not None:
        assert request.rules.pins == [Pin("i", 2)]
    assert request == Request(
        user_id=message.user_id,
        k=message.k if message.HasField("k") else DEFAULT_K,
        history=tuple(message.history) or None,
        history_timestamps=tuple(message.history_timestamps),
        exclude=tuple(message.exclude),
        context=dict(message.context),
        variant=message.variant,
        include_seen=message.include_seen,
        predict=message.predict,
        weights=dict(message.weights),
        filter=message.filter,
        rules=request.rules,
        explain=message.explain or EXPLAIN_NONE,
        page_token=message.page_token if message.HasField("page_token") else None,
        seed=message.seed if message.HasField("seed") else None,
        budget_ms=message.budget_ms if message.HasField("budget_ms") else None,
    )

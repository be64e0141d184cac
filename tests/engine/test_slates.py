"""The fast way to the wire gives the message that the plain way gives."""

from dataclasses import replace

from recserve.engine import Engine, Request
from recserve.engine.ranked import Ranked, slates
from recserve.engine.wire.convert import slate_to_message
from recserve.engine.wire.slates import QUEUE, encode_ranked
from recserve.proto import recommender_pb2 as pb


def test_encoded_slates_are_those_of_the_engine(engine: Engine) -> None:
    users = list(engine.user_ids()[:6])
    some = engine.recommend(Request(k=4)).items
    requests = [
        *(Request(user_id=user, k=k) for user, k in zip(users, (1, 3, 10, 1000, 7, 2), strict=True)),
        Request(k=5, page_token=""),
        Request(history=["no such item"], exclude=[item.item_id for item in some], context={"hour": "9"}),
    ]
    answers = engine.rank_each(requests)
    ranked = [answer for answer in answers if isinstance(answer, Ranked)]
    assert len(ranked) == len(requests)
    assert {answer.source for answer in ranked} == {"model", "popularity"}
    encoded = encode_ranked(ranked)
    for data, slate in zip(encoded, slates(ranked), strict=True):
        assert pb.Slate.FromString(data) == slate_to_message(slate)
    waited = [0, 127, 128, 300_000, 2**40, 1, 2, 3]
    for ns, data, slate in zip(waited, encode_ranked(ranked, waited), slates(ranked), strict=True):
        expected = replace(slate, stage_ns={QUEUE: ns, **slate.stage_ns})
        assert pb.Slate.FromString(data) == slate_to_message(expected)

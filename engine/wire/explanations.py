"""Explanations ↔ messages."""

from recserve.engine.explain.explanation import Contribution, Explanation, Reason, ReasonCode
from recserve.proto import recommender_pb2 as pb

CODES = {pb.Reason.Code.Value(code.name): code for code in ReasonCode}


def explanation_to_message(explanation: Explanation) -> pb.Explanation:
    """Writes an explanation."""
    return pb.Explanation(
        reasons=[
            pb.Reason(code=pb.Reason.Code.Value(reason.code.name), item_ids=reason.item_ids)
            for reason in explanation.reasons
        ],
        contributions=[
            pb.Contribution(item_id=one.item_id, value=one.value) for one in explanation.contributions
        ],
        method=explanation.method,
        base=explanation.base,
    )


def explanation_from_message(message: pb.Explanation) -> Explanation:
    """Reads an explanation; a code that only a newer server knows becomes "for you"."""
    return Explanation(
        reasons=tuple(
            Reason(CODES.get(reason.code, ReasonCode.FOR_YOU), tuple(reason.item_ids))
            for reason in message.reasons
        ),
        contributions=tuple(Contribution(one.item_id, one.value) for one in message.contributions),
        method=message.method,
        base=message.base,
    )

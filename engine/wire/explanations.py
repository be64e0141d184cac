"""Explanations, of what is in a slate and what is not, ↔ messages."""

from recserve.engine.explain.cause import Cause, WhyNot
from recserve.engine.explain.explanation import Contribution, Explanation, Reason, ReasonCode
from recserve.proto import recommender_pb2 as pb

CAUSES = {pb.WhyNotResponse.Cause.Value(cause.name): cause for cause in Cause}
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


def why_not_to_message(why: WhyNot) -> pb.WhyNotResponse:
    """Writes the answer to why an item is not in a slate; who asked knows which item."""
    return pb.WhyNotResponse(
        cause=pb.WhyNotResponse.Cause.Value(why.cause.name),
        detail=why.detail,
        numbers=why.numbers,
        bundle_version=why.bundle_version,
    )


def why_not_from_message(message: pb.WhyNotResponse, item_id: str) -> WhyNot:
    """Reads the answer; a cause that only a newer server knows becomes "rules"."""
    return WhyNot(
        item_id=item_id,
        cause=CAUSES.get(message.cause, Cause.RULES),
        bundle_version=message.bundle_version,
        detail=message.detail,
        numbers=dict(message.numbers),
    )

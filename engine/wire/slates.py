"""Ranked items → the bytes of ``recserve.v1.Slate`` messages, straight from arrays."""

from collections.abc import Sequence

import numpy as np

from recserve import kernels
from recserve.engine.bundle import Bundle
from recserve.engine.ranked import Ranked, chances, slates
from recserve.engine.wire.convert import slate_to_message
from recserve.proto import recommender_pb2 as pb

# The stage of a call before its batch began.
QUEUE = "queue"
# A StageTime of it as a field of Slate: tag, length of what follows, its name, and the tag of its duration.
_STAGE = b"\x2a%c\x0a\x05queue\x10%b"
_STAGE_BYTES = 8
# Slate.slate_id: tag, length (ours are short: one byte), text.
_ID = b"\x52%c%b"


def encode_ranked(answers: Sequence[Ranked], queue_ns: Sequence[int] | None = None) -> list[bytes]:
    """Returns the message of each answer, as ``slate_to_message`` of its slate would serialise it.

    ``queue_ns``: how long each one waited for its batch, which becomes the first of its stage times.
    A protobuf message is the concatenation of its fields: the items of the whole batch are written by one
    kernel, and what its rows share is encoded once.
    """
    encoded: list[bytes] = []
    rest: dict[tuple[object, ...], bytes] = {}
    # The rows have one bundle: batches are divided by arm, and a swap falls between them.
    for items, answer in zip(_encode_items(answers[0].bundle, answers), answers, strict=True):
        key = (
            answer.source,
            answer.warnings,
            answer.variant,
            id(answer.stage_ns),
            answer.degraded,
            answer.next_page_token,
        )
        if key not in rest:
            rest[key] = _encode_rest(answer)
        if answer.explained is None and answer.origins is None:
            own = _encode_id(answer.slate_id) + _encode_chances(answer)
            encoded.append(b"".join((items, rest[key], own)))
        else:
            # A field that repeats cannot be added to later: items that tell more are written the plain way.
            encoded.append(_encode_plain(answer))
    if queue_ns is None:
        return encoded
    # A message may have its fields in any order; repeated ones keep theirs.
    return [_encode_queue(ns) + slate for ns, slate in zip(queue_ns, encoded, strict=True)]


def _encode_queue(ns: int) -> bytes:
    """By hand: a message object per call would cost more than the rest of its encoding."""
    varint = bytearray()
    while ns > 0x7F:
        varint.append(ns & 0x7F | 0x80)
        ns >>= 7
    varint.append(ns)
    return _STAGE % (_STAGE_BYTES + len(varint), bytes(varint))


def _encode_id(slate_id: str) -> bytes:
    text = slate_id.encode()
    return _ID % (len(text), text)


def _encode_chances(answer: Ranked) -> bytes:
    if answer.choice is None:
        return b""
    propensities, explored = chances(answer)
    return pb.Slate(propensities=propensities, explored=explored).SerializeToString()


def _encode_plain(answer: Ranked) -> bytes:
    return slate_to_message(slates([answer])[0]).SerializeToString()


def _encode_items(bundle: Bundle, answers: Sequence[Ranked]) -> list[bytes]:
    offsets, id_bytes = bundle.catalogue.vocabulary.utf8()
    lengths = np.array([len(answer.items) for answer in answers])
    shape = (len(answers), int(lengths.max(initial=0)))
    items, scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
    for i, answer in enumerate(answers):
        items[i, : lengths[i]] = answer.items
        scores[i, : lengths[i]] = answer.scores
    out, ends = kernels.encode_slate_items(offsets, id_bytes, items, scores, lengths)
    data, start, encoded = out.tobytes(), 0, []
    for end in ends.tolist():
        encoded.append(data[start:end])
        start = end
    return encoded


def _encode_rest(answer: Ranked) -> bytes:
    return pb.Slate(
        bundle_version=answer.bundle.manifest.bundle_version,
        variant=answer.variant,
        source=answer.source,
        stage_times=[pb.StageTime(stage=name, duration_ns=ns) for name, ns in answer.stage_ns.items()],
        warnings=answer.warnings,
        arm=answer.arm,
        degraded=answer.degraded,
        next_page_token=answer.next_page_token,
    ).SerializeToString()

"""Ranked items → the bytes of ``recserve.v1.Slate`` messages, straight from arrays."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from recserve import kernels
from recserve.engine.bundle import Bundle
from recserve.engine.ranked import Ranked, chances, slates
from recserve.engine.wire.convert import slate_to_message
from recserve.proto import recommender_pb2 as pb

# The stage of a call before its batch began.
QUEUE = "queue"
# Fields of Slate by hand, where a message object per call would cost more than the rest of its encoding.
# stage_times: tag, length, then of a StageTime its name (tag, length, text) and its duration (tag, varint).
_STAGE = b"\x2a%c\x0a%c%b\x10%b"
_STAGE_BYTES = 3
# slate_id: tag, length (ours are short: one byte), text.
_ID = b"\x52%c%b"


def encode_ranked(answers: Sequence[Ranked], queue_ns: Sequence[int] | None = None) -> list[bytes]:
    """Returns the message of each answer, as ``slate_to_message`` of its slate would serialise it.

    ``queue_ns``: how long each one waited for its batch, which becomes the first of its stage times.
    A protobuf message is the concatenation of its fields, in any order: the items of the whole batch are
    written by one kernel, and what its rows share is encoded once.
    """
    encoded: list[bytes] = []
    stages: dict[int, bytes] = {}
    # The rows have one bundle: batches are divided by arm, and a swap falls between them.
    for items, answer in zip(_encode_items(answers[0].bundle, answers), answers, strict=True):
        if answer.explained is not None or answer.origins is not None:
            # A field that repeats cannot be added to later: items that tell more are written the plain way.
            encoded.append(_encode_plain(answer))
            continue
        key = id(answer.stage_ns)
        if key not in stages:
            stages[key] = b"".join(_encode_stage(name, ns) for name, ns in answer.stage_ns.items())
        encoded.append(b"".join((items, _encode_shared(answer), stages[key], _encode_own(answer))))
    if queue_ns is None:
        return encoded
    # Repeated fields keep their order.
    return [_encode_stage(QUEUE, ns) + slate for ns, slate in zip(queue_ns, encoded, strict=True)]


def _encode_stage(name: str, ns: int) -> bytes:
    text, varint = name.encode(), bytearray()
    while ns > 0x7F:
        varint.append(ns & 0x7F | 0x80)
        ns >>= 7
    varint.append(ns)
    return _STAGE % (_STAGE_BYTES + len(text) + len(varint), len(text), text, bytes(varint))


def _encode_shared(answer: Ranked) -> bytes:
    version = answer.bundle.manifest.bundle_version
    return _shared(version, answer.variant, answer.source, answer.warnings, answer.arm, answer.degraded)


@lru_cache(maxsize=256)
def _shared(
    bundle_version: str,
    variant: str,
    source: str,
    warnings: tuple[str, ...],
    arm: str,
    degraded: tuple[str, ...],
) -> bytes:
    """What nearly all replies share, kept from batch to batch."""
    slate = pb.Slate(
        bundle_version=bundle_version,
        variant=variant,
        source=source,
        warnings=warnings,
        arm=arm,
        degraded=degraded,
    )
    return slate.SerializeToString()


def _encode_own(answer: Ranked) -> bytes:
    text = answer.slate_id.encode()
    own = _ID % (len(text), text)
    if answer.next_page_token:
        own += pb.Slate(next_page_token=answer.next_page_token).SerializeToString()
    return own if answer.choice is None else own + _encode_chances(answer)


def _encode_chances(answer: Ranked) -> bytes:
    propensities, explored = chances(answer)
    return pb.Slate(propensities=propensities, explored=explored).SerializeToString()


def _encode_plain(answer: Ranked) -> bytes:
    return slate_to_message(slates([answer])[0]).SerializeToString()


def _encode_items(bundle: Bundle, answers: Sequence[Ranked]) -> list[bytes]:
    offsets, id_bytes = bundle.catalogue.vocabulary.utf8()
    lengths = np.array([len(answer.items) for answer in answers])
    shape = (len(answers), int(lengths.max(initial=0)))
    if lengths.sum() == shape[0] * shape[1]:
        items = np.concatenate([answer.items for answer in answers]).reshape(shape)
        scores = np.concatenate([answer.scores for answer in answers]).reshape(shape)
    else:
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

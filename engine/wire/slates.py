"""Ranked items → the bytes of ``recserve.v1.Slate`` messages, straight from arrays."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

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
_STAGE_HEAD = b"\x2a%c\x0a%c%b\x10"
_STAGE_BYTES = 3
# slate_id: tag, length (ours are short: one byte); then its text.
_ID_HEADS = tuple(b"\x52%c" % length for length in range(128))


def encode_ranked(answers: Sequence[Ranked], queue_ns: Sequence[int] | None = None) -> list[bytes]:
    """Returns the message of each answer, as ``slate_to_message`` of its slate would serialise it.

    ``queue_ns``: how long each one waited for its batch, which becomes the first of its stage times.
    A protobuf message is the concatenation of its fields, in any order: the items of the whole batch are
    written by one kernel, and what its rows share is encoded once.
    """
    # First: repeated fields keep their order.
    queues = [b""] * len(answers) if queue_ns is None else [_encode_stage(QUEUE, ns) for ns in queue_ns]
    encoded: list[bytes] = []
    shared: dict[tuple[Any, ...], bytes] = {}
    # The rows have one bundle: batches are divided by arm, and a swap falls between them.
    rows = zip(queues, _encode_items(answers[0].bundle, answers), answers, strict=True)
    for queue, items, answer in rows:
        if answer.explained is not None or answer.origins is not None:
            # A field that repeats cannot be added to later: items that tell more are written the plain way.
            encoded.append(queue + _encode_plain(answer))
            continue
        said = answer.variant, answer.source, answer.warnings, answer.arm, answer.degraded
        key = (id(answer.stage_ns), said)
        told = shared.get(key)
        if told is None:
            stages = [_encode_stage(name, ns) for name, ns in answer.stage_ns.items()]
            told = shared[key] = b"".join((_shared(answer.bundle.manifest.bundle_version, *said), *stages))
        text = answer.slate_id.encode()
        slate = b"".join((queue, items, told, _ID_HEADS[len(text)], text))
        if answer.next_page_token or answer.choice is not None:
            slate += _encode_own(answer)
        encoded.append(slate)
    return encoded


def _encode_stage(name: str, ns: int) -> bytes:
    varint = bytearray()
    while ns > 0x7F:
        varint.append(ns & 0x7F | 0x80)
        ns >>= 7
    varint.append(ns)
    return _stage_head(name, len(varint)) + varint


@lru_cache(maxsize=256)
def _stage_head(name: str, n_duration_bytes: int) -> bytes:
    text = name.encode()
    return _STAGE_HEAD % (_STAGE_BYTES + len(text) + n_duration_bytes, len(text), text)


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
    propensities, explored = chances(answer)
    slate = pb.Slate(next_page_token=answer.next_page_token, propensities=propensities, explored=explored)
    return slate.SerializeToString()


def _encode_plain(answer: Ranked) -> bytes:
    return slate_to_message(slates([answer])[0]).SerializeToString()


def _encode_items(bundle: Bundle, answers: Sequence[Ranked]) -> list[bytes]:
    offsets, id_bytes = bundle.catalogue.vocabulary.utf8()
    lengths = [len(answer.items) for answer in answers]
    shape = (len(answers), max(lengths))
    if len(answers) == 1:
        items = np.ascontiguousarray(answers[0].items, np.int32)[None]
        scores = np.ascontiguousarray(answers[0].scores, np.float32)[None]
    elif min(lengths) == shape[1]:
        items = np.concatenate([answer.items for answer in answers], dtype=np.int32).reshape(shape)
        scores = np.concatenate([answer.scores for answer in answers], dtype=np.float32).reshape(shape)
    else:
        items, scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
        for i, answer in enumerate(answers):
            items[i, : lengths[i]] = answer.items
            scores[i, : lengths[i]] = answer.scores
    out, ends = kernels.encode_slate_items(offsets, id_bytes, items, scores, np.array(lengths))
    data, start, encoded = out.tobytes(), 0, []
    for end in ends.tolist():
        encoded.append(data[start:end])
        start = end
    return encoded

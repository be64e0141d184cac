"""Pages of one long list: an opaque token that carries what was shown, so that no page has it again.

A token holds hashes of item ids, not places in a ranking: the next page has nothing of the pages before it,
whatever happens in between (a click that changes the ranking, another version of the model, another arm).
The check sum tells a damaged token from a good one; it is no signature, for a caller who makes a token of his
own gains what ``exclude`` gives everybody.
"""

import base64
import binascii
import dataclasses
import hashlib
import json
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recserve.engine.types import Request
from recserve.errors import InvalidRequest

FORMAT = b"\x01"
HASH_BYTES = 8
# Format, check sum, request, bundle version; then the items.
HEADER_BYTES = 1 + 3 * HASH_BYTES
MAX_SHOWN = 10_000
MAX_TOKEN_CHARACTERS = -(-(HEADER_BYTES + MAX_SHOWN * HASH_BYTES) // 3) * 4
FIRST_PAGE = "Ask for the first page again, with an empty page_token."


class Shown(NamedTuple):
    """What a token says: the hashes (n,) uint64 of the ids shown so far, and which bundle showed the last."""

    hashes: NDArray[np.uint64]
    bundle: bytes

    def is_of(self, bundle_version: str) -> bool:
        """Whether the last page was made by this version; nothing was made by another before the first."""
        return not self.bundle or self.bundle == _hash(bundle_version.encode())


NOTHING_SHOWN = Shown(np.empty(0, np.uint64), b"")


def read_token(request: Request) -> Shown:
    """Returns what the token of ``request`` says, nothing for the first page.

    Raises :class:`InvalidRequest` for what is no token, or that of another list: another user, filter,
    prediction or rules. ``k``, ``exclude``, history and context may change from page to page.
    """
    if not isinstance(request.page_token, str):
        raise InvalidRequest("page_token", found=type(request.page_token).__name__, expected="a string")
    if not request.page_token:
        return NOTHING_SHOWN
    data = _decode(request.page_token)
    if data[1 + HASH_BYTES : 1 + 2 * HASH_BYTES] != _fingerprint(request):
        raise InvalidRequest(
            "page_token",
            found="that of another list",
            expected="one that a request with the same user_id, filter, query_text, include_seen, predict, "
            "weights and rules got",
            cure=FIRST_PAGE,
        )
    bundle = data[1 + 2 * HASH_BYTES : HEADER_BYTES]
    return Shown(np.frombuffer(data, "<u8", offset=HEADER_BYTES), bundle)


def write_token(request: Request, shown: NDArray[np.uint64], bundle_version: str) -> str:
    """Returns the token of the page after those on which the items of hashes ``shown`` (n,) were."""
    body = _fingerprint(request) + _hash(bundle_version.encode()) + shown.astype("<u8").tobytes()
    return base64.urlsafe_b64encode(FORMAT + _hash(body) + body).decode()


@lru_cache(maxsize=256)  # A request is checked, resolved and given its next token.
def _decode(token: str) -> bytes:
    """Returns the bytes of a token whose check sum holds."""
    try:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise ValueError(token)
        data = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        whole = len(data) >= HEADER_BYTES and (len(data) - HEADER_BYTES) % HASH_BYTES == 0
        if not whole or data[:1] != FORMAT or _hash(data[1 + HASH_BYTES :]) != data[1 : 1 + HASH_BYTES]:
            raise ValueError(token)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(
            "page_token",
            found=f"{len(token)} characters that are no token",
            expected="next_page_token of the slate before",
            cure=FIRST_PAGE,
        ) from error
    return data


def _fingerprint(request: Request) -> bytes:
    """Hashes what one list is made by; lists and tuples, which the wire does not tell apart, are equal."""
    parts = (
        request.user_id,
        request.filter,
        request.include_seen,
        request.predict,
        dict(request.weights),
        None if request.rules is None else dataclasses.asdict(request.rules),
        *([request.query_text] if request.query_text else []),
    )
    return _hash(json.dumps(parts, sort_keys=True, default=float).encode())


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()

"""The errors of recserve, few and shallow.

Every message is one sentence of one form, "<name> is <found>; expected <allowed>. <cure>", so that a
person knows what to do and a program can read the parts from the attributes. Names and found values are
escaped and cut: parts of them come from outside and must neither flood nor forge a log line.
"""

import difflib
import enum
from collections.abc import Iterable
from typing import Any, ClassVar

MAX_FOUND_CHARACTERS = 64
# A name may hold a path, which is worth reading to its end.
MAX_NAME_CHARACTERS = 160


class RecserveError(Exception):
    """Base of all errors that recserve raises on purpose; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = 1

    def __init__(self, name: str, *, found: object, expected: str, cure: str = "") -> None:
        self.name = shorten(name, MAX_NAME_CHARACTERS)
        self.found = shorten(found)
        self.expected = expected
        self.cure = cure
        sentence = f"{self.name} is {self.found}; expected {expected}."
        super().__init__(f"{sentence} {cure}".rstrip())

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is unpickled by a call with its arguments, and ours are keywords.
        return _restored, (type(self), str(self), self.__dict__)


def _restored(kind: type[RecserveError], sentence: str, fields: dict[str, Any]) -> RecserveError:
    error = kind.__new__(kind, sentence)
    error.__dict__.update(fields)
    return error


class InvalidRequest(RecserveError):
    """The caller asked for something that no server could answer."""

    exit_code = 2


class MalformedRequest(InvalidRequest):
    """The bytes of the request are not the message that they should be."""


class MessageTooLarge(RecserveError):
    """The request has more bytes than the server takes."""


class UnknownItem(InvalidRequest):
    """The one item that the request is about is not in the catalogue."""


class UnknownModel(InvalidRequest):
    """The server has no model, or the model no version, of that name."""


class Conflict(RecserveError):
    """Something else is being done to the same thing, or its state does not allow it now."""


class AlreadyRecorded(InvalidRequest):
    """Another event of the same id was recorded before; the first one stays."""


class UserErased(RecserveError):
    """The user was erased: nothing of them is kept any more."""


class StorageFull(RecserveError):
    """The disk has no room for what should be kept."""


class StorageFailed(RecserveError):
    """What should be kept could not be written; the server takes no more until it is started again."""

    exit_code = 4


class UnknownService(RecserveError):
    """The server has no service of that name."""


class Unsupported(RecserveError):
    """The protocol has it, this server has not."""


class Unauthenticated(RecserveError):
    """Who asks has not said who it is, or not convincingly."""


class PermissionDenied(RecserveError):
    """Who asks may not do this."""


class ConfigError(RecserveError):
    """A setting is unknown or out of its range, or an optional part is not installed."""

    exit_code = 3


class DataError(RecserveError):
    """The behaviour data cannot be used as it is."""


class CheckFailed(RecserveError):
    """A check that guards a promise (parity, gate, SLO) did not hold."""


class BundleReason(enum.StrEnum):
    """Why a bundle is refused, for programs: a closed list; docs/security.md explains each."""

    MANIFEST_MISSING = "BUNDLE_MANIFEST_MISSING"
    MANIFEST_MALFORMED = "BUNDLE_MANIFEST_MALFORMED"
    MANIFEST_FIELD = "BUNDLE_MANIFEST_FIELD"
    FORMAT_UNKNOWN = "BUNDLE_FORMAT_UNKNOWN"
    PATH_UNSAFE = "BUNDLE_PATH_UNSAFE"
    TOO_LARGE = "BUNDLE_TOO_LARGE"
    FILE_MISSING = "BUNDLE_FILE_MISSING"
    FILE_UNLISTED = "BUNDLE_FILE_UNLISTED"
    FILE_NOT_PLAIN = "BUNDLE_FILE_NOT_PLAIN"
    FILE_UNREADABLE = "BUNDLE_FILE_UNREADABLE"
    FILE_SIZE = "BUNDLE_FILE_SIZE"
    FILE_DIGEST = "BUNDLE_FILE_DIGEST"
    SIGNATURE_MISSING = "BUNDLE_SIGNATURE_MISSING"
    SIGNATURE_MALFORMED = "BUNDLE_SIGNATURE_MALFORMED"
    SIGNATURE_UNKNOWN_KEY = "BUNDLE_SIGNATURE_UNKNOWN_KEY"
    SIGNATURE_WRONG = "BUNDLE_SIGNATURE_WRONG"
    CONTENT_MALFORMED = "BUNDLE_CONTENT_MALFORMED"
    TABLE_COLUMNS = "BUNDLE_TABLE_COLUMNS"
    ARRAY_TYPE = "BUNDLE_ARRAY_TYPE"
    SHAPE = "BUNDLE_SHAPE"
    IDS = "BUNDLE_IDS"
    LOOKUP = "BUNDLE_LOOKUP"
    VALUE_RANGE = "BUNDLE_VALUE_RANGE"
    NOT_FINITE = "BUNDLE_NOT_FINITE"
    GRAPH_OPERATOR = "BUNDLE_GRAPH_OPERATOR"
    GRAPH_OUTSIDE_DATA = "BUNDLE_GRAPH_OUTSIDE_DATA"
    GRAPH_REFUSED = "BUNDLE_GRAPH_REFUSED"
    GRAPH_SIGNATURE = "BUNDLE_GRAPH_SIGNATURE"
    GRAPH_FAILS = "BUNDLE_GRAPH_FAILS"
    GRAPH_OUTPUT = "BUNDLE_GRAPH_OUTPUT"
    GOLDEN_MALFORMED = "BUNDLE_GOLDEN_MALFORMED"
    GOLDEN_DIFFERS = "BUNDLE_GOLDEN_DIFFERS"
    INDEX = "BUNDLE_INDEX"
    LOAD_CRASHES = "BUNDLE_LOAD_CRASHES"
    LOAD_TOO_LONG = "BUNDLE_LOAD_TOO_LONG"


class BundleInvalid(RecserveError):
    """A bundle on disk is not complete, not consistent or not what its manifest says."""

    exit_code = 5

    def __init__(
        self,
        name: str,
        *,
        found: object,
        expected: str,
        cure: str = "",
        reason: BundleReason,
    ) -> None:
        super().__init__(name, found=found, expected=expected, cure=cure)
        self.reason = reason


class Overloaded(RecserveError):
    """There is more work than can be answered in time; try again after a moment."""


class RateLimited(Overloaded):
    """One caller asks for more than its share; ``retry_after``: seconds until it may ask again."""

    def __init__(
        self, name: str, *, found: object, expected: str, cure: str = "", retry_after: float = 1.0
    ) -> None:
        super().__init__(name, found=found, expected=expected, cure=cure)
        self.retry_after = retry_after


class DeadlineExceeded(RecserveError):
    """The absolute time limit of the request passed before the answer was ready."""


class Unavailable(RecserveError):
    """Nobody answers: the server is starting, draining or not reachable."""

    exit_code = 4


def shorten(found: object, limit: int = MAX_FOUND_CHARACTERS) -> str:
    """Returns ``found`` as at most ``limit`` printable characters; control characters are escaped."""
    text = found if isinstance(found, str) else repr(found)
    head = text[: limit + 1]
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns "Did you mean 'x'?" for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f"Did you mean {close[0]!r}?" if close else ""

"""Names of the columns: what a source calls them, and what the rest of recserve calls them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from recserve.errors import DataError, InvalidRequest, nearest

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
VALUE = "value"
ACTION = "action"
USER_INDEX = "user_index"
ITEM_INDEX = "item_index"
# Of an item: a vector that came with it.
EMBEDDING = "embedding"

# What a role is called in the wild, likeliest first; compared without case and punctuation, so that
# `userId`, `user_id` and `User ID` are one name.
GUESSES: dict[str, tuple[str, ...]] = {
    "user": (
        *("userid", "user", "customerid", "customer", "visitorid", "visitor", "reviewerid"),
        *("memberid", "accountid", "clientid", "uid"),
    ),
    "item": (
        *("itemid", "item", "movieid", "productid", "product", "sku", "stockcode", "parentasin", "asin"),
        *("articleid", "trackid", "songid", "bookid", "businessid", "iid"),
    ),
    "timestamp": (
        *("timestamp", "time", "when", "datetime", "date", "ts", "eventtime", "createdat"),
        *("unixreviewtime", "invoicedate"),
    ),
    "value": ("rating", "value", "qty", "quantity", "weight", "score", "stars", "overall"),
    "action": ("action", "event", "eventtype", "behavior", "behaviour"),
}


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Which source column plays which role; None: guess from the column names, "": the source has none.

    Only ``user`` and ``item`` must exist. A role that is named must exist; a role that is guessed may be
    absent.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    value: str | None = None
    action: str | None = None

    def __post_init__(self) -> None:
        named = [column for column in self.as_dict().values() if column]
        repeated = {column for column in named if named.count(column) > 1}
        if repeated:
            raise InvalidRequest(
                "column mapping",
                found=f"{repeated.pop()} in two roles",
                expected="one role for each column",
            )
        for role in ("user", "item"):
            if getattr(self, role) == "":
                raise InvalidRequest(
                    f"column mapping of {role}",
                    found="empty",
                    expected="the name of a column",
                    cure=f"Write {role}=COLUMN.",
                )

    @classmethod
    def parse(cls, text: str) -> "ColumnMap":
        """Reads ``user=customer,item=sku,timestamp=when,value=qty``; ``value=`` says that there is none.

        Raises InvalidRequest for an unknown or repeated role, or a part without ``=``.
        """
        mapped: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            role, equals, column = (piece.strip() for piece in part.partition("="))
            if not equals:
                raise InvalidRequest(
                    "column mapping",
                    found=part,
                    expected="ROLE=COLUMN parts joined by commas",
                    cure="For example: user=customer,item=sku,timestamp=when.",
                )
            if role not in GUESSES:
                raise InvalidRequest(
                    "role in the column mapping",
                    found=role,
                    expected=f"one of {', '.join(GUESSES)}",
                    cure=nearest(role, GUESSES),
                )
            if role in mapped:
                raise InvalidRequest(
                    f"column mapping of {role}", found=f"{mapped[role]} and {column}", expected="one column"
                )
            mapped[role] = column
        return cls(**mapped)

    def resolve(self, available: Iterable[str]) -> dict[str, str]:
        """Returns role → source column for the roles that ``available`` columns can play.

        Raises DataError where a named column, or any column for user or item, is missing.
        """
        columns = list(available)
        resolved: dict[str, str] = {}
        for role, named in self.as_dict().items():
            if named and named not in columns:
                raise _missing_column(role, f"no column {named!r}", columns, nearest(named, columns))
            taken = [*resolved.values(), *(column for column in self.as_dict().values() if column)]
            free = [column for column in columns if column not in taken]
            column = named if named is not None else guess_column(role, free)
            if column:
                resolved[role] = column
            elif role in ("user", "item"):
                raise _missing_column(role, "not found", columns, "")
        return resolved

    def as_dict(self) -> dict[str, str | None]:
        """Returns role → column as given, in the order of the roles."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def guess_column(role: str, columns: Iterable[str]) -> str | None:
    """Returns the column whose name is the likeliest one for ``role``, or None."""
    by_plain_name: dict[str, str] = {}
    for column in columns:
        by_plain_name.setdefault(re.sub(r"[\W_]", "", column).lower(), column)
    return next((by_plain_name[guess] for guess in GUESSES[role] if guess in by_plain_name), None)


def _missing_column(role: str, found: str, columns: list[str], hint: str) -> DataError:
    cure = f"Map it with {role}=COLUMN, for example user=customer,item=sku,timestamp=when."
    return DataError(
        f"{role} column",
        found=found,
        expected=f"one of the columns {', '.join(columns[:40])}",
        cure=f"{hint} {cure}".strip(),
    )

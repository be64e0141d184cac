"""A shop that does not exist, of any size: the same options and seed give the same data, byte for byte."""

from dataclasses import dataclass, fields

import numpy as np

from recserve.errors import InvalidRequest, nearest
from recserve.training.data.cleaning import CleaningReport
from recserve.training.data.columns import ITEM_ID, ITEM_INDEX, USER_ID, USER_INDEX
from recserve.training.data.dataset import Dataset
from recserve.training.data.k_core import k_core
from recserve.training.data.sources.shop_events import MIN_EVENTS_OF_USER, make_events
from recserve.training.data.sources.shop_items import make_items, numbered_ids

NAME = "synthetic-shop"
MIN_ITEMS, MAX_ITEMS = 1_000, 10_000_000
EVENTS_PER_USER = 20
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ShopOptions:
    """Size and seed. 0 users: one for two items, at least 500, at most 100,000; 0 events: 20 a user."""

    n_items: int = MIN_ITEMS
    n_users: int = 0
    n_events: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_users == 0:
            object.__setattr__(self, "n_users", min(max(self.n_items // 2, 500), 100_000))
        if self.n_events == 0:
            object.__setattr__(self, "n_events", EVENTS_PER_USER * self.n_users)
        for name, low, high in (
            ("n_items", MIN_ITEMS, MAX_ITEMS),
            ("n_users", 1, 2**31 - 1),
            ("n_events", MIN_EVENTS_OF_USER * self.n_users, 2**31 - 1),
            ("seed", 0, MAX_SEED),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidRequest(f"{name} of {NAME}", found=value, expected=f"between {low} and {high}")

    @classmethod
    def parse(cls, text: str) -> "ShopOptions":
        """Reads ``n_items=100000,seed=7``; raises InvalidRequest for an unknown option or a bad number."""
        names = [field.name for field in fields(cls)]
        values: dict[str, int] = {}
        for part in filter(None, text.split(",")):
            name, _, number = (piece.strip() for piece in part.partition("="))
            if name not in names:
                expected = f"one of {', '.join(names)}"
                raise InvalidRequest(
                    f"option of {NAME}", found=name, expected=expected, cure=nearest(name, names)
                )
            try:
                values[name] = int(number)
            except ValueError:
                raise InvalidRequest(f"{name} of {NAME}", found=number, expected="an integer") from None
        return cls(**values)

    def __str__(self) -> str:
        """The options as ``parse`` reads them, all of them."""
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


def load(options: ShopOptions, *, minima: tuple[int, int] = (1, 1)) -> Dataset:
    """Generates the shop; items that nobody touched stay in it unless the k-core ``minima`` are above 1.

    Users have no attributes; those of items: title, language (en, es or zh), category, subcategory, brand
    and price.
    """
    item_seed, event_seed = np.random.SeedSequence(options.seed).spawn(2)
    items, shelves = make_items(options.n_items, np.random.default_rng(item_seed))
    rng = np.random.default_rng(event_seed)
    interactions = make_events(options.n_users, options.n_events, shelves, rng)
    users = numbered_ids("user", options.n_users).alias(USER_ID).to_frame()
    report = CleaningReport(rows_read=options.n_events, kept=options.n_events)
    source = f"{NAME}:{options}"
    if minima == (1, 1):
        return Dataset.create(NAME, interactions, users, items, report=report, source=source)
    events = interactions.with_columns(
        users[USER_ID].gather(interactions[USER_INDEX]), items[ITEM_ID].gather(interactions[ITEM_INDEX])
    ).sort("timestamp", maintain_order=True)
    events = k_core(events, *minima)
    report = report.after_core(events.height)
    return Dataset.from_events(NAME, events, report=report, source=source, items=items)

"""What the users of the synthetic shop do: visits, tastes that drift, and what leads to what."""

import numpy as np
import numpy.typing as npt
import polars as pl

from recserve.training.data.columns import ACTION, ITEM_INDEX, TIMESTAMP, USER_INDEX, VALUE
from recserve.training.data.sources.shop_items import N_SUBCATEGORIES, Shelves

MIN_EVENTS_OF_USER = 3
OPENING_SECONDS = 1_704_067_200  # 2024-01-01T00:00:00Z
YEAR_SECONDS = 365 * 86_400
NEW_SESSION_SHARE = 0.25
N_FAVOURITES = 3
FAVOURITE_EDGES = (0.6, 0.9)  # the first favourite in 60 % of the sessions, the second in 30 %
COMPANION_SHARE = 0.4
# Where the next item comes from: the shelf of the session, else its subcategory, else the whole shop.
SHELF_SHARE, SUBCATEGORY_SHARE = 0.5, 0.35
# People look for what they have not seen yet; in a small shop some repeats remain.
REDRAWS = 3
ACTIONS = ("view", "cart", "purchase")
ACTION_EDGES = (0.80, 0.92)
ACTION_VALUES = (1.0, 3.0, 5.0)

Indices = npt.NDArray[np.int64]


def make_events(n_users: int, n_events: int, shelves: Shelves, rng: np.random.Generator) -> pl.DataFrame:
    """Returns user_index, item_index, timestamp, value and action of exactly ``n_events`` events.

    Sorted by user, then time; every user has 3 events or more, no two in the same second. The value is 1
    for a view, 3 for a cart and 5 for a purchase.
    """
    user = np.repeat(np.arange(n_users), _events_of_users(n_users, n_events, rng))
    first_of_user = np.diff(user, prepend=-1) != 0
    starts_session = first_of_user | (rng.random(n_events) < NEW_SESSION_SHARE)
    session = np.cumsum(starts_session) - 1
    subcategory = _subcategory_of_sessions(user[starts_session], n_users, shelves, rng)
    item = _items(user, session, subcategory, shelves, rng)
    action = np.searchsorted(ACTION_EDGES, rng.random(n_events), side="right")
    return pl.DataFrame(
        {
            USER_INDEX: user.astype(np.int32),
            ITEM_INDEX: item,
            TIMESTAMP: _timestamps(user, first_of_user, starts_session, rng),
            VALUE: np.array(ACTION_VALUES, np.float32)[action],
            ACTION: pl.Series(ACTIONS).gather(action),
        }
    )


def _events_of_users(n_users: int, n_events: int, rng: np.random.Generator) -> Indices:
    """A few users are busy and most are not: lognormal shares of what is beyond the minimum."""
    share = rng.lognormal(0.0, 1.0, n_users)
    counts: Indices = MIN_EVENTS_OF_USER + rng.multinomial(
        n_events - MIN_EVENTS_OF_USER * n_users, share / share.sum()
    )
    return counts


def _subcategory_of_sessions(
    user: Indices, n_users: int, shelves: Shelves, rng: np.random.Generator
) -> Indices:
    """``user``: (n_sessions,) sorted. Over a user's sessions the early favourites give way to late ones."""
    n_sessions = len(user)
    weight = shelves.subcategory_weight
    favourites = rng.choice(N_SUBCATEGORIES, size=(2, n_users, N_FAVOURITES), p=weight / weight.sum())
    sessions_before = np.searchsorted(user, user)
    progress = (np.arange(n_sessions) - sessions_before) / np.maximum(np.bincount(user)[user] - 1, 1)
    late = (rng.random(n_sessions) < progress).astype(np.int64)
    favourite = np.searchsorted(FAVOURITE_EDGES, rng.random(n_sessions), side="right")
    own: Indices = favourites[late, user, favourite]

    # A session may follow from the one before: who bought a kettle looks at tea. No chains, so that
    # one shifted comparison is enough.
    stocked = np.flatnonzero(weight > 0)
    companion = np.arange(N_SUBCATEGORIES)
    companion[rng.permutation(stocked)] = rng.permutation(stocked)
    wants = rng.random(n_sessions) < COMPANION_SHARE
    follows = wants[1:] & ~wants[:-1] & (user[1:] == user[:-1])
    chosen = own.copy()
    chosen[1:][follows] = companion[own[:-1][follows]]
    return chosen


def _items(
    user: Indices, session: Indices, subcategory: Indices, shelves: Shelves, rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    start, stop = shelves.subcategory_start[subcategory], shelves.subcategory_start[subcategory + 1]
    # The shelf of a session is that of an item drawn first, so that it is never an empty one.
    shelf = shelves.shelf_of[shelves.draw(start, stop, rng)]
    whole_start, whole_stop = np.zeros_like(start), np.full_like(stop, len(shelves.order))
    starts = np.stack([shelves.shelf_start[shelf], start, whole_start])
    stops = np.stack([shelves.shelf_start[shelf + 1], stop, whole_stop])
    edges = (SHELF_SHARE, SHELF_SHARE + SUBCATEGORY_SHARE)
    origin = np.searchsorted(edges, rng.random(len(session)), side="right")
    item = shelves.draw(starts[origin, session], stops[origin, session], rng)
    for _ in range(REDRAWS):
        repeated = ~pl.Series(user * len(shelves.order) + item).is_first_distinct().to_numpy()
        elsewhere = session[repeated]
        item[repeated] = shelves.draw(start[elsewhere], stop[elsewhere], rng)
    return item


def _timestamps(
    user: Indices,
    first_of_user: npt.NDArray[np.bool_],
    starts_session: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> Indices:
    """Seconds: about a minute between events of a session, days to weeks between sessions."""
    n_events = len(user)
    joined = rng.random(user[-1] + 1) * 0.8 * YEAR_SECONDS
    n_sessions = np.bincount(user, weights=starts_session)
    mean_pause = (YEAR_SECONDS - joined) / n_sessions
    within = 1 + rng.exponential(60.0, n_events)
    between = 3600 + rng.exponential(1.0, n_events) * mean_pause[user]
    gap = np.where(starts_session, between, within)
    gap[first_of_user] = joined
    elapsed = np.cumsum(gap.astype(np.int64))
    before_user = (elapsed - gap.astype(np.int64))[first_of_user]
    return OPENING_SECONDS + elapsed - before_user[user]

"""Trains Surprise's SVD or SVD++ with its defaults on one fold; run by `benchmarks.quality`.

Usage: ``python surprise_ratings.py SETTINGS.json``. Reads train and test of the ``arrays`` (.npz) that the
settings name and writes the predictions of the test ratings, in their order, to ``output``.
"""

import json
import sys

import numpy as np
from surprise import SVD, SVDpp, Trainset

MODELS = {"svd": SVD, "svdpp": SVDpp}


def main() -> None:
    """Runs one model on one fold with one seed."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    with np.load(settings["arrays"]) as file:
        arrays = {name: file[name] for name in file}
    by_user: dict[int, list[tuple[int, float]]] = {}
    by_item: dict[int, list[tuple[int, float]]] = {}
    triples = [arrays[f"train_{name}"].tolist() for name in ("user", "item", "value")]
    for user, item, value in zip(*triples, strict=True):
        by_user.setdefault(user, []).append((item, value))
        by_item.setdefault(item, []).append((user, value))
    # Surprise numbers from 0 those that training knows; the test rows name them by the same numbers.
    users = {user: inner for inner, user in enumerate(by_user)}
    items = {item: inner for inner, item in enumerate(by_item)}
    train = Trainset(
        {users[user]: [(items[item], value) for item, value in row] for user, row in by_user.items()},
        {items[item]: [(users[user], value) for user, value in row] for item, row in by_item.items()},
        len(users),
        len(items),
        len(triples[0]),
        tuple(arrays["rating_range"]),
        users,
        items,
    )
    model = MODELS[settings["model"]](random_state=settings["seed"])
    model.fit(train)
    rows = zip(arrays["test_user"].tolist(), arrays["test_item"].tolist(), strict=True)
    np.savez(settings["output"], predicted=[model.predict(user, item).est for user, item in rows])


if __name__ == "__main__":
    main()

"""What a dataset and its split hold that no model learns from or is fairly tested on, counted."""

import numpy as np
import polars as pl

from recserve.training.data.dataset import Dataset
from recserve.training.data.splits import Split


def data_warnings(dataset: Dataset, split: Split) -> dict[str, int]:
    """Returns what is odd and how often, in the order of the checks; what does not occur is left out."""
    known = np.bincount(split.train.item_index, minlength=dataset.n_items) > 0
    parts = (split.validation.targets.item_index, split.test.targets.item_index)
    unknown = [~known[items] for items in parts]
    held_out_only = np.unique(np.concatenate([items[new] for items, new in zip(parts, unknown, strict=True)]))
    values = dataset.interactions["value"]
    lowest, highest = (float(bound) for bound in (values.to_numpy().min(), values.to_numpy().max()))
    counts = {
        "users with one interaction": int((dataset.histories().lengths == 1).sum()),
        "users that are not tested": dataset.n_users - len(split.test.user_index),
        "test users without a training interaction": int(
            (split.train.lengths[split.test.user_index] == 0).sum()
        ),
        "items in validation or test alone": len(held_out_only),
        "test interactions with such items": int(unknown[1].sum()),
        # All 1 is what a source without values has.
        f"values that are all {lowest:g}": len(values) if lowest == highest != 1 else 0,
    }
    for role, table in (("user", dataset.users), ("item", dataset.items)):
        for column in table.select(pl.selectors.float()):
            counts[f"{role} attribute {column.name}: not finite, read as missing"] = int(
                column.is_finite().not_().sum()
            )
    return {name: count for name, count in counts.items() if count}

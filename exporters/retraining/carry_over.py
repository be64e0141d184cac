"""What a model learned before, as the beginning of one with other users and items."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recserve.training.data import Dataset
from recserve.training.data.columns import ITEM_ID, USER_ID


def carry_over(model: nn.Module, before: nn.Module, dataset: Dataset, of_before: Dataset) -> list[str]:
    """Gives ``model`` the weights of ``before``, rows of users and items by their ids; in place.

    A tensor is one of users (items) where it has a row for each, and may have the same number of rows more
    behind them. Returns the names of tensors of another shape, which stay as they are.
    """
    rows = {
        name: (new.height, old.height, _places(new[id_].to_list(), old[id_].to_list()))
        for name, id_, new, old in (
            ("items", ITEM_ID, dataset.items, of_before.items),
            ("users", USER_ID, dataset.users, of_before.users),
        )
    }
    kept_out, learned = [], before.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            old = learned.get(name)
            if old is None or not _copy(value, old, rows):
                kept_out.append(name)
    return kept_out


def _places(new: list[str], old: list[str]) -> Tensor:
    """Returns (n, 2): the row of each id that both have, in the new list and in the old one."""
    place = {id_: row for row, id_ in enumerate(old)}
    return torch.tensor([(row, place[id_]) for row, id_ in enumerate(new) if id_ in place]).reshape(-1, 2)


def _copy(value: Tensor, old: Tensor, rows: Mapping[str, tuple[int, int, Tensor]]) -> bool:
    if value.dim() and value.shape[1:] == old.shape[1:]:
        for n_new, n_old, places in rows.values():
            n_more = len(old) - n_old
            # A few rows more, as for padding; anything else is no table of these.
            if len(value) == n_new + n_more and 0 <= n_more <= 2:
                value[places[:, 0]] = old[places[:, 1]]
                value[n_new:] = old[n_old:]
                return True
    if value.shape != old.shape:
        return False
    value.copy_(old)
    return True

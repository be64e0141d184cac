"""How a run begins: from data that can be learned from, or from the folder of one that was stopped."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recserve.errors import DataError
from recserve.training.data import CleaningRules, ColumnMap, Dataset, load_dataset
from recserve.training.data.columns import ITEM_ID, USER_ID
from recserve.training.data.sources import is_there
from recserve.training.loop import check_learnable
from recserve.training.models import family_of
from recserve.training.run import Run, RunConfig, create_run, resume_run

OnNote = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What the options of ``train`` say about the data; see ``load_dataset``."""

    data: str
    columns: str = ""
    value_range: str = ""
    items: Path | None = None
    item_embeddings: Path | None = None
    every_item: bool = False
    min_user_interactions: int = 1
    min_item_interactions: int = 1

    def load(self, on_note: OnNote) -> Dataset:
        """Reads and cleans the data."""
        return load_dataset(
            self.data,
            columns=ColumnMap.parse(self.columns) if self.columns else None,
            rules=CleaningRules.of_range(self.value_range) if self.value_range else None,
            items_path=self.items,
            item_embeddings_path=self.item_embeddings,
            every_item=self.every_item,
            min_user_interactions=self.min_user_interactions,
            min_item_interactions=self.min_item_interactions,
            on_note=on_note,
        )


def begin(folder: Path, config: RunConfig, options: DataOptions, *, overwrite: bool, on_note: OnNote) -> Run:
    """Makes the folder of a new run; data that cannot be learned from leaves none.

    Raises DataError for such data, InvalidRequest where the folder is there and may not be overwritten.
    """
    dataset = options.load(on_note)
    family, split = family_of(config.model), Run(folder, config, dataset).split()
    check_learnable(split, family.min_history)
    family.check_data(split.train, config.shape)
    return create_run(folder, config, dataset, overwrite=overwrite, data=options.data)


def go_on(folder: Path, config: RunConfig, options: DataOptions, on_note: OnNote) -> Run:
    """Opens the folder of a run that was stopped.

    Its own copy of the data counts; where the source is still there it must give the same. Raises DataError
    where it does not, InvalidRequest for other settings than it began with.
    """
    run = resume_run(folder, config, options.data)
    if is_there(options.data):
        check_unchanged(run.dataset, options.load(on_note))
    else:
        on_note(f"{options.data} is not there any more: the run goes on with its copy")
    return run


def check_unchanged(begun: Dataset, found: Dataset) -> None:
    """Raises DataError, with what grew, unless ``found`` is the data that a run began with."""
    if found.sha256 == begun.sha256:
        return
    new_users, new_items = (
        len(set(new[name]) - set(old[name]))
        for name, old, new in ((USER_ID, begun.users, found.users), (ITEM_ID, begun.items, found.items))
    )
    counts: tuple[int, int] = (begun.interactions.height, found.interactions.height)
    raise DataError(
        "data of the resumed run",
        found=f"changed: {new_items} new items, {new_users} new users",
        expected=f"the {counts[0]} interactions it began with, not these {counts[1]}",
        cure="Train anew with --overwrite or another --out: what is new has no weights in this run.",
    )

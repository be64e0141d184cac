"""From files of events to datasets ready to learn from: read, clean, filter, number, split."""

from recserve.training.data.cleaning import CleaningReport, CleaningRules, clean
from recserve.training.data.columns import ColumnMap
from recserve.training.data.dataset import Dataset
from recserve.training.data.histories import Histories
from recserve.training.data.readers import read_table
from recserve.training.data.sources import load_dataset
from recserve.training.data.sources.cache import default_cache_dir
from recserve.training.data.splits import (
    EvaluationSet,
    Split,
    leave_one_out,
    random_folds,
    random_split,
    temporal_split,
)

__all__ = [
    "CleaningReport",
    "CleaningRules",
    "ColumnMap",
    "Dataset",
    "EvaluationSet",
    "Histories",
    "Split",
    "clean",
    "default_cache_dir",
    "leave_one_out",
    "load_dataset",
    "random_folds",
    "random_split",
    "read_table",
    "temporal_split",
]

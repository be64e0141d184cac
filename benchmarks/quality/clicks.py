"""Click prediction: the newest tenth of all ratings, of whose users most were never seen before."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.benchmarks.quality.protocol import Ask, Protocol, Rows, Values, train
from recserve.errors import CheckFailed
from recserve.training.data import Dataset, temporal_split
from recserve.training.models.ranker import Ranker
from recserve.training.ranking import metrics
from recserve.training.ranking.calibration import fit_calibration
from recserve.training.ranking.evaluation import CLICK
from recserve.training.ranking.examples import (
    Examples,
    Labels,
    held_out_examples,
    labels_of,
    training_examples,
)
from recserve.training.ranking.learner import predict
from recserve.training.ranking.space import fit_space

CLICK_AT = 4.0


class Clicks(Protocol):
    """Global temporal 8:1:1; probabilities of all contenders are calibrated on validation by one method."""

    metrics = ("AUC", "logloss", "ECE")

    def __init__(self, dataset: Dataset, click_at: float = CLICK_AT) -> None:
        self._dataset, self._split = dataset, temporal_split(dataset)
        self._validation = held_out_examples(self._split.validation)
        test = held_out_examples(self._split.test)
        self._test, self._order = test, np.argsort(test.user_index, kind="stable")
        self.owner = test.user_index[self._order].astype(np.int64)
        self._labels: Labels = labels_of(self._split.train, "ratings", click_at)
        self._clicked = self._labels.clicks(test.value)[self._order]

    def ours(self, model: str, settings: Mapping[str, Any], seed: int) -> Values:
        trained = train(model, "temporal", self._dataset, self._split, seed, settings)
        if not isinstance(trained, Ranker):
            raise CheckFailed(f"model {model}", found="no ranker", expected="a ranker")
        return self._values(*(predict(trained, part)[:, CLICK] for part in (self._validation, self._test)))

    def theirs(self, ask: Ask) -> Values:
        answer = ask(self._arrays())
        return self._values(answer["validation"], answer["test"])

    def figures(self, values: Values, rows: Rows) -> dict[str, float]:
        logits, clicked = values["logit"][rows], self._clicked[rows]
        probability = values["probability"][rows]
        return {
            "AUC": metrics.auc(logits, clicked),
            "logloss": metrics.logloss(probability, clicked),
            "ECE": metrics.ece(probability, clicked),
        }

    def _values(self, validation: NDArray[Any], test: NDArray[Any]) -> Values:
        clicked = self._labels.clicks(self._validation.value)
        probability = fit_calibration(validation, clicked, "auto").apply(test)
        return {"logit": test[self._order], "probability": probability[self._order]}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the fields of every example as the indices that our rankers read, 0 being unknown."""
        space = fit_space(self._dataset, self._split, context=True, normalisation="quantile")
        arrays: dict[str, NDArray[Any]] = {
            "item_numbers": space.item_numbers,
            "item_lists": space.item_lists,
            "user_sizes": np.array(space.schema.user_sizes),
            "item_sizes": np.array([len(space.item_ids) + 1, *(f.n for f in space.schema.categories)]),
            "list_sizes": np.array([feature.n for feature in space.schema.lists]),
        }
        parts = {
            "train": training_examples(self._split.train),
            "validation": self._validation,
            "test": self._test,
        }
        for name, examples in parts.items():
            arrays |= _fields(name, examples, space)
            if name != "test":
                arrays[f"{name}_click"] = self._labels.clicks(examples.value)
        return arrays


def _fields(name: str, examples: Examples, space: Any) -> dict[str, NDArray[Any]]:
    items = examples.item_index
    return {
        f"{name}_user_fields": space.user_rows[examples.user_index],
        f"{name}_item_fields": np.column_stack([space.item_ids[items], space.item_categories[items]]),
        f"{name}_item": items,
        f"{name}_history": examples.history(np.arange(len(items)), 50),
    }

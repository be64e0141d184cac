"""The model families, one file each, and the list of names that the command line knows."""

from typing import TYPE_CHECKING

from recserve.errors import InvalidRequest, nearest

if TYPE_CHECKING:
    from recserve.training.models.sasrec import SASRec, SASRecConfig

MODEL_NAMES = ("sasrec",)


def check_model_name(name: str) -> None:
    """Raises :class:`InvalidRequest` with the nearest name unless ``name`` is a model family."""
    if name not in MODEL_NAMES:
        raise InvalidRequest(
            "model", found=name, expected=f"one of {', '.join(MODEL_NAMES)}", cure=nearest(name, MODEL_NAMES)
        )


def create_model(name: str, config: "SASRecConfig", n_items: int) -> "SASRec":
    """Returns an untrained model of the family ``name`` over a catalogue of ``n_items``."""
    from recserve.training.models.sasrec import SASRec

    check_model_name(name)
    return SASRec(config, n_items)

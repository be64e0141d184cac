"""Parity: what is served answers as the trained model does, on real histories."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from recserve.engine.bundle import layout
from recserve.errors import CheckFailed
from recserve.training.data import EvaluationSet
from recserve.training.evaluate import MAX_SCORES_PER_STEP, top_k
from recserve.training.models.incremental import IncrementalModel
from recserve.training.models.sequence import SequenceModel, model_inputs

# Of a query embedding's components; float32 in another order of summation stays far below.
MAX_ABS_ERROR = 1e-4
# Two scores nearer than this are a tie that the last bits decide.
TIE_MARGIN = 1e-4
TOP = 10
BATCH = 64
N_GOLDEN = 8

# Rows of an evaluation set → query embeddings (len(rows), d) float32.
Encode = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Parity:
    """What the comparison gave over ``n_histories`` recorded inputs."""

    n_histories: int
    max_abs_error: float
    max_score_error: float
    top10_identical: int
    top10_equal_up_to_ties: int

    @classmethod
    def of_nothing(cls) -> "Parity":
        """A model that computes nothing at serving time: there is nothing to compare."""
        return cls(0, 0.0, 0.0, 0, 0)

    def as_dict(self) -> dict[str, float]:
        """Returns plain numbers for the manifest."""
        return {name: float(value) for name, value in asdict(self).items()}


def evenly_spaced(n_rows: int, n_wanted: int) -> NDArray[np.int64]:
    """Returns at most ``n_wanted`` of the rows 0..n_rows−1, ascending, from first to last."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_wanted, n_rows)).astype(np.int64))


def check_parity(
    name: str,
    encode: Encode,
    encode_as_trained: Encode,
    item_embeddings: NDArray[np.float32],
    recorded: EvaluationSet,
) -> Parity:
    """Compares the query embeddings of what is served and of the model on every history of ``recorded``.

    ``name``: what the errors call the comparison. Raises :class:`CheckFailed` when an embedding differs by
    more than 1e-4 or a top-10 list differs by more than a tie.
    """
    n_rows = len(recorded.user_index)
    errors, score_errors, identical, equal = [0.0], [0.0], 0, 0
    batch = max(1, min(BATCH, MAX_SCORES_PER_STEP // len(item_embeddings)))
    for start in range(0, n_rows, batch):
        rows = np.arange(start, min(start + batch, n_rows))
        expected, found = encode_as_trained(rows), encode(rows)
        errors.append(float(np.abs(found - expected).max(initial=0.0)))
        for row, ours, theirs in zip(
            rows.tolist(), found @ item_embeddings.T, expected @ item_embeddings.T, strict=True
        ):
            score_errors.append(float(np.abs(ours - theirs).max(initial=0.0)))
            seen = recorded.histories.row(row)[0]
            ours[seen] = theirs[seen] = -np.inf
            same, tied = _compare_top(ours, theirs)
            identical += same
            equal += tied
    parity = Parity(n_rows, max(errors), max(score_errors), identical, equal)
    if not parity.max_abs_error <= MAX_ABS_ERROR:
        raise CheckFailed(
            f"{name} (largest difference of an embedding)",
            found=f"{parity.max_abs_error:.2e}",
            expected=f"at most {MAX_ABS_ERROR:.0e}",
        )
    if parity.top10_equal_up_to_ties != n_rows:
        raise CheckFailed(
            f"{name} (users with the same top 10)",
            found=f"{parity.top10_equal_up_to_ties} of {n_rows}",
            expected="all of them, ties aside",
        )
    return parity


def record_golden(
    model: SequenceModel, session: ort.InferenceSession, recorded: EvaluationSet
) -> dict[str, NDArray[np.generic]]:
    """Returns inputs and outputs of a few histories, which the loader of the bundle replays."""
    rows = evenly_spaced(len(recorded.user_index), N_GOLDEN)
    inputs = recorded_inputs(model, recorded, rows)
    return {**inputs, layout.QUERY_EMBEDDING_OUTPUT: session.run([layout.QUERY_EMBEDDING_OUTPUT], inputs)[0]}


def recorded_inputs(
    model: SequenceModel, recorded: EvaluationSet, rows: NDArray[np.int64]
) -> dict[str, NDArray[np.generic]]:
    """Returns what the encoder reads for ``rows`` of ``recorded``, by the name of the input."""
    history, gaps = model_inputs(model, recorded, rows)
    inputs: dict[str, NDArray[np.generic]] = {layout.HISTORY_INPUT: history.numpy()}
    if gaps is not None:
        inputs[layout.TIME_GAPS_INPUT] = gaps.numpy()
    return inputs


def onnx_encoder(model: SequenceModel, session: ort.InferenceSession, recorded: EvaluationSet) -> Encode:
    """Returns rows of ``recorded`` → query embeddings, by ONNX Runtime."""
    return lambda rows: session.run([layout.QUERY_EMBEDDING_OUTPUT], recorded_inputs(model, recorded, rows))[
        0
    ]


def incremental_encoder(
    model: IncrementalModel,
    session: ort.InferenceSession,
    first: ort.InferenceSession,
    recorded: EvaluationSet,
) -> Encode:
    """Returns rows of ``recorded``, none of them empty, → query embeddings, by ONNX Runtime in two steps.

    One half of a history, and then the other beside what was computed of it, but of its last item. ``first``
    runs where nothing was computed.
    """

    def encode_row(row: int) -> NDArray[np.float32]:
        padded = recorded_inputs(model, recorded, np.array([row]))
        length = min(int(recorded.histories.lengths[row]), model.config.max_history)
        half = (length + 1) // 2
        past = np.zeros(model.past_shape(0), np.float32)
        for known, until in ((0, half), (half - 1, length)):
            new = {name: value[0, -length:][:until] for name, value in padded.items()}
            new[layout.HISTORY_INPUT] = new[layout.HISTORY_INPUT][known:]
            new |= {f"{layout.PAST_INPUT}{i}": part for i, part in enumerate(past)}
            outputs = [layout.QUERY_EMBEDDING_OUTPUT, layout.NEW_OUTPUT]
            query, computed = (session if known else first).run(outputs, new)
            past = computed[:, :-1]
        return query[0]  # type: ignore[no-any-return]

    return lambda rows: np.stack([encode_row(row) for row in rows.tolist()])


def torch_encoder(model: SequenceModel, recorded: EvaluationSet) -> Encode:
    """Returns rows of ``recorded`` → query embeddings, by the trained model."""

    @torch.inference_mode()
    def encode(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        model.eval()
        return model.encode(*model_inputs(model, recorded, rows)).numpy()

    return encode


def _compare_top(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[bool, bool]:
    """Returns whether the two top-10 lists are identical, and whether they are equal up to ties."""
    k = min(TOP, len(ours))
    our_top, their_top = top_k(ours, k), top_k(theirs, k)
    if np.array_equal(our_top, their_top):
        return True, True
    # Swapped neighbours are a tie when torch itself gives them the same score to within the margin.
    same_length = len(our_top) == len(their_top)
    return False, same_length and bool(np.all(np.abs(theirs[our_top] - theirs[their_top]) <= TIE_MARGIN))

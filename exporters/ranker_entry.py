"""The ranker of a bundle: an ONNX graph with the items' side as tables, users, vocabularies, calibration."""

import io
from dataclasses import asdict, dataclass

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from recserve.engine.bundle import BundleWriter, layout
from recserve.engine.bundle.ranker_entry import (
    ISOTONIC,
    LINEAR,
    MAX_GOLDEN_TOLERANCE,
    MIN_GOLDEN_TOLERANCE,
    SIGMOID,
    CalibrationEntry,
    RankerEntry,
)
from recserve.engine.bundle.request_features import ID, RequestFeature
from recserve.errors import CheckFailed, InvalidRequest
from recserve.exporters.parity import MAX_ABS_ERROR
from recserve.exporters.quantise import Inputs
from recserve.exporters.ranker_forms import FORMS, graph_inputs, inputs_by_name, judge, require_pass
from recserve.exporters.ranker_graph import export_graph, open_graph
from recserve.exporters.request_features import write_features
from recserve.exporters.variant import VARIANT
from recserve.training.models.ranker import Ranker
from recserve.training.ranking.evaluation import calibrate
from recserve.training.ranking.examples import Examples, held_out_examples
from recserve.training.run import Run

FOLDER = "ranker"
GRAPH, GOLDEN, USERS = f"{FOLDER}/graph.onnx", f"{FOLDER}/golden.npz", f"{FOLDER}/users.npy"
# Candidates of each recorded request, and the requests that parity compares.
N_CANDIDATES, N_GOLDEN, N_PARITY = 32, 4, 512
PARITY_BATCH = 64


@dataclass(frozen=True, slots=True)
class RankerParity:
    """The largest difference of a logit over the requests compared, each with several candidates."""

    n_requests: int
    max_abs_error: float


def write_ranker(writer: BundleWriter, run: Run, *, with_users: bool, form: str = VARIANT) -> RankerEntry:
    """Writes the best model of ``run``: graph, vocabularies, records and, if wanted, its users.

    ``form``: one of ``ranker_forms.FORMS``. Raises :class:`InvalidRequest` for a run of another kind,
    :class:`CheckFailed` unless parity holds and another form than fp32 passes the gate.
    """
    model = run.best_model()
    if not isinstance(model, Ranker):
        raise InvalidRequest(
            f"model {run.config.model} as a ranker",
            found="none",
            expected="one of clicks (deepfm, ...)",
        )
    split = run.split()
    examples = held_out_examples(split.test)
    exact = export_graph(model)
    parity = check_ranker_parity(model, open_graph(exact), examples)
    gate = {name: float(value) for name, value in asdict(parity).items()}
    graph, tolerance = FORMS[form](exact), MIN_GOLDEN_TOLERANCE
    if form != VARIANT:
        measured = judge(model, exact, graph, examples)
        require_pass(form, measured)
        gate |= measured.as_dict()
        tolerance = float(np.clip(measured.max_logit_error, MIN_GOLDEN_TOLERANCE, MAX_GOLDEN_TOLERANCE))
    writer.add_bytes(GRAPH, graph)
    golden = io.BytesIO()
    np.savez(golden, **_record(model, open_graph(graph), examples))  # type: ignore[arg-type]
    writer.add_bytes(GOLDEN, golden.getvalue())
    users = model.user_rows.numpy()
    writer.add_array(USERS, users if with_users else users[:0])
    of_users = write_features(writer, FOLDER, model.schema.users)
    evaluation = run.read_evaluation()
    metrics = evaluation["model"]["metrics"] if evaluation else {}
    return RankerEntry(
        graph=GRAPH,
        golden=GOLDEN,
        users=USERS,
        targets=list(model.labels.targets),
        max_history=model.config.max_history,
        user_features=[RequestFeature("user_id", ID), *of_users],
        context_features=write_features(writer, FOLDER, model.schema.context),
        calibration=_calibrations(model, run),
        model=run.config.model,
        size_bytes=len(graph),
        metrics={name: value["mean"] for name, value in metrics.items()},
        gate=gate,
        form=form,
        golden_tolerance=tolerance,
    )


def check_ranker_parity(model: Ranker, session: ort.InferenceSession, examples: Examples) -> RankerParity:
    """Compares logits of what is served and of the model on test requests, over most of the catalogue.

    Raises :class:`CheckFailed` when one differs by more than 1e-4.
    """
    rows = np.unique(np.linspace(0, len(examples) - 1, min(N_PARITY, len(examples))).astype(np.int64))
    worst = 0.0
    for start in range(0, len(rows), PARITY_BATCH):
        inputs = _some_inputs(model, examples, rows[start : start + PARITY_BATCH])
        found = _run(session, inputs)
        with torch.inference_mode():
            expected = model(*(torch.from_numpy(array) for array in inputs.values())).numpy()
        worst = max(worst, float(np.abs(found - expected).max(initial=0.0)))
    if not worst <= MAX_ABS_ERROR:
        raise CheckFailed(
            "ONNX parity of the ranker (largest difference of a logit)",
            found=f"{worst:.2e}",
            expected=f"at most {MAX_ABS_ERROR:.0e}",
        )
    return RankerParity(len(rows), worst)


def _some_inputs(model: Ranker, examples: Examples, rows: NDArray[np.int64]) -> Inputs:
    # Every request has other candidates, and all requests together most of the catalogue.
    candidates = (rows[:, None] * N_CANDIDATES + np.arange(N_CANDIDATES)) % model.n_items
    return inputs_by_name(model, examples, rows, candidates)


def _record(model: Ranker, session: ort.InferenceSession, examples: Examples) -> Inputs:
    rows = np.unique(np.linspace(0, len(examples) - 1, min(N_GOLDEN, len(examples))).astype(np.int64))
    inputs = _some_inputs(model, examples, rows)
    return {**inputs, layout.LOGITS_OUTPUT: _run(session, inputs)}


def _run(session: ort.InferenceSession, inputs: Inputs) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = session.run([layout.LOGITS_OUTPUT], graph_inputs(session, inputs))[0]
    return logits


def _calibrations(model: Ranker, run: Run) -> dict[str, CalibrationEntry]:
    click = calibrate(model, run.split())
    labels = model.labels
    method = {"platt": SIGMOID, "isotonic": ISOTONIC}[click.method]
    entries = {"click": CalibrationEntry(method, list(click.x), list(click.y))}
    if labels.is_rated:
        entries["rating"] = CalibrationEntry(
            LINEAR, [labels.std], [labels.mean], low=labels.low, high=labels.high
        )
    return entries

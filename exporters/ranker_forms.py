"""Smaller and faster forms of a ranker's graph, and the gate that they pass: AUC, size, time.

A bundle has one ranker, in the form that the export names. It is served if, with 95 % confidence, it loses at
most the budget of AUC against fp32 on the held-out examples, and is smaller or faster.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recserve.engine.bundle import layout
from recserve.errors import CheckFailed, InvalidRequest, nearest
from recserve.exporters.gate import MARGIN
from recserve.exporters.measure import Timing, resident_bytes, timings
from recserve.exporters.parity import TOP
from recserve.exporters.quantise import Inputs, fp16_tensors, int8_linear
from recserve.exporters.ranker_graph import open_graph
from recserve.exporters.variant import VARIANT
from recserve.training.models.ranker import Ranker
from recserve.training.ranking.evaluation import CLICK
from recserve.training.ranking.examples import Examples
from recserve.training.ranking.learner import inputs_of
from recserve.training.ranking.metrics import auc

FORMS: dict[str, Callable[[bytes], bytes]] = {
    VARIANT: lambda graph: graph,
    "int8": int8_linear,
    "fp16": fp16_tensors,
}
# What a graph may read, in the order of Ranker.forward.
INPUTS = (
    layout.HISTORY_INPUT,
    layout.USER_INPUT,
    layout.CONTEXT_INPUT,
    layout.CANDIDATES_INPUT,
    layout.HISTORY_VALUES_INPUT,
)
MAX_AUC_LOSS = 0.001
# What a request of serving ranks.
N_CANDIDATES, BATCH_SIZES = 500, (1, 32)
N_BOOTSTRAP = 300
STEP = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerMeasured:
    """The figures of one form beside fp32, on held-out examples and on this machine.

    ``auc_loss``: absolute, with its 95 % interval from resampling users in pairs. ``top10_overlap``: mean
    share of fp32's ten of 500 candidates that are among this form's. ``resident_bytes``: what loading and
    running it adds to a fresh process. Times are of one thread and 500 candidates a request, milliseconds of
    a call for 1 and 32 requests.
    """

    auc: float
    auc_loss: float
    auc_loss_low: float
    auc_loss_high: float
    top10_overlap: float
    max_logit_error: float
    size_bytes: float
    size_ratio: float
    resident_bytes: float
    p50_batch1_ms: float
    p99_batch1_ms: float
    p50_batch32_ms: float
    p99_batch32_ms: float
    speedup_batch1: float
    speedup_batch32: float

    def as_dict(self) -> dict[str, float]:
        """Returns plain numbers for the manifest."""
        return {name: float(value) for name, value in asdict(self).items()}


def check_form(name: str) -> None:
    """Raises :class:`InvalidRequest` unless a ranker has the form ``name``."""
    if name not in FORMS:
        raise InvalidRequest(
            "ranker_form", found=name, expected=f"one of {', '.join(FORMS)}", cure=nearest(name, FORMS)
        )


def judge(model: Ranker, exact: bytes, form: bytes, examples: Examples) -> RankerMeasured:
    """Measures ``form`` beside ``exact``, the graph of ``model``."""
    sessions = {"exact": open_graph(exact), "form": open_graph(form)}
    clicks = model.labels.clicks(examples.value)
    logits = {name: _logits(model, session, examples) for name, session in sessions.items()}
    loss, low, high = auc_loss(logits["exact"], logits["form"], clicks, examples.user_index)
    many = some_candidates(model, examples, BATCH_SIZES[-1])
    timed = [_timed(model, sessions, examples, rows) for rows in BATCH_SIZES]
    return RankerMeasured(
        auc=auc(logits["form"], clicks),
        auc_loss=loss,
        auc_loss_low=low,
        auc_loss_high=high,
        top10_overlap=_overlap(sessions, many),
        max_logit_error=float(np.abs(logits["form"] - logits["exact"]).max(initial=0.0)),
        size_bytes=len(form),
        size_ratio=len(form) / len(exact),
        resident_bytes=resident_bytes(form, graph_inputs(sessions["form"], many)),
        p50_batch1_ms=timed[0]["form"].p50,
        p99_batch1_ms=timed[0]["form"].p99,
        p50_batch32_ms=timed[1]["form"].p50,
        p99_batch32_ms=timed[1]["form"].p99,
        speedup_batch1=timed[0]["exact"].fast / timed[0]["form"].fast,
        speedup_batch32=timed[1]["exact"].fast / timed[1]["form"].fast,
    )


def require_pass(name: str, measured: RankerMeasured) -> None:
    """Raises :class:`CheckFailed` with the figures unless the form may be served."""
    if reason := refusal(measured, MAX_AUC_LOSS):
        raise CheckFailed(f"ranker form {name}", found=reason, expected="one that passes the gate")


def refusal(measured: RankerMeasured, max_loss: float) -> str:
    """Returns why a form may not be served, with the figures; an empty string when it may."""
    broken = [name for name, value in measured.as_dict().items() if not np.isfinite(value)]
    if broken:
        return f"{', '.join(broken)} not finite"
    if measured.auc_loss_high > max_loss:
        return f"AUC lost {measured.auc_loss:.4f}, up to {measured.auc_loss_high:.4f}; allowed {max_loss:.4f}"
    fastest = max(measured.speedup_batch1, measured.speedup_batch32)
    if measured.size_ratio < 1 - MARGIN or fastest > 1 + MARGIN:
        return ""
    return f"neither smaller ({measured.size_ratio:.2f} of fp32's bytes) nor faster ({fastest:.2f}×)"


def auc_loss(
    exact: NDArray[np.float32],
    found: NDArray[np.float32],
    clicks: NDArray[np.float32],
    users: NDArray[np.int32],
) -> tuple[float, float, float]:
    """Returns the loss of AUC and its 95 % interval; users are resampled with all their examples, in pairs.

    Logits that are not numbers have no order: all of AUC may be lost (NaN).
    """
    if not np.isfinite(found).all():
        return float("nan"), float("nan"), float("nan")
    order = np.argsort(users, kind="stable")
    by_user = np.split(order, np.flatnonzero(np.diff(users[order])) + 1)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(N_BOOTSTRAP):
        rows = np.concatenate([by_user[i] for i in rng.integers(0, len(by_user), len(by_user))])
        # A sample of one user may have one kind of label only: it says nothing of AUC.
        if 0 < np.count_nonzero(clicks[rows]) < len(rows):
            losses.append(auc(exact[rows], clicks[rows]) - auc(found[rows], clicks[rows]))
    low, high = np.percentile(losses, [2.5, 97.5]) if losses else (0.0, 1.0)
    return auc(exact, clicks) - auc(found, clicks), float(low), float(high)


def _logits(model: Ranker, session: ort.InferenceSession, examples: Examples) -> NDArray[np.float32]:
    """Returns the logit of a click for the item of each example, (n,)."""
    parts = []
    for start in range(0, len(examples), STEP):
        rows = np.arange(start, min(start + STEP, len(examples)))
        given = inputs_by_name(model, examples, rows, examples.item_index[rows, None].astype(np.int64))
        parts.append(session.run([layout.LOGITS_OUTPUT], graph_inputs(session, given))[0][:, 0, CLICK])
    return np.concatenate(parts)


def _overlap(sessions: dict[str, ort.InferenceSession], inputs: Inputs) -> float:
    tops = []
    for session in sessions.values():
        [logits] = session.run([layout.LOGITS_OUTPUT], graph_inputs(session, inputs))
        tops.append(np.argsort(-logits[:, :, CLICK], axis=1, kind="stable")[:, :TOP])
    kept = (tops[0][:, :, None] == tops[1][:, None, :]).any(-1)
    return float(kept.mean())


def _timed(
    model: Ranker, sessions: dict[str, ort.InferenceSession], examples: Examples, batch: int
) -> dict[str, Timing]:
    given = graph_inputs(sessions["exact"], some_candidates(model, examples, batch))
    return timings(sessions, given, layout.LOGITS_OUTPUT)


def some_candidates(model: Ranker, examples: Examples, batch: int) -> Inputs:
    """Returns the model's inputs for ``batch`` requests of 500 drawn candidates each."""
    rows = np.resize(np.arange(len(examples)), batch)
    candidates = np.random.default_rng(0).integers(0, model.n_items, (batch, N_CANDIDATES))
    return inputs_by_name(model, examples, rows, candidates)


def graph_inputs(session: ort.InferenceSession, inputs: Inputs) -> Inputs:
    """Returns those of ``inputs`` that the graph reads."""
    return {node.name: inputs[node.name] for node in session.get_inputs()}


def inputs_by_name(
    model: Ranker, examples: Examples, rows: NDArray[np.int64], candidates: NDArray[np.int64]
) -> Inputs:
    """Returns what ``model`` reads of the examples ``rows`` with these candidates (n_rows, n_candidates)."""
    history, user, context, values = (tensor.numpy() for tensor in inputs_of(model, examples, rows))
    return dict(zip(INPUTS, (history, user, context, candidates, values), strict=True))

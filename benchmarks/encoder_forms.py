"""The forms of encoders next to torch and to a plain export: ``python -m recserve.benchmarks.encoder_forms``.

    encoder_forms RUN BUNDLE [RUN BUNDLE ...] --out result.json --png forms.png

BUNDLE is an export of RUN with ``--variants all``, whose gate measured the quality. Contenders are asked in
turns, one thread each: the trained model in torch; the graph that torch exports of it, which encodes every
position of a history padded to the maximum, with three products for query, key and value (both with HSTU's
layer as most code writes it, ``plain_encoder``); and each form as the engine runs it.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import describe
from recserve.benchmarks.kernels import limits
from recserve.benchmarks.output import Output
from recserve.benchmarks.pages import check_paths, write
from recserve.benchmarks.plain_encoder import as_exported, as_written
from recserve.benchmarks.roofline import cost_of
from recserve.benchmarks.scale.measure import Point, time_points
from recserve.engine import EngineConfig
from recserve.engine.bundle import Bundle, layout, open_bundle
from recserve.engine.bundle.histories import History
from recserve.engine.runtime import Runtime
from recserve.engine.session import QueryEncoder
from recserve.errors import InvalidRequest
from recserve.kernels.isa import choose
from recserve.training.models.sequence import SequenceModel
from recserve.training.run import open_run

PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "onnx")
TORCH, EXPORTED = "torch eager", "as exported"
# Histories at once; of full length, or the stored ones of the first users.
CASES = {"1": 1, "32": 32, "32 as they come": 32}
Encode = Callable[[], object]


def main(arguments: list[str] | None = None) -> int:
    """Measures all pairs and writes what was asked for."""
    parser = argparse.ArgumentParser(
        prog="encoder_forms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, nargs="+", metavar="RUN BUNDLE")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one case of one model")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--html", type=Path, help="page with quality against latency")
    parser.add_argument("--png", type=Path, help="the same as a picture")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if len(options.pairs) % 2:
        raise InvalidRequest(
            "arguments", found=len(options.pairs), expected="RUN BUNDLE, or several such pairs"
        )
    check_paths(options.html, options.png)
    torch.set_num_threads(1)
    isa = choose(None)
    machine = None if isa is None else limits.measure(isa.name, 1)
    rows: list[dict[str, Any]] = []
    for run, folder in zip(options.pairs[::2], options.pairs[1::2], strict=True):
        console.note(f"measuring {folder}")
        rows += measure(run, folder, options.seconds, machine)
    result = {
        "bench": "encoder_forms",
        "environment": describe(PACKAGES),
        "limits": machine and machine.as_dict(),
        "rows": rows,
    }
    Output(out=options.out, json=options.json).publish("encoder_forms", result, _show)
    if options.html or options.png:
        write(_by_case(rows), options.html, options.png)
    return 0


def measure(
    run_folder: Path, bundle_folder: Path, seconds: float, machine: limits.Limits | None
) -> list[dict[str, Any]]:
    """Returns a row for every case and contender of one model."""
    run, bundle = open_run(run_folder), open_bundle(bundle_folder)
    model = run.best_model()
    if not isinstance(model, SequenceModel):
        raise InvalidRequest("run", found=run.config.model, expected="an encoder of histories")
    config = model.config
    name = f"{run.dataset.name} {run.config.model} {config.embedding_size}×{config.n_blocks}"
    runtime = Runtime(bundle, EngineConfig(provider="cpu"))
    forms = {form: QueryEncoder(bundle, form, runtime) for form in bundle.manifest.variants}
    plain = ort.InferenceSession(as_exported(model), _one_thread(), providers=["CPUExecutionProvider"])
    rows = []
    for case, batch in CASES.items():
        asked = _stored(bundle, batch) if "come" in case else None
        inputs = _inputs(bundle, batch, asked)
        contenders: dict[str, Encode] = {
            TORCH: _torch(as_written(model), inputs),
            EXPORTED: _session(plain, inputs),
        }
        for form, encoder in forms.items():
            contenders[form] = _form(encoder, inputs, asked)
        timed = time_points(
            [Point(form, case, batch, batch, ask) for form, ask in contenders.items()], seconds
        )
        ms = {row["what"]: row["median_ms"] for row in timed}
        for row in timed:
            form = row["what"]
            rows.append(
                {
                    "model": name,
                    "case": case,
                    "form": form,
                    "p50_ms": ms[form],
                    "of_torch": ms[TORCH] / ms[form],
                    "of_exported": ms[EXPORTED] / ms[form],
                    **_quality(bundle, form),
                    **({} if asked else _limit(bundle, form, inputs, ms[form], machine)),
                    "intervals": {"p50_ms": row["intervals"]["median_ms"]},
                }
            )
    return rows


def _one_thread() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _stored(bundle: Bundle, n: int) -> list[History]:
    return bundle.histories.get_many(list(bundle.histories.vocabulary)[:n])


def _inputs(bundle: Bundle, batch: int, asked: list[History] | None) -> dict[str, NDArray[Any]]:
    """Returns histories padded to the maximum: those of ``asked``, or made ones without padding."""
    length = bundle.manifest.inputs.max_history
    history = np.random.default_rng(7).integers(0, bundle.manifest.n_items, (batch, length), np.int32)
    for row, one in zip(history, asked or (), strict=False):
        items = one.items[-length:]
        row[:] = -1
        row[length - len(items) :] = items
    inputs: dict[str, NDArray[Any]] = {layout.HISTORY_INPUT: history}
    if layout.TIME_GAPS_INPUT in bundle.manifest.inputs.features:
        inputs[layout.TIME_GAPS_INPUT] = np.full(history.shape, 3600, np.float32)
    return inputs


def _torch(model: SequenceModel, inputs: dict[str, NDArray[Any]]) -> Encode:
    given = [torch.from_numpy(array) for array in inputs.values()]

    @torch.inference_mode()
    def encode() -> object:
        return model.encode(*given)

    model.eval()
    return encode


def _session(session: ort.InferenceSession, inputs: dict[str, NDArray[Any]]) -> Encode:
    return lambda: session.run([layout.QUERY_EMBEDDING_OUTPUT], inputs)


def _form(encoder: QueryEncoder, inputs: dict[str, NDArray[Any]], asked: list[History] | None) -> Encode:
    # What comes from users goes through the groups of like length.
    return (lambda: encoder.encode(asked, now=0)) if asked else (lambda: encoder.run(*inputs.values()))


def _quality(bundle: Bundle, form: str) -> dict[str, float]:
    entry = bundle.manifest.variants.get(form)
    if entry is None:
        # The model itself: fp32 is it, but for the last bits.
        return {"ndcg@10": bundle.manifest.variants["fp32"].gate["ndcg"]} if form == TORCH else {}
    figures = ("ndcg_loss", "ndcg_loss_high", "top10_overlap", "size_ratio")
    return {"ndcg@10": entry.gate["ndcg"], **{name: entry.gate[name] for name in figures}}


def _limit(
    bundle: Bundle, form: str, inputs: dict[str, NDArray[Any]], ms: float, machine: limits.Limits | None
) -> dict[str, float]:
    entry = bundle.manifest.variants.get(form)
    if entry is None or machine is None:
        return {}
    cost = cost_of(bundle.read(entry.query_encoder), bundle.folder, inputs, bundle.item_parts)
    return {
        "gflops": (cost.fp32 + cost.int8) / ms * 1e-6,
        "operations_per_byte": cost.intensity,
        "of_limit": cost.least_ms(machine) / ms,
    }


def _by_case(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns a result for each model and case, whose rows are forms, for the picture."""
    cases: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "ndcg@10" in row:
            result = cases.setdefault(f"{row['model']}, {row['case']}", {"rows": []})
            result["rows"].append({name: row[name] for name in ("form", "p50_ms", "ndcg@10")})
    return cases


def _show(result: dict[str, Any]) -> None:
    from recserve.benchmarks.tables import show

    show(result)


if __name__ == "__main__":
    sys.exit(main())

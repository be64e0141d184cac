"""The forms of rankers next to torch and to a plain export: ``python -m recserve.benchmarks.ranker_forms``.

    ranker_forms RUN [RUN ...] --out result.json

Contenders score 500 candidates of each request in turns, one thread each: the trained model in torch; the
graph that torch exports of its forward pass, which looks up and embeds the features of every candidate; the
graph of the bundle (the same numbers, sorted by what depends on the user, the item and both), and its forms.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from recserve import console
from recserve.benchmarks.encoder_forms import EXPORTED, PACKAGES, TORCH, Encode
from recserve.benchmarks.environment import describe
from recserve.benchmarks.kernels import limits
from recserve.benchmarks.output import Output
from recserve.benchmarks.plain_ranker import as_exported
from recserve.benchmarks.roofline import cost_of
from recserve.benchmarks.scale.measure import Point, time_points
from recserve.engine.bundle import layout
from recserve.errors import InvalidRequest
from recserve.exporters.ranker_forms import (
    BATCH_SIZES,
    FORMS,
    graph_inputs,
    judge,
    some_candidates,
)
from recserve.exporters.ranker_graph import export_graph, open_graph
from recserve.kernels.isa import choose
from recserve.training.models.ranker import Ranker
from recserve.training.ranking.examples import Examples, held_out_examples
from recserve.training.run import open_run


def main(arguments: list[str] | None = None) -> int:
    """Measures all runs and writes what was asked for."""
    parser = argparse.ArgumentParser(
        prog="ranker_forms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one case of one model")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    isa = choose(None)
    machine = None if isa is None else limits.measure(isa.name, 1)
    rows: list[dict[str, Any]] = []
    for run in options.runs:
        console.note(f"measuring {run}")
        rows += measure(run, options.seconds, machine)
    result = {
        "bench": "ranker_forms",
        "environment": describe(PACKAGES),
        "limits": machine and machine.as_dict(),
        "rows": rows,
    }
    Output(out=options.out, json=options.json).publish("ranker_forms", result, _show)
    return 0


def measure(run_folder: Path, seconds: float, machine: limits.Limits | None) -> list[dict[str, Any]]:
    """Returns a row for every number of requests and contender of one model."""
    run = open_run(run_folder)
    model = run.best_model()
    if not isinstance(model, Ranker):
        raise InvalidRequest("run", found=run.config.model, expected="a ranker")
    examples = held_out_examples(run.split().test)
    exact = export_graph(model)
    graphs = {form: build(exact) for form, build in FORMS.items()}
    quality = {form: _quality(model, exact, graph, examples) for form, graph in graphs.items()}
    graphs[EXPORTED] = as_exported(model)
    rows = []
    for batch in BATCH_SIZES:
        contenders: dict[str, Encode] = {TORCH: _torch(model, examples, batch)}
        for form, graph in graphs.items():
            contenders[form] = _session(model, graph, examples, batch)
        timed = time_points(
            [Point(form, str(batch), batch, batch, ask) for form, ask in contenders.items()], seconds
        )
        ms = {row["what"]: row["median_ms"] for row in timed}
        for row in timed:
            form = row["what"]
            rows.append(
                {
                    "model": f"{run.dataset.name} {run.config.model}",
                    "case": str(batch),
                    "form": form,
                    "p50_ms": ms[form],
                    "of_torch": ms[TORCH] / ms[form],
                    "of_exported": ms[EXPORTED] / ms[form],
                    **quality.get(form, {}),
                    **(
                        {}
                        if form == TORCH
                        else _limit(model, graphs[form], examples, batch, ms[form], machine)
                    ),
                    "intervals": {"p50_ms": row["intervals"]["median_ms"]},
                }
            )
    return rows


def _quality(model: Ranker, exact: bytes, graph: bytes, examples: Examples) -> dict[str, float]:
    measured = judge(model, exact, graph, examples).as_dict()
    return {name: measured[name] for name in ("auc", "auc_loss", "auc_loss_high", "size_ratio")}


def _torch(model: Ranker, examples: Examples, batch: int) -> Encode:
    given = [torch.from_numpy(array) for array in some_candidates(model, examples, batch).values()]

    @torch.inference_mode()
    def rank() -> object:
        return model(*given)

    model.eval()
    return rank


def _session(model: Ranker, graph: bytes, examples: Examples, batch: int) -> Encode:
    session = open_graph(graph)
    inputs = graph_inputs(session, some_candidates(model, examples, batch))
    return lambda: session.run([layout.LOGITS_OUTPUT], inputs)


def _limit(
    model: Ranker, graph: bytes, examples: Examples, batch: int, ms: float, machine: limits.Limits | None
) -> dict[str, float]:
    if machine is None:
        return {}
    inputs = graph_inputs(open_graph(graph), some_candidates(model, examples, batch))
    with tempfile.TemporaryDirectory() as folder:
        cost = cost_of(graph, Path(folder), inputs, {})
    return {
        "gflops": (cost.fp32 + cost.int8) / ms * 1e-6,
        "operations_per_byte": cost.intensity,
        "of_limit": cost.least_ms(machine) / ms,
        "n_operators": len(cost.moved),
    }


def _show(result: dict[str, Any]) -> None:
    from recserve.benchmarks.tables import show

    show(result)


if __name__ == "__main__":
    sys.exit(main())

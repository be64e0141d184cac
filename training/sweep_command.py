"""``recserve evaluate RUN --sweep diversity``."""

from pathlib import Path

from recserve import console
from recserve.errors import InvalidRequest
from recserve.training import tradeoff
from recserve.training.run import Run, write_json


def show_sweep(runs: list[Run], what: str, out: Path | None, plot: Path | None, *, json: bool) -> None:
    """Measures, writes and prints; raises :class:`InvalidRequest` for anything but diversity of one run."""
    if what != "diversity" or len(runs) != 1:
        raise InvalidRequest("--sweep", found=f"{what} of {len(runs)} runs", expected="diversity, of one run")
    n_steps = len(runs[0].split().test.user_index) * tradeoff.N_POINTS
    with console.progress("evaluating", n_steps) as update:
        result = tradeoff.sweep(runs[0], update)
    if out:
        write_json(out, result)
    if plot:
        tradeoff.plot(result, plot)
    if json:
        console.print_json(result)
        return
    console.print_table(
        f"{result['model']}, {result['dataset']}, {result['protocol']}, {result['n_users']} users",
        ["method", "weight", *tradeoff.SHOWN],
        tradeoff.table(result),
    )

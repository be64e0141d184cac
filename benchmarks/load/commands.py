"""The verb ``bench load``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recserve.errors import CheckFailed, InvalidRequest

if TYPE_CHECKING:
    from recserve.benchmarks.output import Output

DEFAULT_RATE = 100.0


def load(
    target: Annotated[
        str, typer.Argument(help="embed:BUNDLE, grpc://HOST:PORT, oip://HOST:PORT/MODEL or http://HOST:PORT.")
    ],
    rate: Annotated[float, typer.Option(help="Open loop: requests per second. Default: 100.")] = 0.0,
    arrivals: Annotated[str, typer.Option(help="poisson, constant or gamma:CV.")] = "poisson",
    concurrency: Annotated[int, typer.Option(help="Closed loop: so many callers that wait.")] = 0,
    think: Annotated[float, typer.Option(help="Closed loop: mean pause after an answer, s.")] = 0.0,
    rate_sweep: Annotated[str, typer.Option(help="FIRST:LAST:STEP: an open loop at each rate.")] = "",
    find_max: Annotated[
        bool, typer.Option("--find-max", help="Look for the highest rate that keeps --slo, from --rate up.")
    ] = False,
    slo: Annotated[list[str] | None, typer.Option(help="Such as p99:20ms; may be given again.")] = None,
    precision: Annotated[float, typer.Option(help="Where --find-max stops: share of the rate.")] = 0.05,
    warmup: Annotated[float, typer.Option(help="Seconds before, not counted.")] = 2.0,
    duration: Annotated[float, typer.Option(help="Seconds that count. Default: 10.")] = 0.0,
    requests: Annotated[int, typer.Option(help="End after so many instead.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and users.")] = 7,
    bundle: Annotated[Path | None, typer.Option(help="Whose users (and items) to ask for.")] = None,
    users: Annotated[int, typer.Option(help="Without --bundle: users 1 to N.")] = 1000,
    zipf: Annotated[float, typer.Option(help="Exponent of the users' popularity; 0: all alike.")] = 1.1,
    mix: Annotated[
        str, typer.Option(help="Such as recommend:90,similar:10; feedback too, which needs --bundle.")
    ] = "recommend",
    trace: Annotated[
        Path | None, typer.Option(help="Replay what a server captured, at its own rate or at --rate.")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="List length.")] = 10,
    variant: Annotated[str, typer.Option(help="Form of the model.")] = "",
    model: Annotated[str, typer.Option(help="One of the server's models.")] = "",
    header: Annotated[list[str] | None, typer.Option(help="'name: value' of every call; repeatable.")] = None,
    processes: Annotated[int, typer.Option(help="Of the generator.")] = 1,
    connections: Annotated[int, typer.Option(help="Of all processes together; embed: threads.")] = 8,
    percentiles: Annotated[str, typer.Option(help="Which are shown.")] = "50,90,95,99,99.9",
    html: Annotated[Path | None, typer.Option(help="Write a page with plots, one file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the plots.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON to a file as well.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a line per load to a file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Time a server or an engine under load.

    Latency counts from the moment at which a request was due, whether or not the target let it be sent: a
    stall costs what it costs its callers. --concurrency asks in a closed loop, which hides that.
    """
    from recserve.benchmarks.load import options as choices
    from recserve.benchmarks.load.replay import read_replay
    from recserve.benchmarks.load.run import Load, read_ids, run_find_max, run_once, run_sweep
    from recserve.benchmarks.output import Output

    output = Output(out, csv, html, png, json)
    if sum(map(bool, (rate_sweep, find_max, concurrency))) > 1 or (rate and (rate_sweep or concurrency)):
        raise InvalidRequest(
            "load", found="of two kinds", expected="--rate, --concurrency, --rate-sweep or --find-max"
        )
    if trace and (concurrency or mix != "recommend"):
        raise InvalidRequest("--trace", found="with --concurrency or --mix", expected="alone: it says both")
    where, slos = choices.read_target(target), choices.read_slos(slo or ())
    asked = choices.Asked(k, choices.read_mix(mix), zipf, variant, model, choices.read_headers(header or ()))
    wanted = choices.read_percentiles(percentiles)
    rates = choices.read_sweep(rate_sweep) if rate_sweep else ()
    ids = read_ids(where, bundle, users)
    recorded = read_replay(trace, ids, seed) if trace else None
    if recorded and not duration:
        requests = requests or len(recorded.order)
    own_rate = recorded.rate if recorded else DEFAULT_RATE
    pace = choices.Pace(
        rate=0.0 if concurrency else rate or own_rate,
        concurrency=concurrency,
        arrivals=choices.Arrivals(choices.RECORDED) if recorded else choices.read_arrivals(arrivals),
        warm_up=warmup,
        duration=duration or (0.0 if requests else 10.0),
        requests=requests,
        think=think,
        timeout=timeout,
        seed=seed,
    )
    client = choices.Client(processes, connections)
    generator = Load(where, ids, asked, client, wanted, slos, seed, recorded)
    if find_max:
        result = run_find_max(generator, pace, slos, precision)
    else:
        result = run_sweep(generator, pace, rates) if rates else run_once(generator, pace)
    _publish(result, output)


def _publish(result: dict[str, Any], output: "Output") -> None:
    from recserve.benchmarks.load.report import show, write_csv

    output.publish(result["target"], result, show, lambda result, path: write_csv(result["points"], path))
    if not any(point["requests"] > sum(point["errors"].values()) for point in result["points"]):
        raise CheckFailed(
            "good answers of the target",
            found=0,
            expected="some",
            cure="The table has the codes of the errors.",
        )

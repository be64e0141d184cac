"""The verb ``recommend``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from recserve.engine.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from recserve.engine.bundle.rules import Boost, Rules
    from recserve.engine.client import RecommenderClient
    from recserve.engine.engine import Engine

T = TypeVar("T")

# A person waits longer than a program.
TIMEOUT_SECONDS = 10.0


def register(add: Callable[..., Any]) -> None:
    """Adds the verb to the command line."""
    add(recommend)


def recommend(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder; not with --server.")] = None,
    user: Annotated[str, typer.Option(help="User id; unknown or none: a cold start.")] = "",
    history: Annotated[
        str, typer.Option(help="Item ids, comma-separated, newest last; wins over the stored one.")
    ] = "",
    exclude: Annotated[str, typer.Option(help="Item ids that must not come back, comma-separated.")] = "",
    query_text: Annotated[
        str, typer.Option(help="What is looked for, in words, of a bundle with a text encoder.")
    ] = "",
    filter: Annotated[
        str, typer.Option(help="""Which items may come back: 'price < 50 and category in ("a", "b")'.""")
    ] = "",
    caps: Annotated[
        str, typer.Option(help="Most items of one value of an attribute: brand=2,category=4.")
    ] = "",
    diversity: Annotated[
        float | None, typer.Option(help="Weight of diversity against the scores, 0 to 1.")
    ] = None,
    novelty: Annotated[
        float | None, typer.Option(help="Weight of being little known against the scores, 0 to 1.")
    ] = None,
    pins: Annotated[str, typer.Option(help="Items at fixed ranks: ITEM=1,ITEM=3.")] = "",
    boost: Annotated[
        list[str] | None,
        typer.Option(help="Weight added to scores, and of what; may be repeated: '0.3:year >= 1997'."),
    ] = None,
    quotas: Annotated[
        str, typer.Option(help="Shares of candidates by source: model=7,similar=2,new=1.")
    ] = "",
    min_score: Annotated[float | None, typer.Option(help="Leave out what the model scores lower.")] = None,
    rules: Annotated[
        str,
        typer.Option(
            help="All rules, as JSON of the message Rules, or a file of it; the flags for single rules win: "
            """'{"frequency": {"impressions": 3, "hours": 24}}'."""
        ),
    ] = "",
    predict: Annotated[
        str, typer.Option(help="What the score is: context, click, rating or retrieval.")
    ] = "",
    weights: Annotated[
        str, typer.Option(help="Or a weighted sum of predictions and attributes: click=1,margin=0.2.")
    ] = "",
    context: Annotated[
        str, typer.Option(help="What is known of the moment and the user: hour=9,age=25.")
    ] = "",
    seed: Annotated[int | None, typer.Option(help="The same choice again where chance has a part.")] = None,
    page_token: Annotated[
        str | None, typer.Option(help="'' for the first page; then what the page before printed.")
    ] = None,
    budget_ms: Annotated[
        int | None, typer.Option(help="Leave out what does not fit into so many milliseconds.")
    ] = None,
    explain: Annotated[str, typer.Option(help="Say why: fast, exact or none.")] = "none",
    why_not: Annotated[str, typer.Option(help="Say instead what keeps this item out of the slate.")] = "",
    language: Annotated[str, typer.Option(help="Of the reasons: en, es, zh.")] = "en",
    k: Annotated[int, typer.Option("--k", "-k", help="Length of the slate.")] = 10,
    variant: Annotated[str, typer.Option(help="A variant of the bundle. Default: the bundle's.")] = "",
    server: Annotated[
        str, typer.Option(help="Ask a running server, HOST:PORT, instead of loading a bundle.")
    ] = "",
    ca: Annotated[
        str, typer.Option(help="PEM file of the server's authority, or system. Turns TLS on.")
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with an API key or token. Default: RECSERVE_TOKEN in the environment."),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Recommend items to one user, from a bundle or a running server."""
    from recserve.engine.bundle.rules import NOTHING, Pin, Rules
    from recserve.engine.show import named_items, show_slate, show_why_not
    from recserve.engine.types import Request

    flags = Rules(
        caps=_pairs("caps", caps, int),
        diversity=diversity,
        novelty=novelty,
        min_score=min_score,
        pins=[Pin(item_id, rank) for item_id, rank in _pairs("pins", pins, int).items()],
        boosts=[_boost(text) for text in boost or ()],
        quotas=_pairs("quotas", quotas, float),
    )
    asked = flags.over(_rules(rules))
    request = Request(
        user_id=user,
        k=k,
        history=history.split(",") if history else None,
        exclude=exclude.split(",") if exclude else (),
        variant=variant,
        filter=filter,
        rules=None if NOTHING.over(asked) == NOTHING else asked,
        predict=predict,
        weights=_pairs("weights", weights, float),
        context=_pairs("context", context, str),
        seed=seed,
        page_token=page_token,
        budget_ms=budget_ms,
        query_text=query_text,
        explain=explain,
    )
    if bool(server) == (bundle is not None):
        raise typer.BadParameter("give a bundle folder or --server HOST:PORT, one of the two")
    with _open(bundle, server, ca, token_file, config) as answering:
        if why_not:
            show_why_not(answering.why_not(request, why_not), json=json)
            return
        slate = answering.recommend(request)
        attributes = answering.get_items(named_items(slate))
    show_slate(f"for {user}" if user else "for a new user", slate, attributes, json=json, language=language)


def _open(
    bundle: Path | None, server: str, ca: str, token_file: Path | None, config: Path | None
) -> "Engine | RecommenderClient":
    """Returns who answers: both are asked in the same way."""
    if server:
        from recserve.engine.client import RecommenderClient
        from recserve.engine.credentials import Credentials

        token = token_file.read_text().strip() if token_file else os.environ.get("RECSERVE_TOKEN", "")
        credentials = Credentials(ca=ca or None, token=token)
        return RecommenderClient(server, timeout=TIMEOUT_SECONDS, credentials=credentials)
    from recserve.engine.engine import Engine
    from recserve.engine.settings import load_settings

    return Engine.load(bundle or "", load_settings(config, {}).engine)


def _pairs(flag: str, text: str, kind: Callable[[str], T]) -> dict[str, T]:
    """Reads "brand=2,category=4"; a name may have an equals sign, a value none."""
    pairs = {}
    for part in text.split(",") if text else ():
        name, _, value = part.rpartition("=")
        try:
            pairs[name] = kind(value)
        except ValueError:
            name = ""
        if not name:
            word = {int: "NUMBER", float: "NUMBER"}.get(kind, "VALUE")  # type: ignore[call-overload]
            raise typer.BadParameter(f"--{flag} is {part!r}; expected NAME={word},...")
    return pairs


def _rules(text: str) -> "Rules":
    """Reads the message Rules from JSON, or from a file of it."""
    from google.protobuf import json_format

    from recserve.engine.wire.convert import rules_from_message
    from recserve.proto import recommender_pb2 as pb

    try:
        source = text if not text or text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        return rules_from_message(json_format.Parse(source or "{}", pb.Rules()))
    except (OSError, UnicodeDecodeError, json_format.ParseError) as error:
        raise typer.BadParameter(f"--rules is {text!r}; expected JSON of rules: {error}") from None


def _boost(text: str) -> "Boost":
    """Reads "0.3:year >= 1997"."""
    from recserve.engine.bundle.rules import Boost

    weight, _, filter_ = text.partition(":")
    try:
        return Boost(filter_, float(weight))
    except ValueError:
        raise typer.BadParameter(f"--boost is {text!r}; expected WEIGHT:FILTER") from None

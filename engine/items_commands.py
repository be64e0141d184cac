"""``recserve items``: what a running server serves beside its bundle.

RECSERVE_TOKEN and RECSERVE_CA in the environment are those of ``recserve models``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from recserve import console
from recserve.engine.asking import asking
from recserve.engine.state_commands import KeyFileOption, StateOption
from recserve.errors import DataError

ServerOption = Annotated[str, typer.Option("--server", help="HOST:PORT of a server with --state.")]
DEFAULT_SERVER = "127.0.0.1:50051"
TIMEOUT_SECONDS = 30.0
# A thousand vectors of a thousand numbers are 4 MB, what a message may have.
PER_CALL = 200


def register(add: Callable[..., Any]) -> None:
    """Adds the verbs below ``recserve items``."""
    for verb in (upsert, remove, prune):
        add(verb, group="items")


def upsert(
    file: Annotated[
        Path,
        typer.Argument(help="JSON lines: item_id, attributes, and perhaps vector or like (ids of items)."),
    ],
    model: Annotated[
        str, typer.Option(help="That vectors are of. Default: the server's default model.")
    ] = "",
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Serve further items, and again those that were removed, from the next request on."""
    from google.protobuf.json_format import ParseDict, ParseError

    from recserve.proto import catalogue_pb2 as pb
    from recserve.proto import catalogue_pb2_grpc

    try:
        items = [ParseDict(json.loads(line), pb.NewItem()) for line in file.read_text("utf-8").splitlines()]
    except (OSError, ValueError, ParseError) as error:
        raise DataError(f"file {file}", found=f"not readable ({error})", expected="JSON lines") from error
    with asking(server, TIMEOUT_SECONDS, catalogue_pb2_grpc.CatalogueStub) as ask:
        for start in range(0, len(items), PER_CALL):
            ask("UpsertItems", pb.UpsertItemsRequest(items=items[start : start + PER_CALL], model=model))
    console.note(f"{len(items)} items served")


def remove(
    item_ids: Annotated[list[str], typer.Argument(help="Items.")], server: ServerOption = DEFAULT_SERVER
) -> None:
    """Take items out of every slate, from the next request on."""
    from recserve.proto import catalogue_pb2 as pb
    from recserve.proto import catalogue_pb2_grpc

    with asking(server, TIMEOUT_SECONDS, catalogue_pb2_grpc.CatalogueStub) as ask:
        for start in range(0, len(item_ids), PER_CALL):
            ask("RemoveItems", pb.RemoveItemsRequest(item_ids=item_ids[start : start + PER_CALL]))
    console.note(f"{len(item_ids)} items removed")


def prune(
    bundle: Annotated[Path, typer.Argument(help="The bundle that is served from now on.")],
    state: StateOption,
    key_file: KeyFileOption = None,
) -> None:
    """Forget further items that a bundle has by now, to make room; a log in a file must be nobody's."""
    from recserve.engine.bundle import open_bundle
    from recserve.engine.state.config import StateConfig
    from recserve.engine.state.opening import prune_items

    vocabulary = open_bundle(bundle).catalogue.vocabulary
    n_items = prune_items(
        StateConfig(url=state, key_file=key_file), lambda id_: vocabulary.index_of(id_) >= 0
    )
    console.note(f"{n_items} items forgotten")

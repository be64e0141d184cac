"""The verbs ``recserve keys`` and ``recserve audit``."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from recserve import console
from recserve.engine.options import JsonOption

KeyFileOption = Annotated[Path, typer.Option("--file", help="The key file that the policy names.")]


def register(add: Callable[..., Any]) -> None:
    """Adds the verbs to the command line."""
    for verb in (create, list_, revoke):
        add(verb, group="keys")
    add(verify, group="audit")


def create(
    file: KeyFileOption,
    name: Annotated[str, typer.Option(help="Who will use it; stands in the audit log.")],
    scope: Annotated[list[str], typer.Option(help="What it may do; give it several times.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is good.")] = 365,
) -> None:
    """Add a key to the file (made when absent) and print it, this once: the file keeps its hash only."""
    from recserve.engine.server.security.keys import create_key

    key, text = create_key(file, name, scope, days)
    console.stdout.file.write(f"{text}\n")
    console.note(f"key {key.id} for {key.name}, until {key.expires:%Y-%m-%d}; it is not shown again")


def list_(file: KeyFileOption, json: JsonOption = False) -> None:
    """Show the keys of the file, without anything secret."""
    from recserve.engine.server.security.keys import read_keys

    now = datetime.datetime.now(datetime.UTC)
    listed = list(read_keys(file).values())
    if json:
        console.print_json(
            [
                {
                    "id": key.id,
                    "name": key.name,
                    "scopes": sorted(key.scopes),
                    "created": key.created.isoformat(),
                    "expires": key.expires.isoformat(),
                    "state": key.state(now),
                }
                for key in listed
            ]
        )
        return
    rows = [
        [key.id, key.name, " ".join(sorted(key.scopes)), f"{key.expires:%Y-%m-%d}", key.state(now)]
        for key in listed
    ]
    console.print_table(f"{file}", ["id", "name", "scopes", "expires", "state"], rows)


# The verb has the name of a built-in type, which the options above need.
list_.__name__ = "list"


def revoke(file: KeyFileOption, key_id: Annotated[str, typer.Argument(help="Id, as list shows it.")]) -> None:
    """Make a key useless; running servers see it within seconds."""
    from recserve.engine.server.security.keys import revoke_key

    key = revoke_key(file, key_id)
    console.note(f"key {key.id} for {key.name} is revoked")


def verify(
    file: Annotated[Path, typer.Argument(help="Audit log.")],
    contains: Annotated[str, typer.Option(help="A hash noted earlier, which must be in it.")] = "",
    json: JsonOption = False,
) -> None:
    """Check the chain of hashes; name the first broken line."""
    from recserve.engine.server.security.audit import verify as verify_chain

    verified = verify_chain(file, contains=contains)
    if json:
        console.print_json({"records": verified.n_records, "last_hash": verified.last_hash})
        return
    console.print_table(f"{file}", ["records", "last hash"], [[verified.n_records, verified.last_hash]])

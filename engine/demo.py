"""The demo: the commands that a user would type, then questions to the running server."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recserve import console
from recserve.engine.client import RecommenderClient
from recserve.engine.engine import Engine
from recserve.engine.show import attribute_text, show_slate, stage_text
from recserve.engine.types import Request, Slate
from recserve.errors import CheckFailed, InvalidRequest

N_USERS = 3
N_LAST = 5
K = 10
# A first start compiles the kernels.
START_TIMEOUT_SECONDS = 120.0
TIMEOUT_SECONDS = 10.0
# By default training goes on while it gains anything, up to 200 epochs: minutes more.
EPOCHS = 60


def run_demo(out: Path, data: str) -> None:
    """Trains, evaluates and exports into ``out`` unless that is done, then serves and asks."""
    run, bundle = out / "run", out / "bundle"
    done = out / "done"
    if done.is_file():
        if done.read_text(encoding="utf-8") != data:
            raise InvalidRequest(
                "--data",
                found=data,
                expected=f"{done.read_text(encoding='utf-8')}, which {out} was made of",
                cure="Choose another --out or delete the folder.",
            )
        console.note(f"{out} has a trained run and a bundle: using them (delete the folder to start again)")
        _step(["evaluate", str(run)])
    else:
        # An interrupted demo goes on where it was.
        train = ["train", "--data", data, "--model", "sasrec", "--epochs", str(EPOCHS)]
        _step([*train, "--out", str(run), "--resume"])
        _step(["evaluate", str(run)])
        _step(["export", str(run), "--out", str(bundle), "--replace"])
        done.write_text(data, encoding="utf-8")
    with Engine.load(bundle) as engine:
        users = _some_users(engine)
        with _server(bundle) as address, RecommenderClient(address, timeout=TIMEOUT_SECONDS) as client:
            for user_id in users:
                _ask(client, engine, user_id)
            show_slate("gRPC answer for somebody nobody knows (cold start)", *_answer(client, Request(k=5)))
        _click(engine, users[0])
    program = os.path.relpath(sys.argv[0]) if Path(sys.argv[0]).name == "recserve" else "recserve"
    console.note("\nTry next:")
    for command in (
        f"recommend {bundle} --user {users[0]} --json",
        f"serve {bundle} --port 50051",
        "train --help   # your own file: --data events.csv --columns user=…,item=…,timestamp=…",
    ):
        console.note(f"  {program} {command}")


def _step(arguments: list[str]) -> None:
    console.note(f"\n$ recserve {' '.join(arguments)}")
    finished = subprocess.run([sys.executable, "-m", "recserve.engine.cli", *arguments], check=False)
    if finished.returncode != 0:
        raise CheckFailed(
            f"recserve {arguments[0]}", found=f"exit code {finished.returncode}", expected="0; see above"
        )


@contextlib.contextmanager
def _server(bundle: Path) -> Iterator[str]:
    """Runs ``recserve serve`` on a free port; yields its address and stops it by SIGTERM."""
    command = ["serve", str(bundle), "--port", "0"]
    console.note(f"\n$ recserve {' '.join(command)}")
    server = subprocess.Popen(
        [sys.executable, "-m", "recserve.engine.cli", *command], stdout=subprocess.PIPE, text=True
    )
    try:
        address = server.stdout.readline().strip() if server.stdout else ""
        if not address:
            raise CheckFailed("recserve serve", found="stopped", expected="an address; see above")
        yield address
    finally:
        server.terminate()
        server.wait(START_TIMEOUT_SECONDS)
        if server.stdout:
            server.stdout.close()


def _some_users(engine: Engine) -> list[str]:
    """Returns users far apart in the bundle, the same every time."""
    n_users = len(engine.user_ids())
    return [engine.user_ids()[int(n_users * (i + 0.5) / N_USERS)] for i in range(min(N_USERS, n_users))]


def _ask(client: RecommenderClient, engine: Engine, user_id: str) -> None:
    last = engine.history(user_id)[-N_LAST:]
    titles = client.get_items(last)
    console.stdout.print(f"\nUser {user_id}, last seen:", markup=False)
    for item_id in last:
        console.stdout.print(f"  {_title(titles, item_id)}", markup=False)
    slate, attributes = _answer(client, Request(user_id=user_id, k=K))
    show_slate(f"gRPC answer for user {user_id}", slate, attributes)


def _answer(client: RecommenderClient, request: Request) -> tuple[Slate, dict[str, dict[str, Any]]]:
    slate = client.recommend(request)
    return slate, client.get_items([item.item_id for item in slate.items])


def _click(engine: Engine, user_id: str) -> None:
    """Shows in the embedded engine how one click changes the next slate."""
    before = engine.recommend(Request(user_id=user_id, k=K))
    clicked = before.items[-1].item_id
    engine.observe(user_id=user_id, item_id=clicked, action="click")
    after = engine.recommend(Request(user_id=user_id, k=K))
    titles = engine.get_items([item.item_id for item in (*before.items, *after.items)])
    rank_before = {item.item_id: item.rank for item in before.items}
    console.stdout.print(
        f"\nEmbedded engine: user {user_id} clicks {_title(titles, clicked)!r}; the next slate:",
        markup=False,
    )
    console.print_table(
        "after the click",
        ["rank", "title", "before"],
        [
            [item.rank, _title(titles, item.item_id), rank_before.get(item.item_id, "new")]
            for item in after.items
        ],
    )
    console.note(stage_text(after))


def _title(attributes: Mapping[str, Mapping[str, Any]], item_id: str) -> str:
    values = attributes.get(item_id, {})
    title = attribute_text(values.get("title")) or item_id
    year = attribute_text(values.get("year"))
    return f"{title} ({year})" if year else title

"""``recserve``: one command whose verbs the folders register through entry points.

Exit codes: 0 ok, 1 a check or the data failed, 2 usage, 3 configuration, 4 server not reachable,
5 bundle invalid, 130 interrupted.
"""

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

import recserve
from recserve import console
from recserve.errors import MAX_NAME_CHARACTERS, BundleInvalid, ConfigError, RecserveError, shorten

ENTRY_POINTS = "recserve.commands"
EPILOG = (
    "Exit codes: 0 ok, 1 a check failed, 2 usage, 3 configuration, 4 server not reachable, 5 bundle invalid."
)
ORDER = ("demo", "train", "evaluate", "export", "inspect", "recommend", "serve")
GROUPS = {
    "bundle": "Sign bundles and check who signed them.",
    "keys": "Make, list and revoke API keys.",
    "audit": "Check an audit log.",
    "encoder": "Text encoders: items as vectors of their texts.",
    "kernels": "The compiled kernels.",
    "models": "What a running server answers with.",
    "items": "Items that a running server serves beside its bundle, or no more.",
    "bench": "Measure speed on this machine.",
}


def build_app() -> typer.Typer:
    """Returns the command with the verbs of all folders, in the order of the work."""
    app = typer.Typer(
        name="recserve",
        help="Train recommendation models, export them to ONNX, serve them fast.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        epilog=EPILOG,
    )
    app.callback(help="Train recommendation models, export them to ONNX, serve them fast.")(_root)
    verbs: dict[tuple[str, str], tuple[Callable[..., Any], bool]] = {}

    def add(verb: Callable[..., Any], *, group: str = "", needs: Sequence[str] = (), extra: str = "") -> None:
        """``group``: a key of GROUPS, for a verb such as ``bench kernels`` that stands below it."""
        missing = [module for module in needs if importlib.util.find_spec(module) is None]
        verbs[group, verb.__name__] = (_refuse(verb, missing, extra) if missing else verb, bool(missing))

    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        point.load()(add)
    groups = {"": app}
    for group, name in sorted(verbs, key=_place):
        if group not in groups:
            groups[group] = typer.Typer(help=GROUPS[group], no_args_is_help=True, rich_markup_mode=None)
            app.add_typer(groups[group], name=group)
        verb, missing = verbs[group, name]
        groups[group].command(name, hidden=missing)(verb)
    return app


def _place(key: tuple[str, str]) -> tuple[int, str, str]:
    """Verbs in the order of the work, those that it does not name after them, then the groups."""
    group, name = key
    if group:
        return len(ORDER) + 1, group, name
    return (ORDER.index(name) if name in ORDER else len(ORDER)), "", name


def _refuse(verb: Callable[..., Any], missing: list[str], extra: str) -> Callable[..., Any]:
    """Stands in for a verb whose optional libraries are not installed; keeps its options."""

    @functools.wraps(verb)
    def refuse(**_: Any) -> None:
        raise ConfigError(
            f"verb {verb.__name__}",
            found=f"without {', '.join(missing)}",
            expected=f"an installation with the extra [{extra}]",
            cure=f"Run: pip install 'recserve[{extra}]'",
        )

    return refuse


def _print_version(wanted: bool) -> None:
    if wanted:
        print(recserve.__version__)  # noqa: T201 - the one datum that this flag asks for
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Holds the options that stand before any verb."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the documented code."""
    try:
        build_app()(arguments, prog_name="recserve")
    except RecserveError as error:
        reason = f" [{error.reason}]" if isinstance(error, BundleInvalid) else ""
        console.note(f"error: {error}{reason}")
        sys.exit(error.exit_code)
    except OSError as error:
        # A full disk, a missing permission: the system's own words say it best.
        name = f" {shorten(error.filename, MAX_NAME_CHARACTERS)!r}" if error.filename else ""
        console.note(f"error: {error.strerror or error}{name}")
        sys.exit(RecserveError.exit_code)


if __name__ == "__main__":
    main()

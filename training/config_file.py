"""The options of a verb out of a TOML file: every key is the name of an option, flags go before them."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from recserve.errors import ConfigError, nearest

# A section that belongs to another verb.
SWEEP = "sweep"


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the values of the file the defaults of the verb's options; for a callback that is eager.

    Raises :class:`ConfigError` for a file that cannot be read, a key that is no option, a value of no type
    that an option has.
    """
    if path is not None:
        allowed = [str(parameter.name) for parameter in context.command.params]
        context.default_map = read_options(path, read_toml(path), allowed)
    return path


def read_options(path: Path, values: Mapping[str, Any], allowed: Iterable[str]) -> dict[str, Any]:
    """Returns ``values``, what ``path`` holds, by the names of parameters; lists are joined by commas."""
    found = {}
    for name, value in named_options(path, values, allowed).items():
        if isinstance(value, list):
            value = ",".join(str(part) for part in value)
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"key {name} of {path}", found=value, expected="a text, number, truth or list")
        found[name] = value
    return found


def named_options(path: Path, values: Mapping[str, Any], allowed: Iterable[str]) -> dict[str, Any]:
    """Returns ``values`` with ``_`` in their names, without a section [sweep].

    Raises :class:`ConfigError` for a name that is not ``allowed``.
    """
    names = sorted(name for name in allowed if name not in ("config", "help"))
    found = {key.replace("-", "_"): value for key, value in values.items() if key != SWEEP}
    for name in found:
        if name not in names:
            raise ConfigError(
                f"key {name} of {path}",
                found="unknown",
                expected="the name of an option of `recserve train`",
                cure=nearest(name, names),
            )
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file; raises :class:`ConfigError` where it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"not readable ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(f"file {path}", found=found, expected="a TOML file") from error

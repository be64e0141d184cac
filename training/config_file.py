"""The options of a verb out of a TOML file: every key is the name of an option, flags go before them."""

import tomllib
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
        options = {
            flag.removeprefix("--"): parameter.name
            for parameter in context.command.params
            for flag in parameter.opts
            if parameter.name not in ("config", "help")
        }
        values = read_options(path, options)
        context.default_map = {options[name]: value for name, value in values.items()}
    return path


def read_options(path: Path, allowed: Any) -> dict[str, Any]:
    """Returns the options in a file by their names (``embedding-size``); lists are joined by commas."""
    found = {}
    for key, value in read_toml(path).items():
        name = key.replace("_", "-")
        if name == SWEEP:
            continue
        if name not in allowed:
            raise ConfigError(
                f"key {key} of {path}",
                found="unknown",
                expected="the name of an option of `recserve train`",
                cure=nearest(name, allowed),
            )
        if isinstance(value, list):
            value = ",".join(str(part) for part in value)
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"key {key} of {path}", found=value, expected="a text, number, truth or list")
        found[name] = value
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file; raises :class:`ConfigError` where it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"not readable ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(f"file {path}", found=found, expected="a TOML file") from error

"""The file that gives a bundle its own rules."""

import tomllib
from pathlib import Path

from recserve.engine.bundle.manifest import pipeline_from
from recserve.engine.bundle.rules import PipelineConfig
from recserve.errors import BundleInvalid, ConfigError


def read_pipeline(file: Path) -> PipelineConfig:
    """Reads the section [pipeline] of a TOML file; raises :class:`ConfigError` naming what is wrong."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"file {file}", found="not readable", expected="a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"file {file}", found=str(error), expected="TOML") from error
    if not isinstance(values.get("pipeline"), dict):
        raise ConfigError(f"file {file}", found="without it", expected="the section [pipeline]")
    try:
        return pipeline_from(values["pipeline"])
    except BundleInvalid as error:
        raise ConfigError(error.name, found=error.found, expected=error.expected, cure=error.cure) from error

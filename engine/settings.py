"""Settings of the command line: flag > environment > file > default, read once, here.

The file is TOML with the sections [engine], [server], [batcher], [http], [telemetry], [repository], [state],
[online] and [pipeline]; the environment says RECSERVE__SERVER__PORT=8000. An unknown key is an error that
names the nearest known one.
"""

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.bundle.rules import PipelineConfig
from recserve.engine.config import EngineConfig
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.online.config import OnlineConfig
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.telemetry.config import TelemetryConfig
from recserve.engine.state.config import StateConfig
from recserve.errors import ConfigError, nearest

ENV_PREFIX = "RECSERVE__"
SECTIONS: dict[str, type] = {
    "engine": EngineConfig,
    "server": ServerConfig,
    "batcher": BatcherConfig,
    "http": HttpConfig,
    "telemetry": TelemetryConfig,
    "repository": RepositoryConfig,
    "state": StateConfig,
    "online": OnlineConfig,
    "pipeline": PipelineConfig,
}


class Settings(BaseSettings):
    """All settings of the serving half."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", frozen=True)

    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()
    batcher: BatcherConfig = BatcherConfig()
    http: HttpConfig = HttpConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    repository: RepositoryConfig = RepositoryConfig()
    state: StateConfig = StateConfig()
    online: OnlineConfig = OnlineConfig()
    pipeline: PipelineConfig = PipelineConfig()


def load_settings(file: Path | None, flags: dict[str, dict[str, Any]]) -> Settings:
    """Merges ``flags`` (section → key → value, None = not given), the environment and the TOML ``file``.

    Raises :class:`ConfigError` naming the key that is unknown or has a wrong value.
    """
    from_file = _read(file) if file is not None else {}
    given = {
        section: {key: value for key, value in values.items() if value is not None}
        for section, values in flags.items()
    }
    _check_keys(from_file, f"{file}")
    _check_keys(_environment_keys(), "environment")

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

    try:
        loaded = Sources(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        expected = first["msg"].lower().removeprefix("input should be ")
        raise ConfigError(name, found=first.get("input"), expected=expected) from error
    # A section of its own for people; the engine runs it.
    engine = dataclasses.replace(loaded.engine, pipeline=loaded.pipeline)
    return loaded.model_copy(update={"engine": engine})


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"file {file}", found="not readable", expected="a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"file {file}", found=str(error), expected="TOML") from error


def _environment_keys() -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            *tables, key = name[len(ENV_PREFIX) :].lower().split("__")
            place = keys
            for table in tables:
                place = place.setdefault(table, {})
            place[key] = ""
    return keys


def _check_keys(values: dict[str, Any], where: str) -> None:
    for section, keys in values.items():
        if section not in SECTIONS:
            raise ConfigError(
                f"section {section} ({where})",
                found="unknown",
                expected=f"one of {', '.join(SECTIONS)}",
                cure=nearest(section, SECTIONS),
            )
        if not isinstance(keys, dict):
            raise ConfigError(f"section {section} ({where})", found=keys, expected="a table of keys")
        _check_table(SECTIONS[section], keys, section, where)


def _check_table(kind: type, keys: dict[str, Any], name: str, where: str) -> None:
    known = {field.name: field.type for field in dataclasses.fields(kind) if field.name not in SECTIONS}
    for key, value in keys.items():
        if key not in known:
            raise ConfigError(
                f"key {name}.{key} ({where})",
                found="unknown",
                expected="a known key",
                cure=nearest(key, known) or f"Known: {', '.join(known)}.",
            )
        inner = known[key]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner) and isinstance(value, dict):
            _check_table(inner, value, f"{name}.{key}", where)

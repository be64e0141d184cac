"""Reasons in words. A language is a file of ``messages``; nothing else knows how many there are."""

import importlib.resources
import tomllib
from collections.abc import Mapping
from functools import cache

from recserve.engine.explain.explanation import Reason
from recserve.errors import InvalidRequest, nearest

AND = "and"


def languages() -> list[str]:
    """Returns the languages that there are texts in, "en", "es", ..."""
    folder = importlib.resources.files("recserve.engine.explain").joinpath("messages")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def reason_text(reason: Reason, language: str = "en", names: Mapping[str, str] | None = None) -> str:
    """Returns one sentence for a person; pure, for server and client alike.

    ``language``: "zh", or with a region or script as "zh-CN"; ``names``: what to call the items, by id, where
    that is not their id. Raises :class:`InvalidRequest` for a language without a file.
    """
    messages = _messages(language.replace("_", "-").partition("-")[0].lower())
    items = messages[AND].join((names or {}).get(item_id, item_id) for item_id in reason.item_ids)
    # Not str.format: a name may have braces of its own.
    return messages[reason.code].replace("{items}", items)


@cache
def _messages(language: str) -> dict[str, str]:
    known = languages()
    if language not in known:
        raise InvalidRequest(
            "language",
            found=language,
            expected=f"one of {', '.join(known)}",
            cure=nearest(language, known),
        )
    files = importlib.resources.files("recserve.engine.explain")
    found: dict[str, str] = tomllib.loads(files.joinpath(f"messages/{language}.toml").read_text("utf-8"))
    return found

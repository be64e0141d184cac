"""What a person sees is what the data says."""

import json

import pytest

from recserve import console
from recserve.engine.show import attribute_text, show_slate
from recserve.engine.types import Slate, SlateItem

SLATE = Slate(
    items=(SlateItem(1, "i[1]", 0.5),),
    bundle_version="v1",
    variant="fp32",
    source="model",
    stage_ns={"encode": 1_500_000},
    warnings=("1 of 2 history items are not in the catalogue",),
)
ATTRIBUTES = {"i[1]": {"title": "Film 3 [/rec] [bold]x", "genres": ["a", "b"], "year": 1995.0}}


def test_text_is_shown_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    show_slate("for [/u] [bold]me", SLATE, ATTRIBUTES)
    out, err = capfd.readouterr()
    for text in ("for [/u] [bold]me", "i[1]", "Film 3 [/rec] [bold]x", "a, b", "1995"):
        assert text in out
    assert "encode 1.50 ms" in err
    assert "warning: 1 of 2 history items" in err


def test_json_has_everything(capfd: pytest.CaptureFixture[str]) -> None:
    show_slate("ignored", SLATE, ATTRIBUTES, json=True)
    shown = json.loads(capfd.readouterr().out)
    assert shown["items"][0]["attributes"] == ATTRIBUTES["i[1]"]
    assert shown["stage_ns"] == {"encode": 1_500_000}


def test_cells() -> None:
    assert [attribute_text(value) for value in (None, 2.0, 2.5, ["x", 1])] == ["", "2", "2.5", "x, 1"]


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.print_json({"x": float("nan")})

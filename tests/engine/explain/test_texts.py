"""Reasons in words: every language has every code, and an item's name is only a name."""

import pytest

from recserve.engine.explain.explanation import Reason, ReasonCode
from recserve.engine.explain.texts import languages, reason_text
from recserve.errors import InvalidRequest

NAMES = {"1": "Alien", "2": "A {items} film"}


def test_the_languages_are_the_files() -> None:
    assert {"en", "es", "zh"} <= set(languages())


@pytest.mark.parametrize("language", languages())
@pytest.mark.parametrize("code", ReasonCode)
def test_every_language_says_every_code_with_its_items(language: str, code: ReasonCode) -> None:
    ids = ("1", "2") if code in (ReasonCode.BECAUSE_YOU_HAD, ReasonCode.SIMILAR_TO) else ()
    text = reason_text(Reason(code, ids), language, NAMES)
    assert text.strip()
    assert all(NAMES[item_id] in text for item_id in ids)
    assert text.count("{items}") == len(ids) // 2
    assert len({reason_text(Reason(other), language) for other in ReasonCode}) == len(ReasonCode)


def test_texts() -> None:
    reason = Reason(ReasonCode.BECAUSE_YOU_HAD, ("1", "3"))
    assert reason_text(reason, names=NAMES) == "Because you had Alien and 3"
    assert reason_text(reason, "zh-Hans-CN", NAMES) == "因为你有过Alien和3"
    assert reason_text(reason, "es_MX", NAMES) == "Porque tuviste Alien y 3"
    with pytest.raises(InvalidRequest, match=r"language is \.\./xx; expected one of en, es, zh"):
        reason_text(reason, "../xx")

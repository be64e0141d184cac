"""The language of rules: laws against a slow reading, what each form means, and what is refused where."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.engine.filters.evaluate import evaluate
from recserve.engine.filters.syntax import MAX_CHARACTERS, parse
from recserve.errors import InvalidRequest
from tests.engine.filters.catalogues import holds, make_catalogue

PRICES = st.sampled_from([0.5, 10.0, 49.99, 50.0, -1.0])
COUNTS = st.integers(-2, 3)
CATEGORIES = st.sampled_from(["book", "game", "it's", 'a "b"', "日本"])
GENRES = st.lists(st.sampled_from(["war", "art", "jazz"]), max_size=3)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "price": PRICES,
        "stock": COUNTS,
        "category": CATEGORIES,
        "genres": GENRES,
        "sizes": st.lists(COUNTS, max_size=3),
        "in_stock": st.booleans(),
    },
)


def quoted(text: str) -> str:
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'


def comparisons() -> st.SearchStrategy[str]:
    numbers = st.sampled_from(["price", "stock", "sizes"])
    number = st.one_of(COUNTS.map(str), PRICES.map(repr))
    text = st.one_of(CATEGORIES, GENRES.map(" ".join)).map(quoted)
    texts = st.sampled_from(["category", "genres"])
    return st.one_of(
        st.builds("{} {} {}".format, numbers, st.sampled_from(["<", "<=", ">", ">=", "=", "!="]), number),
        st.builds("{} between {} and {}".format, numbers, number, number),
        st.builds(
            "{} {} ({})".format,
            numbers,
            st.sampled_from(["in", "NOT IN"]),
            st.lists(number, min_size=1, max_size=3).map(",".join),
        ),
        st.builds("{} {} {}".format, texts, st.sampled_from(["=", "==", "!=", "<>"]), text),
        st.builds(
            "{} {} ({})".format,
            texts,
            st.sampled_from(["in", "not in"]),
            st.lists(text, min_size=1, max_size=3).map(", ".join),
        ),
        st.builds(
            "{} is {}".format,
            st.sampled_from(["price", "genres", "in_stock"]),
            st.sampled_from(["null", "not null"]),
        ),
        st.sampled_from(["in_stock", "in_stock = false", "in_stock != true"]),
    )


def rules() -> st.SearchStrategy[str]:
    return st.recursive(
        comparisons(),
        lambda inner: st.one_of(
            st.builds("({}) and ({})".format, inner, inner),
            st.builds("({}) or {}".format, inner, inner),
            st.builds("not ({})".format, inner),
        ),
        max_leaves=8,
    )


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=12), rules())
def test_a_rule_holds_where_plain_python_says_so(rows: list[dict[str, Any]], text: str) -> None:
    rule = parse(text)
    found = evaluate(rule, make_catalogue(rows))
    assert found.dtype == np.bool_
    assert found.tolist() == [holds(rule, row) for row in rows]


CATALOGUE = make_catalogue(
    [
        {"price": 5.0, "stock": 7, "category": "book", "genres": ["war", "art"], "in_stock": True},
        {"price": 50.0, "stock": 8, "category": "game", "genres": [], "since": 1_760_000_000_000},
        {},
    ]
)
MEANINGS = {
    "price < 50 and category in ('book', \"game\")": [0],
    "price<50 or price>=50": [0, 1],
    "not price < 50": [1, 2],
    "category != 'book'": [1],
    "category not in ('book')": [1],
    "not category in ('book')": [1, 2],
    "genres = 'art'": [0],
    "genres != 'art'": [1],
    "genres is null": [2],
    "`price` between 5 and 49.5": [0],
    "price not between 5 and 49.5": [1],
    "in_stock": [0],
    "stock in (7, 8.5)": [0],
    "since > '2025-10-01'": [1],
    "since between '2025-10-09T08:53:20' and '2025-10-09T10:53:20+02:00'": [1],
    "item_id in ('item 2', 'item 0', 'no such item')": [0, 2],
    "item_id != 'item 1' and (in_stock or price is null)": [0, 2],
    "category = 'unheard of'": [],
    "price = 1e1 or price = +5.": [0],
    "category = 'it\\'s'": [],
}


@pytest.mark.parametrize("text", MEANINGS)
def test_what_a_rule_means(text: str) -> None:
    assert np.flatnonzero(evaluate(parse(text), CATALOGUE)).tolist() == MEANINGS[text]


def test_or_binds_weaker_than_and() -> None:
    assert np.flatnonzero(evaluate(parse("price = 5 or price = 50 and stock = 7"), CATALOGUE)).tolist() == [0]


REFUSED = {
    "": ("ending at character 1", "an attribute, not or ("),
    "price": ("price at character 1", "an attribute of true and false"),
    "price <": ("ending at character 8", "a number"),
    "price < 5 and": ("ending at character 14", "an attribute"),
    "price < 5 category = 'a'": ("category at character 11", "and, or, or the end"),
    "(price < 5": ("ending at character 11", "and, or, or )"),
    "prise < 5": ("prise at character 1", "Did you mean 'price'?"),
    "price < 5 and sise = 1": ("sise at character 15", "an attribute of the catalogue"),
    "price < 'cheap'": ('"cheap" at character 9', "a number to compare price with"),
    "category = 5": ("5 at character 12", 'a "text" to compare category with'),
    "category < 'b'": ("category < at character 1", "a number or time to order"),
    "in_stock = 1": ("1 at character 12", "true or false"),
    "since > 'tomorrow'": ('"tomorrow" at character 9', "2026-01-31"),
    "parts = 1": ("parts at character 1", "an attribute of numbers, texts"),
    "price in ()": (") at character 11", "a number"),
    "price in (1": ("ending at character 12", ", or )"),
    "price between 1 or 2": ("or at character 17", "and with the upper bound"),
    "price is 5": ("5 at character 10", "null or not null"),
    "price not 5": ("5 at character 11", "in or between"),
    "category = 'book": ("'book at character 12", "the same mark"),
    "price < 5 ; drop": ("; drop at character 11", "a name, a value or an operator"),
    "__import__('os')": ("( at character 11", "and, or, or the end"),
    "price < 1e999": ("1e999 at character 9", "a finite number"),
    "(" * 60 + "in_stock" + ")" * 60: ("at character 51", "50 levels"),
    "not " * 60 + "in_stock": ("at character 201", "50 levels"),
    " " * (MAX_CHARACTERS + 1): ("100001 characters long", "at most 100000"),
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:24])
def test_what_is_refused_says_where(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        evaluate(parse(text), CATALOGUE)
    found, expected = REFUSED[text]
    assert caught.value.name == "filter"
    assert found in caught.value.found
    assert expected in str(caught.value)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_refusal(text: str) -> None:
    try:
        mask = evaluate(parse(text), CATALOGUE)
    except InvalidRequest:
        return
    assert mask.shape == (3,)


def test_large_whole_numbers_are_exact() -> None:
    catalogue = make_catalogue([{"stock": 2**31 - 1}, {"stock": 2**31 - 2}])
    assert evaluate(parse(f"stock in ({2**31 - 1}, 0.5)"), catalogue).tolist() == [True, False]

"""Column mapping: what is said is obeyed, what is not said is guessed, what is wrong is named."""

import pytest

from recserve.errors import DataError, InvalidRequest
from recserve.training.data.columns import GUESSES, ColumnMap, guess_column


def test_parse_reads_roles_and_ignores_spaces() -> None:
    mapping = ColumnMap.parse("user=customer, item = sku,timestamp=when,value=qty")
    assert mapping == ColumnMap("customer", "sku", "when", "qty", None)


def test_parse_of_nothing_guesses_everything() -> None:
    assert ColumnMap.parse("") == ColumnMap()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("usr=a", "role in the column mapping is usr; expected one of user, item, .* Did you mean 'user'"),
        ("user", "column mapping is user; expected ROLE=COLUMN"),
        ("user=a,user=b", "column mapping of user is a and b; expected one column"),
        ("user=a,item=a", "column mapping is a in two roles"),
        ("user=", "column mapping of user is empty"),
    ],
)
def test_a_wrong_mapping_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        ColumnMap.parse(text)


@pytest.mark.parametrize(
    "columns",
    [
        ["userId", "movieId", "rating", "timestamp"],
        ["customer", "sku", "when", "qty"],
        ["User ID", "Item ID", "Time"],
        ["CustomerID", "StockCode", "InvoiceDate", "Quantity"],
    ],
)
def test_the_usual_names_are_guessed_in_their_order(columns: list[str]) -> None:
    roles = dict(zip(["user", "item"], columns, strict=False))
    assert roles.items() <= ColumnMap().resolve(columns).items()
    assert set(ColumnMap().resolve(columns).values()) == set(columns)


def test_the_likeliest_name_wins_over_the_first_column() -> None:
    assert guess_column("item", ["asin", "parent_asin", "item_id"]) == "item_id"


def test_no_column_is_guessed_for_two_roles() -> None:
    assert ColumnMap(user="item_id").resolve(["item_id", "sku"]) == {"user": "item_id", "item": "sku"}


def test_an_empty_mapping_switches_a_guess_off() -> None:
    resolved = ColumnMap.parse("value=").resolve(["user_id", "item_id", "rating"])
    assert "value" not in resolved


def test_a_missing_column_is_named_with_those_found_and_the_cure() -> None:
    with pytest.raises(DataError) as caught:
        ColumnMap(user="custmer").resolve(["customer", "sku"])
    assert str(caught.value) == (
        "user column is no column 'custmer'; expected one of the columns customer, sku. "
        "Did you mean 'customer'? Map it with user=COLUMN, for example user=customer,item=sku,timestamp=when."
    )
    with pytest.raises(DataError, match="item column is not found; expected one of the columns user_id, x"):
        ColumnMap().resolve(["user_id", "x"])


def test_the_guesses_are_plain_names_of_one_role_each() -> None:
    names = [name for guesses in GUESSES.values() for name in guesses]
    assert len(names) == len(set(names))
    assert all(name == name.lower() and name.isalnum() for name in names)

"""Errors go from worker processes to their parent whole."""

import pickle

import pytest

from recserve.engine.wire.status import STATUS_TABLE
from recserve.errors import RecserveError
from tests.engine.server.local import new_error


@pytest.mark.parametrize("kind", STATUS_TABLE, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[RecserveError]) -> None:
    error = new_error(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), vars(copy), copy.exit_code) == (str(error), vars(error), error.exit_code)

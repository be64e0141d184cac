"""What all tests of exports share."""

from collections.abc import Iterator

import pytest

from recserve.exporters import measure


@pytest.fixture(scope="module", autouse=True)
def few_calls() -> Iterator[None]:
    """Figures of time must be there, not be right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MAX_CALLS", measure.MIN_CALLS)
        yield

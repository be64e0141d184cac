"""docs/reliability.md is true as far as it can be read: every test that it names exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A name alone is a test of the file that the same row named before.
NAMED = re.compile(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`")


def test_every_promise_has_its_test() -> None:
    rows = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    promises = [row for row in rows if row.startswith("| ") and "shown by" not in row and "::" in row]
    assert len(promises) > 30
    for row in promises:
        path = ""
        for named, test in NAMED.findall(row):
            path = named or path
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, row


def test_every_fault_of_the_tables_has_a_test() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    faults = text[: text.index("## Figures")].splitlines()
    for row in faults:
        if row.startswith("| ") and "shown by" not in row:
            assert NAMED.search(row), row

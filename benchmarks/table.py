"""A table of text, on a page and for a person."""

from collections.abc import Sequence
from dataclasses import dataclass

from recserve import console


@dataclass(frozen=True, slots=True)
class Table:
    """``columns`` and ``rows`` of text; ``note``: a line below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table as a page has it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.title}**\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")

    def show(self) -> None:
        """Prints the table for a person."""
        console.print_table(self.title, self.columns, self.rows)
        if self.note:
            console.stdout.print(self.note, markup=False, soft_wrap=True)

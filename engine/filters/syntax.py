"""From the text of a rule to a tree; what the names in it mean is not known here.

    rule       = all {"or" all}
    all        = part {"and" part}
    part       = "not" part | "(" rule ")" | comparison
    comparison = NAME                                    (a boolean attribute)
               | NAME ("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
               | NAME ["not"] "in" "(" value {"," value} ")"
               | NAME ["not"] "between" value "and" value
               | NAME "is" ["not"] "null"
    value      = NUMBER | "text" | 'text' | "true" | "false"

Words are read in any case; a name with spaces stands in backquotes, `unit price`; in a text, ``\\`` makes the
next character an ordinary one.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from recserve.errors import InvalidRequest, shorten

Value = int | float | str | bool

MAX_CHARACTERS = 100_000
MAX_DEPTH = 50
# The longest whole numbers that are read exactly; longer ones become floats.
MAX_DIGITS = 18
MAX_SHOWN = 32

_TOKEN = re.compile(
    r"""(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<text>"(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*')
    | (?P<name>`[^`]+` | [^\W\d]\w*(?:\.\w+)*)
    | (?P<mark><=|>=|!=|<>|==|[=<>(),])""",
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"\s*")
_WORDS = frozenset(("and", "or", "not", "in", "between", "is", "null", "true", "false"))
_COMPARISONS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


@dataclass(frozen=True, slots=True)
class Literal:
    """A value as it was written; ``position``: 1-based character of the rule."""

    value: Value
    position: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One attribute against ``values``; ``operator``: =, !=, <, <=, >, >=, in, between, known, or true."""

    attribute: str
    operator: str
    values: tuple[Literal, ...]
    position: int


@dataclass(frozen=True, slots=True)
class Not:
    """The complement."""

    part: "Rule"


@dataclass(frozen=True, slots=True)
class All:
    """Every one of ``parts``."""

    parts: tuple["Rule", ...]


@dataclass(frozen=True, slots=True)
class Any:
    """At least one of ``parts``."""

    parts: tuple["Rule", ...]


Rule = Comparison | Not | All | Any


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def parse(text: str, name: str = "filter") -> Rule:
    """Returns the tree of a rule.

    ``name``: what errors call it. Raises :class:`InvalidRequest`, naming the character, where it does not
    parse, is nested more than 50 deep or longer than 100,000 characters.
    """
    if not isinstance(text, str):
        raise InvalidRequest(name, found=type(text).__name__, expected="a string")
    if len(text) > MAX_CHARACTERS:
        expected = f"at most {MAX_CHARACTERS} characters"
        raise InvalidRequest(name, found=f"{len(text)} characters long", expected=expected)
    return _Parser(text, name).rule()


def refuse(name: str, written: str, position: int, expected: str, cure: str = "") -> NoReturn:
    """Raises the error of a rule: what stands at which character, and what was expected there."""
    shown = shorten(written, MAX_SHOWN)
    raise InvalidRequest(name, found=f"{shown} at character {position}", expected=expected, cure=cure)


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._tokens = _tokens(text, name)
        self._next = 0
        self._depth = 0

    def rule(self) -> Rule:
        rule = self._any()
        if self._peek().kind != "end":
            self._refuse("and, or, or the end")
        return rule

    def _any(self) -> Rule:
        parts = [self._all()]
        while self._take_word("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def _all(self) -> Rule:
        parts = [self._part()]
        while self._take_word("and"):
            parts.append(self._part())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _part(self) -> Rule:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"at most {MAX_DEPTH} levels of nesting")
        if self._take_word("not"):
            part: Rule = Not(self._part())
        elif self._take_mark("("):
            part = self._any()
            if not self._take_mark(")"):
                self._refuse("and, or, or )")
        else:
            part = self._comparison()
        self._depth -= 1
        return part

    def _comparison(self) -> Rule:
        token = self._peek()
        if token.kind != "name":
            self._refuse("an attribute, not or (")
        self._next += 1
        attribute, position = token.text, token.position
        mark = self._peek()
        if mark.kind == "mark" and mark.text in _COMPARISONS:
            self._next += 1
            return Comparison(attribute, _COMPARISONS[mark.text], (self._value(),), position)
        if self._take_word("is"):
            is_known = self._take_word("not")
            if not self._take_word("null"):
                self._refuse("null or not null")
            known = Comparison(attribute, "known", (), position)
            return known if is_known else Not(known)
        negated = self._take_word("not")
        if self._take_word("in"):
            found = Comparison(attribute, "in", self._list(), position)
        elif self._take_word("between"):
            low = self._value()
            if not self._take_word("and"):
                self._refuse("and with the upper bound")
            found = Comparison(attribute, "between", (low, self._value()), position)
        elif negated:
            self._refuse("in or between")
        else:
            return Comparison(attribute, "true", (), position)
        # As != does: an item without the attribute is in neither.
        return All((Comparison(attribute, "known", (), position), Not(found))) if negated else found

    def _list(self) -> tuple[Literal, ...]:
        if not self._take_mark("("):
            self._refuse("( and a list of values")
        values = [self._value()]
        while self._take_mark(","):
            values.append(self._value())
        if not self._take_mark(")"):
            self._refuse(", or )")
        return tuple(values)

    def _value(self) -> Literal:
        token = self._peek()
        if token.kind == "number":
            value: Value = self._number(token.text)
        elif token.kind == "text":
            value = re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
        elif token.kind == "word" and token.text in ("true", "false"):
            value = token.text == "true"
        else:
            self._refuse('a number, a "text", true or false')
        self._next += 1
        return Literal(value, token.position)

    def _number(self, text: str) -> int | float:
        if len(text) <= MAX_DIGITS and text.lstrip("+-").isdecimal():
            return int(text)
        value = float(text)
        if not math.isfinite(value):
            self._refuse("a finite number")
        return value

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take_word(self, word: str) -> bool:
        return self._take("word", word)

    def _take_mark(self, mark: str) -> bool:
        return self._take("mark", mark)

    def _take(self, kind: str, text: str) -> bool:
        token = self._peek()
        found = token.kind == kind and token.text == text
        self._next += found
        return found

    def _refuse(self, expected: str) -> NoReturn:
        token = self._peek()
        refuse(self._name, token.text if token.kind != "end" else "ending", token.position, expected)


def _tokens(text: str, name: str) -> list[_Token]:
    tokens = []
    end = _end_of_space(text, 0)
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            quoted = text[end] in "\"'`"
            expected = "the same mark once more at its end" if quoted else "a name, a value or an operator"
            refuse(name, text[end : end + MAX_SHOWN], end + 1, expected)
        kind, written = match.lastgroup or "", match.group()
        if kind == "name" and written.lower() in _WORDS:
            kind, written = "word", written.lower()
        tokens.append(_Token(kind, written.strip("`") if kind == "name" else written, end + 1))
        end = _end_of_space(text, match.end())
    tokens.append(_Token("end", "", len(text) + 1))
    return tokens


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start

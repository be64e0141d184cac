"""The table of contents of a bundle: ``manifest.json``, canonical JSON, strict on reading."""

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from recserve.engine.bundle.item_encoder import ItemEncoderEntry
from recserve.engine.bundle.item_table import FLOAT32, FORMS
from recserve.engine.bundle.layout import USER_EMBEDDINGS
from recserve.engine.bundle.ranker_entry import MAX_GOLDEN_TOLERANCE, MIN_GOLDEN_TOLERANCE, RankerEntry
from recserve.engine.bundle.rules import PipelineConfig
from recserve.engine.bundle.segments_entry import SegmentsEntry
from recserve.engine.bundle.shards import files_of
from recserve.engine.bundle.text_encoder import TextEncoderEntry
from recserve.errors import BundleInvalid, BundleReason, ConfigError, nearest

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
# A path inside the bundle: plain relative names only, so that joining it can never leave the folder.
SAFE_PATH = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")
SHA256 = re.compile(r"[0-9a-f]{64}")
# Far above any model: the loader runs the graph at full length once, and must be able to.
MAX_HISTORY_LIMIT = 1 << 16
MAX_INTEGER_DIGITS = 20
# The values of a variant's field ``query``.
ENCODER, TABLE = "encoder", "table"

T = TypeVar("T")

_malformed = partial(BundleInvalid, reason=BundleReason.MANIFEST_MALFORMED)
_wrong_field = partial(BundleInvalid, reason=BundleReason.MANIFEST_FIELD)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle: its size and the SHA-256 of its bytes (lower-case hex)."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FoldIn:
    """How a table makes the query embedding of a history: the arguments of ``recserve.kernels.fold_in``.

    ``weight``: confidence of an interaction above that of an item never seen.
    """

    weight: float
    reg: float
    reg_exponent: float = 0.0


@dataclass(frozen=True, slots=True)
class VariantEntry:
    """A form of the model: where its query embeddings come from, its quality and the gate that it passed.

    ``query`` "encoder": the graph ``query_encoder`` takes the inputs of the manifest's ``inputs`` and gives
    ``query_embedding`` (batch, embedding_size) float32. "table": a user whose history is the bundle's has a
    row of the user table; any other history is folded in, or answered by popularity where ``fold_in`` is
    not given. ``golden`` holds recorded inputs and outputs (.npz) that the loader replays and that must come
    back within ``golden_tolerance``. ``gate``: its figures against the trained model and, of forms other than
    the exact one, against that (``recserve.exporters.gate.Measured``). ``incremental_encoder``: of an
    encoder, perhaps, a graph that reads new items beside what it gave of those before.
    """

    golden: str
    size_bytes: int
    query: str = ENCODER
    query_encoder: str = ""
    fold_in: FoldIn | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    gate: dict[str, float] = field(default_factory=dict)
    golden_tolerance: float = MIN_GOLDEN_TOLERANCE
    incremental_encoder: str = ""

    @property
    def graphs(self) -> list[str]:
        """The graphs over the item table."""
        return [graph for graph in (self.query_encoder, self.incremental_encoder) if graph]


@dataclass(frozen=True, slots=True)
class Refused:
    """A form of the model that is not in the bundle: why, and the figures that say so."""

    reason: str
    gate: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InputContract:
    """What the query encoder is fed with: ``features`` by name, at most ``max_history`` newest items."""

    max_history: int
    features: list[str]
    context: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where the bundle comes from, so that the same training can be repeated."""

    data_name: str
    data_sha256: str
    checkpoint_sha256: str
    code_version: str
    seed: int
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Names every file of a bundle and everything a reader must know before opening one."""

    model: str
    bundle_version: str
    created_at: str
    n_items: int
    embedding_size: int
    inputs: InputContract
    lineage: Lineage
    variants: dict[str, VariantEntry]
    default_variant: str
    metrics: dict[str, float]
    files: dict[str, FileEntry]
    refused: dict[str, Refused] = field(default_factory=dict)
    pipeline: PipelineConfig | None = None
    format_version: int = FORMAT_VERSION
    ranker: RankerEntry | None = None
    segments: SegmentsEntry | None = None
    item_table: str = FLOAT32
    item_encoder: ItemEncoderEntry | None = None
    text_encoder: TextEncoderEntry | None = None

    @property
    def item_table_sha256(self) -> str:
        """Which vectors the items have: the digest of the table's file, or that of those of its files."""
        parts = FORMS[self.item_table].values()
        digests = [self.files[name].sha256 for part in parts for name in files_of(part.file, self.files)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def to_json(self) -> str:
        """Returns canonical JSON: sorted keys, two spaces, no NaN."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parses and checks a manifest; raises :class:`BundleInvalid` naming the first wrong field."""
        try:
            raw = json.loads(
                text,
                object_pairs_hook=_unique_keys,
                parse_constant=_refuse_number,
                parse_float=_finite,
                parse_int=_integer,
            )
        except json.JSONDecodeError as error:
            raise _malformed(
                f"{MANIFEST_NAME} (line {error.lineno})",
                found=error.msg,
                expected="JSON",
                cure="Export the bundle again.",
            ) from error
        except RecursionError as error:
            raise _malformed(MANIFEST_NAME, found="nested too deeply", expected="a manifest") from error
        if not isinstance(raw, dict):
            raise _malformed(MANIFEST_NAME, found=type(raw).__name__, expected="a JSON object")
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleInvalid(
                "format_version",
                found=version,
                expected=str(FORMAT_VERSION),
                cure="Export the bundle again with this version of recserve.",
                reason=BundleReason.FORMAT_UNKNOWN,
            )
        manifest = _build(cls, raw, "manifest")
        manifest._check()
        return manifest

    def _check(self) -> None:
        for path, entry in self.files.items():
            if not SAFE_PATH.fullmatch(path) or ".." in path:
                raise BundleInvalid(
                    "a file name of the manifest",
                    found=path,
                    expected="a plain relative path",
                    reason=BundleReason.PATH_UNSAFE,
                )
            if entry.size_bytes < 0 or not SHA256.fullmatch(entry.sha256):
                raise _wrong_field(f"the entry of {path}", found=entry, expected="a size and 64 hex digits")
        if self.default_variant not in self.variants:
            raise _wrong_field(
                "default_variant", found=self.default_variant, expected=f"one of {sorted(self.variants)}"
            )
        if self.item_table not in FORMS:
            raise _wrong_field("item_table", found=self.item_table, expected=f"one of {', '.join(FORMS)}")
        for name, variant in self.variants.items():
            self._check_variant(name, variant)
        for part in (self.ranker, self.segments, self.item_encoder, self.text_encoder):
            if part is not None:
                part.check(self.files)
        for name, value in (
            ("n_items", self.n_items),
            ("embedding_size", self.embedding_size),
            ("max_history", self.inputs.max_history),
        ):
            if value < 1:
                raise _wrong_field(name, found=value, expected="1 or more")
        if self.inputs.max_history > MAX_HISTORY_LIMIT:
            raise _wrong_field(
                "max_history", found=self.inputs.max_history, expected=f"at most {MAX_HISTORY_LIMIT}"
            )

    def _check_variant(self, name: str, variant: VariantEntry) -> None:
        if variant.query not in (ENCODER, TABLE):
            raise _wrong_field(
                f"query of variant {name}", found=variant.query, expected=f"{ENCODER} or {TABLE}"
            )
        if not MIN_GOLDEN_TOLERANCE <= variant.golden_tolerance <= MAX_GOLDEN_TOLERANCE:
            raise _wrong_field(
                f"golden_tolerance of variant {name}",
                found=variant.golden_tolerance,
                expected=f"{MIN_GOLDEN_TOLERANCE} to {MAX_GOLDEN_TOLERANCE}",
            )
        is_table = variant.query == TABLE
        if is_table and variant.graphs:
            raise _wrong_field(
                f"query_encoder of variant {name}", found=variant.graphs[0], expected="empty for a table"
            )
        if variant.fold_in is not None:
            _check_fold_in(name, is_table, variant.fold_in)
        source = USER_EMBEDDINGS if is_table else variant.query_encoder
        for path in (variant.golden, source, *variant.graphs):
            if path not in self.files:
                raise _wrong_field(
                    f"a file of variant {name}", found=path or "not named", expected="one listed in files"
                )


def _check_fold_in(name: str, is_table: bool, fold_in: FoldIn) -> None:
    if not is_table:
        raise _wrong_field(f"fold_in of variant {name}", found="given", expected="none for an encoder")
    if not fold_in.weight >= 0:
        raise _wrong_field(f"fold_in.weight of {name}", found=fold_in.weight, expected="0 or more")
    if not fold_in.reg > 0:
        raise _wrong_field(f"fold_in.reg of {name}", found=fold_in.reg, expected="above 0")
    if not 0 <= fold_in.reg_exponent <= 1:
        raise _wrong_field(f"fold_in.reg_exponent of {name}", found=fold_in.reg_exponent, expected="0 to 1")


def pipeline_from(values: dict[str, Any]) -> PipelineConfig:
    """Reads the rules of a bundle from plain values; raises :class:`BundleInvalid` naming what is wrong."""
    return _build(PipelineConfig, values, "pipeline")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _malformed(f"key {key} of {MANIFEST_NAME}", found="given twice", expected="one value")
        if not _is_unicode(key):
            raise _malformed(f"key {key} of {MANIFEST_NAME}", found="not Unicode", expected="valid Unicode")
        values[key] = value
    return values


def _refuse_number(text: str) -> float:
    raise _malformed(f"a number of {MANIFEST_NAME}", found=text, expected="finite")


def _finite(text: str) -> float:
    # 1e999 is valid JSON and infinite.
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def _integer(text: str) -> int:
    # Python refuses to read thousands of digits with a ValueError of its own.
    return int(text) if len(text) <= MAX_INTEGER_DIGITS else int(_refuse_number(text))


def _build(cls: type[T], raw: Any, where: str) -> T:
    """Builds a dataclass from parsed JSON, naming a missing, unknown or mistyped field by its path."""
    if not isinstance(raw, dict):
        raise _wrong_field(where, found=type(raw).__name__, expected="a JSON object")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            raise _wrong_field(
                f"field {key} of {where}",
                found="unknown",
                expected="a known field",
                cure=nearest(key, fields),
            )
    values = {}
    for name, spec in fields.items():
        if name in raw:
            values[name] = _convert(spec.type, raw[name], f"{where}.{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise _wrong_field(f"{where}.{name}", found="missing", expected="a value")
    try:
        return cls(**values)
    except ConfigError as error:
        raise _wrong_field(error.name, found=error.found, expected=error.expected) from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)  # type: ignore[arg-type]
    if isinstance(kind, types.UnionType):
        # Only "something or none" is in use.
        return None if value is None else _convert(typing.get_args(kind)[0], value, where)
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return value
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        raise _wrong_field(where, found=value, expected=origin.__name__)
    if isinstance(value, str) and not _is_unicode(value):
        raise _wrong_field(where, found=value, expected="valid Unicode")
    if origin is dict:
        return {key: _convert(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if origin is list:
        return [_convert(arguments[0], entry, where) for entry in value]
    return value


def _is_unicode(text: str) -> bool:
    # JSON can spell lone surrogates, which no message and no file can carry.
    return not any("\ud800" <= c <= "\udfff" for c in text)

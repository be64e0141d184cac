"""A text encoder in a folder: a graph for ONNX Runtime, a tokenizer and how the two are used.

model.onnx  tokenizer.json  encoder.json
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from recserve.errors import DataError, InvalidRequest
from recserve.files import write_whole
from recserve.texts import POOLINGS, GraphEncoder

GRAPH, TOKENIZER, SETTINGS = "model.onnx", "tokenizer.json", "encoder.json"
SENTENCE_SETTINGS = "sentence_bert_config.json"
# What sentence-transformers calls them.
POOLING_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
# Of sentence-transformers' modules, what is done here: vectors always have length 1.
READ_MODULES = ("Transformer", "Pooling", "Normalize")
# Where exporters of Hugging Face models put the graph.
GRAPH_PLACES = ("model.onnx", "onnx/model.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """How the vectors of the pieces become that of a text."""

    pooling: str = "mean"
    """``mean`` of the pieces, the first piece (``cls``), or ``none``: the graph returns the text's vector."""
    max_length: int = 256
    """Pieces of a text that are read."""
    prefix: str = ""
    """What stands before every text: E5 and its kin want one."""
    sha256: str = ""
    """Of the graph and the tokenizer, one after the other."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InvalidRequest("pooling", found=self.pooling, expected=f"one of {', '.join(POOLINGS)}")
        if self.max_length < 2:
            raise InvalidRequest("max_length", found=self.max_length, expected="2 or more")


class OnnxTextEncoder:
    """A :class:`~recserve.training.features.text.TextEncoder` of a folder that ``encoder import`` wrote."""

    def __init__(self, folder: Path) -> None:
        """Raises :class:`DataError` for a folder that is not whole or has changed."""
        self.settings = _read_settings(folder)
        if _sha256(folder) != self.settings.sha256:
            raise _refusal(folder, "changed since it was imported")
        session = ort.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
        self._dim = session.get_outputs()[0].shape[-1]
        self._encoder = GraphEncoder(
            Tokenizer.from_file(str(folder / TOKENIZER)),
            lambda arrays: session.run(None, arrays)[0],
            [one.name for one in session.get_inputs()],
            pooling=self.settings.pooling,
            max_length=self.settings.max_length,
            prefix=self.settings.prefix,
        )

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns one vector per text, (n, d) float32, of length 1, or 0 for a text without a word."""
        return self._encoder.encode(texts) if texts else np.zeros((0, self._dim), np.float32)


def check_is_new(folder: Path) -> None:
    """Raises :class:`InvalidRequest` where an encoder's folder exists, before anything is read or learned."""
    if folder.exists():
        raise InvalidRequest(f"encoder folder {folder}", found="there already", expected="a new folder")


def import_encoder(
    source: Path,
    target: Path,
    *,
    pooling: str | None = None,
    prefix: str = "",
    make_graph: Callable[[Path, Path], None] | None = None,
    sample: str = "a red mug",
) -> EncoderSettings:
    """Makes an encoder's folder of a Hugging Face folder with an ONNX graph; returns its settings.

    ``pooling``: None takes that of the folder's ``1_Pooling/config.json``, else the mean. Raises
    :class:`DataError` for a folder without graph or tokenizer, with another pooling, with layers after it, or
    with a graph that reads something else than a text, :class:`InvalidRequest` where ``target`` exists.
    ``make_graph``: (``source``, file) writes the graph of a folder that has none. ``sample``: the text
    that the graph is tried with before anything is written.
    """
    check_is_new(target)
    graph = next((source / place for place in GRAPH_PLACES if (source / place).is_file()), None)
    if (graph is None and make_graph is None) or not (source / TOKENIZER).is_file():
        raise DataError(
            f"model folder {source}",
            found=f"without {GRAPH if graph is None and make_graph is None else TOKENIZER}",
            expected=f"{' or '.join(GRAPH_PLACES)}, and {TOKENIZER}",
            cure="Export the model to ONNX first, for example with `optimum-cli export onnx`.",
        )
    _check_modules(source)
    pooling = pooling or _pooling_of(source)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if graph is not None:
            shutil.copyfile(graph, partial / GRAPH)
        elif make_graph is not None:
            make_graph(source, partial / GRAPH)
        shutil.copyfile(source / TOKENIZER, partial / TOKENIZER)
        settings = EncoderSettings(
            pooling=pooling,
            max_length=_json(source / SENTENCE_SETTINGS).get("max_seq_length") or 256,
            prefix=prefix,
            sha256=_sha256(partial),
        )
        write_whole(partial / SETTINGS, json.dumps(asdict(settings), indent=2).encode())
        _try_out(partial, sample)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return settings


def _try_out(folder: Path, sample: str) -> None:
    try:
        vectors = OnnxTextEncoder(folder).encode([sample])
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise _refusal(folder, "a graph that does not read a text") from error
    if vectors.ndim != 2 or not np.isfinite(vectors).all() or not vectors.any():
        raise _refusal(folder, f"a graph that returns shape {vectors.shape}, or no numbers")


def _read_settings(folder: Path) -> EncoderSettings:
    try:
        return EncoderSettings(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _refusal(folder, f"without a readable {SETTINGS}") from error


def _check_modules(source: Path) -> None:
    """Refuses a sentence-transformers model with more than a transformer, pooling and normalisation.

    A dense layer after the pooling, left out, would give vectors of another model.
    """
    for module in _json(source / "modules.json", list):
        name = str(module.get("type")).rpartition(".")[2]
        if name not in READ_MODULES:
            raise DataError(
                f"model folder {source}",
                found=f"one with a module {name}",
                expected=f"{', '.join(READ_MODULES)} alone",
                cure="Choose a model without it.",
            )


def _pooling_of(source: Path) -> str:
    settings = _json(source / "1_Pooling" / "config.json")
    modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in POOLING_MODES:
        raise DataError(
            f"pooling of model folder {source}",
            found=", ".join(modes),
            expected=f"one of {', '.join(POOLING_MODES)}",
            cure="Give --pooling if one of them will do.",
        )
    return POOLING_MODES[modes[0]]


def _json(path: Path, kind: type[Any] = dict) -> Any:
    if not path.is_file():
        return kind()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"file {path}", found="no JSON", expected="JSON") from error
    return found if isinstance(found, kind) else kind()


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (GRAPH, TOKENIZER):
        try:
            digest.update((folder / name).read_bytes())
        except OSError as error:
            raise _refusal(folder, f"without {name}") from error
    return digest.hexdigest()


def _refusal(folder: Path, found: str) -> DataError:
    return DataError(
        f"encoder {folder}",
        found=found,
        expected="a folder that `recserve encoder import` wrote",
        cure="Import it again.",
    )

"""Vectors of words as a text encoder: a tokenizer and a graph that looks their vectors up."""

import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save

from recserve.errors import InvalidRequest
from recserve.exporters.onnx_graph import OPSET
from recserve.training.features.encoder import SENTENCE_SETTINGS, TOKENIZER, EncoderSettings, import_encoder
from recserve.training.word_vectors import SPECIAL, WordVectors, word_tokenizer

# What ONNX Runtime of this opset reads.
IR_VERSION = 10
# Words of a text that are read.
MAX_LENGTH = 1024
# A graph is one file of protocol buffers, which ends at two gigabytes.
MAX_NUMBERS = 500_000_000


def write_word_encoder(words: WordVectors, target: Path) -> EncoderSettings:
    """Makes an encoder's folder whose vector of a text is the mean of its words'.

    Raises :class:`InvalidRequest` for more vectors than a graph holds, and where ``target`` exists.
    """
    n_words, size = words.vectors.shape
    if n_words * size > MAX_NUMBERS:
        raise InvalidRequest(
            "words", found=f"{n_words} of width {size}", expected=f"{MAX_NUMBERS // size} or fewer"
        )
    # Padding and the unknown have zeros.
    table = np.concatenate([np.zeros((len(SPECIAL), size), np.float32), words.of_texts()])
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        word_tokenizer(words.words).save(str(source / TOKENIZER))
        (source / SENTENCE_SETTINGS).write_text(json.dumps({"max_seq_length": MAX_LENGTH}))
        return import_encoder(
            source,
            target,
            pooling="mean",
            make_graph=lambda _, path: _write_lookup(table, path),
            sample=" ".join(words.words[:MAX_LENGTH]),
        )


def _write_lookup(table: NDArray[np.float32], path: Path) -> None:
    """Writes the graph from (batch, length) int64 to the rows of ``table``, (batch, length, size)."""
    shape = ["batch", "length"]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["vectors"])],
        "words",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [*shape, table.shape[1]])],
        [numpy_helper.from_array(table, "table")],
    )
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path
    )

"""Writes the graph of an encoder of texts: any number of texts, of any length that it reads."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from recserve.exporters.onnx_graph import OPSET, quiet_exporter


def write_text_graph(
    model: nn.Module, inputs: Sequence[str], output: str, max_length: int, path: Path
) -> None:
    """Writes ``model`` to ``path``; each of ``inputs``, in its forward's order, is (batch, length) int64."""
    # A tensor for each: the exporter takes one that is given twice for one input.
    arguments = tuple(torch.ones(2, 5, dtype=torch.int64) for _ in inputs)
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    length = torch.export.Dim("length", min=2, max=max_length)
    with quiet_exporter():
        program = torch.onnx.export(
            model.eval(),
            arguments,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=({0: batch, 1: length},) * len(inputs),
            input_names=list(inputs),
            output_names=[output],
        )
    if program is None:
        raise TypeError("the exporter returned no program")
    program.save(str(path))

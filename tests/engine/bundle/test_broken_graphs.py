"""Graphs that ONNX Runtime would take, or choke on: each is refused before it answers anybody."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from recserve.engine import Engine
from recserve.engine.bundle.graph_check import check_graph
from recserve.errors import BundleInvalid
from recserve.errors import BundleReason as R
from recserve.proto import onnx_outline_pb2
from tests.engine.bundle.conftest import GRAPH, BundleCopy, Cases, refused

CASES = Cases()
Change = Callable[[ModelProto], object]


def in_graph(reason: R, *, label: str = "", names: str = GRAPH) -> Callable[[Change], Change]:
    """Adds a case: the function below changes the graph."""

    def register(change: Change) -> Change:
        def apply(bundle: BundleCopy) -> None:
            model = onnx.load_from_string(bundle.read(GRAPH))
            change(model)
            bundle.write(GRAPH, model.SerializeToString())

        CASES.add(label or change.__name__, reason, names, apply)
        return change

    return register


def weights(model: ModelProto) -> TensorProto:
    """The first weights that are the graph's own."""
    return next(
        tensor
        for tensor in model.graph.initializer
        if tensor.name != "item_embeddings" and tensor.data_type == TensorProto.FLOAT and len(tensor.dims)
    )


def item_table(model: ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == "item_embeddings")


def append(model: ModelProto, node: NodeProto) -> None:
    """Adds an operator whose result nobody reads."""
    model.graph.node.append(node)


def inner(*nodes: NodeProto) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "inner", [], [output])


def refer(tensor: TensorProto, **entries: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


@in_graph(R.GRAPH_SIGNATURE)
def another_input(model: ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["past" if name == "history" else name for name in node.input]
    model.graph.input[0].name = "past"


@in_graph(R.GRAPH_SIGNATURE)
def another_output(model: ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["vector" if name == "query_embedding" else name for name in node.output]
    model.graph.output[0].name = "vector"


@in_graph(R.GRAPH_FAILS, names="golden.npz")
def items_as_numbers_with_a_point(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.node.insert(0, helper.make_node("Cast", ["history"], ["whole"], to=TensorProto.INT32))
    for node in model.graph.node[1:]:
        node.input[:] = ["whole" if name == "history" else name for name in node.input]


@in_graph(R.GRAPH_OUTPUT, names="golden.npz")
def twice_as_wide_as_declared(model: ModelProto) -> None:
    """Which ONNX Runtime takes, whatever shape the graph declares."""
    for node in model.graph.node:
        node.output[:] = ["half" if name == "query_embedding" else name for name in node.output]
    append(model, helper.make_node("Concat", ["half", "half"], ["query_embedding"], axis=1))
    model.graph.output[0].type.tensor_type.ClearField("shape")


@in_graph(R.GOLDEN_DIFFERS, names="golden.npz")
def weights_of_another_training(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.raw_data and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))


@in_graph(R.GRAPH_REFUSED)
def an_operator_that_does_not_exist(model: ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@in_graph(R.GRAPH_REFUSED)
def operators_of_the_future(model: ModelProto) -> None:
    model.opset_import[0].version = 999


@in_graph(R.GRAPH_REFUSED)
def a_format_of_the_future(model: ModelProto) -> None:
    model.ir_version = 999


@in_graph(R.GRAPH_REFUSED)
def an_operator_without_its_input(model: ModelProto) -> None:
    model.graph.node[-1].input[0] = "nobody writes this"


@in_graph(R.CONTENT_MALFORMED)
def no_operators(model: ModelProto) -> None:
    del model.graph.node[:]


@in_graph(R.CONTENT_MALFORMED)
def half_a_number_in_the_weights(model: ModelProto) -> None:
    weights(model).raw_data = weights(model).raw_data[:-1]


@in_graph(R.GRAPH_FAILS, names="golden.npz")
def four_terabytes_of_zeros(model: ModelProto) -> None:
    """Loads without a word and fails when it runs."""
    sides = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "sides")
    model.graph.initializer.append(sides)
    append(model, helper.make_node("ConstantOfShape", ["sides"], ["endless"]))
    append(model, helper.make_node("ReduceMax", ["endless"], ["zero"], keepdims=0))
    for node in model.graph.node:
        node.output[:] = ["before" if name == "query_embedding" else name for name in node.output]
    append(model, helper.make_node("Add", ["before", "zero"], ["query_embedding"]))


FOREIGN = {
    "python": ("ai.onnx.contrib", "PyOp"),
    "of another vendor": ("com.example", "Anything"),
    "of ONNX Runtime, but none of ours": ("com.microsoft", "Tokenizer"),
    "of trees": ("ai.onnx.ml", "TreeEnsemble"),
    "without an end": ("", "Loop"),
    "without an end, in another spelling": ("ai.onnx", "Loop"),
    "that scans": ("", "Scan"),
}
for label, (domain, operator) in FOREIGN.items():

    @in_graph(R.GRAPH_OPERATOR, label=f"an operator {label}", names=operator)
    def foreign(model: ModelProto, domain: str = domain, operator: str = operator) -> None:
        append(model, helper.make_node(operator, ["history"], ["unread"], domain=domain))


@in_graph(R.GRAPH_OPERATOR, names="PyOp")
def a_foreign_operator_in_a_branch_of_a_branch(model: ModelProto) -> None:
    foreign = inner(helper.make_node("PyOp", [], ["x"], domain="ai.onnx.contrib"))
    branch = inner(helper.make_node("If", ["yes"], ["y"], then_branch=foreign, else_branch=foreign))
    append(model, helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch))


@in_graph(R.GRAPH_OPERATOR, names="PyOp")
def a_foreign_operator_in_a_list_of_graphs(model: ModelProto) -> None:
    node = helper.make_node("Identity", ["history"], ["unread"])
    graphs = [inner(helper.make_node("PyOp", [], ["x"], domain="ai.onnx.contrib"))]
    node.attribute.append(AttributeProto(name="any", type=AttributeProto.GRAPHS, graphs=graphs))
    append(model, node)


@in_graph(R.GRAPH_OPERATOR, names="PyOp")
def a_foreign_operator_in_a_function(model: ModelProto) -> None:
    body = [helper.make_node("PyOp", ["a"], ["b"], domain="ai.onnx.contrib")]
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("ours", "Harmless", ["a"], ["b"], body, opset))
    append(model, helper.make_node("Harmless", ["history"], ["unread"], domain="ours"))


def set_weights(model: ModelProto, value: float, dtype: type[np.floating]) -> None:
    tensor = weights(model)
    values = numpy_helper.to_array(tensor).astype(dtype)
    values.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@in_graph(R.NOT_FINITE)
def weights_with_nan(model: ModelProto) -> None:
    set_weights(model, np.nan, np.float32)


@in_graph(R.NOT_FINITE)
def weights_with_infinity(model: ModelProto) -> None:
    set_weights(model, np.inf, np.float32)


@in_graph(R.NOT_FINITE)
def half_precision_weights_with_nan(model: ModelProto) -> None:
    set_weights(model, np.nan, np.float16)


@in_graph(R.NOT_FINITE)
def double_precision_weights_with_nan(model: ModelProto) -> None:
    set_weights(model, np.nan, np.float64)


@in_graph(R.NOT_FINITE, names="listed")
def weights_with_nan_in_a_list(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("listed", TensorProto.FLOAT, [2], [1.0, np.nan]))


@in_graph(R.NOT_FINITE, names="halves")
def half_precision_nan_in_a_list(model: ModelProto) -> None:
    nan = int(np.float16(np.nan).view(np.uint16))
    model.graph.initializer.append(
        TensorProto(name="halves", data_type=TensorProto.FLOAT16, dims=[2], int32_data=[0, nan])
    )


@in_graph(R.NOT_FINITE, names="weights")
def a_constant_that_is_not_a_number(model: ModelProto) -> None:
    value = numpy_helper.from_array(np.array(np.nan, np.float32))
    append(model, helper.make_node("Constant", [], ["unread"], value=value))


@in_graph(R.NOT_FINITE, names="weights")
def sparse_weights_with_nan(model: ModelProto) -> None:
    values = numpy_helper.from_array(np.array([1, np.nan], np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([0, 1], np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


OUTSIDE = {
    "above the bundle": {"location": "../../../etc/passwd"},
    "at an absolute path": {"location": "/etc/passwd"},
    "up and down again": {"location": "variants/../popularity.npy"},
    "behind NUL": {"location": "item_embeddings.npy\0"},
    "behind a backslash": {"location": "..\\item_embeddings.npy"},
    "on another drive": {"location": "C:\\item_embeddings.npy"},
    "in another file of the bundle": {"location": "popularity.npy"},
    "in the item table": {"location": "item_embeddings.npy"},
    "with a length of 10^15": {"location": "weights.bin", "length": str(10**15)},
    "with a negative offset": {"location": "weights.bin", "offset": "-4"},
    "nowhere": {},
}
for label, entries in OUTSIDE.items():

    @in_graph(R.GRAPH_OUTSIDE_DATA, label=f"weights {label}")
    def outside(model: ModelProto, entries: dict[str, str] = entries) -> None:
        refer(weights(model), **entries)


@in_graph(R.GRAPH_OUTSIDE_DATA)
def the_item_table_in_another_file(model: ModelProto) -> None:
    refer(item_table(model), location="popularity.npy")


@in_graph(R.GRAPH_OUTSIDE_DATA)
def weights_outside_without_saying_so(model: ModelProto) -> None:
    refer(weights(model), location="/etc/passwd")
    weights(model).data_location = TensorProto.DEFAULT


@in_graph(R.GRAPH_OUTSIDE_DATA)
def a_constant_outside(model: ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(3, np.float32))
    refer(value, location="/etc/passwd")
    append(model, helper.make_node("Constant", [], ["unread"], value=value))


@in_graph(R.SHAPE)
def an_item_table_of_more_items(model: ModelProto) -> None:
    item_table(model).dims[0] += 1


@in_graph(R.SHAPE)
def an_item_table_of_another_type(model: ModelProto) -> None:
    item_table(model).data_type = TensorProto.INT32


@pytest.mark.parametrize("label", CASES)
def test_a_graph_that_must_not_run_is_refused(bundle: BundleCopy, label: str) -> None:
    refused(bundle, CASES[label])


def test_the_graph_is_fine_unless_it_is_broken(bundle: BundleCopy) -> None:
    bundle.write(GRAPH, onnx.load_from_string(bundle.read(GRAPH)).SerializeToString())
    Engine.load(bundle.folder).close()


def test_functions_of_the_graph_itself_are_fine() -> None:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opset = [helper.make_opsetid("", 20)]
    graph = helper.make_graph([helper.make_node("Twice", ["x"], ["y"], domain="ours")], "g", [], [])
    model = helper.make_model(graph, opset_imports=[*opset, helper.make_opsetid("ours", 1)])
    model.functions.append(helper.make_function("ours", "Twice", ["a"], ["b"], body, opset))
    check_graph(model.SerializeToString(), "graph.onnx")
    del model.functions[:]
    with pytest.raises(BundleInvalid, match=r"ours\.Twice"):
        check_graph(model.SerializeToString(), "graph.onnx")


def test_the_graph_of_a_ranker_is_looked_at_too(two_stage_folder: Path, tmp_path: Path) -> None:
    bundle = BundleCopy(shutil.copytree(two_stage_folder, tmp_path / "bundle"))
    [name] = [file for file in bundle.manifest()["files"] if file.startswith("ranker/") and "graph" in file]
    model = onnx.load_from_string(bundle.read(name))
    refer(weights(model), location="item_embeddings.npy")
    bundle.write(name, model.SerializeToString())
    with pytest.raises(BundleInvalid) as caught:
        Engine.load(bundle.folder)
    assert caught.value.reason is R.GRAPH_OUTSIDE_DATA


@pytest.mark.parametrize("message", onnx_outline_pb2.DESCRIPTOR.message_types_by_name)
def test_the_outline_has_the_numbers_of_onnx(message: str) -> None:
    """A wrong number would look at nothing and refuse nothing."""
    names = {"Function": "FunctionProto", "Entry": "StringStringEntryProto"}
    theirs = getattr(onnx, names.get(message, f"{message}Proto")).DESCRIPTOR.fields_by_name
    for field in onnx_outline_pb2.DESCRIPTOR.message_types_by_name[message].fields:
        their = theirs[field.name]
        assert (field.number, field.is_repeated) == (their.number, their.is_repeated)
        # Text is bytes on the wire, an enumeration is a number.
        same = {field.TYPE_STRING: field.TYPE_BYTES, field.TYPE_ENUM: field.TYPE_INT32}
        assert same.get(field.type, field.type) == same.get(their.type, their.type)

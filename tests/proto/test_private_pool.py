"""A program may hold another definition of package ``inference`` beside ours, whichever comes first."""

import subprocess
import sys

import pytest

# Another file of the same package with the same message, but another field, as tritonclient and kserve bring.
THEIRS = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
theirs = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package="inference", syntax="proto3")
message = theirs.message_type.add(name="ModelInferRequest")
message.field.add(name="another", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING, label=1)
descriptor_pool.Default().Add(theirs)
found = descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
Theirs = message_factory.GetMessageClass(found)
"""
OURS = """
from recserve.engine.server.app import Server
from recserve.proto import open_inference_pb2
Ours = open_inference_pb2.ModelInferRequest
"""
BOTH = """
data = Theirs(another="x").SerializeToString()
assert Ours.FromString(data).model_name == "x"
assert [field.name for field in Theirs.DESCRIPTOR.fields] == ["another"]
assert open_inference_pb2.DESCRIPTOR.pool is not descriptor_pool.Default()
"""


@pytest.mark.parametrize("first", [THEIRS, OURS], ids=["theirs first", "ours first"])
def test_two_definitions_in_one_process(first: str) -> None:
    second = OURS if first is THEIRS else THEIRS
    code = first + second + BOTH
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr

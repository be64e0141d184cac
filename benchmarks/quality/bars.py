"""The rows of the table: who is measured on which data, and what must be reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

SEEDS = (0, 1, 2)
WIDTH = 64


@dataclass(frozen=True, slots=True)
class Contender:
    """``library`` "recserve" or a peer, which is tuned over ``grid`` on validation; ``script``: in peers/."""

    library: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Sequence[Mapping[str, Any]] = ()
    script: str = ""

    @property
    def name(self) -> str:
        """Library and model."""
        return f"{self.library} {self.model}"


@dataclass(frozen=True, slots=True)
class Bar:
    """What the first contender of a row must reach in ``metric``, or in its gain over another contender.

    kind: "at least"; "at most"; "equal" within ``tolerance``; "not below", the upper end of the interval.
    """

    metric: str
    value: float = 0.0
    over: str = ""
    kind: str = "at least"
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """``quick``: part of a run of minutes; ``is_random`` False: one seed says it all."""

    name: str
    data: str
    protocol: str
    contenders: tuple[Contender, ...]
    bars: tuple[Bar, ...]
    quick: bool = False
    is_random: bool = True


def ours(model: str, **settings: Any) -> Contender:
    """Our family with its defaults but ``settings``."""
    return Contender("recserve", model, settings)


BPR, SASREC, LR = ours("bpr"), ours("sasrec"), ours("lr")
GRIDS: dict[str, list[dict[str, Any]]] = {
    "als": [
        {"factors": WIDTH, "alpha": alpha, "regularization": reg}
        for alpha, reg in [
            (1.0, 0.01),
            *product([2.0, 5.0, 10.0, 20.0], [1.0, 10.0, 30.0, 60.0, 120.0, 240.0]),
        ]
    ],
    "bpr": [
        {"factors": WIDTH - 1, "learning_rate": rate, "regularization": reg, "iterations": iterations}
        for rate, reg, iterations in product([0.003, 0.01, 0.03], [0.01, 0.03, 0.1], [100, 300])
    ],
    "lightgcn": [
        {"embedding_size": WIDTH, "n_layers": 3, "reg_weight": 1e-4, "learning_rate": 0.002, "eval_step": 5}
    ],
    "neumf": [
        {"num_factors": 32, "layers": [128, 64, 32], "num_epochs": epochs, "batch_size": 1024, "lr": 2e-3}
        for epochs in (10, 20, 40)
    ],
    "gru4rec": [
        {"layers": [128], "n_epochs": epochs, "batch_size": 128, "dropout_p_embed": drop, "logq": 1.0}
        for epochs, drop in product([10, 30], [0.2, 0.5])
    ],
}
# RecTools with its own rate and dropout, and with ours.
RECTOOLS_GRID: list[dict[str, float]] = [
    {"lr": 1e-3, "dropout_rate": 0.2},
    {"lr": 3e-3, "dropout_rate": 0.5},
]
RECTOOLS_SHAPE = {
    "n_factors": WIDTH,
    "n_blocks": 2,
    "n_heads": 2,
    "session_max_len": 50,
    "batch_size": 128,
    "epochs": 60,
    "validate_every": 5,
}


def rectools(model: str, n_settings: int = len(RECTOOLS_GRID)) -> Contender:
    """RecTools' transformer of our width, blocks, heads and length, the best of the first ``n_settings``."""
    return Contender("rectools", model, RECTOOLS_SHAPE, RECTOOLS_GRID[:n_settings], "rectools_sequences")


def _closed_form(model: str, data: str) -> Row:
    settings = {"reg": 300.0} if model == "ease" else {}
    by_hand = Contender("numpy", model, settings, (), "numpy_baselines")
    bars = tuple(
        Bar(metric, over=by_hand.name, kind="equal", tolerance=5e-5) for metric in ("HR@10", "NDCG@10")
    )
    return Row(
        f"{model}-{data}",
        data,
        "leave-one-out",
        (ours(model, **settings), by_hand),
        bars,
        quick=data == "lastfm",
        is_random=False,
    )


def _rating(model: str, most: float) -> Row:
    surprise = Contender("surprise", model, script="surprise_ratings")
    bars = (Bar("RMSE", most, kind="at most"), Bar("RMSE", over=surprise.name, kind="at most"))
    return Row(model, "ml-100k", "folds", (ours(model), surprise), bars, quick=model == "svd")


def _table(model: str, peer: Contender, *, quick: bool = False) -> Row:
    return Row(
        model, "ml-100k", "random", (ours(model), peer), (Bar("NDCG@10", over=peer.name),), quick=quick
    )


def _ranker(model: str, peer: str) -> Row:
    rechub = Contender("rechub", peer, script="rechub_rankers")
    bars = (
        Bar("AUC", 0.01, over=LR.name),
        Bar("AUC", -0.002, over=rechub.name),
        Bar("ECE", 0.02, kind="at most"),
    )
    return Row(model, "ml-100k", "temporal", (ours(model), LR, rechub), bars, quick=model == "deepfm")


def _sequence(model: str, data: str, bars: tuple[Bar, ...], *others: Contender) -> Row:
    return Row(f"{model}-{data}", data, "leave-one-out", (ours(model), *others), bars)


def _published(hit_rate: float, ndcg: float) -> tuple[Bar, ...]:
    return Bar("HR@10", hit_rate), Bar("NDCG@10", ndcg)


def _cold() -> tuple[Row, ...]:
    category, tfidf, relevance = ours("popularity in category"), ours("tfidf"), ours("relevance")
    dssm = ours("dssm", embedding_size=128, unknown_rate=0.5, batch_size=2048, learning_rate=2e-3)
    return (
        Row(
            "cold-tfidf",
            "online-retail",
            "cold-items",
            (tfidf, category, ours("random")),
            (Bar("NDCG@10", over=category.name),),
            quick=True,
        ),
        Row(
            "cold-relevance",
            "online-retail",
            "cold-items",
            (relevance, category, tfidf),
            (Bar("NDCG@10", over=category.name),),
        ),
        Row("cold-dssm", "online-retail", "cold-items", (dssm, tfidf), (Bar("NDCG@10", over=tfidf.name),)),
    )


ROWS: tuple[Row, ...] = (
    *(_closed_form(model, data) for data in ("lastfm", "toys") for model in ("popularity", "ease")),
    _rating("svd", 0.934),
    _rating("svdpp", 0.919),
    _table("als", Contender("implicit", "als", {}, GRIDS["als"], "implicit_quality"), quick=True),
    _table("bpr", Contender("implicit", "bpr", {}, GRIDS["bpr"], "implicit_quality"), quick=True),
    _table("neumf", Contender("cornac", "neumf", {}, GRIDS["neumf"], "cornac_models")),
    _table("lightgcn", Contender("recbole", "lightgcn", {}, GRIDS["lightgcn"], "recbole_lightgcn")),
    _table("dssm", BPR, quick=True),
    _sequence(
        "gru4rec",
        "ml-100k",
        (Bar("NDCG@10", over="cornac gru4rec"),),
        Contender("cornac", "gru4rec", {}, GRIDS["gru4rec"], "cornac_models"),
    ),
    _sequence("sasrec", "ml-100k", (Bar("NDCG@10", over="rectools sasrec"),), rectools("sasrec")),
    _sequence(
        "hstu",
        "ml-100k",
        (Bar("NDCG@10", over=SASREC.name, kind="not below"), Bar("NDCG@10", over="rectools hstu")),
        SASREC,
        rectools("hstu"),
    ),
    _sequence("sasrec", "lastfm", _published(0.0688, 0.0390)),
    _sequence("bert4rec", "lastfm", _published(0.0688, 0.0390)),
    _sequence(
        "hstu",
        "lastfm",
        (*_published(0.0688, 0.0390), Bar("NDCG@10", over=SASREC.name, kind="not below")),
        SASREC,
    ),
    _sequence(
        "sasrec",
        "toys",
        (*_published(0.0675, 0.0374), Bar("NDCG@10", over="rectools sasrec")),
        # An epoch takes a minute; on ml-100k its own rate and dropout were the better ones.
        rectools("sasrec", n_settings=1),
    ),
    _ranker("deepfm", "deepfm"),
    _ranker("dcn", "dcn"),
    _ranker("din", "din"),
    _ranker("dlrm", "deepfm"),
    *_cold(),
)

"""``recserve bench kernels`` runs at a tiny size from the command line to the picture; its parts hold."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import config

from recserve.benchmarks.kernels import (
    approximate,
    bars,
    data,
    limits,
    options,
    peers,
    plot,
    report,
    run,
    timing,
)
from recserve.benchmarks.kernels.peers import EXACT, load
from recserve.benchmarks.kernels.split import speed_up
from recserve.errors import CheckFailed, InvalidRequest
from recserve.kernels import ItemIndex
from recserve.kernels.isa import PORTABLE, available

needs_jit = pytest.mark.skipif(config.DISABLE_JIT, reason="Numba is switched off: there is nothing to time")

N_ITEMS, DIM = 1000, 16
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def catalogue() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((N_ITEMS, DIM), np.float32), rng.standard_normal((256, DIM), np.float32)


def result_with(**fields: Any) -> dict[str, Any]:
    """A result without anything measured but ``fields``."""
    empty = {"limits": {}, "catalogues": [], "cases": [], "approximate": [], "dispatch_us": {}, "start": None}
    empty |= {"exclusions": [], "speed_ups": [], "fp32_kernel_gflops": None}
    return {**empty, **fields}


@needs_jit
def test_it_runs_from_the_command_line_to_the_picture(
    run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    picture, file = tmp_path / "kernels.png", tmp_path / "kernels.json"
    small = ("--items", N_ITEMS, "--dim", DIM, "--batch", "1,4", "-k", "3", "--seconds", "0")
    files = ("--plot", picture, "--out", file, "--csv", tmp_path / "kernels.csv")
    code, out, err = run_cli("bench", "kernels", "--quick", *small, "--json", *files)
    assert code == 0, err
    assert (tmp_path / "kernels.csv").read_text().startswith("catalogue,threads,batch,k")
    result = json.loads(out)
    assert result == json.loads(file.read_text())
    assert picture.read_bytes().startswith(PNG)
    assert result["schema"] == run.SCHEMA
    assert [(case["data"], case["batch"]) for case in result["cases"]] == [
        ("gaussian", 1),
        ("gaussian", 4),
        ("als", 1),
        ("als", 4),
    ]
    installed = {"numpy", "torch", "onnxruntime"}
    for case in result["cases"]:
        assert installed | {"recserve"} <= set(case["median_ms"])
        assert case["best_peer"] in options.EXACT_PEERS
        assert case["ratio"] == case["median_ms"][case["best_peer"]] / case["median_ms"]["recserve"]
        assert all(0 < case["min_ms"][name] <= median for name, median in case["median_ms"].items())
    for peer in options.PEERS:
        if importlib.util.find_spec(peer.partition("-")[0]) is None:
            assert f"skipped {peer}: " in err
    exact = [row for row in result["approximate"] if row["method"] == "recserve"]
    assert [row["recall"] for row in exact] == [1.0, 1.0]
    assert all(0 <= row["recall"] <= 1 for row in result["approximate"])
    assert result["dispatch_us"][str(DIM)] > 0
    assert result["start"]["compiled"] == 0
    assert [bar["case"] for bar in result["bars"]] == [bar.name for bar in bars.BARS]
    kept = sorted(path.name for path in (tmp_path / "cache").rglob("*.npy"))
    assert kept == [
        f"als-v{data.FORMAT}-items{N_ITEMS}-dim{DIM}-seed7-queries.npy",
        f"als-v{data.FORMAT}-items{N_ITEMS}-dim{DIM}-seed7-vectors.npy",
    ]


@needs_jit
def test_the_table_shows_every_case_and_the_bars(
    run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--data", "gaussian", "--items", "400", "--dim", "8", "--batch", "64", "-k", "3")
    quick = ("--quick", "--threads", "2", "--seconds", "0", "--peers", "numpy")
    code, out, err = run_cli("bench", "kernels", *small, *quick)
    assert code == 0, err
    assert "gaussian 400 × 8, 2 threads" in out
    assert "× numpy" in out
    assert "split over threads" in out
    assert "the speed to reach" in out
    assert "first by median" in out


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "an unknown peer": (("--peers", "numpy,fais"), "Did you mean 'faiss'?"),
    "unknown data": (("--data", "gausian"), "Did you mean 'gaussian'?"),
    "two presets": (("--quick", "--full"), "one of the two"),
    "a size that is none": (("--items", "100k"), "whole numbers"),
    "no items": (("--items", "0"), "--items is 0; expected 1 to"),
    "more than there is": (("--items", "10", "--k", "11"), "--k is 11; expected 1 to 10"),
    "a picture of no kind": (("--plot", "x.gif"), ".png, .svg, .html"),
    "negative seconds": (("--seconds", "-1"), "expected 0 to 600"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_refused_in_one_sentence(
    run_cli: Any, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = run_cli("bench", "kernels", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "; expected " in err
    assert "Traceback" not in err


@needs_jit
def test_a_measuring_process_that_fails_has_said_why(run_cli: Any) -> None:
    code, out, err = run_cli("bench", "kernels", "--items", "100", "--isa", "sse")
    assert (code, out) == (1, "")
    assert "error: isa is sse; expected one of" in err
    assert "measuring process is exit code 2; expected 0" in err


def test_python_is_not_timed(run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    for verb in ("kernels", "start"):
        code, out, err = run_cli("bench", verb)
        assert (code, out) == (3, "")
        assert "NUMBA_DISABLE_JIT is set; expected not set" in err


@pytest.mark.parametrize("name", EXACT)
def test_every_exact_peer_gives_our_answer(name: str, catalogue: tuple[Any, Any]) -> None:
    pytest.importorskip(name)
    vectors, queries = catalogue
    skipped: list[str] = []
    found = load(vectors, 1, [name], lambda peer, why: skipped.append(why))
    assert (set(found), skipped) == ({name}, [])
    ours = ItemIndex.build(vectors).search(queries[:5], 7)
    timing.check_same(name, ours, found[name](queries[:5], 7))
    wrong = (ours[0], np.roll(ours[1], 1, axis=0))
    with pytest.raises(CheckFailed, match="other items"):
        timing.check_same(name, wrong, found[name](queries[:5], 7))
    with pytest.raises(CheckFailed, match="other scores"):
        timing.check_same(name, (ours[0] + 1, ours[1]), found[name](queries[:5], 7))


def test_the_speed_up_is_one_thread_by_two(catalogue: tuple[Any, Any]) -> None:
    vectors, queries = catalogue
    index = ItemIndex.build(vectors)
    row = speed_up(index, 2, queries, 64, 5, 0.0)
    assert row["ratio"] == row["one_ms"] / row["ms"] > 0
    assert row["least_ratio"] > 0


@pytest.mark.parametrize(("slow_ms", "n_calls"), [(5.0, 3), (500.0, 1)])
def test_a_hopeless_peer_drops_out_and_ours_never(
    slow_ms: float, n_calls: int, catalogue: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, queries = catalogue
    milliseconds = {"recserve": 900.0, "fast": 1.0, "slow": slow_ms}
    calls = dict.fromkeys(milliseconds, 0)

    def method(name: str) -> timing.Search:
        return lambda part, k: (name, len(part))

    def call_ms(search: timing.Search, part: Any, k: int) -> float:
        name, n_queries = search(part, k)
        assert n_queries == 4
        calls[name] += 1
        return milliseconds[name]

    monkeypatch.setattr(timing, "_call_ms", call_ms)
    methods = {name: method(name) for name in milliseconds}
    times = timing.interleaved(methods, queries, 4, 3, 0.0)
    all_rounds = 1 + timing.MIN_ROUNDS
    assert calls == {"recserve": all_rounds, "fast": all_rounds, "slow": n_calls}
    assert {len(times["recserve"]), len(times["fast"])} == {timing.MIN_ROUNDS}
    assert times["slow"] == [slow_ms] * max(1, n_calls - 1)
    timing.interleaved(methods, queries, 4, 3, 0.0, drop=False)
    assert calls["slow"] == n_calls + all_rounds


def test_a_batch_cannot_be_longer_than_the_queries(catalogue: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidRequest, match="at most 256"):
        timing.alone(lambda part, k: (part, k), catalogue[1], 257, 3, 0.0)


@pytest.mark.skipif(available()[0] == PORTABLE, reason="the portable path has no micro-kernels")
def test_limits_are_positive_and_bound_what_they_should() -> None:
    measured = limits.measure(available()[0], 1)
    assert measured is not None
    assert measured.int8_gops > 0
    assert measured.fp32_gflops > 0
    assert all(rate > 0 for rate in measured.read_gb_per_s.values())


def test_the_bound_is_the_longer_of_reading_and_computing() -> None:
    machine = limits.Limits(1, "avx2", 100.0, 200.0, {1 << 20: 50.0, 1 << 28: 10.0})
    assert machine.bandwidth(1000) == 50.0
    assert machine.bandwidth(1 << 20) == 50.0
    assert machine.bandwidth((1 << 20) + 1) == 10.0
    assert machine.bandwidth(1 << 40) == 10.0
    # 64 MB: 6.4 ms to read at 10 GB/s, half of that for a single query.
    # 64 queries are 8.192 G operations, 40.96 ms at 200 GOP/s.
    assert machine.bound_ms(1_000_000, 64, 1, 1.0) == pytest.approx(3.2)
    assert machine.bound_ms(1_000_000, 64, 64, 1.0) == pytest.approx(40.96)
    assert machine.bound_ms(1_000_000, 64, 64, 0.25) == pytest.approx(10.24)
    assert limits.measure(PORTABLE, 1) is None


def test_bars_are_reached_missed_or_not_measured() -> None:
    case = {
        "data": "gaussian",
        "n_items": 100_000,
        "dim": 64,
        "batch": 1,
        "k": 10,
        "threads": 1,
        "ratio": 3.0,
    }
    two = {**case, "batch": 64, "threads": 2, "ratio": 1.7}
    big = {"n_items": 1_000_000, "dim": 64, "build_s": 4.1, "bytes_per_item": 336}
    judged = {
        bar["case"]: bar["reached"]
        for bar in bars.judge(
            result_with(cases=[case], speed_ups=[two], catalogues=[big], dispatch_us={"64": 10.5, "128": 1.0})
        )
    }
    assert len(judged) == len(bars.BARS)
    known = {name: reached for name, reached in judged.items() if reached is not None}
    assert known == {
        "100k × 64 gaussian B1 K10": True,
        "2 threads, gaussian 100k B64": False,
        "dispatch of search at B1": False,
        "memory, d = 64": True,
        "build, 1M × 64": False,
    }


def test_the_default_run_measures_every_bar_but_the_fp32_kernel() -> None:
    """Each bar on a case looks for one that the preset has."""
    cases = [
        {
            "data": kind,
            "n_items": grid.items_of(kind),
            "dim": grid.dim,
            "batch": batch,
            "k": k,
            "threads": grid.threads,
            "ratio": 1.0,
        }
        for grid in options.TABLE
        for kind in grid.data
        for batch in grid.batches
        for k in grid.ks
    ]
    catalogues = [{**case, "build_s": 1.0, "bytes_per_item": 1.0} for case in cases]
    start = {"ready_s": 1.0, "first_by_median": 1.0}
    excluded = [{"kind": kind, "count": 1_000, "ratio": 1.0} for kind in ("any", "best")]
    measured = {
        "cases": cases,
        "speed_ups": cases,
        "catalogues": catalogues,
        "exclusions": excluded,
        "start": start,
    }
    judged = bars.judge(result_with(**measured, dispatch_us={"64": 1.0}))
    assert [bar["case"] for bar in judged if bar["measured"] is None] == ["fp32 micro-kernel, of FMA peak"]


def test_cases_that_shared_the_core_are_counted() -> None:
    cases = [{"threads": threads, "cpu_share": share} for threads, share in ((1, 1.0), (1, 0.5), (2, 0.5))]
    assert report.n_disturbed(cases) == 1


def test_options_survive_json() -> None:
    chosen = options.Options(options.FULL + options.LARGE, seconds=0.5, peers=("faiss",))
    assert options.Options.from_dict(json.loads(json.dumps(chosen.as_dict()))) == chosen
    assert {grid.threads for grid in chosen.of_threads(2).grids} == {2}


def test_threads_are_pinned_and_overrides_removed() -> None:
    found = run.pinned(2, {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "9", "HOME": "/h"})
    assert found["HOME"] == "/h"
    assert {found[name] for name in run.THREAD_VARIABLES} == {"2"}
    assert "OPENBLAS_CORETYPE" not in found


def test_recall_counts_ties_and_nothing_that_is_missing(catalogue: tuple[Any, Any]) -> None:
    vectors, queries = catalogue
    vectors = np.concatenate([vectors, vectors])  # every item ties with its twin
    scores, indices = ItemIndex.build(vectors).search(queries, 4)
    assert approximate.recall(scores, queries, vectors, indices) == 1.0
    assert approximate.recall(scores, queries, vectors, (indices + N_ITEMS) % (2 * N_ITEMS)) == 1.0
    indices[:, 2:] = -1
    assert approximate.recall(scores, queries, vectors, indices) == 0.5


def test_a_peer_that_needs_much_memory_searches_in_blocks(
    catalogue: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = catalogue
    monkeypatch.setattr(peers, "MAX_SCORES_BYTES", 3 * 16 * N_ITEMS)
    found = peers.numpy_search(vectors, 1)(queries[:8], 7)
    timing.check_same("numpy", ItemIndex.build(vectors).search(queries[:8], 7), found)


def test_augmentation_turns_the_inner_product_into_l2(catalogue: tuple[Any, Any]) -> None:
    vectors, queries = catalogue
    items = approximate.augmented(vectors)
    padded = np.column_stack([queries[:8], np.zeros(8)])
    distances = ((padded[:, None] - items[None]) ** 2).sum(axis=2)
    best = ItemIndex.build(vectors).search(queries[:8], 1)[1]
    assert np.array_equal(distances.argmin(axis=1), best[:, 0])


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_other_pictures_hold_the_cases(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    case = {"data": "gaussian", "n_items": 1000, "dim": 8, "batch": 1, "k": 10, "threads": 1, "scanned": 1.0}
    case |= {"ratio": 2.5, "best_peer": "faiss", "median_ms": {"recserve": 1.0, "faiss": 2.5}}
    result = result_with(cases=[case], environment={"cpu": "<cpu>", "cores": 2, "date": "today"})
    path = tmp_path / f"x{suffix}"
    plot.write(result, path)
    text = path.read_text()
    assert "<svg" in text
    if suffix == ".html":
        assert "&lt;cpu&gt;" in text
        assert "<td>faiss</td>" in text

"""The command line: verbs, exit codes, data on stdout, one sentence for every bad input."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_cli: Run) -> Run:
    return run_cli


def test_help_names_every_verb(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for verb in ("demo", "train", "evaluate", "export", "inspect", "recommend", "serve"):
        assert f"  {verb}" in out


@pytest.mark.parametrize(("group", "verbs"), [("bench", ("kernels", "start")), ("kernels", ("warmup",))])
def test_verbs_stand_in_groups(run: Run, group: str, verbs: tuple[str, ...]) -> None:
    assert f"  {group}" in run("--help")[1]
    code, out, _ = run(group, "--help")
    assert code == 0
    assert all(f"  {verb}" in out for verb in verbs)
    assert run(group, "nothing")[0] == 2


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, "0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [(("trian",), "train"), (("train", "--epoch", "3", "--data", "x"), "--epochs")],
)
def test_typing_mistakes_are_corrected(run: Run, arguments: tuple[str, ...], suggestion: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert suggestion in err


def test_completion_is_offered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code, out, _ = run("--show-completion", "bash")
    assert code == 0
    assert "recserve" in out


def test_reading_verbs_print_json_and_nothing_else(run: Run, bundle_folder: Path, run_folder: Path) -> None:
    code, out, _ = run("inspect", bundle_folder, "--json")
    assert code == 0
    assert json.loads(out)["default_variant"] == "fp32"
    code, out, err = run("evaluate", run_folder, "--json")
    assert code == 0
    result = json.loads(out)
    assert set(result["model"]["metrics"]) >= {"HR@10", "NDCG@10", "MRR@10", "coverage@10"}
    assert {"mean", "low", "high"} == set(result["model"]["metrics"]["NDCG@10"])
    assert result["popularity"]["n_users"] == result["model"]["n_users"] > 0
    assert "evaluating" in err
    code, out, _ = run("recommend", bundle_folder, "-k", "3", "--json")
    assert code == 0
    slate = json.loads(out)
    assert [item["rank"] for item in slate["items"]] == [1, 2, 3]
    assert slate["items"][0]["attributes"]["title"]
    code, out, _ = run("recommend", bundle_folder, "-k", "3", "--json", "--filter", "price < 30")
    assert code == 0
    assert all(item["attributes"]["price"] < 30 for item in json.loads(out)["items"])
    code, out, _ = run("recommend", bundle_folder, "--json", "--caps", "category=1", "--diversity", "0.3")
    assert code == 0
    assert len({item["attributes"]["category"] for item in json.loads(out)["items"]}) == 10
    history = ",".join(item["item_id"] for item in json.loads(out)["items"][:3])
    code, out, _ = run("recommend", bundle_folder, "--json", "--explain", "exact", "--history", history)
    assert code == 0
    for item in json.loads(out)["items"]:
        found = item["explanation"]
        assert len(found["contributions"]) == 3
        total = found["base"] + sum(one["value"] for one in found["contributions"])
        assert total == pytest.approx(item["score"], abs=1e-4)
    code, out, _ = run("recommend", bundle_folder, "--json", "--history", history, "--why-not", history[:8])
    assert code == 0
    assert json.loads(out)["cause"] == "seen"
    for flag, text, expected in (
        ("--caps", "category", "--caps is 'category'; expected NAME=NUMBER"),
        ("--pins", "item=first", "--pins is 'item=first'; expected NAME=NUMBER"),
        ("--context", "9", "--context is '9'; expected NAME=VALUE"),
        ("--boost", "price < 3", "--boost is 'price < 3'; expected WEIGHT:FILTER"),
        ("--rules", '{"cap": {}}', "expected JSON of rules"),
        ("--rules", "no-such-file", "expected JSON of rules"),
    ):
        code, _, err = run("recommend", bundle_folder, flag, text)
        assert code == 2
        assert expected in err
    pinned = history[:8]
    rules = ("--pins", f"{pinned}=2", "--boost", "9:category = 'Kitchen'", "--quotas", "model=1,explore=1")
    others = ("--seed", "3", "--predict", "retrieval", "--context", "hour=9", "--budget-ms", "60000")
    code, out, _ = run("recommend", bundle_folder, "--json", "--page-token", "", *rules, *others)
    assert code == 0
    slate = json.loads(out)
    assert slate["items"][1]["item_id"] == pinned
    assert {item["source"] for item in slate["items"]} == {"popularity", "explore"}
    assert slate["warnings"] == ["context 'hour' is not used by this bundle"]
    again = ("--page-token", slate["next_page_token"])
    code, _, err = run("recommend", bundle_folder, *rules, "--predict", "retrieval", *again)
    assert code == 0
    assert "next page: --page-token" in err
    code, _, err = run("recommend", bundle_folder, "--filter", "price < 30 and")
    assert code == 2
    assert "filter is ending at character 15" in err


def test_rules_come_as_json_or_as_a_file_of_it(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    every = '{"caps": {"category": 1}, "frequency": {"impressions": 3, "hours": 24}, "rerank": "score"}'
    (tmp_path / "rules.json").write_text(every)
    for asked in (every, tmp_path / "rules.json"):
        code, out, _ = run("recommend", bundle_folder, "--json", "-k", "4", "--rules", asked)
        assert code == 0
        assert len({item["attributes"]["category"] for item in json.loads(out)["items"]}) == 4
    code, out, _ = run(
        "recommend", bundle_folder, "--json", "--rules", every, "--caps", "category=3", "-k", "4"
    )
    assert len({item["attributes"]["category"] for item in json.loads(out)["items"]}) < 4


def test_tables_are_for_people(run: Run, bundle_folder: Path) -> None:
    inspected = run("inspect", bundle_folder)[1]
    assert "every file is what the manifest says" in inspected
    assert "price (number)" in inspected
    code, out, err = run("recommend", bundle_folder, "--history", "no such item")
    assert code == 0
    assert "title" in out
    assert "warning: 1 of 1 history items are not in the catalogue" in err
    code, out, _ = run("recommend", bundle_folder, "--explain", "fast", "--language", "es")
    assert code == 0
    assert "personas" in out
    code, _, err = run("recommend", bundle_folder, "--explain", "fast", "--language", "xx")
    assert code == 2
    assert "language is xx; expected one of en, es, zh" in err


def test_export_writes_what_inspect_reads(run: Run, run_folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key_id = run("bundle", "keygen", key)[1].strip()
    code, out, _ = run("export", run_folder, "--out", tmp_path / "bundle", "--sign-key", key, "--json")
    assert code == 0
    assert key_id in run("bundle", "verify", tmp_path / "bundle", "--trusted-keys", f"{key}.pub")[1]
    assert json.loads(out)["parity"]["max_abs_error"] <= 1e-4
    rules = tmp_path / "rules.toml"
    rules.write_text("[pipeline]\ncaps = { category = 1 }\n")
    assert run("export", run_folder, "--out", tmp_path / "bundle", "--replace", "--pipeline", rules)[0] == 0
    code, out, _ = run("recommend", tmp_path / "bundle", "--json")
    assert len({item["attributes"]["category"] for item in json.loads(out)["items"]}) == 10
    rules.write_text("[pipeline]\ncaps = { category = 0 }\n")
    code, _, err = run("export", run_folder, "--out", tmp_path / "other", "--pipeline", rules)
    assert (code, "pipeline.caps.category is 0" in err) == (3, True)
    assert run("inspect", tmp_path / "bundle")[0] == 0
    code, _, err = run("export", run_folder, "--out", tmp_path / "bundle")
    assert code == 2
    assert "--replace" in err


CSV = "user_id,item_id,timestamp\nu,i,1\n"
BAD_DATA: dict[str, tuple[str, bytes, int, str]] = {
    "no item column": ("events.csv", b"user_id,thing,timestamp\nu,i,1\n", 1, "item=COLUMN"),
    "an empty file": ("events.csv", b"", 1, "empty"),
    "a header alone": ("events.csv", b"user_id,item_id,timestamp\n", 1, ""),
    "Parquet that is CSV": ("events.parquet", CSV.encode(), 1, "events.parquet"),
    "CSV that is binary": ("events.csv", bytes(range(256)) * 50, 1, "events.csv"),
    "JSON that is cut": ("events.jsonl", b'{"user_id": "u", "item_id": ', 1, "events.jsonl"),
    "too few interactions": ("events.csv", CSV.encode(), 1, "interactions"),
}


@pytest.mark.parametrize(("name", "content", "exit_code", "said"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data_is_one_sentence_and_leaves_nothing(
    run: Run, tmp_path: Path, name: str, content: bytes, exit_code: int, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    code, out, err = run("train", "--data", tmp_path / name, "--out", tmp_path / "runs" / "r")
    assert (code, out) == (exit_code, "")
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith("error: ")
    assert "; expected " in sentence
    assert said in sentence
    assert "Traceback" not in err
    assert not (tmp_path / "runs" / "r").exists()


BAD_ARGUMENTS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "an unknown data set": (("train", "--data", "ml-100"), 2, "Did you mean 'ml-100k'?"),
    "a missing file": (("train", "--data", "none.csv"), 1, "none.csv"),
    "an unknown model": (("train", "--data", "x.csv", "--model", "sasrek"), 2, "Did you mean 'sasrec'?"),
    "an unknown split": (
        ("train", "--data", "x.csv", "--split", "by-day"),
        2,
        "leave-one-out, temporal, random",
    ),
    "a role that is none": (("train", "--data", "x.csv", "--columns", "usr=a"), 2, "Did you mean 'user'?"),
    "no heads": (("train", "--data", "x.csv", "--heads", "0"), 2, "n_heads is 0"),
    "no run": (("evaluate", "nothing"), 1, "Check the path"),
    "no bundle": (("inspect", "nothing"), 5, "Check the path"),
    "no bundle to serve": (("serve", "nothing", "--port", "0"), 5, "Check the path"),
    "an open address": (("serve", "nothing", "--host", "0.0.0.0"), 3, "--insecure-bind"),
    "no server": (("recommend", "--server", "127.0.0.1:1"), 4, "UNAVAILABLE"),
    "neither bundle nor server": (("recommend",), 2, "one of the two"),
    "a missing configuration": (("serve", "x", "--config", "none.toml"), 3, "none.toml"),
}


@pytest.mark.parametrize(("arguments", "code", "said"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments_have_their_exit_code(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("k", ["0", "-1", "1000000"])
def test_a_wrong_k_is_a_usage_error(run: Run, bundle_folder: Path, k: str) -> None:
    code, _, err = run("recommend", bundle_folder, "-k", k)
    assert code == 2
    assert f"k is {k}; expected 1 to 1000" in err


def test_a_damaged_bundle_has_its_exit_code(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    graph = tmp_path / "bundle" / "variants" / "fp32" / "query_encoder.onnx"
    os.truncate(graph, 100)
    for verb in ("inspect", "recommend", "serve"):
        code, out, err = run(verb, tmp_path / "bundle")
        assert (code, out) == (5, "")
        assert "size of variants/fp32/query_encoder.onnx is 100 bytes" in err
        assert err.strip().endswith("[BUNDLE_FILE_SIZE]")


def test_a_verb_without_its_libraries_says_how_to_get_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without_torch(name: str, *rest: Any) -> Any:
        return None if name == "torch" else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    assert "  train" not in run("--help")[1]
    code, _, err = run("train", "--data", "x.csv")
    assert code == 3
    assert "Run: pip install 'recserve[train]'" in err


def test_wrong_settings_have_their_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSERVE__SERVER__PROT", "1")
    code, out, err = run("serve", "nothing")
    assert (code, out) == (3, "")
    assert "key server.prot (environment) is unknown" in err
    assert "Did you mean 'port'?" in err


def test_what_the_system_refuses_is_one_line(run: Run, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code, out, err = run("export", run_folder, "--out", tmp_path / "file" / "folder" / "bundle")
    assert (code, out) == (1, "")
    assert err.strip().splitlines()[-1].startswith("error: Not a directory")
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["file"]


def test_an_interruption_has_its_exit_code(
    run: Run, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recserve.engine.bundle.open_bundle", interrupted)
    code, out, err = run("inspect", bundle_folder)
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_inspect_says_what_the_second_stage_predicts(
    run: Run, bundle_folder: Path, two_stage_folder: Path
) -> None:
    assert "predicts" not in run("inspect", bundle_folder)[1]
    lines = run("inspect", two_stage_folder)[1].split("second stage")[1]
    assert "deepfm, fp32, predicts click" in " ".join(lines.replace("│", " ").split())


def test_no_verb_shows_the_help(run: Run) -> None:
    code, out, err = run()
    assert code == 2
    assert "Exit codes: 0 ok" in out + err


def test_a_demo_of_other_data_is_not_shown_as_this_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "done").write_text("ml-100k")
    code, _, err = run("demo", "--data", "synthetic-shop", "--out", tmp_path)
    assert code == 2
    assert "--data is synthetic-shop; expected ml-100k" in err

"""Bundles with a user table that is not what it should be."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.engine import Engine
from recserve.errors import BundleReason as R
from tests.engine.bundle.conftest import GOLDEN, HISTORIES, POPULARITY, BundleCopy, Cases, refused

USERS = "user_embeddings.npy"
CASES = Cases()
case = CASES.add


@pytest.fixture
def bundle(table_bundle_folder: Path, tmp_path: Path) -> BundleCopy:
    return BundleCopy(shutil.copytree(table_bundle_folder, tmp_path / "bundle"))


def in_variant(label: str, reason: R, names: str, change: Callable[[dict[str, Any]], object]) -> None:
    case(
        label,
        reason,
        names,
        lambda bundle: bundle.edit(lambda manifest: change(manifest["variants"]["fp32"])),
    )


def in_fold_in(label: str, reason: R, names: str, **values: object) -> None:
    in_variant(label, reason, names, lambda variant: variant["fold_in"].update(values))


def in_users(label: str, reason: R, names: str, change: Callable[[Any], Any]) -> None:
    case(label, reason, names, lambda bundle: bundle.write_array(USERS, change(bundle.array(USERS))))


def in_golden(label: str, reason: R, change: Callable[[dict[str, Any]], object], names: str = GOLDEN) -> None:
    case(label, reason, names, lambda bundle: bundle.write_golden(change))


def with_nan(users: Any) -> Any:
    users[3, 5] = np.nan
    return users


in_variant("unknown query", R.MANIFEST_FIELD, "query of variant fp32", lambda v: v.update(query="tabel"))
in_variant("table with a graph", R.MANIFEST_FIELD, "query_encoder", lambda v: v.update(query_encoder=GOLDEN))
in_variant(
    "encoder without a graph", R.MANIFEST_FIELD, "fp32", lambda v: v.update(query="encoder", fold_in=None)
)
in_variant(
    "encoder with a fold-in",
    R.MANIFEST_FIELD,
    "fold_in",
    lambda v: v.update(query="encoder", query_encoder=GOLDEN),
)
in_variant(
    "unknown field of the fold-in", R.MANIFEST_FIELD, "wieght", lambda v: v["fold_in"].update(wieght=1.0)
)
in_variant("missing field of the fold-in", R.MANIFEST_FIELD, "reg", lambda v: v["fold_in"].pop("reg"))
in_variant("text for the fold-in", R.MANIFEST_FIELD, "fold_in", lambda v: v.update(fold_in="als"))
in_fold_in("no regularisation", R.MANIFEST_FIELD, "fold_in.reg", reg=0.0)
in_fold_in("negative weight", R.MANIFEST_FIELD, "fold_in.weight", weight=-1.0)
in_fold_in("exponent above one", R.MANIFEST_FIELD, "reg_exponent", reg_exponent=2.0)
in_fold_in("boolean for a number", R.MANIFEST_FIELD, "reg", reg=True)
in_fold_in("another weight than recorded", R.GOLDEN_DIFFERS, GOLDEN, weight=500.0)
in_fold_in("another regularisation than recorded", R.GOLDEN_DIFFERS, GOLDEN, reg=10.0)
case("unlisted table", R.MANIFEST_FIELD, USERS, lambda bundle: bundle.edit(lambda m: m["files"].pop(USERS)))
case("missing table", R.FILE_MISSING, USERS, lambda bundle: (bundle.folder / USERS).unlink())
case("flipped bit in the table", R.FILE_DIGEST, f"SHA-256 of {USERS}", lambda bundle: bundle.flip_bit(USERS))
case(
    "truncated table",
    R.CONTENT_MALFORMED,
    USERS,
    lambda bundle: bundle.write(USERS, bundle.read(USERS)[:500]),
)
case(
    "another file for the table", R.SHAPE, USERS, lambda bundle: bundle.write(USERS, bundle.read(POPULARITY))
)
case(
    "time gaps for a table",
    R.MANIFEST_FIELD,
    "features",
    lambda b: b.edit(lambda m: m["inputs"]["features"].append("time_gaps")),
)
in_users("user too few", R.SHAPE, USERS, lambda users: users[:-1])
in_users("user too many", R.SHAPE, USERS, lambda users: np.concatenate([users, users[:1]]))
in_users("wider users", R.SHAPE, USERS, lambda users: np.pad(users, ((0, 0), (0, 1))))
in_users("users in float64", R.ARRAY_TYPE, USERS, lambda users: users.astype(np.float64))
in_users("users with NaN", R.NOT_FINITE, USERS, with_nan)
in_users("users in another order", R.GOLDEN_DIFFERS, GOLDEN, lambda users: users[::-1])
case(
    "history without its row",
    R.SHAPE,
    "user_lookup.arrow",
    lambda bundle: bundle.write_table(HISTORIES, bundle.table(HISTORIES).slice(1)),
)
in_golden(
    "recorded row beyond the end", R.GOLDEN_MALFORMED, lambda a: a.update(user_row=a["user_row"] + 10**6)
)
in_golden("recorded row below zero", R.GOLDEN_MALFORMED, lambda a: a.update(user_row=a["user_row"] - 1))
in_golden(
    "recorded rows as numbers with a point",
    R.GOLDEN_MALFORMED,
    lambda a: a.update(user_row=a["user_row"] + 0.0),
)
in_golden("no recorded rows", R.GOLDEN_MALFORMED, lambda a: a.pop("user_row"))
in_golden(
    "recorded users that differ",
    R.GOLDEN_DIFFERS,
    lambda a: a.update(user_embedding=a["user_embedding"] + 0.01),
)
in_golden(
    "fold-ins that differ", R.GOLDEN_DIFFERS, lambda a: a.update(query_embedding=a["query_embedding"] + 0.01)
)
in_golden(
    "fold-ins that are NaN",
    R.GOLDEN_DIFFERS,
    lambda a: a.update(query_embedding=a["query_embedding"] * np.nan),
)
in_golden(
    "fold-ins of another shape",
    R.GOLDEN_MALFORMED,
    lambda a: a.update(query_embedding=a["query_embedding"][:, :3]),
)
in_golden(
    "no fold-ins",
    R.GOLDEN_MALFORMED,
    lambda a: a.update(history=a["history"][:0], query_embedding=a["query_embedding"][:0]),
)
in_golden(
    "recorded items out of range", R.GRAPH_FAILS, lambda a: a.update(history=a["history"] + np.int32(10**6))
)
in_golden(
    "recorded items in int64", R.GOLDEN_MALFORMED, lambda a: a.update(history=a["history"].astype(np.int64))
)


@pytest.mark.parametrize("label", CASES)
def test_a_wrong_table_is_refused(bundle: BundleCopy, label: str) -> None:
    refused(bundle, CASES[label])


def test_the_copy_is_fine_unless_it_is_broken(bundle: BundleCopy) -> None:
    bundle.edit(lambda manifest: None)
    bundle.write_array(USERS, bundle.array(USERS))
    bundle.write_golden(lambda arrays: None)
    Engine.load(bundle.folder).close()


def test_a_manifest_of_before_tables_opens(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = BundleCopy(shutil.copytree(bundle_folder, tmp_path / "old"))
    for field in ("query", "fold_in"):
        bundle.edit(lambda manifest, field=field: manifest["variants"]["fp32"].pop(field))
    Engine.load(bundle.folder).close()


def test_a_table_without_fold_in_leaves_new_histories_to_popularity(bundle: BundleCopy) -> None:
    bundle.edit(lambda manifest: manifest["variants"]["fp32"].update(fold_in=None))
    from recserve.engine import Request

    with Engine.load(bundle.folder) as engine:
        user = engine.user_ids()[0]
        assert engine.recommend(Request(user_id=user)).source == "model"
        assert engine.recommend(Request(history=engine.history(user))).source == "popularity"

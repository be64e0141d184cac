"""Manifests and folders that are not what they should be: each is refused, naming the part."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recserve.engine import Engine
from recserve.errors import BundleInvalid
from recserve.errors import BundleReason as R
from tests.engine.bundle.conftest import FILES, GRAPH, ITEMS, VECTORS, BundleCopy, Cases, refused

CASES = Cases()
case = CASES.add


def in_manifest(label: str, reason: R, names: str, change: Callable[[dict[str, Any]], object]) -> None:
    case(label, reason, names, lambda bundle: bundle.edit(change))


def text_of_manifest(label: str, reason: R, names: str, change: Callable[[str], str]) -> None:
    case(
        label,
        reason,
        names,
        lambda bundle: bundle.manifest_path.write_text(change(bundle.manifest_path.read_text())),
    )


def rename_file(new: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["files"].update({new: manifest["files"].pop(ITEMS)})


# The manifest.
in_manifest(
    "an unknown rule", R.MANIFEST_FIELD, "cap", lambda manifest: manifest.update(pipeline={"cap": {}})
)
in_manifest(
    "a rule out of range",
    R.MANIFEST_FIELD,
    "pipeline.diversity",
    lambda manifest: manifest.update(pipeline={"diversity": 7.0}),
)
in_manifest(
    "a rule of another type",
    R.MANIFEST_FIELD,
    "caps.a",
    lambda manifest: manifest.update(pipeline={"caps": {"a": "b"}}),
)
text_of_manifest("torn manifest", R.MANIFEST_MALFORMED, "manifest.json", lambda text: text[: len(text) // 2])
text_of_manifest("empty manifest", R.MANIFEST_MALFORMED, "manifest.json", lambda text: "")
text_of_manifest("duplicate keys", R.MANIFEST_MALFORMED, "model", lambda text: '{"model": "a", ' + text[1:])
text_of_manifest("NaN", R.MANIFEST_MALFORMED, "NaN", lambda text: re.sub(r'"seed": \d+', '"seed": NaN', text))
text_of_manifest(
    "a number beyond float",
    R.MANIFEST_MALFORMED,
    "1e999",
    lambda text: re.sub(r'"seed": \d+', '"seed": 1e999', text),
)
text_of_manifest(
    "5,000 digits",
    R.MANIFEST_MALFORMED,
    "manifest.json",
    lambda text: re.sub(r'"seed": \d+', '"seed": ' + "9" * 5000, text),
)
text_of_manifest("nested without end", R.MANIFEST_MALFORMED, "manifest.json", lambda text: "[" * 200_000)
text_of_manifest("a list for a manifest", R.MANIFEST_MALFORMED, "manifest.json", lambda text: "[]")
text_of_manifest(
    "lone surrogate", R.MANIFEST_FIELD, "model", lambda text: text.replace('"sasrec"', r'"\ud800"')
)
in_manifest("unknown field", R.MANIFEST_FIELD, "modell", lambda m: m.update(modell="x"))
in_manifest(
    "unknown nested field", R.MANIFEST_FIELD, "max_histroy", lambda m: m["inputs"].update(max_histroy=1)
)
in_manifest("missing field", R.MANIFEST_FIELD, "created_at", lambda m: m.pop("created_at"))
in_manifest("wrong type", R.MANIFEST_FIELD, "n_items", lambda m: m.update(n_items="many"))
in_manifest(
    "boolean for a number", R.MANIFEST_FIELD, "embedding_size", lambda m: m.update(embedding_size=True)
)
in_manifest("format of the future", R.FORMAT_UNKNOWN, "format_version", lambda m: m.update(format_version=2))
in_manifest("no format", R.FORMAT_UNKNOWN, "format_version", lambda m: m.pop("format_version"))
in_manifest(
    "unknown default variant", R.MANIFEST_FIELD, "default_variant", lambda m: m.update(default_variant="int8")
)
in_manifest("no variants", R.MANIFEST_FIELD, "default_variant", lambda m: m.update(variants={}))
in_manifest(
    "variant without its file",
    R.MANIFEST_FIELD,
    "fp32",
    lambda m: m["variants"]["fp32"].update(golden="x.npz"),
)
in_manifest("no items", R.MANIFEST_FIELD, "n_items", lambda m: m.update(n_items=0))
in_manifest(
    "endless history", R.MANIFEST_FIELD, "max_history", lambda m: m["inputs"].update(max_history=1 << 30)
)
in_manifest(
    "history that the graph cannot take",
    R.GRAPH_FAILS,
    "max_history",
    lambda m: m["inputs"].update(max_history=64),
)
in_manifest("parent folder", R.PATH_UNSAFE, "../items.arrow", rename_file("../items.arrow"))
in_manifest("absolute path", R.PATH_UNSAFE, "/etc/passwd", rename_file("/etc/passwd"))
in_manifest("backslash", R.PATH_UNSAFE, "..\\", rename_file("..\\items.arrow"))
in_manifest("NUL in a path", R.PATH_UNSAFE, "file name", rename_file("items\0.arrow"))
in_manifest("short digest", R.MANIFEST_FIELD, ITEMS, lambda m: m["files"][ITEMS].update(sha256="00"))
in_manifest("negative size", R.MANIFEST_FIELD, ITEMS, lambda m: m["files"][ITEMS].update(size_bytes=-1))
in_manifest("forged log line", R.MANIFEST_FIELD, "field", lambda m: m.update({"x\nERROR all is lost": 1}))
in_manifest(
    "unknown feature",
    R.MANIFEST_FIELD,
    "features",
    lambda m: m["inputs"].update(features=["history", "mood"]),
)
in_manifest(
    "feature without a graph input",
    R.GRAPH_SIGNATURE,
    GRAPH,
    lambda m: m["inputs"]["features"].append("time_gaps"),
)
in_manifest("more items than vectors", R.SHAPE, "1001", lambda m: m.update(n_items=1001))
in_manifest("wider embeddings", R.SHAPE, VECTORS, lambda m: m.update(embedding_size=17))


@CASES.broken(R.MANIFEST_MALFORMED, "manifest.json")
def manifest_not_utf8(bundle: BundleCopy) -> None:
    bundle.manifest_path.write_bytes(b'{"model": "\xff"}')


@CASES.broken(R.MANIFEST_MISSING, "manifest.json")
def no_manifest(bundle: BundleCopy) -> None:
    bundle.manifest_path.unlink()


@CASES.broken(R.FILE_NOT_PLAIN, "manifest.json")
def manifest_through_a_link(bundle: BundleCopy) -> None:
    bundle.manifest_path.rename(bundle.folder.with_name("elsewhere.json"))
    bundle.manifest_path.symlink_to(bundle.folder.with_name("elsewhere.json"))


@CASES.broken(R.MANIFEST_MISSING, "manifest.json")
def manifest_is_a_pipe(bundle: BundleCopy) -> None:
    bundle.manifest_path.unlink()
    os.mkfifo(bundle.manifest_path)


# Files as the directory has them.
for name in FILES:
    case(
        f"flipped bit in {name}",
        R.FILE_DIGEST,
        f"SHA-256 of {name}",
        lambda bundle, name=name: bundle.flip_bit(name),
    )
    case(f"missing {name}", R.FILE_MISSING, name, lambda bundle, name=name: (bundle.folder / name).unlink())
    if not name.startswith("variants"):
        in_manifest(f"unlisted {name}", R.FILE_UNLISTED, name, lambda m, name=name: m["files"].pop(name))
case(
    "longer file",
    R.FILE_SIZE,
    f"size of {ITEMS}",
    lambda bundle: (bundle.folder / ITEMS).write_bytes(bundle.read(ITEMS) + b"x"),
)
case(
    "extra file", R.FILE_UNLISTED, "readme.txt", lambda bundle: (bundle.folder / "readme.txt").write_text("x")
)
case(
    "extra link to a folder",
    R.FILE_NOT_PLAIN,
    "more",
    lambda bundle: (bundle.folder / "more").symlink_to("/tmp"),
)


@CASES.broken(R.FILE_NOT_PLAIN, ITEMS)
def symlink_for_a_file(bundle: BundleCopy) -> None:
    (bundle.folder / ITEMS).rename(bundle.folder.with_name("outside"))
    (bundle.folder / ITEMS).symlink_to(bundle.folder.with_name("outside"))


@CASES.broken(R.FILE_NOT_PLAIN, ITEMS)
def hardlink_from_outside(bundle: BundleCopy) -> None:
    (bundle.folder.with_name("outside")).hardlink_to(bundle.folder / ITEMS)


@CASES.broken(R.FILE_NOT_PLAIN, "variants")
def symlink_for_a_folder(bundle: BundleCopy) -> None:
    (bundle.folder / "variants").rename(bundle.folder.with_name("outside"))
    (bundle.folder / "variants").symlink_to(bundle.folder.with_name("outside"))


@CASES.broken(R.FILE_NOT_PLAIN, VECTORS)
def pipe_for_a_file(bundle: BundleCopy) -> None:
    (bundle.folder / VECTORS).unlink()
    os.mkfifo(bundle.folder / VECTORS)


@CASES.broken(R.FILE_MISSING, VECTORS)
def folder_for_a_file(bundle: BundleCopy) -> None:
    (bundle.folder / VECTORS).unlink()
    (bundle.folder / VECTORS).mkdir()


case(
    "extra file in a folder",
    R.FILE_UNLISTED,
    "variants/x",
    lambda bundle: (bundle.folder / "variants" / "x").write_text("x"),
)


@pytest.mark.parametrize("label", CASES)
def test_a_wrong_manifest_or_folder_is_refused(bundle: BundleCopy, label: str) -> None:
    refused(bundle, CASES[label])


@pytest.mark.parametrize("found", ["nowhere", "a file", "a folder"])
def test_a_path_without_a_bundle_is_named(tmp_path: Path, found: str) -> None:
    path = tmp_path / "bundle"
    if found == "a file":
        path.write_text("x")
    elif found == "a folder":
        path.mkdir()
    with pytest.raises(BundleInvalid, match=r"bundle .* is .*Check the path"):
        Engine.load(path)

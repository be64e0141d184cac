"""Bundles that differ by version: every item id of one starts with its version, so a mix shows at once."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from recserve.engine.bundle import Vocabulary

ITEMS, ITEM_LOOKUP, MANIFEST = "items.arrow", "item_lookup.arrow", "manifest.json"


def make_version(source: Path, target: Path, version: str, *, day: int = 1) -> Path:
    """Copies the bundle ``source`` to ``target`` as ``version``, created on that day of a month."""
    shutil.copytree(source, target.with_name(f".{target.name}"))
    folder = target.with_name(f".{target.name}")
    with pa.OSFile(str(folder / ITEMS)) as file:
        items = pa.ipc.open_file(file).read_all()
    ids = pa.array([f"{version}:{id_}" for id_ in items.column("item_id").to_pylist()], pa.large_string())
    items = items.set_column(items.column_names.index("item_id"), "item_id", ids)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["bundle_version"] = version
    manifest["created_at"] = f"2026-01-{day:02}T00:00:00+00:00"
    for name, table in ((ITEMS, items), (ITEM_LOOKUP, Vocabulary.build(ids.to_pylist()).lookup_table())):
        manifest["files"][name] = write_table(folder / name, table)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    folder.rename(target)
    return target


def write_table(path: Path, table: pa.Table) -> dict[str, Any]:
    """Writes an Arrow file and returns its entry in a manifest."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table.combine_chunks())
    data = path.read_bytes()
    return {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def flip_bit(path: Path) -> None:
    """Damages the middle byte of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def is_of(version: str, item_ids: list[str]) -> bool:
    """Whether all items are of one version's catalogue (and there are any)."""
    return bool(item_ids) and all(item_id.startswith(f"{version}:") for item_id in item_ids)

"""A bundle is written whole or not at all, whatever happens to the writer."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recserve.engine.bundle import BundleWriter, Manifest, open_bundle
from recserve.engine.bundle.writer import sha256_of
from recserve.errors import InvalidRequest

TIMEOUT_SECONDS = 60

# Copies a bundle through the writer and dies by SIGKILL before the n-th flush to disk.
KILLED_WRITER = """
import dataclasses, os, signal, sys
from pathlib import Path
from recserve.engine.bundle import BundleWriter, writer
from recserve.engine.bundle.reader import read_manifest

source, target, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
fsync = os.fsync

def flush(descriptor):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = flush
manifest = read_manifest(source)
with BundleWriter(target, replace=target.exists()) as writer:
    for name in manifest.files:
        writer.add_bytes(name, (source / name).read_bytes())
    writer.commit(dataclasses.replace(manifest, bundle_version="second", files=writer.files))
"""


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with BundleWriter(tmp_path / "bundle") as writer:
            writer.add_array("a.npy", np.arange(3))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_files_are_recorded_as_they_are(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        writer.add_bytes("folder/file.bin", b"12345")
        entry = writer.files["folder/file.bin"]
        assert entry.size_bytes == 5
        assert entry.sha256 == sha256_of(writer.path("folder/file.bin"))


def test_only_a_bundle_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for replace in (False, True):
        with pytest.raises(InvalidRequest, match="there already"):
            BundleWriter(tmp_path / "mine", replace=replace)


def test_a_manifest_survives_the_round_trip(bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert dataclasses.asdict(again) == dataclasses.asdict(manifest)


@pytest.mark.parametrize("n_flushes", [0, 1, 4, 8, 9, 10, 11, 12, 13, 14])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_killed_writer_leaves_a_whole_bundle_or_none(
    bundle_folder: Path, tmp_path: Path, n_flushes: int, replacing: bool
) -> None:
    target = tmp_path / "bundle"
    if replacing:
        copy = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
        subprocess.run([sys.executable, "-c", copy, str(bundle_folder), str(target)], check=True)
    command = [sys.executable, "-c", KILLED_WRITER, str(bundle_folder), str(target), str(n_flushes)]
    finished = subprocess.run(command, check=False, timeout=TIMEOUT_SECONDS)
    assert finished.returncode in (0, -signal.SIGKILL)
    first = open_bundle(bundle_folder).manifest.bundle_version
    if finished.returncode == 0:
        assert open_bundle(target).manifest.bundle_version == "second"
    elif target.exists():
        assert open_bundle(target).manifest.bundle_version in ("second", first)
    else:
        assert not replacing or any(path.name.endswith(".old") for path in tmp_path.iterdir())
    assert os.listdir(bundle_folder)

"""The reference has every public kernel with the same signature; nothing compiles at import."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recserve import kernels
from recserve.kernels import reference
from recserve.kernels.warmup import warmup_report

FUNCTIONS = [name for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_kernel_has_a_twin_of_the_same_signature(name: str) -> None:
    assert inspect.signature(getattr(kernels, name)) == inspect.signature(getattr(reference, name))


def test_warmup_runs() -> None:
    kernels.warmup()
    reference.warmup()


def test_import_compiles_nothing_and_survives_without_a_cache_folder(tmp_path: Path) -> None:
    """Numba finds no place to cache: one warning that names the cure, and no failure."""
    code = (
        "import warnings\n"
        "from numba.core import event\n"
        "with event.install_recorder('numba:compile') as compiled:\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        from recserve import kernels\n"
        "assert not compiled.buffer, compiled.buffer\n"
        "messages = [str(w.message) for w in caught if w.category is RuntimeWarning]\n"
        "assert len(messages) == 1 and 'NUMBA_CACHE_DIR' in messages[0], messages\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    # The only place allowed is the one that NUMBA_CACHE_DIR would name.
    environment["NUMBA_CACHE_LOCATOR_CLASSES"] = "UserProvidedCacheLocator"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """Not in the warm-up, and not in any request after it either."""
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from numba.core import event\n"
        "from recserve import kernels\n"
        "from recserve.kernels.warmup import warmup_report\n"
        "with event.install_recorder('numba:compile') as compiled:\n"
        "    warmed = warmup_report()\n"
        "    rng = np.random.default_rng(0)\n"
        "    vectors = rng.standard_normal((200, 24), dtype=np.float32)\n"
        "    index, gram = kernels.ItemIndex.build(vectors), kernels.gram_matrix(vectors)\n"
        "    for n in (1, 2, 5, 70):\n"
        "        lists = (np.arange(n + 1), np.arange(n, dtype=np.int32))\n"
        "        allow = np.arange(200) % 3 > 0\n"
        "        found = index.search(vectors[:n], 4)\n"
        "        index.search(vectors[:n], 4, exclude=lists, allow=index.prepare_filter(allow))\n"
        "        index.search(vectors[:n], 4, allow=[None] * n, bias=np.ones(len(vectors), np.float32))\n"
        "        kernels.mmr(*found, vectors, 2, diversity=0.5)\n"
        "        kernels.dpp(*found, vectors, 2, diversity=0.5)\n"
        "        kernels.fold_in(vectors, lists, np.ones(n, np.float32), reg=1.0)\n"
        "        kernels.fold_in_shares(vectors, lists[1], 1.0, lists[1], 2, reg=1.0, gram=gram)\n"
        "        index.upsert(np.array([n], np.int32), vectors[:1])\n"
        "        index.remove(np.array([n + 9], np.int32))\n"
        "    index.rebuild()\n"
        "    index.save(sys.argv[1])\n"
        "    kernels.ItemIndex.open(sys.argv[1]).search(vectors[:9], 4)\n"
        "print(len(compiled.buffer), sum(k.loaded for k in warmed), sum(k.compiled for k in warmed))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_DISABLE_JIT"}
    for number in range(2):
        printed = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / str(number))],
            check=True,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
        ).stdout
    events, loaded, compiled = map(int, printed.split())
    assert (events, compiled) == (0, 0)
    assert loaded > 0


def test_the_report_counts_every_kernel_once() -> None:
    report = warmup_report()
    names = [warmed.kernel for warmed in report]
    assert len(set(names)) == len(names)
    assert all(warmed.compiled or warmed.loaded for warmed in report)
    assert warmup_report() == []  # nothing is left to do in this process

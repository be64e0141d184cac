"""What is served: ALS and SASRec over a made shop, their catalogues grown to 100,000 items.

``python -m recserve.benchmarks.serving.bundles FOLDER MODEL…`` makes those that are not there; a process of
its own, so that the one that measures, and those that it spawns, load no torch.
"""

import sys
from pathlib import Path
from types import MappingProxyType

from recserve.benchmarks.runs import trained_run
from recserve.benchmarks.scale.grown import grow_bundle
from recserve.exporters.assemble import export_run
from recserve.training.data import load_dataset
from recserve.training.loop_config import LoopConfig
from recserve.training.models.als import ALSConfig
from recserve.training.models.sasrec import SASRecConfig
from recserve.training.run import RunConfig

N_ITEMS, DIM, MAX_HISTORY = 100_000, 64, 50
# Few users with histories longer than the model reads: real shapes, and weights that nobody will praise.
SHOP = "synthetic-shop:n_items=1000,n_users=200,n_events=20000,seed=7"
SEED = 7
SHAPES = MappingProxyType(
    {
        "als": ALSConfig(embedding_size=DIM),
        "sasrec": SASRecConfig(embedding_size=DIM, n_blocks=2, n_heads=2, max_history=MAX_HISTORY),
        # As heavy as models that serve: hundreds of answers per second and core.
        "sasrec-large": SASRecConfig(embedding_size=256, n_blocks=4, n_heads=4, max_history=200),
    }
)


def main() -> int:
    """Makes the bundles that the arguments name, in the folder that the first one names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for model in sys.argv[2:]:
        if not (folder / model).exists():
            make(model, folder)
    return 0


def make(model: str, folder: Path) -> None:
    """Trains, exports and grows ``model`` into ``folder / model``."""
    loop = LoopConfig(epochs=1, batch_size=128, validate_every=1, seed=SEED)
    config = RunConfig(model=model.partition("-")[0], shape=SHAPES[model], loop=loop)
    run = trained_run(folder / f"{model}-run", config, load_dataset(SHOP))
    export_run(run, folder / f"{model}-small")
    grow_bundle(folder / f"{model}-small", folder / model, N_ITEMS, SEED)


if __name__ == "__main__":
    sys.exit(main())

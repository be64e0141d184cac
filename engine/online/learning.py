"""Online learning for every bundle that is loaded, from one log."""

import dataclasses
import hashlib
import json
from pathlib import Path

from recserve.engine.bundle import Bundle, layout
from recserve.engine.online.config import OnlineConfig
from recserve.engine.online.features import ItemVectors
from recserve.engine.online.learner import Learner
from recserve.engine.online.learner_thread import LearnerThread
from recserve.engine.online.snapshots import SnapshotFile
from recserve.engine.online.stage import OnlineStage
from recserve.engine.state.distant import AnyState

# Of what a learner makes of a log: whoever changes that, changes this, and snapshots of before are not used.
FOLD_VERSION = "2"
# Settings that change slates and leave what is learned as it is.
OF_SERVING = ("strength", "candidates", "epsilon", "width", "snapshot_examples", "folder")


class OnlineLearning:
    """Gives every bundle a stage, whose learner follows ``state`` from its first event on."""

    def __init__(self, config: OnlineConfig, state: AnyState) -> None:
        self._config, self._state = config, state
        self._threads: list[LearnerThread] = []

    def stage(self, bundle: Bundle) -> OnlineStage:
        """Returns the stage of a bundle; raises :class:`ConfigError` where vectors or disk do not allow it.

        It answers at once, with what the last snapshot knows, while the rest of the log is learned.
        """
        file = self._file(bundle)
        learner = Learner(
            bundle.catalogue.vocabulary,
            ItemVectors(bundle.item_embeddings),
            self._config,
            file.write if file else lambda snapshot: None,
        )
        thread = LearnerThread(self._state, learner, file)
        self._threads.append(thread)

        def close() -> None:
            thread.close()
            # A learner is as large as its catalogue: none stays behind its bundle.
            if thread in self._threads:
                self._threads.remove(thread)

        return OnlineStage(learner, self._config, self._state.user_key, close)

    def close(self) -> None:
        """Ends all threads and saves what they learned."""
        for thread in self._threads:
            thread.close()

    def _file(self, bundle: Bundle) -> SnapshotFile | None:
        config, manifest = self._config, bundle.manifest
        path = self._state.config.path
        folder = config.folder or (Path(f"{path}.online") if path else None)
        if folder is None:
            return None
        # What a model is about: another log, catalogue or way to learn is another model.
        learned = {
            name: value for name, value in dataclasses.asdict(config).items() if name not in OF_SERVING
        }
        parts = [
            FOLD_VERSION,
            self._state.identity,
            manifest.item_table_sha256,
            manifest.files[layout.ITEMS].sha256,
            json.dumps(learned, sort_keys=True),
        ]
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        return SnapshotFile(folder / f"{name}.npz")

"""From a folder to a bundle that answers: opened, checked, with everything that its stages need."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from recserve.engine.batch import LoadedBundle
from recserve.engine.bundle import Bundle, open_bundle
from recserve.engine.bundle.stamps import Stamps
from recserve.engine.config import EngineConfig
from recserve.engine.features import check_request
from recserve.engine.online.stage import OnlineStage
from recserve.engine.ranker import Ranker
from recserve.engine.ranking import RankStage, refuse_without_ranker
from recserve.engine.retrieval import Retriever
from recserve.engine.runtime import Runtime
from recserve.engine.search_device import SearchDevice
from recserve.engine.sources import open_source
from recserve.engine.text_search import TextSearch, check_text
from recserve.engine.types import Request


def load_bundle(
    path: str | Path,
    config: EngineConfig,
    online: Callable[[Bundle], OnlineStage] | None = None,
    checked: Stamps | None = None,
) -> LoadedBundle:
    """Opens the bundle in ``path`` and its stages; arguments and errors are those of :meth:`Engine.load`."""
    bundle = open_bundle(path, config.signature_policy, checked)
    runtime = Runtime(bundle, config)
    kept = config.history_cache_mb << 20
    sources = {name: open_source(bundle, name, runtime, kept) for name in bundle.manifest.variants}
    ranking = None
    if (entry := bundle.manifest.ranker) is not None:
        ranking = RankStage(bundle, Ranker(bundle, entry, runtime), config.rank_candidates)
    device = SearchDevice(config.retrieval_device, runtime.device)
    retriever = Retriever(bundle, device, config.index_folder)
    loaded = LoadedBundle.of(bundle, runtime, sources, retriever, config.pipeline, ranking)
    if (text_entry := bundle.manifest.text_encoder) is not None:
        texts = TextSearch(bundle, text_entry, runtime, config.index_folder)
        loaded = replace(loaded, texts=texts)
    # Last: its thread would outlive a load that fails.
    return loaded if online is None else replace(loaded, online=online(bundle))


def check_for(loaded: LoadedBundle, request: Request, config: EngineConfig) -> None:
    """Raises :class:`InvalidRequest` naming the first field that no stage of ``loaded`` could satisfy."""
    check_request(request, loaded.bundle, config, loaded.planner)
    if request.context and loaded.segments is not None:
        loaded.segments.check(request.context)
    if request.query_text:
        check_text(request.query_text, loaded.texts)
    if loaded.ranking is not None:
        loaded.ranking.check(request)
    elif request.predict or request.weights:
        refuse_without_ranker(request)

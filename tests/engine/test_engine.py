"""The embedded engine: what a program that embeds it may rely on."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recserve.engine import Engine, EngineConfig, InvalidRequest, Request, Unavailable
from recserve.errors import ConfigError, UnknownItem

# float32 sums in another order (another batch size) move the last bits of a score.
SCORE_TOLERANCE = 1e-4


def item_ids(slate: object) -> list[str]:
    return [item.item_id for item in slate.items]  # type: ignore[attr-defined]


def known_users(engine: Engine, n: int) -> list[str]:
    return [user for user in engine.user_ids() if engine.history(user)][:n]


def test_recommends_the_best_unseen_items_in_order(engine: Engine) -> None:
    user = known_users(engine, 1)[0]
    slate = engine.recommend(Request(user_id=user, k=20))
    scores = [item.score for item in slate.items]
    assert slate.source == "model"
    assert [item.rank for item in slate.items] == list(range(1, 21))
    assert scores == sorted(scores, reverse=True)
    assert not set(item_ids(slate)) & set(engine.history(user))
    assert slate.bundle_version == engine.manifest.bundle_version
    assert slate.variant == "fp32"
    assert list(slate.stage_ns) == ["resolve", "encode", "retrieve", "assemble"]


def test_batch_gives_what_single_requests_give(engine: Engine) -> None:
    catalogue = list(engine.get_items(engine.history(known_users(engine, 1)[0])))
    requests = [
        Request(user_id=user, k=k) for user, k in zip(known_users(engine, 20), range(1, 21), strict=True)
    ]
    requests += [Request(), Request(history=catalogue[:1], k=5), Request(user_id="nobody", exclude=catalogue)]
    for request, batched in zip(requests, engine.recommend_many(requests), strict=True):
        alone = engine.recommend(request)
        assert batched.source == alone.source
        assert item_ids(batched) == item_ids(alone)
        np.testing.assert_allclose(
            [item.score for item in batched.items],
            [item.score for item in alone.items],
            atol=SCORE_TOLERANCE,
        )


def test_unknown_user_gets_the_popular_items(engine: Engine) -> None:
    slate = engine.recommend(Request(user_id="nobody has this id", k=5))
    assert slate.source == "popularity"
    assert item_ids(slate) == item_ids(engine.recommend(Request(k=5)))
    assert engine.stats()["cold_starts"] == 2


def test_history_of_the_request_wins_over_the_stored_one(engine: Engine) -> None:
    first, second = known_users(engine, 2)
    history = engine.history(second)
    lent = engine.recommend(Request(user_id=first, history=history, k=10))
    assert item_ids(lent) == item_ids(engine.recommend(Request(user_id=second, k=10)))


def test_unknown_items_are_ignored_and_counted(engine: Engine) -> None:
    known = engine.history(known_users(engine, 1)[0])[:3]
    slate = engine.recommend(Request(history=[*known, "no such item"], exclude=["neither"], k=5))
    assert item_ids(slate) == item_ids(engine.recommend(Request(history=known, k=5)))
    assert len(slate.warnings) == 2
    assert engine.stats()["ignored_items"] == 2
    only_unknown = engine.recommend(Request(history=["a", "b"], k=5))
    assert only_unknown.source == "popularity"


def test_empty_history_is_a_cold_start_even_for_a_known_user(engine: Engine) -> None:
    slate = engine.recommend(Request(user_id=known_users(engine, 1)[0], history=[], k=3))
    assert slate.source == "popularity"


def test_excluded_items_do_not_come_back(engine: Engine) -> None:
    user = known_users(engine, 1)[0]
    banned = item_ids(engine.recommend(Request(user_id=user, k=5)))
    slate = engine.recommend(Request(user_id=user, k=5, exclude=banned))
    assert not set(banned) & set(item_ids(slate))
    popular = item_ids(engine.recommend(Request(k=5)))
    assert not set(popular) & set(item_ids(engine.recommend(Request(k=5, exclude=popular))))


def test_seen_items_come_back_only_when_asked(engine: Engine) -> None:
    user = known_users(engine, 1)[0]
    everything = engine.manifest.n_items
    slate = engine.recommend(Request(user_id=user, k=everything, include_seen=True))
    assert len(slate.items) == everything
    unseen = engine.recommend(Request(user_id=user, k=everything))
    assert len(unseen.items) == everything - len(set(engine.history(user)))


def test_unused_context_is_a_warning(engine: Engine) -> None:
    slate = engine.recommend(Request(context={"device": "phone"}))
    assert slate.warnings == ("context 'device' is not used by this bundle",)


def test_an_observed_click_changes_the_next_slate(engine: Engine) -> None:
    user = known_users(engine, 1)[0]
    before = engine.recommend(Request(user_id=user, k=10))
    clicked = before.items[0].item_id
    assert engine.observe(user_id=user, item_id=clicked, action="click")
    assert engine.history(user)[-1] == clicked
    after = engine.recommend(Request(user_id=user, k=10))
    assert clicked not in item_ids(after)
    assert item_ids(after)[:9] != item_ids(before)[1:]


def test_observing_a_new_user_ends_the_cold_start(engine: Engine) -> None:
    item = engine.recommend(Request(k=1)).items[0].item_id
    assert engine.observe(user_id="newcomer", item_id=item)
    assert engine.recommend(Request(user_id="newcomer", k=3)).source == "model"


@pytest.mark.parametrize("action", ["impression", "dislike"])
def test_what_was_not_chosen_stays_out_of_the_history(engine: Engine, action: str) -> None:
    item = engine.recommend(Request(k=1)).items[0].item_id
    assert not engine.observe(user_id="newcomer", item_id=item, action=action)
    assert engine.history("newcomer") == []


def test_observing_an_unknown_item_is_counted_not_raised(engine: Engine) -> None:
    assert not engine.observe(user_id="u", item_id="no such item")
    assert engine.stats()["ignored_events"] == 1


@pytest.mark.parametrize("value", [float("inf"), 1e300, True, "5"])
def test_a_rating_that_is_none_is_not_observed(engine: Engine, value: float) -> None:
    item = engine.recommend(Request(k=1)).items[0].item_id
    with pytest.raises(InvalidRequest, match=r"value is .*; expected a finite number, or NaN"):
        engine.observe(user_id="rater", item_id=item, action="rating", value=value)
    assert engine.history("rater") == []


def test_observed_state_is_bounded(bundle_folder: Path) -> None:
    with Engine.load(bundle_folder, EngineConfig(max_observed_users=2, max_observed_items=3)) as engine:
        items = item_ids(engine.recommend(Request(k=5)))
        for item in items:
            engine.observe(user_id="a", item_id=item)
        assert engine.history("a") == items[-3:]
        engine.observe(user_id="b", item_id=items[0])
        engine.observe(user_id="c", item_id=items[0])
        assert engine.history("a") == []
        assert engine.history("b") == items[:1]


def test_similar_items_leave_out_the_item_itself(engine: Engine) -> None:
    item = engine.recommend(Request(k=1)).items[0].item_id
    slate = engine.similar_items(item, k=7)
    assert len(slate.items) == 7
    assert item not in item_ids(slate)
    assert all(-1.001 <= entry.score <= 1.001 for entry in slate.items)
    banned = item_ids(slate)[:2]
    assert item_ids(engine.similar_items(item, k=5, exclude=banned)) == item_ids(slate)[2:]
    with pytest.raises(UnknownItem):
        engine.similar_items("no such item")


def test_get_items_returns_the_attributes_of_the_known(engine: Engine) -> None:
    item = engine.recommend(Request(k=1)).items[0].item_id
    found = engine.get_items([item, "no such item"])
    assert list(found) == [item]
    assert {"title", "price"} <= set(found[item])


BAD_REQUESTS = {
    "k of zero": Request(k=0),
    "k of minus one": Request(k=-1),
    "k of a million": Request(k=1_000_000),
    "a boolean k": Request(k=True),
    "an id of 10 kB": Request(user_id="x" * 10_000),
    "a history item of 10 kB": Request(history=["x" * 10_000]),
    "an empty history id": Request(history=[""]),
    "a string as history": Request(history="i1"),  # type: ignore[arg-type]
    "a set as history": Request(history={"i"}),  # type: ignore[arg-type]
    "too long a history": Request(history=["i"] * 1001),
    "too many excluded": Request(exclude=["i"] * 10_001),
    "times that do not fit": Request(history=["i"], history_timestamps=[1, 2]),
    "an unknown variant": Request(variant="fp23"),
    "a time before the epoch": Request(history=["i"], history_timestamps=[-1]),
    "a time in nanoseconds": Request(history=["i"], history_timestamps=[10**18]),
    "too much context": Request(context={str(i): "" for i in range(65)}),
}


@pytest.mark.parametrize("request_", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_bad_requests_get_one_clear_sentence(engine: Engine, request_: Request) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.recommend(request_)
    sentence = str(caught.value)
    assert " is " in sentence
    assert "; expected " in sentence
    assert len(sentence) < 250
    assert engine.stats()["requests"] == 0


def test_numpy_arguments_are_numbers_too(engine: Engine) -> None:
    items = [item.item_id for item in engine.recommend(Request(k=3)).items]
    times = np.arange(3)
    slate = engine.recommend(Request(history=items, history_timestamps=times, k=np.int64(4)))  # type: ignore[arg-type]
    assert item_ids(slate) == item_ids(engine.recommend(Request(history=items, k=4)))


def test_items_have_a_limit_of_their_own(bundle_folder: Path) -> None:
    with Engine.load(bundle_folder, EngineConfig(max_exclude=2)) as engine:
        shown = item_ids(engine.recommend(Request(k=10)))
        assert len(engine.get_items(shown)) == 10
        with pytest.raises(InvalidRequest, match="item_ids is 1001 items long"):
            engine.get_items(["i"] * 1001)
    with pytest.raises(ConfigError, match=r"at most engine\.max_items"):
        EngineConfig(max_k=2000)


def test_variant_is_suggested(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="Did you mean 'fp32'"):
        engine.recommend(Request(variant="fp23"))


def test_a_bad_action_names_the_allowed(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="Did you mean 'click'"):
        engine.observe(user_id="u", item_id="i", action="clik")


def test_hostile_ids_are_byte_exact_and_harmless(engine: Engine) -> None:
    for id_ in ("é", "é", "\u202eabc", "../../etc/passwd", "'; DROP TABLE", "a\nb", "\ud800", "x" * 256):
        slate = engine.recommend(Request(user_id=id_, history=[id_], exclude=[id_], k=1))
        assert slate.source == "popularity"


FORKS = """
import os, sys
from recserve.engine import Engine, Request, Unavailable

with Engine.load(sys.argv[1]) as engine:
    child = os.fork()
    if not child:
        for call in (lambda: engine.recommend(Request()), lambda: engine.get_items(["1"])):
            try:
                call()
            except Unavailable as error:
                assert "of the process that this one was forked from" in str(error), error
            else:
                os._exit(1)
        # Its own is another matter.
        with Engine.load(sys.argv[1]) as own:
            os._exit(0 if own.recommend(Request(k=1)).items else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.recommend(Request(k=1)).items
"""


def test_a_forked_process_does_not_use_the_engine_of_its_parent(bundle_folder: Path) -> None:
    run = [sys.executable, "-c", FORKS, str(bundle_folder)]
    finished = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_closed_engine_says_so(bundle_folder: Path) -> None:
    engine = Engine.load(bundle_folder)
    engine.close()
    engine.close()
    with pytest.raises(Unavailable, match="engine is closed"):
        engine.recommend(Request())


def test_configuration_is_checked() -> None:
    with pytest.raises(ConfigError, match="expected one of auto, cpu, cuda"):
        EngineConfig(provider="gpu")
    with pytest.raises(ConfigError, match=r"engine\.max_k is 0"):
        EngineConfig(max_k=0)


def test_importing_the_engine_pulls_no_training_and_no_network(bundle_folder: Path) -> None:
    code = (
        "import sys; from recserve.engine import Engine, Request; "
        "Engine.load(sys.argv[1]).recommend(Request()); "
        "heavy = ('torch', 'onnx', 'grpc', 'polars', 'recserve.engine.server'); "
        "print([module for module in heavy if module in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(bundle_folder)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_requests_and_slates_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request().k = 3  # type: ignore[misc]

"""The worker's limits on calls follow its queue, and give way to what is set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.access import CallLimits
from kvtier.settings import SettingsError, load
from worker.settings import ENV_PREFIX, WorkerSettings


def loaded(*overrides: str) -> WorkerSettings:
    overrides = ("model=checkpoint", *overrides)
    return load(WorkerSettings, env_prefix=ENV_PREFIX, overrides=overrides, environment={})[0]


@given(st.integers(1, 4096), st.integers(1, 65_536), st.integers(1, 65_536))
def test_one_gateway_may_fill_the_queue_and_still_ask(run: int, wait: int, encode: int) -> None:
    limits = loaded(
        f"queue.running_requests_max={run}",
        f"queue.waiting_requests_max={wait}",
        f"queue.encoding_requests_max={encode}",
    ).call_limits
    assert limits.calls_per_session_max > run + wait + encode
    assert limits.calls_max >= 4 * limits.calls_per_session_max


def test_what_is_set_counts() -> None:
    assert loaded().call_limits == CallLimits(4096, 1024)
    narrow = loaded("limits.calls_max=7", "limits.calls_per_session_max=3")
    assert narrow.call_limits == CallLimits(7, 3)
    assert loaded("limits.calls_per_session_max=3000").call_limits == CallLimits(12_000, 3000)
    with pytest.raises(SettingsError, match=r"limits\.calls_max"):
        loaded("limits.calls_max=-1")


def test_ttl_classes_are_names_and_whole_seconds() -> None:
    assert loaded().cache.ttl_classes == {}
    classes = loaded("cache.ttl_classes=5m=300, 1h=3600").cache.ttl_classes
    assert classes == {"5m": 300, "1h": 3600}
    for wrong in ("5m", "5m=0", "5m=1.5", "a b=3", "=3", "a=1,a=2", f"year={400 * 86_400}"):
        with pytest.raises(SettingsError, match="ttl_classes"):
            loaded(f"cache.ttl_classes={wrong}")

"""From settings to a shared tier: what cannot be opened is said in one line, with what to do."""

from pathlib import Path
from typing import Any

import pytest

from cache_service.settings import SharedSettings
from cache_service.shared_opening import open_shared_tier
from storage.errors import SharedStoreError


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a key")


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:7480", "https://ceph.example", ""])
async def test_an_s3_server_of_one_s_own_is_opened_with_and_without_tls(endpoint: str) -> None:
    tier = open_shared_tier(SharedSettings(url="s3://bucket/kv", endpoint=endpoint, region="eu"))
    assert tier is not None
    assert tier.label == "s3"
    await tier.close()


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "s3://b/kv", "endpoint": "ceph.example:7480"}, "write it as https://HOST:PORT"),
        ({"url": "s3://b/kv", "endpoint": "ftp://ceph.example"}, "write it as https://HOST:PORT"),
        ({"url": "gs://b/kv", "endpoint": "http://ceph.example"}, "unset it"),
        ({"url": "s3:///kv"}, "name a bucket: s3://BUCKET/PATH"),
        ({"url": "file://kv"}, "file:///PATH"),
        ({"url": "nfs://host/kv"}, "known are file, s3"),
        ({"url": "file:///proc/nothing/kv"}, "cannot be opened"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SharedStoreError) as caught:
        open_shared_tier(SharedSettings(**settings))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_s3_server_without_keys_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"):
        monkeypatch.delenv(name, raising=False)
    settings = SharedSettings(url="s3://bucket/kv", endpoint="http://127.0.0.1:7480")
    with pytest.raises(SharedStoreError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_shared_tier(settings)


async def test_nothing_is_opened_where_nothing_is_set(tmp_path: Path) -> None:
    assert open_shared_tier(SharedSettings()) is None
    tier = open_shared_tier(SharedSettings(url=f"file://{tmp_path}/kv"))
    assert tier is not None
    await tier.close()

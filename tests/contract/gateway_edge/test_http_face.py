"""The HTTP face below what clients send: paths, hostile bodies, TLS, keys that change meanwhile."""

import asyncio
import json
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest

from gateway.keys import revoked, rotated
from kvtier.errors import KvtierError
from tests.contract.gateway_edge.conftest import MODEL, Scripted, Stack, delta, end, started, usage
from tests.pki import Pki

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
BODY = json.dumps({"model": MODEL, "messages": HELLO}).encode()


async def good(request: Any, context: Any) -> Any:
    for response in (started(), delta("a"), end(), usage()):
        yield response


async def ask_raw(
    address: tuple[str, int], head: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and fields of an answer."""
    reader, writer = await asyncio.open_connection(*address)
    said = {"host": "x", "connection": "close", "content-length": str(len(body))} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"{head} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items() if value)]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    async with asyncio.timeout(20):
        raw = await reader.read()
    writer.close()
    top, _, rest = raw.partition(b"\r\n\r\n")
    first, *told = top.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in told)
    try:
        return int(first.split()[1]), fields, json.loads(rest)
    except ValueError:
        return int(first.split()[1]), fields, rest


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_paths_are_there_with_v1_and_without(scripted: Scripted, prefix: str) -> None:
    await scripted.start(await scripted.worker(good))
    bearer = f"Bearer {scripted.key}"
    for path, body in (
        ("chat/completions", BODY),
        ("completions", json.dumps({"model": MODEL, "prompt": "x"}).encode()),
    ):
        status, headers, fields = await ask_raw(
            scripted.address, f"POST {prefix}/{path}", body, authorization=bearer
        )
        assert (status, fields["usage"]["prompt_cache_hit_tokens"]) == (200, 2)
        assert headers["x-request-id"] == "r1"
        assert "server" not in headers
    status, _, fields = await ask_raw(
        scripted.address, f"GET {prefix}/models/{MODEL}", authorization=bearer
    )
    assert (status, fields["id"]) == (200, MODEL)


async def test_health_and_readiness_need_no_key_and_tell_nothing(scripted: Scripted) -> None:
    worker = await scripted.worker(good)
    await scripted.start(worker)
    assert (await ask_raw(scripted.address, "GET /healthz"))[::2] == (200, {"status": "alive"})
    assert (await ask_raw(scripted.address, "GET /readyz"))[::2] == (200, {"status": "ready"})
    await worker.kill()  # type: ignore[attr-defined]
    async with asyncio.timeout(30):
        while (answer := await ask_raw(scripted.address, "GET /readyz"))[0] == 200:
            await asyncio.sleep(0.05)
    assert answer[::2] == (503, {"status": "not ready", "problem": "no worker answers"})
    assert (await ask_raw(scripted.address, "GET /healthz"))[0] == 200


@pytest.mark.parametrize(
    ("head", "body", "status", "code"),
    [
        ("GET /v1/nothing", b"", 404, "path_unknown"),
        ("GET /v1/models/", b"", 404, "model_not_found"),
        ("GET /v1/chat/completions", b"", 405, "method_not_allowed"),
        ("DELETE /v1/models", b"", 405, "method_not_allowed"),
        ("POST /v1/chat/completions", b"", 400, "invalid_body"),
        ("POST /v1/chat/completions", b"{", 400, "invalid_body"),
        ("POST /v1/chat/completions", b"x" * 3000, 413, "body_too_large"),
        ("POST /v1/completions", b"[" * 1000, 400, "invalid_body"),
    ],
)
async def test_what_cannot_be_is_told_in_openais_shape(
    scripted: Scripted, head: str, body: bytes, status: int, code: str
) -> None:
    await scripted.start(await scripted.worker(good), limits__body_bytes_max=2048)
    told = await ask_raw(scripted.address, head, body, authorization=f"Bearer {scripted.key}")
    assert (told[0], told[2]["error"]["code"]) == (status, code)


async def test_a_body_in_pieces_is_bounded_too_and_one_that_never_comes(
    scripted: Scripted,
) -> None:
    await scripted.start(
        await scripted.worker(good), limits__body_bytes_max=2048, limits__body_seconds_max=0.3
    )
    bearer = f"Bearer {scripted.key}"
    chunks = b"".join(b"400\r\n" + b"x" * 1024 + b"\r\n" for _ in range(4)) + b"0\r\n\r\n"
    pieces = await ask_raw(
        scripted.address,
        "POST /v1/chat/completions",
        chunks,
        authorization=bearer,
        transfer_encoding="chunked",
        content_length="",
    )
    assert (pieces[0], pieces[2]["error"]["code"]) == (413, "body_too_large")
    late = await ask_raw(
        scripted.address,
        "POST /v1/chat/completions",
        BODY[:10],
        authorization=bearer,
        content_length="100",
    )
    assert (late[0], late[2]["error"]["code"]) == (408, "body_late")


async def test_a_key_is_asked_before_anything_of_the_body_is_read(scripted: Scripted) -> None:
    await scripted.start(await scripted.worker(good))
    for header in ({}, {"authorization": "Basic x"}, {"authorization": "Bearer wrong"}):
        told = await ask_raw(
            scripted.address, "POST /v1/chat/completions", content_length="1000000", **header
        )
        assert told[0] == 401
        assert told[1]["www-authenticate"] == "bearer"


@pytest.mark.parametrize("path", ["chat", "completions"])
@pytest.mark.parametrize("scope", ["organisation", "project"])
def test_a_key_of_one_user_never_shares_blocks_with_others(
    stack: Stack, path: str, scope: str
) -> None:
    said: Any = {"model": MODEL, "max_tokens": 1, "extra_body": {"kvtier": {"cache_scope": scope}}}
    with stack.client(stack.key_of_user("ann")) as client:
        ask: Any = client.chat.completions.create if path == "chat" else client.completions.create
        prompt: Any = {"messages": HELLO} if path == "chat" else {"prompt": "hello"}
        with pytest.raises(openai.PermissionDeniedError) as refused:
            ask(**prompt, **said)
        assert (refused.value.code, refused.value.param) == ("scope_too_wide", "kvtier.cache_scope")
        client.completions.create(model=MODEL, prompt="hello", max_tokens=1)


async def test_a_revoked_key_opens_nothing_from_the_next_request_on(scripted: Scripted) -> None:
    client = await scripted.start(await scripted.worker(good))
    await client.models.list()
    (key,) = scripted.keys.read().keys.values()
    other, text = rotated(key, 3600, int(time.time()))
    scripted.keys.change(lambda _: (other, None))
    await client.models.list()
    async with client.copy(api_key=text) as renewed:
        await renewed.models.list()
        scripted.keys.change(lambda ring: (revoked(ring.of(key.key_id), 1), None))
        for each in (client, renewed):
            with pytest.raises(openai.AuthenticationError):
                await each.models.list()


async def test_a_file_of_keys_that_broke_lets_nobody_in(scripted: Scripted) -> None:
    client = await scripted.start(await scripted.worker(good))
    await client.models.list()
    scripted.keys.path.write_text("{")
    with pytest.raises(openai.InternalServerError) as refused:
        await client.models.list()
    assert (refused.value.status_code, refused.value.code) == (503, "keys_unavailable")


async def test_tls_without_a_certificate_of_the_caller(scripted: Scripted, tmp_path: Path) -> None:
    pki = Pki(tmp_path / "tls")
    await scripted.start(
        await scripted.worker(good),
        security__certificate_file=pki.server_file,
        security__key_file=pki.server_file.with_suffix(".key"),
    )
    trust = ssl.create_default_context(cafile=str(pki.authority.certificate_file))
    host, port = scripted.address
    reader, writer = await asyncio.open_connection(host, port, ssl=trust)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"alive" in await reader.read()
    writer.close()
    # In clear nobody is answered there.
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"alive" not in await reader.read()
    writer.close()


@pytest.mark.parametrize("name", ["listen", "grpc_listen"])
async def test_in_clear_it_listens_on_loopback_alone(scripted: Scripted, name: str) -> None:
    worker = await scripted.worker(good)
    with pytest.raises(KvtierError) as refused:
        await scripted.start(worker, **{name: "0.0.0.0:0"})
    assert refused.value.reason == "TLS_REQUIRED"


async def test_a_worker_is_called_in_clear_in_development_alone(scripted: Scripted) -> None:
    worker = await scripted.worker(good)
    with pytest.raises(KvtierError) as refused:
        await scripted.start(worker, security__development="false")
    assert refused.value.reason == "TLS_REQUIRED"


def test_no_log_and_no_metric_has_a_key_or_a_prompt(stack: Stack) -> None:
    word = "unutterable-word"
    gateway = stack.start_gateway(metrics_listen="127.0.0.1:0", log__level="DEBUG")
    try:
        key, text = stack.key_and_text()
        url = f"http://{gateway.address}/v1"
        with openai.OpenAI(api_key=text, base_url=url, max_retries=0) as client:
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": word}], max_tokens=1, user=word
            )
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": word, "content": word}], max_tokens=1
                )
        with (
            openai.OpenAI(api_key=f"{text}x", base_url=url, max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            stranger.models.list()
        assert text not in str(refused.value)
        page = urlopen(f"http://{gateway.ready['metrics_listen']}/metrics", timeout=20)
        with page:
            metrics = page.read().decode()
    finally:
        gateway.stop()
    log = gateway.log_path.read_text()
    assert "gateway ready" in log
    for line in (
        'kvtier_gateway_requests_total{outcome="done",path="chat_completions"} 1.0',
        'kvtier_gateway_refusals_total{reason="INVALID_BODY"} 1.0',
        f'kvtier_gateway_worker_up{{worker="{stack.worker}"}} 1.0',
    ):
        assert line in metrics
    for secret in (text, text[-43:], text[-20:], word, key.key_id, "acme", "search"):
        assert secret not in metrics
    for secret in (text, text[-43:], text[-20:], word):
        assert secret not in log

"""Who hits whose blocks, over real gRPC and a real engine, with every way to ask for another's."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.errors import read_error
from kvtier.v1 import inference_pb2 as pb

ORGANISATION = pb.CACHE_SCOPE_ORGANISATION
PROJECT = pb.CACHE_SCOPE_PROJECT
USER = pb.CACHE_SCOPE_USER

TEXT = "the quarterly figures, not to be told " * 5
BLOCK_TOKENS = 16
BLOCKS = (len(TEXT) - 1) // BLOCK_TOKENS
"""All of it that can be a hit: a byte is a token here, and one is always computed."""


class Client:
    """Asks for `TEXT`, or what else it is told, as whom it is told."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def reply(
        self, tenant: str, project: str = "", user: str = "", scope: int = 0, **prompt: Any
    ) -> list[pb.GenerateResponse]:
        request = pb.GenerateRequest(
            tenant_id=tenant,
            project_id=project,
            user_id=user,
            cache_scope=scope,  # type: ignore[arg-type]
            max_completion_tokens=2,
            ignore_end_of_sequence=True,
            **(prompt or {"text": TEXT}),
        )
        return [response async for response in self._stub.Generate(request)]

    async def hit(self, *who: Any, **prompt: Any) -> int:
        """Blocks of the reply's prompt that were hits."""
        usage = (await self.reply(*who, **prompt))[-1].usage
        assert usage.tokens.hit_tokens % BLOCK_TOKENS == 0
        return int(usage.tokens.hit_tokens) // BLOCK_TOKENS


Start = Any


async def client(start: Start, *settings: str) -> Client:
    _, stub = await start(*settings)
    return Client(stub)


async def refused(client: Client, *who: Any) -> tuple[str, grpc.StatusCode]:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await client.reply(*who)
    wire = read_error(failure.value)
    return wire.reason, wire.code


async def test_a_tenants_requests_share_whoever_asks_until_they_narrow(start: Start) -> None:
    worker = await client(start)
    assert await worker.hit("acme") == 0
    assert await worker.hit("acme", "search", "ann") == BLOCKS
    assert await worker.hit("acme", "search", "ann", ORGANISATION) == BLOCKS


@pytest.mark.parametrize(
    ("mine", "others"),
    [
        (
            ("acme", "search", "ann", USER),
            [
                ("acme", "search", "ann"),
                ("acme", "search", "ann", PROJECT),
                ("acme", "search", "bob", USER),
                ("acme", "lab", "ann", USER),
                ("umbra", "search", "ann", USER),
            ],
        ),
        (
            ("acme", "search", "", PROJECT),
            [
                ("acme",),
                ("acme", "lab", "", PROJECT),
                ("acme", "search", "search", USER),
                ("umbra", "search", "", PROJECT),
                ("umbra", "acme", "search", USER),
            ],
        ),
        (("acme",), [("umbra",), ("umbra", "acme", "", PROJECT), ("umbra", "acme", "acme", USER)]),
        # Names that run into each other when they are put together without their lengths.
        (
            ("acme", "ab", "c", USER),
            [("acme", "a", "bc", USER), ("acmea", "b", "c", USER), ("acme", "abc", "", PROJECT)],
        ),
        # One letter to the eye, several spellings.
        (
            ("acme", "caf\u00e9", "", PROJECT),
            [("acme", "cafe\u0301", "", PROJECT), ("acme", "CAF\u00c9", "", PROJECT)],
        ),
    ],
)
async def test_no_other_scope_hits_what_one_scope_computed(
    start: Start, mine: tuple[Any, ...], others: list[tuple[Any, ...]]
) -> None:
    worker = await client(start, "tenants=acme,umbra,acmea")
    assert await worker.hit(*mine) == 0
    for other in others:
        assert await worker.hit(*other) == 0, other
    assert await worker.hit(*mine) == BLOCKS


async def test_declared_prefixes_are_shared_rung_by_rung_and_nothing_after_them(
    start: Start, tmp_path: Path
) -> None:
    public, below = tmp_path / "public", tmp_path / "below"
    base, firm, team = "p" * 56, "o" * 64, "t" * 64
    for folder, text in (
        (public, base),
        (below / "acme", base + firm),
        (below / "acme" / "search", base + firm + team),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "system.txt").write_text(text)
    worker = await client(
        start, f"public_prefix_directory={public}", f"organisation_prefix_directory={below}"
    )
    # The start token, "system" and a newline stand before the text: 64, 128 and 192 tokens.
    chat = pb.ChatPrompt(
        messages=[
            pb.ChatMessage(role="system", content=base + firm + team),
            pb.ChatMessage(role="user", content="u" * 100),
        ]
    )
    whole = (len("<system\n") + 184 + len("><user\n") + 100) // BLOCK_TOKENS
    assert await worker.hit("acme", "search", "ann", USER, chat=chat) == 0
    assert await worker.hit("acme", "search", "ann", USER, chat=chat) >= whole
    assert await worker.hit("acme", "search", "bob", USER, chat=chat) == 12
    assert await worker.hit("acme", "search", "", PROJECT, chat=chat) == 12
    assert await worker.hit("acme", "lab", "ann", USER, chat=chat) == 8
    assert await worker.hit("acme", chat=chat) == 8
    assert await worker.hit("umbra", "search", "ann", USER, chat=chat) == 4
    assert await worker.hit("umbra", "acme", "search", USER, chat=chat) >= 4
    # What looks like it in another role, or as text, is private.
    assert await worker.hit("umbra", text=f"system\n{base}{firm}") == 0


async def test_a_grant_below_the_organisation_is_never_widened(start: Start) -> None:
    worker = await client(start, "tenants=acme,acme/sealed,umbra/lab")
    assert await worker.hit("acme", "sealed") == 0
    assert await worker.hit("acme") == 0
    assert await worker.hit("acme", "sealed") == BLOCKS
    wide = ("SCOPE_TOO_WIDE", grpc.StatusCode.PERMISSION_DENIED)
    assert await refused(worker, "acme", "sealed", "", ORGANISATION) == wide
    assert await refused(worker, "umbra", "lab", "ann", ORGANISATION) == wide
    unknown = ("TENANT_UNKNOWN", grpc.StatusCode.NOT_FOUND)
    assert await refused(worker, "umbra") == unknown
    assert await refused(worker, "umbra", "other") == unknown


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        (("acme", "", "ann"), "INVALID_SCOPE"),
        (("acme", "a/b"), "INVALID_SCOPE"),
        (("acme", " "), "INVALID_SCOPE"),
        (("acme", "search", "\u200bann"), "INVALID_SCOPE"),
        (("acme", "search", "\u202eann"), "INVALID_SCOPE"),
        (("acme", "x" * 129), "INVALID_SCOPE"),
        (("acme", "", "", PROJECT), "INVALID_SCOPE"),
        (("acme", "search", "", USER), "INVALID_SCOPE"),
        (("acme", "", "", 9), "MALFORMED_REQUEST"),
        (("acme", "", "", -1), "MALFORMED_REQUEST"),
    ],
)
async def test_odd_names_and_missing_ones_are_refused(
    start: Start, who: tuple[Any, ...], reason: str
) -> None:
    worker = await client(start)
    assert await refused(worker, *who) == (reason, grpc.StatusCode.INVALID_ARGUMENT)


def without_time(replies: list[pb.GenerateResponse]) -> list[bytes]:
    """The replies as sent, less the request's random name and every measured time."""
    kept = []
    for reply in replies:
        bare = pb.GenerateResponse()
        bare.CopyFrom(reply)
        if bare.HasField("started"):
            bare.started.ClearField("request_id")
        if bare.HasField("usage"):
            for name in ("request_id", "ttft", "queue_time", "load_time", "end_time"):
                bare.usage.ClearField(name)  # type: ignore[arg-type]
        kept.append(bare.SerializeToString(deterministic=True))
    return kept


@pytest.mark.parametrize(
    "stranger",
    [("umbra",), ("umbra", "search", "ann", USER), ("acme", "lab", "", PROJECT)],
)
async def test_a_stranger_is_told_the_same_bytes_whether_its_text_is_cached_or_another(
    start: Start, tmp_path: Path, stranger: tuple[Any, ...]
) -> None:
    """Two workers; on one of them the owner asked for what the stranger will guess."""
    told = []
    for name, text in (("guessed", TEXT), ("other", TEXT.swapcase())):
        _, stub = await start(f"data_directory={tmp_path / name}")
        worker = Client(stub)
        await worker.reply("acme", "search", "ann", USER, text=text)
        await worker.reply("acme", "search", "", PROJECT, text=text)
        cold, warm = await worker.reply(*stranger), await worker.reply(*stranger)
        model = await stub.GetModel(pb.GetModelRequest())
        told.append((without_time(cold), without_time(warm), model.SerializeToString()))
        assert cold[-1].usage.tokens.hit_tokens == 0
        assert warm[-1].usage.tokens.hit_tokens == BLOCKS * BLOCK_TOKENS
    assert told[0] == told[1]

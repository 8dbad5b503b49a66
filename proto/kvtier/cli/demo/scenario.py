"""The demo's story, step by step. Each step sends real requests and leaves named turns behind.

cold -> second, third turn -> another question on the document -> four samples
-> another tenant, same text -> public system prompt, both tenants
-> kill -9 -> same conversation from SSD -> worker restart -> from host RAM
-> every prompt once more without any cache -> the bill
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from kvtier.cli.channel import open_channel
from kvtier.cli.demo.checks import run_checks
from kvtier.cli.demo.document import Document
from kvtier.cli.demo.result import Restart, TenantBill
from kvtier.cli.demo.session import COMPLETION_TOKENS, DemoSession
from kvtier.cli.inference import CALL_SECONDS_MAX
from kvtier.v1 import inference_pb2, inference_pb2_grpc

__all__ = ["AUDITOR", "FIRST", "PUBLIC_PROMPT", "SECOND", "STEPS", "Story", "steps"]

FIRST = "acme"
SECOND = "globex"
AUDITOR = "auditor"
"""Pays for the cold recomputations that the warm answers are compared with."""

PUBLIC_PROMPT = """You are the house assistant of a software company. Answer from the given text
alone and say so when it does not hold the answer. Quote file names, commands and settings exactly
as they are written. Prefer a short answer with one example over a long one without. When a number
is asked for, give its unit. When two parts of the text disagree, show both and say where they
stand. Never invent a command, a flag or a price. If the question is about money, name the token
class that is charged and the price book entry that applies. If it is about a failure, say first
what is lost and what is not, then what to do next, in the order in which to do it. Write plainly:
no headings, no lists longer than five items, no apologies. End with the name of the section that
you took the answer from, so that the reader can check it without asking again."""

QUESTIONS = (
    "Which tiers can hold a block, and who owns each of them?",
    "What happens to a block when a segment is recycled?",
    "Which of this survives a kill -9, and why?",
)
OTHER_QUESTION = "How are hit tokens and miss tokens charged, and where is that proven?"
SAMPLE_QUESTION = "Suggest a name for this document."

STEPS = 9


@dataclass(slots=True)
class Story:
    """The session and the text that its conversations are about."""

    session: DemoSession
    document: Document

    def about_document(
        self, tenant: str, *history: str, **fields: object
    ) -> inference_pb2.GenerateRequest:
        """A chat about the document; `history` alternates question, answer, question ..."""
        request = new_request(tenant)
        request.chat.messages.add(
            role="system",
            content=f"Answer questions about this document.\n\n{self.document.text}",
        )
        for place, text in enumerate(history):
            request.chat.messages.add(role="assistant" if place % 2 else "user", content=text)
        for name, value in fields.items():
            setattr(request, name, value)
        return request


def new_request(tenant: str) -> inference_pb2.GenerateRequest:
    """A greedy request that always generates COMPLETION_TOKENS."""
    return inference_pb2.GenerateRequest(
        tenant_id=tenant,
        max_completion_tokens=COMPLETION_TOKENS,
        ignore_end_of_sequence=True,
    )


def steps(story: Story) -> Iterator[str]:
    """Runs the story; yields each step's title before the step runs."""
    session = story.session
    yield f"A cold question on {story.document.source}"
    conversation = [QUESTIONS[0]]
    reply = session.turn("cold question", story.about_document(FIRST, *conversation))
    yield "Second and third turn of the same conversation"
    for name, question in (("second turn", QUESTIONS[1]), ("third turn", QUESTIONS[2])):
        conversation += [reply.texts[0], question]
        reply = session.turn(name, story.about_document(FIRST, *conversation))
    yield "Another question on the same document, then four parallel samples of one prompt"
    session.turn("new question, same text", story.about_document(FIRST, OTHER_QUESTION))
    samples = story.about_document(FIRST, SAMPLE_QUESTION, sample_count=4)
    samples.sampling.temperature = 1.0
    samples.sampling.seed = 7
    session.turn("four samples", samples)
    yield "A second tenant sends the very same document: scopes are isolated"
    session.turn("other tenant, same text", story.about_document(SECOND, QUESTIONS[0]))
    yield "Both tenants under a public system prompt: a hit on exactly that part"
    for name, tenant in (
        ("public prompt, tenant one", FIRST),
        ("public prompt, tenant two", SECOND),
    ):
        request = new_request(tenant)
        request.chat.messages.add(role="system", content=PUBLIC_PROMPT)
        request.chat.messages.add(role="user", content=f"I write for {tenant}. What can you do?")
        session.turn(name, request)
    yield "kill -9 of cache service and worker, in the middle of a request"
    crash(session, story)
    session.turn("after crash, first turn", story.about_document(FIRST, QUESTIONS[0]))
    session.turn("after crash, third turn", story.about_document(FIRST, *conversation))
    yield "A new worker beside the running cache service"
    session.wait_until_written()
    assert session.cluster.worker is not None
    session.cluster.worker.stop()
    session.cluster.start_worker()
    session.turn("new worker, third turn", story.about_document(FIRST, *conversation))
    session.turn("other tenant again", story.about_document(SECOND, QUESTIONS[0]))
    yield "Every answer once more, computed without any cache"
    compare_with_cold(session)
    yield "Report and invoice of both tenants"
    collect_bills(session)
    run_checks(session, FIRST, SECOND)


def crash(session: DemoSession, story: Story) -> None:
    """Kills both processes while a request runs, starts them again, notes what came back."""
    cluster = session.cluster
    before = session.wait_until_written()
    session.result.interrupted_request_id = _leave_running(session, story)
    assert cluster.cache is not None
    assert cluster.worker is not None
    cluster.cache.kill()
    cluster.worker.kill()
    session.say(f"killed with {before:,} blocks on the SSD and one request running; restarting")
    started = time.monotonic()
    cluster.start_cache()
    cluster.start_worker()
    recovery = session.cache_stats().recovery
    session.result.restart = Restart(
        blocks_before=before,
        blocks_after=session.ssd_block_count(),
        recovery_seconds=recovery.duration_seconds,
        dropped_blocks=recovery.dropped_count,
        restart_seconds=time.monotonic() - started,
    )
    session.say(
        f"recovered {session.result.restart.blocks_after:,} blocks in"
        f" {recovery.duration_seconds * 1000:,.0f} ms"
    )


def _leave_running(session: DemoSession, story: Story) -> str:
    """Starts a long request and returns its id once the worker has begun it."""
    assert session.cluster.worker is not None
    request = story.about_document(SECOND, "Tell me everything.", max_completion_tokens=2000)
    channel = open_channel(session.cluster.worker.address)
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    call = stub.Generate(request, timeout=CALL_SECONDS_MAX)
    started = next(iter(call)).started

    def drain() -> None:
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            channel.close()

    threading.Thread(target=drain, name="interrupted-request", daemon=True).start()
    return started.request_id


def compare_with_cold(session: DemoSession) -> None:
    """Computes each warm turn's prompt again with the cache bypassed; equal tokens or not."""
    computed: dict[bytes, tuple[tuple[int, ...], ...]] = {}
    for turn in session.result.turns:
        request = inference_pb2.GenerateRequest()
        request.CopyFrom(session.sent[turn.name])
        request.tenant_id = AUDITOR
        request.cache_mode = inference_pb2.CACHE_MODE_BYPASS
        key = request.SerializeToString(deterministic=True)
        if key not in computed:
            reply = session.send(request)
            assert reply.usage.tokens.hit_tokens == 0
            computed[key] = reply.token_ids
        turn.tokens_equal_cold = computed[key] == session.replies[turn.name].token_ids
    equal = sum(t.tokens_equal_cold is True for t in session.result.turns)
    session.say(f"{equal} of {len(session.result.turns)} answers equal, token for token")


def collect_bills(session: DemoSession) -> None:
    """Waits for the ledger and takes report and invoice of both tenants."""
    for tenant in (FIRST, SECOND):
        expected = sum(t.tenant == tenant for t in session.result.turns)
        # The interrupted request has an entry too, which charges nothing.
        expected += tenant == SECOND
        usage = session.wait_until_billed(tenant, expected)
        session.result.bills.append(TenantBill(tenant, usage, session.invoice_of(tenant)))

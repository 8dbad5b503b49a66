"""Requests through the gateway while something happens: two callers, one after the other each."""

import ssl
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai

from tests.cluster.cluster import Cluster
from tests.cluster.told import Told, prompt

__all__ = ["GATEWAY", "Caller", "Load", "ask"]

GATEWAY = "https://localhost:7441/v1"
CALLERS = 2
TIMES_ASKED = 3
REQUEST_SECONDS_MAX = 60.0
PROGRESS_SECONDS_MAX = 180.0
STOP_SECONDS_MAX = 120.0


class Caller:
    """An API key of its own, and the authority to believe."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        words = ("keys", "create", "--organisation", "default")
        self.key = cluster.ask("gateway", "kvtier", *words)["api_key"]
        cluster.copy("gateway", "/secrets/ca.pem", directory / "ca.pem")
        self._tls = ssl.create_default_context(cafile=str(directory / "ca.pem"))

    def client(self) -> openai.OpenAI:
        """To be closed."""
        http = openai.DefaultHttpx2Client(verify=self._tls, timeout=REQUEST_SECONDS_MAX)
        return openai.OpenAI(base_url=GATEWAY, api_key=self.key, http_client=http, max_retries=0)


class Load:
    """Runs until it is left. Every request is noted: what it was told, or that it got no answer.

    Each prompt is asked several times, so that answers from blocks are held against computed ones.
    """

    def __init__(self, caller: Caller, told: Told, name: str) -> None:
        self._caller = caller
        self._told = told
        self._stop = threading.Event()
        self._answered = 0
        self.errors: list[Exception] = []
        names = [f"{name} {number}" for number in range(CALLERS)]
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in names]

    def progress(self, count: int = 4) -> None:
        """Waits until so many more requests are answered. Raises AssertionError."""
        goal, deadline = self._answered + count, time.monotonic() + PROGRESS_SECONDS_MAX
        while self._answered < goal:
            assert time.monotonic() < deadline, f"no answers any more; {self.errors[-3:]}"
            time.sleep(0.1)

    def last(self, seconds: float) -> None:
        """Goes on for so long, and there are answers at the end of it. Raises AssertionError."""
        self._stop.wait(seconds)
        self.progress()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(STOP_SECONDS_MAX)
            assert not thread.is_alive()

    def _run(self, name: str) -> None:
        with self._caller.client() as client:
            number = 0
            while not self._stop.is_set():
                number += 1
                try:
                    ask(client, self._told, prompt(f"{name} {number // TIMES_ASKED}"))
                    self._answered += 1
                except openai.APIError as error:
                    self._told.lost()
                    self.errors.append(error)
                    self._stop.wait(0.5)


def ask(client: openai.OpenAI, told: Told, text: str) -> None:
    """One request, greedy, and what came of it is noted. Raises openai.APIError."""
    messages: Any = [{"role": "user", "content": text}]
    reply = client.chat.completions.create(
        model="demo", messages=messages, max_tokens=4, temperature=0
    )
    assert reply.usage is not None
    told.note(reply.id, reply.usage.model_dump())
    told.compare(text, str(reply.choices[0].message.content))

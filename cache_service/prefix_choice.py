"""What commands that steer one cached prefix have in common: the options that name it.

a prompt, asked of its worker      what is cached of its beginning
--block with --namespace           that block and what is before it
"""

from dataclasses import dataclass
from typing import Annotated

import typer

from cache_service.command_ends import digits, fail, misused
from cache_service.prompt_chain import (
    CachedEnd,
    PromptError,
    Scope,
    cached_end,
    described,
    prompt_request,
)

__all__ = ["BlockOption", "NamespaceOption", "PrefixArgument", "PrefixChoice"]

PrefixArgument = Annotated[
    str,
    typer.Argument(help="What begins this prompt; '-' reads standard input. Or give --block."),
]
BlockOption = Annotated[
    str, typer.Option(help="This block and what is before it: 64 digits; with --namespace.")
]
NamespaceOption = Annotated[str, typer.Option(help="Of --block: 64 digits.")]


@dataclass(frozen=True, slots=True)
class PrefixChoice:
    """The options' values."""

    prompt: str
    block: str
    namespace: str
    tenant: str
    project: str
    user: str
    cache_scope: Scope | None
    system: str
    raw: bool
    adapter: str

    def check(self, command: str) -> None:
        """Raises typer.Exit unless one of both ways is taken."""
        if bool(self.prompt) == bool(self.block):
            misused(command, "give a prompt, or --block with --namespace")

    def end(self, command: str, worker: str, address: str) -> CachedEnd:
        """Where the prefix ends; without counts for a block. Asks worker and cache service where a
        prompt was given. Raises typer.Exit."""
        if self.block:
            block_hash = digits(command, "--block", self.block)
            return CachedEnd(digits(command, "--namespace", self.namespace), block_hash, 0, 0)
        try:
            asked = prompt_request(
                self.prompt,
                self.tenant,
                self.project,
                self.user,
                self.cache_scope,
                self.system,
                raw=self.raw,
                adapter=self.adapter,
            )
            return cached_end(described(asked, worker), address)
        except PromptError as error:
            if error.misused:
                misused(command, str(error))
            fail(str(error))

"""`kvtier cache tree`: the prefix tree of a running cache service, drawn in the terminal.

Standard output has the tree alone, or with --json one object; notes go to standard error. Exit
status 1 when the service cannot be asked or has no such prefix.
"""

import json
import sys
import time
from itertools import groupby
from string import hexdigits
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.filesize import decimal

from cache_service.command_ends import digits, fail, misused
from cache_service.command_errors import cache_problem
from cache_service.tree_text import LEGEND, tree_table
from cache_service.tree_view import Branch, branch_data, build, find, flat
from kvtier.cli.channel import open_channel
from kvtier.errors import read_error
from kvtier.keys import HASH_BYTES
from kvtier.v1 import explain_pb2 as pb
from kvtier.v1 import explain_pb2_grpc

__all__ = ["tree"]

CALL_SECONDS_MAX = 60.0
PAGE_NODES = 5000


def tree(
    address: Annotated[
        str, typer.Option(help="Of the cache service: HOST:PORT or unix:PATH.")
    ] = "127.0.0.1:7411",
    namespace: Annotated[
        str, typer.Option(help="Only this namespace: 64 hexadecimal digits.")
    ] = "",
    under: Annotated[
        str, typer.Option(help="Only this prefix and what continues it: digits as listed.")
    ] = "",
    depth: Annotated[int, typer.Option(min=1, max=100, help="Nodes below each other.")] = 8,
    branches: Annotated[int, typer.Option(min=1, help="Shown of one node.")] = 12,
    lines: Annotated[int, typer.Option(min=1, help="Shown of a namespace.")] = 60,
    nodes: Annotated[int, typer.Option(min=1, max=1_000_000, help="Asked for at most.")] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """What is cached, as a tree: sizes, tiers, hits, and what leaves next. Changes nothing.

    A line is a run of blocks without a fork, named by the beginning of its first block's hash. Host
    and SSD count copies, with all that is below.
    """
    request = pb.ListTreeRequest(
        namespace_id=digits("tree", "--namespace", namespace) if namespace else b""
    )
    prefix = under.lower()
    if len(prefix) == 2 * HASH_BYTES:
        request.under_block_hash = digits("tree", "--under", prefix)
    elif prefix.strip(hexdigits):
        misused("tree", "--under takes hexadecimal digits, as the tree lists them")
    listed, whole, changed = _list(address, request, nodes)
    tops = build(listed)
    if under and not request.under_block_hash:
        tops = _only(find(tops, prefix), prefix, whole)
    _note(len(listed), whole, changed)
    if as_json:
        data = {
            "nodes": [branch_data(branch.node) for branch in flat(tops)],
            "whole": whole,
            "changed_meanwhile": changed,
        }
        print(json.dumps(data, indent=2))
        return
    _show(tops, depth, branches, lines)


def _show(tops: list[Branch], depth: int, branches: int, lines: int) -> None:
    console = Console()
    if not tops:
        console.print("Nothing is cached.")
    now = time.time()
    tops.sort(key=lambda top: top.node.namespace_id)
    for namespace_id, group in groupby(tops, key=lambda top: top.node.namespace_id):
        of_it = sorted(group, key=lambda top: -top.copies_bytes)
        blocks = sum(top.block_count for top in of_it)
        size = decimal(of_it[0].node.block_bytes)
        console.print(
            f"Namespace {namespace_id.hex()[:12]}: {blocks:,} blocks of {size},"
            f" {len(of_it):,} chains begin",
            highlight=False,
        )
        console.print(tree_table(of_it, depth, branches, lines, now))
        console.print()
    if tops:
        console.print(LEGEND, style="dim", highlight=False)


def _list(
    address: str, request: pb.ListTreeRequest, nodes_max: int
) -> tuple[list[pb.TreeNode], bool, bool]:
    """Nodes, whether these are all, and whether something changed meanwhile."""
    nodes: list[pb.TreeNode] = []
    changed = False
    with open_channel(address) as channel:
        stub = explain_pb2_grpc.ExplainServiceStub(channel)
        while True:
            request.page_size = min(PAGE_NODES, nodes_max - len(nodes))
            token = b""
            try:
                for response in stub.ListTree(request, timeout=CALL_SECONDS_MAX):
                    nodes.extend(response.nodes)
                    changed = changed or response.changed
                    token = response.next_page_token
            except grpc.RpcError as error:
                fail(cache_problem(read_error(error), address))
            if not token or len(nodes) >= nodes_max:
                return nodes, not token, changed
            request.page_token = token


def _only(found: list[Branch], under: str, whole: bool) -> list[Branch]:
    if not found:
        more = "" if whole else "; not everything was listed, ask for more with --nodes"
        fail(f"PREFIX_UNKNOWN: no listed prefix is named {under}{more}")
    if len(found) > 1:
        fail(f"PREFIX_AMBIGUOUS: {len(found)} prefixes begin with {under}; give more digits")
    return found


def _note(count: int, whole: bool, changed: bool) -> None:
    if not whole:
        print(
            f"kvtier cache tree: only the first {count:,} nodes were asked for and sums are of"
            " those; --nodes asks for more, --under for a part",
            file=sys.stderr,
        )
    if changed:
        print(
            "kvtier cache tree: blocks left while they were listed, something is left out",
            file=sys.stderr,
        )

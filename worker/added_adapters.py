"""LoRA adapters that are added at run time, each to the rows of its own requests.

    x --linear layer--> y          y[rows] += ((x[rows] A^T) B^T) * scale, for each adapter's rows

Forward hooks on the layers that any adapter changes add it; the model stays unmodified. A step is
one row of tokens, span after span, so which of them are whose is known. Invariant: a row gets the
adapter of its own request and of no other; a layer that is called with rows that cannot be told
apart raises, and a layer that is not called is found at load (`worker/adapter_proof.py`). Hooks
run on whatever thread computes; `rows_of` belongs to that one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from worker.adapters import LoraAdapter, targets_of
from worker.attention.choose import AttentionChoice, attention_choices
from worker.errors import AdapterRefusedError
from worker.kv_pages import KvPages
from worker.model_runner import ModelRunner, Span

__all__ = ["AdaptedRunner", "AddedAdapters"]

Rows = slice | torch.Tensor


@dataclass(frozen=True, slots=True)
class _Change:
    """Of one layer by one adapter; both in the layer's type, the scale in `b`."""

    a: torch.Tensor
    """`[rank, inputs]`"""
    b: torch.Tensor
    """`[outputs, rank]`"""


@dataclass(frozen=True, slots=True)
class _Step:
    """Whose rows are whose in a forward: of all tokens, and of those whose logits are wanted."""

    token_count: int
    tokens: tuple[tuple[str, Rows], ...]
    wanted_count: int
    wanted: tuple[tuple[str, Rows], ...]


class AddedAdapters:
    """`adapters` by the names that requests call them, on the layers of `model`."""

    def __init__(self, model: Any, adapters: Mapping[str, LoraAdapter], bytes_max: int) -> None:
        """Hooks the layers. `bytes_max`: of memory for all of them.

        Raises AdapterRefusedError; `model` is as it was then.
        """
        self._device = model.device
        self._changes: dict[str, dict[str, _Change]] = {}
        self._step: _Step | None = None
        self._called: set[str] = set()
        hooked: dict[str, nn.Module] = {}
        self.byte_count = 0
        for name, adapter in adapters.items():
            targets = targets_of(model, adapter)
            self.byte_count += sum(_byte_count(adapter, path, targets[path]) for path in targets)
            if self.byte_count > bytes_max:
                raise AdapterRefusedError(
                    f"with adapter {name} the adapters take {self.byte_count} bytes, and"
                    f" adapter_bytes_max is {bytes_max}"
                )
            for path, module in targets.items():
                self._changes.setdefault(path, {})[name] = _change(adapter, path, module)
                hooked[path] = module
        self.digests = {name: adapter.digest for name, adapter in adapters.items()}
        for path, module in hooked.items():
            module.register_forward_hook(self._hook(path))

    @contextmanager
    def rows_of(self, spans: Sequence[Span]) -> Iterator[None]:
        """Until its end, forwards are of `spans`."""
        owners = [(span.adapter, len(span.token_ids), span.wanted_logits) for span in spans]
        tokens = [(name, count) for name, count, _ in owners]
        wanted = [(name, count) for name, _, count in owners]
        self._called.clear()
        if any(name for name, _ in tokens):
            self._step = _Step(
                sum(count for _, count in tokens),
                self._parts(tokens),
                sum(count for _, count in wanted),
                self._parts(wanted),
            )
        try:
            yield
        finally:
            self._step = None

    def uncalled(self, name: str) -> list[str]:
        """Layers that the adapter changes and that the last forward did not call."""
        changed = {path for path, changes in self._changes.items() if name in changes}
        return sorted(changed - self._called)

    def _parts(self, owners: Sequence[tuple[str, int]]) -> tuple[tuple[str, Rows], ...]:
        """The rows of each adapter, those of none left out."""
        rows: dict[str, list[range]] = {}
        begin = 0
        for name, count in owners:
            if name and count:
                rows.setdefault(name, []).append(range(begin, begin + count))
            begin += count
        return tuple((name, self._joined(runs)) for name, runs in rows.items())

    def _joined(self, runs: Sequence[range]) -> Rows:
        first, last = runs[0].start, runs[-1].stop
        if last - first == sum(map(len, runs)):
            return slice(first, last)
        numbers = [number for run in runs for number in run]
        return torch.tensor(numbers, dtype=torch.long, device=self._device)

    def _hook(self, path: str) -> Any:
        changes = self._changes[path]

        def add(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            step = self._step
            if step is None:
                return
            self._called.add(path)
            inputs = args[0]
            count = inputs.numel() // inputs.shape[-1]
            # Where both counts are equal, every token's logits are wanted: the rows are the same.
            if count == step.token_count:
                parts = step.tokens
            elif count == step.wanted_count:
                parts = step.wanted
            else:
                raise AdapterRefusedError(
                    f"{path} is called with {count} rows for {step.token_count} tokens: nobody can"
                    " tell which adapter's they are; merge it alone, with the setting adapter"
                )
            flat, out = inputs.reshape(count, -1), output.view(count, -1)
            for name, rows in parts:
                if (change := changes.get(name)) is not None:
                    out[rows] += (flat[rows] @ change.a.T) @ change.b.T

        return add


class AdaptedRunner(ModelRunner):
    """A model runner whose spans may name one of `added`."""

    def __init__(
        self, model: Any, kv: KvPages, attention: AttentionChoice | None, added: AddedAdapters
    ) -> None:
        chosen = attention or attention_choices(model.device)[0]
        # A recorded step would go on with the rows of the one that was recorded.
        super().__init__(model, kv, chosen.unrecorded())
        self._added = added

    def run(self, spans: Sequence[Span]) -> torch.Tensor:
        """As `ModelRunner.run`."""
        with self._added.rows_of(spans):
            return super().run(spans)


def _byte_count(adapter: LoraAdapter, path: str, module: Any) -> int:
    elements = adapter.a[path].numel() + adapter.b[path].numel()
    size: int = elements * module.weight.element_size()
    return size


def _change(adapter: LoraAdapter, path: str, module: Any) -> _Change:
    weight = module.weight
    a, b = adapter.a[path].float(), adapter.b[path].float() * adapter.config.scale(path)
    return _Change(
        a.to(device=weight.device, dtype=weight.dtype),
        b.to(device=weight.device, dtype=weight.dtype),
    )

"""Draws the curves. Needs matplotlib, the extra `plot`; nothing else of the room does."""

from pathlib import Path

from cache_service.replay.curves import OPTIMUM, Curves
from storage.policy.choice import DEFAULT_POLICY

__all__ = ["PlotError", "check_plot", "draw"]

SUFFIXES = (".png", ".svg")

_LABELS = {
    "greedy_dual": "GreedyDual",
    "lru": "LRU",
    "arc": "ARC",
    "s3_fifo": "S3-FIFO",
    OPTIMUM: "best possible",
}
_COLOURS = {  # Okabe and Ito's, told apart by every eye
    "greedy_dual": "#D55E00",
    "lru": "#0072B2",
    "arc": "#009E73",
    "s3_fifo": "#CC79A7",
    OPTIMUM: "#555555",
}


class PlotError(ValueError):
    """The picture cannot be drawn; the message says why."""

    reason = "PLOT_IMPOSSIBLE"


def check_plot(path: Path) -> None:
    """Raises PlotError before long work is done for a picture that cannot be."""
    if path.suffix.lower() not in SUFFIXES:
        raise PlotError(f"{path} is no picture; name a .png or a .svg file")
    if not path.parent.is_dir():
        raise PlotError(f"{path.parent} is not a directory; make it, or name another")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PlotError("there is no matplotlib; pip install 'kvtier[plot]'") from None


def draw(curves: Curves, trace_name: str, unique_blocks: int, path: Path) -> None:
    """Writes the picture. Raises PlotError."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(
            [capacity / unique_blocks for capacity, _ in points],
            [rate for _, rate in points],
            label=_LABELS[name],
            color=_COLOURS[name],
            linestyle="--" if name == OPTIMUM else "-",
            linewidth=2.6 if name == DEFAULT_POLICY else 1.6,
            marker="o",
            markersize=3.5,
            zorder=3 if name == DEFAULT_POLICY else 2,
        )
    ticks = [capacity / unique_blocks for capacity, _ in curves[OPTIMUM]]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"capacity, of {unique_blocks:,} unique blocks (one tier)")
    axes.set_ylabel("block hit rate")
    axes.set_title(trace_name, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise PlotError(f"{path}: {error.strerror or error}; name another file") from None

"""Pictures of what `measure` found, with matplotlib (the extra `bench`)."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FieldInvalid
from .report import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, LIMIT = "#1b6ca8", "#b04a2f"


def require() -> None:
    """FieldInvalid without matplotlib, before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise FieldInvalid("plots need matplotlib, which is not installed; pip install 'pyruntime-llm[bench]'",
                           field="plots") from None


def draw(facts: dict[str, Any], folder: Path) -> list[Path]:
    """roofline.png, batch.png and depth.png into `folder`, which is made: as many as there are figures for."""
    require()
    folder.mkdir(parents=True, exist_ok=True)
    any_speed = any(facts.get(part) for part in ("decode", "prefill", "batch", "depth"))
    wanted = (("roofline", any_speed, _roofline), ("batch", facts.get("batch"), _batch), ("depth", facts.get("depth"), _depth))
    return [_save(folder / f"{name}.png", facts, paint) for name, there, paint in wanted if there]


def _save(path: Path, facts: dict[str, Any], paint: Any) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    paint(axes, facts)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    figure.suptitle(title(facts), fontsize=8, color="gray")
    figure.savefig(path, dpi=150)
    return path


def _roofline(axes: Axes, facts: dict[str, Any]) -> None:
    """Operations a second over operations a byte: under the slope reading bounds, under the flat multiplying does."""
    read, multiply = facts["limits"]["read_bytes_per_second"], facts["limits"]["operations_per_second"]
    points = [(name, f) for name, f in (("decode", facts.get("decode")),) if f]
    points += [(f"prompt {f['prompt']}", f) for f in facts.get("prefill", ())]
    points += [(f"{f['sequences']} together", f) for f in facts.get("batch", ()) if f["sequences"] > 1]
    points += [(f"at {f['depth']}", f) for f in facts.get("depth", ()) if f["depth"]]
    placed = [(name, f["operations_per_step"] / f["bytes_per_step"],
               f["operations_per_step"] * f["tokens_per_second"] / f["tokens_per_step"]) for name, f in points]
    low, high = min(x for _, x, _ in placed) / 2, max(multiply / read, *(x for _, x, _ in placed)) * 3
    edge = multiply / read
    axes.plot([low, edge, high], [low * read / 1e9, multiply / 1e9, multiply / 1e9], color=LIMIT,
              label=f"limits: {read / 1e9:.1f} GB/s, {multiply / 1e9:.0f} Gop/s")
    axes.scatter([x for _, x, _ in placed], [y / 1e9 for _, _, y in placed], color=INK, zorder=3, label="measured")
    for name, x, y in placed:
        axes.annotate(name, (x, y / 1e9), textcoords="offset points", xytext=(6, -9), fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte read", ylabel="billion operations a second")


def _batch(axes: Axes, facts: dict[str, Any]) -> None:
    found = facts["batch"]
    sizes = [f["sequences"] for f in found]
    _line(axes, sizes, found)
    axes.set(xscale="log", yscale="log", xlabel="sequences together", ylabel="tokens a second, all of them")
    axes.set_xticks(sizes, [str(n) for n in sizes], minor=False)


def _depth(axes: Axes, facts: dict[str, Any]) -> None:
    _line(axes, [f["depth"] for f in facts["depth"]], facts["depth"])
    axes.set(xlabel="tokens in the cache", ylabel="tokens a second, one sequence")
    axes.set_ylim(bottom=0)


def _line(axes: Axes, x: list[int], found: list[dict[str, Any]]) -> None:
    axes.plot(x, [f["limit"] for f in found], color=LIMIT, label="the machine's limit")
    axes.plot(x, [f["tokens_per_second"] for f in found], marker="o", color=INK, label="measured")
    axes.fill_between(x, [min(f["each"]) for f in found], [max(f["each"]) for f in found], color=INK, alpha=0.15)

"""Pictures of the raw figures: ratios to the reference as bars, growth as lines. Written by `make bench`."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

_SIZE = re.compile(r"^([\d,]+) (probes|keys|functions|instructions)(?:: (.*))?$")


def draw(sections: dict[str, dict[str, Any]], folder: Path) -> dict[str, str]:
    """SVG files in `folder`, one for each section that has ratios or sizes; file names by section. Raises ImportError
    without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "bpfseal", "svg.fonttype": "none", "font.size": 8})
    folder.mkdir(exist_ok=True)
    made = {}
    for name, section in sections.items():
        sized = _sized(section["rows"])
        ratios = [
            (row["what"], row["ours"] / row["reference"], row["goal"]) for row in section["rows"] if row["reference"]
        ]
        if not sized and not ratios:
            continue
        figure = _growth(section["title"], sized) if sized else _bars(section["title"], ratios)
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        made[name] = path.name
    return made


def _sized(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Lines of a section that measures something over sizes: label → (size, value). Memory is left out."""
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        found = _SIZE.match(row["what"])
        if found is None or row["unit"] == "MiB":
            continue
        size, kind = int(found[1].replace(",", "")), found[3] or "time"
        lines[f"{kind} ({row['unit']}), ours"].append((size, row["ours"]))
        if row["reference"]:
            lines[f"{kind} ({row['unit']}), reference"].append((size, row["reference"]))
    return {label: points for label, points in lines.items() if len(points) > 2}


def _growth(title: str, lines: dict[str, list[tuple[int, float]]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    for label, points in lines.items():
        style = "--" if label.endswith("reference") else "-"
        axes.plot([size for size, _ in points], [value for _, value in points], style, marker="o", ms=3, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=6)
    return figure


def _bars(title: str, ratios: list[tuple[str, float, str]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.18 * len(ratios)))
    axes = figure.subplots()
    places = range(len(ratios), 0, -1)
    axes.barh(places, [ratio for _, ratio, _ in ratios], color="#4477aa", height=0.7)
    for place, (_, ratio, goal) in zip(places, ratios, strict=True):
        axes.text(ratio, place, f" {ratio:.2f}", va="center", fontsize=6)
        if re.fullmatch(r"[\d.]+", goal):
            axes.plot([float(goal)] * 2, [place - 0.4, place + 0.4], color="#cc3311")
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(list(places), [what.replace("$", r"\$") for what, _, _ in ratios], fontsize=6)
    axes.set_xlabel("ours / reference (red: goal)")
    axes.set_title(title)
    return figure

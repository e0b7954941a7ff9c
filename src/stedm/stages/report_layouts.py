"""The report's section on layouts: annotated label maps beside the layouts that were drawn, in one figure."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from stedm.stages.report_figures import BETTER, FULL_IN, INK, STYLE, WORSE, _panels, _uri

KINDS = {"annotated": INK, "real": WORSE, "prior": BETTER, "read": "#7d4a9c"}
NAMES = {"annotated": "annotated", "real": "real, warped", "prior": "prior", "read": "read, warped"}
_MOST_PAIRS = 12


def layouts_section(content: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the template shows of `synthetic/layouts.json`: the figure and a row of distances per kind; None without."""
    if content is None:
        return None
    order = [kind for kind in (*KINDS, "halves") if content["distances"].get(kind)]
    names = NAMES | {"halves": "two halves of the annotated patients"}
    return {
        "figure": layouts_figure(
            {kind: content["statistics"][kind] for kind in KINDS if kind in content["statistics"]}
        ),
        "rows": [{"name": names[kind], **content["distances"][kind]} for kind in order],
        "composition": content["composition"],
    }


def layouts_figure(statistics: Mapping[str, Mapping[str, Any]]) -> str:
    """Plot fractions, region sizes and borders by class, one mark a kind of layouts; a data URI.

    statistics: kind -> class -> values, as in `synthetic/layouts.json`.
    """
    classes = list(statistics["annotated"])
    pairs = sorted(combinations(classes, 2), key=lambda pair: -_border(statistics["annotated"], pair))[:_MOST_PAIRS]
    with matplotlib.rc_context(STYLE):
        figure, (fractions, sizes, borders) = _panels(3, FULL_IN, 0.9 + 0.42 * max(3, len(classes), len(pairs)))
        for number, (kind, found) in enumerate(statistics.items()):
            shift, mark = 0.22 * (number - (len(statistics) - 1) / 2), {"c": KINDS[kind], "label": NAMES[kind]}
            places = np.arange(len(classes)) + shift
            mean, std = (np.array([found[c][key] for c in classes]) for key in ("fraction", "fraction_std"))
            fractions.errorbar(mean, places, xerr=std, fmt="o", ms=5, lw=1.6, **mark)
            quartiles = np.array([found[c]["region_quantiles_px"] for c in classes], float)  # (C, 3), None -> NaN
            sizes.hlines(places, quartiles[:, 0], quartiles[:, 2], colors=KINDS[kind], lw=1.6)
            sizes.plot(quartiles[:, 1], places, "o", ms=5, c=KINDS[kind])
            share = [_border(found, pair) for pair in pairs]
            borders.plot(share, np.arange(len(pairs)) + shift, "o", ms=5, c=KINDS[kind])
        sizes.set_xscale("log")
        low, high = sizes.get_xlim()
        sizes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
        sizes.xaxis.set_major_formatter("{x:,.0f}")
        sizes.xaxis.set_minor_locator(NullLocator())
        _label(fractions, classes, "class fractions", "share of a map, mean ± std")
        _label(sizes, classes, "region sizes", "pixels, quartiles over area")
        _label(borders, [" | ".join(pair) for pair in pairs], "who borders whom", "share of all borders")
        fractions.set_xlim(left=0)
        borders.set_xlim(left=0)
        figure.legend(*fractions.get_legend_handles_labels(), loc="outside lower center", ncols=len(statistics))
        return _uri(figure)


def _border(found: Mapping[str, Any], pair: tuple[str, str]) -> float:
    """Share of all borders that lies between two classes."""
    return 2 * float(found[pair[0]]["adjacency"][pair[1]])


def _label(axes: Axes, rows: Sequence[str], title: str, unit: str) -> None:
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", length=0)
    axes.set(title=title, xlabel=unit, ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="x", c="#e6e9ee", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)

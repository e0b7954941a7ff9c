"""The report's plots, each returned as a data URI of an SVG whose text stays text."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from stedm.evaluation.trainings import trainings_by_patients

# Okabe and Ito's palette: told apart with any kind of colour vision, and in grey.
ARM_COLOURS = {
    "real": "#6b6b6b",
    "real+stain": "#d08c00",
    "real+synthetic": "#56a7d8",
    "real+stain+synthetic": "#00598f",
    "full": "#1d2430",
}
OTHER_COLOURS = ("#009e73", "#cc79a7", "#b8460e", "#8a7a00", "#7a5ba6", "#3a8f9d", "#a3344f", "#5d6b1e")
OTHER_MARKERS = ("s", "D", "^", "v", "P", "X", "p")
BETTER, WORSE = "#00598f", "#c8500a"
INK, FAINT = "#1d2430", "#c9ced6"
FULL_IN, HALF_IN = 10.8, 5.3

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929e",
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "xtick.color": "#4a525e",
    "ytick.color": "#4a525e",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "stedm",
}


def _panels(count: int, width_in: float, height_in: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """Give every arm its colour, the same in all figures."""
    others = iter(OTHER_COLOURS * len(arms))
    return {arm: ARM_COLOURS.get(arm) or next(others) for arm in arms}


def arm_markers(arms: Sequence[str]) -> dict[str, str]:
    """Give every arm its mark: circles for the arms with colours of their own, other shapes for the rest in turn."""
    others = iter(OTHER_MARKERS * len(arms))
    return {arm: "o" if arm in ARM_COLOURS else next(others) for arm in arms}


def arms_figure(per_patient: pd.DataFrame, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Plot every test patient, the mean with its interval, the spread and the worst decile of each arm."""
    colours = arm_colours(list(arms))
    rng = np.random.default_rng(0)
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _panels(1, FULL_IN, 0.75 + (0.62 if len(arms) <= 6 else 0.5) * len(arms))
        for row, (arm, score) in enumerate(arms.items()):
            values = trainings_by_patients(per_patient, arm).mean(axis=0).dropna().to_numpy()
            mean, std, colour = score["patient_iou_mean"], score["patient_iou_std"], colours[arm]
            axes.scatter(values, row + 0.2 + rng.uniform(-0.1, 0.1, len(values)), s=13, c=colour, alpha=0.55, lw=0)
            axes.plot([mean - std, mean + std], [row - 0.18] * 2, c=colour, lw=7, alpha=0.25, solid_capstyle="butt")
            axes.plot(score["ci95"], [row - 0.18] * 2, c=colour, lw=2.5, solid_capstyle="butt")
            axes.plot(mean, row - 0.18, "o", c=colour, ms=6.5, mec="white", mew=1)
            axes.plot(score["worst_decile_iou"], row - 0.18, "<", c=colour, ms=6.5, mfc="white", mew=1.4)
        axes.set_yticks(range(len(arms)), list(arms))
        axes.tick_params(axis="y", length=0, labelsize=9.5)
        axes.set(ylim=(len(arms) - 0.45, -0.55), xlabel="IoU of a test patient, mean over classes and trainings")
        axes.grid(axis="x", c="#e6e9ee", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        return _uri(figure)


def _paired_panel(axes: Axes, baseline: pd.Series, arm: pd.Series, names: tuple[str, str]) -> None:
    order = baseline.sort_values().index
    before, after = baseline[order].to_numpy(), arm[order].to_numpy()
    better = after > before
    x = np.arange(len(order))
    for mask, colour in ((better, BETTER), (~better, WORSE)):
        axes.vlines(x[mask], before[mask], after[mask], colors=colour, lw=2, alpha=0.45)
        axes.scatter(x[mask], after[mask], s=26, c=colour, lw=0, zorder=3)
    axes.scatter(x, before, s=17, facecolors="white", edgecolors="#6b6b6b", linewidths=1.1, zorder=2)
    title = f"{names[0]} → {names[1]}: better for {better.sum()} of {len(order)} patients"
    axes.set_title(title, fontsize=9.5 if len(title) <= 70 else 7.8)
    axes.set(ylabel="IoU", xlim=(-0.8, len(order) - 0.2), xlabel="test patients, by their score without")
    axes.grid(axis="y", c="#e6e9ee", lw=0.8)
    axes.set_axisbelow(True)
    if len(order) <= 26:
        axes.set_xticks(x, [str(name) for name in order], rotation=90, fontsize=7)
    else:
        axes.set_xticks([])


def paired_figure(per_patient: pd.DataFrame, pairs: Sequence[Mapping[str, Any]]) -> str:
    """Plot each test patient without and with synthetic images, one panel a comparison."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(pairs), FULL_IN, 3.5)
        for axes, pair in zip(panels, pairs, strict=True):
            names = pair["baseline"], pair["arm"]
            baseline, arm = (trainings_by_patients(per_patient, name).mean(axis=0).dropna() for name in names)
            shared = baseline.index.intersection(arm.index)
            _paired_panel(axes, baseline[shared], arm[shared], names)
        low = min(axes.get_ylim()[0] for axes in panels)
        high = max(axes.get_ylim()[1] for axes in panels)
        for axes in panels:
            axes.set_ylim(low, high)
        return _uri(figure)


def spread_figure(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Plot the standard deviation over patients against the worst decile, a point an arm: best at the top left."""
    colours, markers = arm_colours(list(arms)), arm_markers(list(arms))
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _panels(1, HALF_IN, 3.4 if len(arms) <= 8 else 4.6)
        std, worst = (np.array([arm[key] for arm in arms.values()]) for key in ("patient_iou_std", "worst_decile_iou"))
        for x, y, arm in zip(std, worst, arms, strict=True):
            axes.plot(x, y, markers[arm], c=colours[arm], ms=7.5, mec="white", mew=1)
        room = max(np.ptp(std), 0.01)
        axes.set_xlim(std.min() - 0.12 * room, std.max() + 0.85 * room)  # the names stand right of the points
        axes.margins(y=0.12)
        label_points(axes, {arm: (x, y) for arm, x, y in zip(arms, std, worst, strict=True)}, colours)
        axes.set(xlabel="std over patients (less is better)", ylabel="worst decile, IoU (more is better)")
        axes.grid(c="#e6e9ee", lw=0.8)
        axes.set_axisbelow(True)
        return _uri(figure)


def label_points(axes: Axes, points: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Write the names of points (x, y) in a column right of them, each as near its point's height as there is room."""
    figure = axes.get_figure()
    assert figure is not None
    figure.draw_without_rendering()  # only the layout says what a point of text is in data units
    names = sorted(points, key=lambda name: points[name][1])
    across, at = np.array([axes.transData.transform(points[name]) for name in names]).T
    steps = np.arange(len(names)) * figure.dpi / 72 * 9.5
    moved = isotonic_regression(at - steps).x + steps
    for name, right_px, up_px in zip(names, across.max() - across, moved - at, strict=True):
        label = axes.annotate(
            name,
            points[name],
            (12 + right_px * 72 / figure.dpi, up_px * 72 / figure.dpi),
            textcoords="offset points",
            va="center",
            color=colours[name],
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": colours[name], "lw": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 4},
        )
        label.set_in_layout(False)


def histogram_figure(
    values: np.ndarray,
    *,
    label: str,
    limits: tuple[float, float],
    threshold: float | None = None,
    beside: Sequence[float] = (),
) -> str:
    """Plot a histogram of finite values.

    threshold: below it images are dropped. beside: evenly spaced quantiles of the same of real images, drawn as the
    outline that as many of them would have.
    """
    values = values[np.isfinite(values)]
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _panels(1, HALF_IN, 2.3)
        _, edges, bars = axes.hist(np.clip(values, *limits), bins=np.linspace(*limits, 41), color=BETTER, rwidth=0.9)
        if threshold is not None:
            for left, bar in zip(edges, bars, strict=False):
                bar.set_facecolor(WORSE if left + 1e-9 < threshold else BETTER)
            axes.axvline(threshold, c=INK, lw=1, ls=(0, (3, 2)))
            for word, side, shift in (("dropped", "right", -5), ("kept", "left", 5)):
                place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": side, "va": "top"}
                axes.annotate(word, (threshold, 1), (shift, 0), **place)
        if len(beside):
            below = np.interp(edges, beside, np.linspace(0, 1, len(beside)))
            axes.stairs(len(values) * np.diff(below), edges, color=INK, lw=1)
        axes.set(xlabel=label, ylabel="images", xlim=limits)
        return _uri(figure)


def style_figure(matched: float, shuffled: float) -> str:
    """Plot the style distance of images drawn in the patient's style, and in another's."""
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _panels(1, HALF_IN, 1.5)
        axes.barh([0, 1], [matched, shuffled], color=[BETTER, FAINT], height=0.62)
        for row, value in enumerate((matched, shuffled)):
            axes.annotate(f"{value:.2f}", (value, row), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks([0, 1], ["in the patient's style", "in another's style"])
        axes.tick_params(axis="y", length=0)
        axes.set(
            ylim=(1.6, -0.6), xlim=(0, 1.15 * max(matched, shuffled, 1e-6)), xlabel="style distance of drawn images"
        )
        axes.spines["left"].set_visible(False)
        return _uri(figure)


def _curve_columns(table: pd.DataFrame) -> list[str]:
    skipped = ("step", "epoch", "lr", "learning_rate", "seconds", "time")
    numeric = table.select_dtypes("number").columns
    return [name for name in numeric if name not in skipped and table[name].notna().sum() > 1][:4]


def _draw_curve(axes: Axes, table: pd.DataFrame, column: str, **line: Any) -> None:
    points = table[[column]].assign(step=table["step"] if "step" in table else range(len(table))).dropna()
    window = max(1, len(points) // 40)
    smooth = points[column].rolling(window, min_periods=1, center=True).mean()
    if len(points) <= 16:  # measured now and then: the points are what is known, the line only joins them
        line |= {"marker": "o", "ms": 3}
    axes.plot(points["step"], smooth, **line)


def curves_figure(trainings: Mapping[str, Sequence[pd.DataFrame]]) -> str | None:
    """Plot training metrics: a panel a column, a colour a training, a line a seed; None without anything to plot."""
    first = next((table for tables in trainings.values() for table in tables), None)
    columns = _curve_columns(first) if first is not None else []
    if not columns:
        return None
    colours = arm_colours(list(trainings)) if len(trainings) > 1 else {name: BETTER for name in trainings}
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(columns), FULL_IN, 2.2)
        for axes, column in zip(panels, columns, strict=True):
            for name, tables in trainings.items():
                for seed, table in enumerate(table for table in tables if column in table):
                    label = name if seed == 0 and len(trainings) > 1 else None
                    _draw_curve(axes, table, column, c=colours[name], lw=1.3, alpha=0.85, label=label)
            lines = np.concatenate([line.get_ydata() for line in axes.lines] or [np.ones(1)])
            if "loss" in column and lines.min() > 0 and lines.max() > 20 * lines.min():
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")  # powers of ten would need the mathematics that STYLE turns off
                axes.yaxis.set_minor_formatter("")
            axes.set(title=column.replace("_", " "), xlabel="step")
        if len(trainings) > 1:
            figure.legend(
                *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(trainings), 5)
            )
        return _uri(figure)

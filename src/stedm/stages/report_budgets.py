"""The report on label budgets: what each arm reaches with how many annotated patients."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stedm.stages.report_evidence import Evidence, json_of
from stedm.stages.report_figures import FULL_IN, STYLE, _uri, arm_colours, arm_markers, label_points
from stedm.stages.report_text import budgets_sentence, draws, synthesis_comparisons


def budgets_section(evidence: Evidence) -> dict[str, Any] | None:
    """What the template shows of an experiment's label budgets, draws and runs; None for a single run."""
    budgets = evidence.budgets
    if not budgets and len(evidence.parts) == 1:
        return None
    arms = list(evidence.summary["arms"]) if evidence.summary else []
    return {
        "figure": budgets_figure(budgets) if len(budgets) > 1 else None,
        "sentence": budgets_sentence(budgets),
        "columns": list(budgets),
        "rows": {arm: [summary["arms"].get(arm) for summary in budgets.values()] for arm in arms},
        "draws": _draws(budgets, arms),
        "others": {b: summary for b, summary in budgets.items() if b != evidence.summary["label_budget"]}
        if evidence.summary
        else {},
        "headlines": [
            {"budget": budget, **synthesis_comparisons(summary)[0]}
            for budget, summary in budgets.items()
            if synthesis_comparisons(summary)
        ],
        "parts": [_part(evidence, part) for part in evidence.parts],
    }


def _draws(budgets: Mapping[int, Mapping[str, Any]], arms: Sequence[str]) -> dict[str, Any] | None:
    """Each arm's mean for each budget and draw of annotated patients, where there are several draws."""
    columns = [(budget, draw) for budget, summary in budgets.items() for draw in draws(summary)]
    if len(columns) == len(budgets):
        return None

    def mean(arm: str, budget: int, draw: int) -> float | None:
        score = budgets[budget]["arms"].get(arm) or {}
        return (score.get("iou_by_draw") or {"0": score.get("patient_iou_mean")}).get(str(draw))

    return {"columns": columns, "rows": {arm: [mean(arm, *column) for column in columns] for arm in arms}}


def _part(evidence: Evidence, part: Path) -> dict[str, Any]:
    """A run of the experiment: its name, whether its generator is shown here, its own figures."""
    summary = json_of(part / "evaluation" / "summary.json") or {}
    return {
        "name": part.name,
        "shown": part == evidence.run,
        "label_budget": summary.get("label_budget"),
        "n_test_patients": summary.get("n_test_patients"),
        "generation": json_of(part / "evaluation" / "generation.json") or {},
        "report": os.path.relpath(part / "report" / "index.html", evidence.root / "report"),
    }


def budgets_figure(budgets: Mapping[int, Mapping[str, Any]]) -> str:
    """Plot mean IoU with its interval, and the worst decile, against the number of annotated patients."""
    arms = list(dict.fromkeys(arm for summary in budgets.values() for arm in summary["arms"]))
    colours, markers = arm_colours(arms), arm_markers(arms)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(FULL_IN, 6.4 if len(arms) <= 8 else 8.2), layout="constrained")
        panels = list(figure.subplots(2, 1))
        ends: list[dict[str, tuple[float, float]]] = [{}, {}]
        for number, arm in enumerate(arms):
            found = [(k, s["arms"][arm]) for k, s in enumerate(budgets.values()) if arm in s["arms"]]
            # Points of one budget stand side by side, so that their intervals can be told apart.
            x = np.array([k for k, _ in found]) + min(0.05, 0.6 / len(arms)) * (number - (len(arms) - 1) / 2)
            line = {"c": colours[arm], "marker": markers[arm], "ms": 5.5, "mec": "white", "mew": 0.8, "lw": 1.2}
            low, high = np.array([score["ci95"] for _, score in found]).T
            panels[0].vlines(x, low, high, colors=colours[arm], lw=1.6, alpha=0.45)
            for axes, end, key in zip(panels, ends, ("patient_iou_mean", "worst_decile_iou"), strict=True):
                values = [score[key] for _, score in found]
                axes.plot(x, values, **line)
                end[arm] = (float(x[-1]), values[-1])
        for axes, title in zip(panels, ("mean patient IoU, 95 % interval", "IoU of the worst decile"), strict=True):
            _frame(axes, budgets, title)
        for axes, end in zip(panels, ends, strict=True):
            label_points(axes, end, colours)
        return _uri(figure)


def _frame(axes: Axes, budgets: Mapping[int, Any], title: str) -> None:
    axes.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
    right = len(budgets) - 0.6 + 0.25 * len(budgets)  # the names stand right of the last points
    axes.set(title=title, xlabel="annotated patients", xlim=(-0.5, right))
    axes.grid(axis="y", c="#e6e9ee", lw=0.8)
    axes.set_axisbelow(True)

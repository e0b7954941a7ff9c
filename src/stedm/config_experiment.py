"""The config section of an experiment: what is varied besides arms and seeds."""

from dataclasses import dataclass, field
from typing import Literal

Budget = int | Literal["all"]
"""Annotated patients: a number, or every training patient that may be annotated."""


@dataclass
class ExperimentConfig:
    """Several label budgets, draws of annotated patients and test folds in one run, each in a run folder of its own:
    `budget<k>[-draw<d>][-fold<j>]/`, the first draw without a number."""

    budgets: list[Budget] = field(default_factory=list)
    """Label budgets, the main one last, instead of `split.label_budget`; `all`: whoever may be annotated."""
    draws: int = 1
    """Draws of annotated patients, other things equal: how much depends on who was annotated. Of the budget `all` there
    is one."""
    folds: int = 1
    """Test folds: every patient with masks (of a target laboratory, if any) is tested once; 2 or more replace
    `split.test_patients`."""

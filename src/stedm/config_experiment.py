"""The config section of an experiment: what is varied besides arms and seeds."""

from dataclasses import dataclass, field
from typing import Literal

Budget = int | Literal["all"]
"""Annotated patients: a number, or every training patient that may be annotated."""


@dataclass
class ExperimentConfig:
    """Several label budgets and test folds in one run, each in a run folder of its own: `budget<k>[-fold<j>]/`."""

    budgets: list[Budget] = field(default_factory=list)
    """Label budgets, the main one last, instead of `split.label_budget`; `all`: whoever may be annotated."""
    folds: int = 1
    """Test folds: every patient with masks (of a target laboratory, if any) is tested once; 2 or more replace
    `split.test_patients`."""

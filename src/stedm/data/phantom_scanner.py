"""The phantom's scanners: what they do to every slide, and how much they vary from patient to patient."""

from typing import Any

import numpy as np

from stedm.config_cohort import Scanner

_WHITE = {"first": (0.93, 0.93, 0.93), "second": (0.97, 0.955, 0.92)}
"""Mean colour of empty glass, 0 to 1: neutral; a warm lamp."""
_MIXING = {
    "first": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "second": ((0.80, 0.20, 0.0), (0.12, 0.70, 0.18), (0.0, 0.28, 0.72)),
}
"""Mean channel mixing, rows sum to 1: as the eye; filters that overlap, paler and of shifted hue."""
_GAMMA = {"first": 1.0, "second": 1.5}
_BLUR_PX = {"first": (0.3, 0.75), "second": (0.8, 1.2)}
_NOISE = {"first": (0.004, 0.02), "second": (0.02, 0.04)}


def draw_scanner(scanner: Scanner, rng: np.random.Generator) -> dict[str, Any]:
    """White point, colour mixing, tone curve, focus and noise, as fields of `PatientStyle`.

    Every scanner makes the same draws, so that a patient under another scanner is otherwise the same.
    """
    mixing = rng.normal(0, 0.06, (3, 3))
    mixing -= mixing.mean(1, keepdims=True)  # grey stays grey
    level = rng.normal(0, 0.025)
    return {
        "white": np.clip(np.array(_WHITE[scanner]) + level + rng.normal(0, 0.012, 3), 0.7, 1.0),
        "colour_matrix": np.array(_MIXING[scanner]) + mixing,
        "gamma": float(_GAMMA[scanner] * np.exp(rng.normal(0, 0.12))),
        "blur_px": float(rng.uniform(*_BLUR_PX[scanner])),
        "noise": float(rng.uniform(*_NOISE[scanner])),
    }

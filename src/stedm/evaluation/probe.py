"""What a generator does with the styles of some patients: the figures of `generation.json` about its conditions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stedm.evaluation.bootstrap import ratio_interval
from stedm.evaluation.encoders import Encoder
from stedm.evaluation.features import class_features
from stedm.evaluation.generation import (
    Scale,
    colour_drift,
    colour_errors,
    kid,
    kid_over_patients,
    layout_agreement,
    matched_and_shuffled,
    region_colours,
    spread,
    style_distances,
)
from stedm.evaluation.segmentation import mean_over_classes

FIGURES = (
    *(f"style_distance_{kind}" for kind in ("matched", "shuffled", "real")),
    *("style_ratio", "style_ratio_ci95", "style_sensitivity", "style_ratio_by_class", "diversity"),
    *(
        f"colour_{kind}_{what}{floor}"
        for what in ("error", "drift")
        for floor in ("", "_real")
        for kind in ("mean", "std")
    ),
    *("layout_agreement", "layout_sensitivity", "layout_agreement_real", "layout_agreement_relative"),
    *("kid", "kid_real", "kid_images"),
)
"""What is measured of a group of style patients."""


@dataclass(frozen=True)
class StyleProbe:
    """One style patient: its real images, and images drawn in its style. The last `repeats` share one layout.

    Images are uint8 (n, H, W, 3), label maps uint8 (n, H, W).
    """

    patient: str
    style_images: np.ndarray
    """The style set the images were drawn from."""
    style_maps: np.ndarray
    """Class regions of the style set: annotation where there is one, else a segmenter's reading."""
    references: np.ndarray
    """Other images of the patient, which drawn images are compared with."""
    reference_maps: np.ndarray
    """Class regions of the references."""
    annotated: np.ndarray
    """Which real images, style set first, have an annotation: bool."""
    readings: np.ndarray
    """The segmenter's reading of the real images, style set first."""
    drawn: np.ndarray
    layouts: np.ndarray
    """Layouts of the drawn images."""
    drawn_readings: np.ndarray
    """The segmenter's reading of the drawn images."""
    elsewhere: np.ndarray
    """The same layouts and seeds in the style of another patient; empty without one."""
    repeats: int
    num_classes: int

    @cached_property
    def drawn_features(self) -> np.ndarray:
        """Class features (n, C, d) of the drawn images."""
        return class_features(self.drawn, self.layouts, self.num_classes)

    @cached_property
    def elsewhere_features(self) -> np.ndarray:
        """Class features of the images in another patient's style."""
        return class_features(self.elsewhere, self.layouts[: len(self.elsewhere)], self.num_classes)

    @cached_property
    def real_features(self) -> np.ndarray:
        """Class features of all real images, style set first."""
        return class_features(self.real, self.real_maps, self.num_classes)

    @property
    def real(self) -> np.ndarray:
        """All real images, style set first."""
        return np.concatenate([self.style_images, self.references])

    @property
    def real_maps(self) -> np.ndarray:
        """Class regions of all real images."""
        return np.concatenate([self.style_maps, self.reference_maps])

    @property
    def reference_features(self) -> np.ndarray:
        """Class features of the references."""
        return self.real_features[len(self.style_images) :]


def mean_or_none(values: Any) -> float | None:
    """Mean over the finite values; None where there is none (JSON has no NaN)."""
    found = np.asarray([math.nan if value is None else value for value in np.ravel(values)], float)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else None


def ratio_or_none(a: float | None, b: float | None) -> float | None:
    """a / b where both are known and b is above 0."""
    return a / b if a is not None and b is not None and b > 0 else None


def probe_scale(probes: Sequence[StyleProbe]) -> Scale:
    """The standardisation of class features, measured on the real images of all compared patients."""
    return Scale.fit(np.concatenate([probe.real_features for probe in probes]))


def group_figures(
    probes: Sequence[StyleProbe],
    *,
    scale: Scale | None,
    classes: Sequence[str],
    encoder: Encoder,
    agreement_real: float | None,
) -> dict[str, Any]:
    """All `FIGURES` of a group of patients, None where something is lacking; arguments as in `style_figures`.

    agreement_real: the segmenter's mean IoU on held-out real images, which the agreement on drawn ones is relative to.
    """
    if not probes or scale is None:
        return dict.fromkeys(FIGURES)
    layouts = layout_figures(probes)
    figures = {
        **style_figures(probes, scale=scale, classes=classes),
        **colour_figures(probes),
        **layouts,
        "layout_agreement_real": agreement_real,
        "layout_agreement_relative": ratio_or_none(layouts["layout_agreement"], agreement_real),
        **kid_figures(probes, encoder),
    }
    return {name: figures[name] for name in FIGURES}


def style_figures(probes: Sequence[StyleProbe], *, scale: Scale, classes: Sequence[str]) -> dict[str, Any]:
    """Style distances of a group of patients, matched against shuffled, and between real halves of one patient.

    Args:
        probes: the group.
        scale: from `probe_scale`.
        classes: the C class names.

    Returns:
        style_distance_matched, _shuffled, _real, style_ratio, style_ratio_ci95 (over patients), style_sensitivity,
        style_ratio_by_class, diversity.
    """
    drawn = {probe.patient: scale(probe.drawn_features) for probe in probes}
    elsewhere = {probe.patient: scale(probe.elsewhere_features) for probe in probes}
    references = {probe.patient: scale(probe.reference_features) for probe in probes}
    matched, shuffled = matched_and_shuffled(drawn, elsewhere, references)  # (P, C) each
    both = np.isfinite(matched) & np.isfinite(shuffled)
    matched, shuffled = np.where(both, matched, np.nan), np.where(both, shuffled, np.nan)
    real = [scale(probe.real_features) for probe in probes]
    halves = np.array([style_distances(half[0::2], half[1::2]) for half in real])
    of_patients = [mean_over_classes(figures) for figures in (matched, shuffled)]
    near, far = (mean_or_none(values) for values in of_patients)
    ratio = ratio_or_none(near, far)
    by_class = zip(classes, matched.T, shuffled.T, strict=True)
    variety = [
        ratio_or_none(spread(drawn[probe.patient][-probe.repeats :]), spread(own))
        for probe, own in zip(probes, real, strict=True)
    ]
    return {
        "style_distance_matched": near,
        "style_distance_shuffled": far,
        "style_distance_real": mean_or_none(mean_over_classes(halves)),
        "style_ratio": ratio,
        "style_ratio_ci95": None if ratio is None else ratio_interval(*of_patients),
        "style_sensitivity": None if ratio is None else 1 - ratio,
        "style_ratio_by_class": {n: ratio_or_none(mean_or_none(a), mean_or_none(b)) for n, a, b in by_class},
        "diversity": mean_or_none(variety),
    }


def colour_figures(probes: Sequence[StyleProbe]) -> dict[str, float | None]:
    """Colours of drawn images against references, and of one half of a patient's real images against the other.

    Returns:
        colour_mean_error, colour_std_error: how far off a patient is, mean over patients; colour_mean_drift,
        colour_std_drift: how far all are off in one direction (`colour_drift`); and the same with _real: 0 to 1.
    """
    drawn, real = [], []
    for probe in probes:
        C = probe.num_classes
        own = region_colours(probe.references, probe.reference_maps, C)
        drawn.append(region_colours(probe.drawn, probe.layouts, C) - own)
        halves = [region_colours(probe.real[start::2], probe.real_maps[start::2], C) for start in (0, 1)]
        real.append(halves[0] - halves[1])
    found = {}
    for floor, differences in (("", np.array(drawn)), ("_real", np.array(real))):  # (P, 2, C, 3) each
        errors = np.array([colour_errors(of_patient) for of_patient in differences])  # (P, 2)
        for k, kind in enumerate(("mean", "std")):
            found[f"colour_{kind}_error{floor}"] = mean_or_none(errors[:, k])
            found[f"colour_{kind}_drift{floor}"] = mean_or_none(colour_drift(differences)[k])
    return found


def layout_figures(probes: Sequence[StyleProbe]) -> dict[str, float | None]:
    """Agreement of drawn images with their layout, and what is lost with the layout of another image of the style.

    Returns:
        layout_agreement, layout_sensitivity: means over patients; the latter None where all images share one layout.
    """
    agreements, own, other = [], [], []
    for probe in probes:
        options = {"num_classes": probe.num_classes}
        names = [probe.patient] * len(probe.drawn)
        agreements.append(layout_agreement(names, probe.drawn_readings, probe.layouts, **options)[0])
        different = len(probe.drawn) - probe.repeats + 1  # the others repeat the last of these layouts
        if different < 2:
            continue
        readings, layouts = probe.drawn_readings[:different], probe.layouts[:different]
        own.append(layout_agreement(names[:different], readings, layouts, **options)[0])
        other.append(layout_agreement(names[:different], readings, np.roll(layouts, 1, axis=0), **options)[0])
    return {
        "layout_agreement": mean_or_none(agreements),
        "layout_sensitivity": mean_or_none(np.subtract(own, other)),
    }


def real_agreement(probes: Sequence[StyleProbe]) -> float | None:
    """Mean over patients of the segmenter's mean IoU on their annotated real images; None without an annotation."""
    scores = [
        layout_agreement(
            [probe.patient] * int(probe.annotated.sum()),
            probe.readings[probe.annotated],
            probe.real_maps[probe.annotated],
            num_classes=probe.num_classes,
        )[0]
        for probe in probes
        if probe.annotated.any()
    ]
    return mean_or_none(scores)


def kid_figures(probes: Sequence[StyleProbe], encoder: Encoder) -> dict[str, Any]:
    """Kernel inception distance of a group's drawn images to its references, and between halves of the references.

    Over patients; of a single one, over its images. Halves take every other image of each patient.

    Args:
        probes: the group.
        encoder: features to compare, on a scale that the probes had no part in (`encoders.standardised`) or on none.

    Returns:
        kid, kid_real, kid_images [drawn, real].
    """
    real = [encoder(probe.references) for probe in probes]
    drawn = [encoder(probe.drawn) for probe in probes]
    halves = [[rows[start::2] for rows in real if len(rows) >= 2] for start in (0, 1)]
    return {
        "kid": _kid(drawn, real),
        "kid_real": _kid(*halves),
        "kid_images": [sum(map(len, drawn)), sum(map(len, real))],
    }


def _kid(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float | None:
    """The distance over patients or, of a single one, over its images; None where there are too few."""
    if len(a) >= 2:
        return kid_over_patients(a, b)
    return kid(a[0], b[0]) if len(a) == 1 and min(len(a[0]), len(b[0])) >= 2 else None

"""Stage `train segmentation`: one segmenter per arm and seed, the best by validation patients."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from stedm.arms import FULL_ARM, ingredients, self_training_teacher, synthetic_set
from stedm.config import RunConfig
from stedm.data.laboratories import TARGET
from stedm.data.synthetic import SyntheticSet
from stedm.errors import UserError
from stedm.evaluation.choice import CRITERIA
from stedm.evaluation.segmentation import patch_scores
from stedm.models.segmenter import Segmenter
from stedm.stages.report_pictures import class_colours
from stedm.stages.run_folder import RunFolder, common_mpp, train_patches
from stedm.stages.self_training import self_labelled
from stedm.training.batches import Pairs, SegmentationBatches, ViewBatches
from stedm.training.consistency import Consistency, MeanTeacher, PseudoLabels
from stedm.training.loader import BatchOfStep
from stedm.training.stain_transfer import StainStatistics, StainTransfer, restained
from stedm.training.tasks import SegmentationTask
from stedm.training.trainer import BestByValidation, fit

DECODER = [64, 48, 32, 16]
"""Channels of the decoder's levels, coarse to fine; a fold of the pixels leaves out the coarsest."""


def train_segmenter(run: RunFolder, config: RunConfig, *, arm: str, seed: int) -> None:
    """Train one segmenter and write `segmentation/<arm>/seed<seed>/`."""
    options = config.segmentation
    patches = run.patches()
    torch.manual_seed(seed)
    segmenter = Segmenter(
        classes=run.classes(),
        encoder=options.encoder,
        decoder_channels=DECODER[options.space_to_depth.bit_length() - 1 :],
        space_to_depth=options.space_to_depth,
        mpp=common_mpp(patches),
        patch_px=config.prepare.patch_px,
        colours=list(class_colours(run.classes()).values()),
    )
    if options.encoder_weights:
        segmenter.load_encoder(options.encoder_weights)
    task = SegmentationTask(
        segmenter,
        consistency=_consistency(segmenter, config, arm),
        learning_rate=options.learning_rate,
        steps=options.steps,
        seed=seed,
    )
    batches = _batches(run, config, arm=arm, seed=seed)
    folder = run.segmenter(arm, seed)
    fit(task, batches, folder=folder, description=f"segmenter {arm} seed {seed}", best=_validation(run))
    task.trained.save_pretrained(folder)


def _consistency(segmenter: Segmenter, config: RunConfig, arm: str) -> list[Consistency]:
    """The losses on unannotated images that an arm has."""
    options = config.segmentation
    terms: dict[str, Callable[[], Consistency]] = {
        "mean-teacher": lambda: MeanTeacher(segmenter, steps=options.steps, weight=options.consistency_weight),
        "consistency": lambda: PseudoLabels(
            confidence=options.consistency_confidence, weight=options.consistency_weight
        ),
    }
    return [make() for name, make in terms.items() if name in ingredients(arm)]


def _batches(run: RunFolder, config: RunConfig, *, arm: str, seed: int) -> BatchOfStep:
    options, parts = config.segmentation, ingredients(arm)
    patches = train_patches(run.patches())
    real = patches[patches["has_mask"].astype(bool) if arm == FULL_ARM else patches["annotated"].astype(bool)]
    label_maps = run.hidden_label_maps(real) if arm == FULL_ARM else run.label_maps(real)
    labelled = SegmentationBatches(
        Pairs(run.images(real), label_maps),
        _machine_labelled(run, config, arm),
        batch_size=options.batch_size,
        synthetic_share=options.synthetic_share,
        stain=options.stain_strength if "stain" in parts else 0.0,
        seed=seed,
        transfer=_transfer(run, patches, real) if "transfer" in parts else None,
    )
    if not parts & {"mean-teacher", "consistency"}:
        return labelled
    others = patches[~patches["annotated"].astype(bool)]
    return ViewBatches(labelled, run.images(others if len(others) else patches), stain=options.stain_strength)


def _transfer(run: RunFolder, patches: pd.DataFrame, real: pd.DataFrame) -> tuple[StainTransfer, np.ndarray]:
    """Transfer from the patients of `real` to training patients without annotation (to all, if every one has some)."""
    sources = sorted(real["patient"].unique())
    own = patches["patient"].isin(sources)
    targets = patches[own if own.all() else ~own]
    return StainTransfer(_stains(run, patches[own]), _stains(run, targets)), np.searchsorted(sources, real["patient"])


def _stains(run: RunFolder, patches: pd.DataFrame) -> list[StainStatistics]:
    """What is measured of each patient's patches, patients sorted by name."""
    return [StainStatistics.measure(run.images(rows)) for _, rows in patches.groupby("patient")]


def _machine_labelled(run: RunFolder, config: RunConfig, arm: str) -> Pairs | None:
    """The pairs of an arm that no annotation labelled: synthetic ones, self-labelled ones, or as many of either."""
    name, teacher = synthetic_set(arm), self_training_teacher(arm)
    drawn = None if name is None else _synthetic(run, config, name)
    read = None if teacher is None else self_labelled(run, teacher)
    if drawn is None or read is None:
        return drawn or read
    return Pairs.evenly(drawn, read)


def _synthetic(run: RunFolder, config: RunConfig, name: str) -> Pairs:
    """The kept pairs of a synthetic set, hard ones oftener if asked for; of `unfiltered` all, with their layouts."""
    folder = run.synthetic_set(name)
    if name == "unfiltered":
        every = SyntheticSet(folder, mask="layout")
        rows = np.arange(len(every))
        return Pairs(every.images(rows), every.label_maps(rows))
    synthetic = SyntheticSet(folder)
    kept = synthetic.kept
    if len(kept) == 0:
        raise UserError(
            f"{folder / 'manifest.parquet'}: the filter kept no image; raise filter.least_kept, or look at "
            "diffusion/samples: does the generator follow its layouts?"
        )
    weight = synthetic.weights[kept] if config.filter.hard_sampling > 0 else None
    return Pairs(synthetic.images(kept), synthetic.label_maps(kept), weight)


def _validation(run: RunFolder) -> BestByValidation:
    """Mean IoU over validation patients: with a second laboratory, over their images in its patients' stains."""
    patches, classes = run.patches(), run.classes()
    val = patches[(patches["split"] == "val") & patches["annotated"]]
    images, label_maps = run.images(val), run.label_maps(val)
    training = train_patches(patches)
    others = training[training["laboratory"] == TARGET]
    criterion = "restained_iou" if len(others) else "validation_iou"
    if len(others) and len(val):
        images = restained(images, val["patient"].tolist(), _stains(run, others))

    def score(task: SegmentationTask) -> float:
        maps = task.trained.predict(images)
        return float(patch_scores(maps, label_maps, val, classes=classes)["iou"].mean())

    return BestByValidation(score, name=CRITERIA[criterion])

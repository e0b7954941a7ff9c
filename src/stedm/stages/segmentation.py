"""Stage `train segmentation`: one segmenter per arm and seed, the best by validation patients."""

import numpy as np
import pandas as pd
import torch

from stedm.config import FULL_ARM, RunConfig, ingredients
from stedm.data.synthetic import SyntheticSet
from stedm.errors import UserError
from stedm.evaluation.segmentation import confusion, patient_scores
from stedm.models.segmenter import Segmenter
from stedm.stages.run_folder import RunFolder, train_patches
from stedm.training.batches import SegmentationBatches
from stedm.training.tasks import SegmentationTask
from stedm.training.trainer import BestByValidation, fit

DECODER = [64, 48, 32, 16]
"""Channels of the decoder's levels, coarse to fine; a fold of the pixels leaves out the coarsest."""


def train_segmenter(run: RunFolder, config: RunConfig, *, arm: str, seed: int) -> None:
    """Train one segmenter and write `segmentation/<arm>/seed<seed>/`."""
    options = config.segmentation
    patches = run.patches()
    real = _full(run, patches) if arm == FULL_ARM else _annotated(run, patches)
    torch.manual_seed(seed)
    segmenter = Segmenter(
        classes=run.classes(),
        encoder=options.encoder,
        decoder_channels=DECODER[options.space_to_depth.bit_length() - 1 :],
        space_to_depth=options.space_to_depth,
        mpp=float(patches["mpp"].iloc[0]),
    )
    if options.encoder_weights:
        segmenter.load_encoder(options.encoder_weights)
    batches = SegmentationBatches(
        real,
        _synthetic(run) if "synthetic" in ingredients(arm) else None,
        batch_size=options.batch_size,
        synthetic_share=options.synthetic_share,
        stain=options.stain_strength if "stain" in ingredients(arm) else 0.0,
        seed=seed,
    )
    task = SegmentationTask(segmenter, learning_rate=options.learning_rate, steps=options.steps, seed=seed)
    folder = run.segmenter(arm, seed)
    best = BestByValidation(_validation(run, config), name="val_iou")
    fit(task, batches, folder=folder, description=f"segmenter {arm} seed {seed}", best=best)
    segmenter.save_pretrained(folder)


def _annotated(run: RunFolder, patches: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Images and label maps within the label budget."""
    annotated = train_patches(patches, annotated=True)
    return run.images(annotated), run.label_maps(annotated)


def _full(run: RunFolder, patches: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Images and label maps of every training patient that has masks."""
    training = train_patches(patches)
    masked = training[training["has_mask"].astype(bool)]
    return run.images(masked), run.hidden_label_maps(masked)


def _synthetic(run: RunFolder) -> tuple[np.ndarray, np.ndarray]:
    """The kept synthetic pairs."""
    synthetic = SyntheticSet(run.synthetic)
    kept = synthetic.kept
    if len(kept) == 0:
        raise UserError(
            f"{run.synthetic / 'manifest.parquet'}: the filter kept no image; lower filter.min_agreement, or look at "
            "diffusion/samples: does the generator follow its layouts?"
        )
    return synthetic.images(kept), synthetic.label_maps(kept)


def _validation(run: RunFolder, config: RunConfig):  # type: ignore[no-untyped-def]
    """Mean IoU over validation patients."""
    patches = run.patches()
    val = patches[(patches["split"] == "val") & patches["annotated"]]
    images, label_maps, classes = run.images(val), run.label_maps(val), run.classes()

    def score(task: SegmentationTask) -> float:
        maps = task.segmenter.predict(images)
        confusions = [confusion(p, y, len(classes)) for p, y in zip(maps, label_maps, strict=True)]
        table = patient_scores(val["patient"].tolist(), np.stack(confusions), classes=classes)
        return float(table["iou"].mean())

    return score

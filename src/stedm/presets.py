"""What `size` stands for: the one dial, from which every field left empty is derived."""

import dataclasses
from typing import Any

from stedm.arms import check_arm, first_round, self_training_teachers
from stedm.config import LAYOUT_KINDS, RunConfig
from stedm.errors import UserError

_MOST_SIDE_PX = 2**14
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        "autoencoder": {"channels": [16, 16], "steps": 8, "batch_size": 4},
        "diffusion": {
            "annotated_only_control": True,
            "style_images": 2,
            "channels": 16,
            "multipliers": [1, 2],
            "steps": 8,
            "batch_size": 8,
        },
        "few_step": {"pairs": 16, "steps": 4, "batch_size": 4},
        "generate": {"images": 48},
        "segmentation": {"encoder": "tu-test_resnet", "space_to_depth": 2, "steps": 8, "batch_size": 8},
    },
    "tiny": {
        "autoencoder": {"channels": [32, 64], "steps": 200, "batch_size": 32},
        "diffusion": {
            "annotated_only_control": True,
            "style_images": 2,
            "channels": 32,
            "multipliers": [1, 2],
            "steps": 1200,
            "batch_size": 8,
        },
        "few_step": {"pairs": 2048, "steps": 800, "batch_size": 16},
        "generate": {"images": 512},
        "segmentation": {"encoder": "tu-resnet10t", "space_to_depth": 2, "steps": 480, "batch_size": 16},
    },
    "small": {
        "autoencoder": {"channels": [32, 64], "steps": 800, "batch_size": 64},
        "diffusion": {
            "annotated_only_control": False,
            "style_images": 4,
            "channels": 64,
            "multipliers": [1, 2, 2],
            "steps": 4000,
            "batch_size": 32,
        },
        "few_step": {"pairs": 8192, "steps": 3000, "batch_size": 32},
        "generate": {"images": 2048},
        "segmentation": {"encoder": "resnet18", "space_to_depth": 1, "steps": 1600, "batch_size": 16},
    },
    "base": {
        "autoencoder": {"channels": [96, 192, 384], "steps": 20_000, "batch_size": 32},
        "diffusion": {
            "annotated_only_control": False,
            "style_images": 8,
            "channels": 128,
            "multipliers": [1, 2, 3, 4],
            "steps": 100_000,
            "batch_size": 64,
        },
        "few_step": {"pairs": 50_000, "steps": 50_000, "batch_size": 64},
        "generate": {"images": 20_000},
        "segmentation": {"encoder": "resnet34", "space_to_depth": 1, "steps": 5000, "batch_size": 32},
    },
}


def resolve(config: RunConfig) -> RunConfig:
    """Fill every field the user left empty from the preset of `size`, and refuse what cannot work."""
    changes: dict[str, Any] = {}
    for section, preset in PRESETS[config.size].items():
        options = getattr(config, section)
        if section == "segmentation" and options.encoder_weights:
            preset = preset | {"space_to_depth": 1}  # such weights expect unfolded pixels
        missing = {key: value for key, value in preset.items() if getattr(options, key) is None}
        changes[section] = dataclasses.replace(options, **missing)
    resolved = dataclasses.replace(config, **changes)
    _check(resolved)
    return resolved


def _check(config: RunConfig) -> None:
    """Refuse nonsense before anything runs, naming the key and the fix."""
    _check_lists(config)
    _check_shares(config)
    _check_counts(config)
    _check_numbers(config)
    _check_unfolding(config)
    _check_style_encoder(config)
    _check_experiment(config)
    _check_patch_px(config)
    _check_target(config)
    _check_table(config)
    _check_layouts(config)


def _check_layouts(config: RunConfig) -> None:
    kinds = config.generate.layouts.split("+")
    if not set(kinds) <= set(LAYOUT_KINDS) or len(set(kinds)) < len(kinds):
        raise UserError(f"generate.layouts: {config.generate.layouts!r}; join some of {', '.join(LAYOUT_KINDS)} by +")
    if config.generate.composition is not None and "prior" not in kinds:
        raise UserError("generate.composition: only prior layouts take fractions; add prior to generate.layouts")


def _check_lists(config: RunConfig) -> None:
    for arm in config.segmentation.arms:
        check_arm(arm)
    for key in ("seeds", "arms"):
        values = getattr(config.segmentation, key)
        if len(set(values)) < len(values):
            raise UserError(f"segmentation.{key}: {values} names one twice; remove it")
    self_training_teachers(config.segmentation.arms)
    first_round(config.segmentation.arms)


def _check_shares(config: RunConfig) -> None:
    shares = {
        "diffusion.unlabelled_share": config.diffusion.unlabelled_share,
        "diffusion.layout_dropout": config.diffusion.layout_dropout,
        "diffusion.style_dropout": config.diffusion.style_dropout,
        "diffusion.unknown_share": config.diffusion.unknown_share,
        "segmentation.synthetic_share": config.segmentation.synthetic_share,
        "segmentation.consistency_confidence": config.segmentation.consistency_confidence,
        "segmentation.self_training_confidence": config.segmentation.self_training_confidence,
        "filter.min_agreement": config.filter.min_agreement,
        "filter.least_kept": config.filter.least_kept,
        "diffusion.ema_decay": config.diffusion.ema_decay,
        "prepare.min_tissue": config.prepare.min_tissue,
    }
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{key}: {value} is not a share; give a number from 0 to 1")


def _check_counts(config: RunConfig) -> None:
    at_least_one = {
        "generate.nfe": 1 if config.generate.nfe is None else config.generate.nfe,
        "generate.style_images": config.generate.style_images,
        "autoencoder.latent_channels": config.autoencoder.latent_channels,
        "autoencoder.channels": len(config.autoencoder.channels),
        "diffusion.multipliers": len(config.diffusion.multipliers),
        "few_step.nfe": config.few_step.nfe,
        "few_step.teacher_nfe": config.few_step.teacher_nfe,
        "few_step.pairs": config.few_step.pairs,
        "few_step.steps": config.few_step.steps,
        "few_step.batch_size": config.few_step.batch_size,
        "generate.images": config.generate.images,
        "generate.batch_size": config.generate.batch_size,
        "diffusion.style_images": config.diffusion.style_images,
        "diffusion.style_dim": config.diffusion.style_dim,
        "autoencoder.batch_size": config.autoencoder.batch_size,
        "diffusion.batch_size": config.diffusion.batch_size,
        "segmentation.batch_size": config.segmentation.batch_size,
        "evaluate.bootstrap": config.evaluate.bootstrap,
        "evaluate.style_patients": config.evaluate.style_patients,
        "evaluate.images_per_style": config.evaluate.images_per_style,
        "diffusion.steps": config.diffusion.steps,
        "autoencoder.steps": config.autoencoder.steps,
        "segmentation.steps": config.segmentation.steps,
        "segmentation.arms": len(config.segmentation.arms),
        "segmentation.seeds": len(config.segmentation.seeds),
    }
    for key, number in at_least_one.items():
        if number < 1:
            raise UserError(f"{key}: {number} is too few; give 1 or more")
    if config.segmentation.stain_strength < 0:
        raise UserError(f"segmentation.stain_strength: {config.segmentation.stain_strength} is below 0; 0 changes none")
    if config.filter.hard_sampling < 0:
        raise UserError(f"filter.hard_sampling: {config.filter.hard_sampling} is below 0; 0 draws all images alike")
    if config.split.unseen_patients < 0:
        raise UserError(f"split.unseen_patients: {config.split.unseen_patients} is too few; give 0 or more")
    for section in ("autoencoder", "diffusion", "few_step", "segmentation"):
        learning_rate = getattr(config, section).learning_rate
        if not 0 < learning_rate < float("inf"):
            raise UserError(f"{section}.learning_rate: {learning_rate} is not above 0; 1e-3 is a good start")


def _check_numbers(config: RunConfig) -> None:
    split = {"split.seed": config.split.seed, "split.draw": config.split.draw}
    seeds = {"seed": config.seed, **split, "cohort.phantom.seed": config.cohort.phantom.seed}
    for key, seed in [*seeds.items(), *(("segmentation.seeds", seed) for seed in config.segmentation.seeds)]:
        if seed < 0:
            raise UserError(f"{key}: {seed} is below 0; give 0 or more")
    resolution = config.prepare.mpp
    if resolution is not None and not 1e-4 <= resolution <= 1e4:
        raise UserError(f"prepare.mpp: {resolution} are no microns per pixel of an image; 0.5 is a microscope's")


def _check_unfolding(config: RunConfig) -> None:
    options = config.segmentation
    if options.space_to_depth not in (1, 2, 4):
        raise UserError(f"segmentation.space_to_depth: {options.space_to_depth} is not 1, 2 or 4; change it to one")
    if options.encoder_weights and options.space_to_depth != 1:
        raise UserError("segmentation.encoder_weights expect unfolded pixels; set segmentation.space_to_depth: 1")


def _check_style_encoder(config: RunConfig) -> None:
    options = config.diffusion
    for key in ("style_weights", "freeze_style_encoder"):
        if options.style_encoder == "conv" and getattr(options, key):
            raise UserError(
                f"diffusion.{key}: diffusion.style_encoder is `conv`, which always learns from scratch; name a timm"
                " backbone there, or remove the key"
            )


def _check_experiment(config: RunConfig) -> None:
    budgets, draws, folds = config.experiment.budgets, config.experiment.draws, config.experiment.folds
    fold = config.split.fold
    if len(set(budgets)) < len(budgets):
        raise UserError(f"experiment.budgets: {budgets} names one twice; remove it")
    for budget in budgets:
        if budget != "all" and budget < 1:
            raise UserError(f"experiment.budgets: {budget} is too few; give 1 or more, or all")
    for name, number in (("draws", draws), ("folds", folds)):
        if number < 1:
            raise UserError(f"experiment.{name}: {number} is too few; give 1 or more")
    if draws > 1 and config.split.draw:
        raise UserError("experiment.draws takes draw after draw; remove split.draw, which names one")
    if draws > 1 and set(budgets or [config.split.label_budget or "all"]) == {"all"}:
        raise UserError("experiment.draws: with everyone annotated there is one draw; set a label budget, or remove it")
    if (budgets or draws > 1 or config.split.draw) and config.split.annotated:
        raise UserError(
            "split.annotated names the annotated patients; remove it, or experiment.budgets, experiment.draws and"
            " split.draw"
        )
    if fold is not None and not (len(fold) == 2 and 0 <= fold[0] < fold[1] >= 2):
        raise UserError(f"split.fold: {fold} is not [j, n] with n of 2 or more and j from 0 to n - 1")
    if folds > 1 and fold is not None:
        raise UserError("experiment.folds tests fold after fold; remove split.fold, which names one")
    if (folds > 1 or fold is not None) and config.split.annotated and config.cohort.target is None:
        raise UserError("split.annotated: a patient that is tested in some fold cannot always be annotated; remove it")


def _check_target(config: RunConfig) -> None:
    target = config.cohort.target
    if target is None:
        return
    if target.table is None:
        raise UserError("cohort.target.table is missing: name the second laboratory's table, or remove the section")
    if config.cohort.table is None:
        raise UserError("cohort.target needs cohort.table, the laboratory with annotated patients; name that table too")
    if config.prepare.mpp is None:
        raise UserError(
            "prepare.mpp is missing: with cohort.target, give the microns per pixel both laboratories are brought to"
        )


def _check_table(config: RunConfig) -> None:
    """A table that was forgotten must not make the run one of the procedural cohort."""
    given = [key for key in ("labels", "columns", "mpp") if getattr(config.cohort, key)]
    if given and config.cohort.table is None:
        raise UserError(
            f"cohort.table is missing, and cohort.{given[0]} are of a table: name your table, or leave both out for the"
            " procedural cohort"
        )


def _check_patch_px(config: RunConfig) -> None:
    multiple = config.autoencoder.space_to_depth * 2 ** (
        len(config.autoencoder.channels) + len(config.diffusion.multipliers) - 2
    )
    multiple = max(16, multiple)
    for key, side_px in (
        ("prepare.patch_px", config.prepare.patch_px),
        ("cohort.phantom.slide_px", config.cohort.phantom.slide_px),
    ):
        if not 1 <= side_px <= _MOST_SIDE_PX:
            raise UserError(f"{key}: {side_px} is not from 1 to {_MOST_SIDE_PX}; correct it")
    if config.prepare.patch_px % multiple:
        raise UserError(
            f"prepare.patch_px: {config.prepare.patch_px} is not a multiple of {multiple}; change it to one"
        )

"""One dataclass per stage. `size` is the one dial: every field left at None is derived from it (see presets.py)."""

from dataclasses import dataclass, field
from typing import Literal, Optional

from stedm.arms import ARMS, FULL_ARM, SYNTHETIC_SETS, ingredients  # noqa: F401 (an arm is part of the config)
from stedm.config_cohort import CohortConfig as CohortConfig
from stedm.config_cohort import PhantomConfig as PhantomConfig
from stedm.config_cohort import TargetConfig as TargetConfig
from stedm.config_experiment import ExperimentConfig

IGNORE = 255
"""Label value of pixels that are neither trained on nor counted."""


@dataclass
class SplitConfig:
    """Who is annotated, who validates, who tests: always whole patients."""

    label_budget: Optional[int] = 4
    """Number of training patients treated as annotated; null uses every training patient that has masks."""
    annotated: Optional[list[str]] = None
    """Patients treated as annotated, by name; overrides `label_budget`."""
    draw: int = 0
    """Who is annotated, other things equal: 0, 1, 2, ... draw other patients, and validation, test and unseen patients
    stay."""
    val_patients: int = 8
    """Validation patients drawn when the table has no `split` column."""
    test_patients: int = 24
    """Test patients drawn when the table has no `split` column."""
    unseen_patients: int = 0
    """Unannotated training patients set aside: trained on by no stage, they lend never-seen styles to `evaluate`."""
    fold: Optional[list[int]] = None
    """[j, n]: patients with masks (of a target laboratory, if there is one) are dealt into n folds, and fold j (0 to
    n - 1) is tested; for `test_patients`."""
    keep_source: bool = False
    """With a target laboratory: the first one's patients beyond annotated and validation train too, unannotated."""
    seed: int = 0
    """Seed of the draw."""


@dataclass
class PrepareConfig:
    """How slides and images become patches."""

    patch_px: int = 64
    """Patch width and height, pixels; a multiple of 16."""
    mpp: Optional[float] = None
    """Microns per pixel of the patches; each image's own resolution when not given."""
    min_tissue: float = 0.05
    """Patches with a smaller tissue fraction (0 to 1) are left out; 0 keeps everything (natural images)."""


@dataclass
class AutoencoderConfig:
    """The first stage: image <-> latent."""

    pretrained: Optional[str] = None
    """Local folder or hub id of a diffusers AutoencoderKL to use instead of training one."""
    space_to_depth: int = 2
    """Pixels folded into channels before the first convolution, so that nothing runs at full resolution."""
    latent_channels: int = 8
    """Channels of the latent."""
    channels: Optional[list[int]] = None
    """Channels per resolution level; each level after the first halves the resolution."""
    steps: Optional[int] = None
    """Optimiser steps."""
    batch_size: Optional[int] = None
    """Images per step."""
    learning_rate: float = 4e-3
    """Peak learning rate."""
    kl_weight: float = 1e-4
    """Weight of the KL term, relative to the L1 reconstruction."""
    latent_noise: float = 0.3
    """Most noise the decoder meets in training, in standard deviations of the latent; drawn latents are never exact."""


@dataclass
class DiffusionConfig:
    """The style-extracting diffusion model."""

    unlabelled_share: float = 0.5
    """Share of unannotated images per batch, 0 to 1; 0 trains on annotated images only, as the original does."""
    style_set: Literal["self", "nearby", "slide", "patient"] = "patient"
    """Where the style images of a training image come from."""
    style_images: Optional[int] = None
    """Images per style set in training."""
    nearby_um: float = 500.0
    """Radius of `nearby` style sets, microns."""
    style_encoder: str = "conv"
    """`conv` (small, from scratch) or the name of a timm backbone."""
    style_weights: Optional[str] = None
    """Local folder or hub id of the timm backbone's weights; random initialisation when not given."""
    freeze_style_encoder: bool = False
    """Keep the timm backbone's weights as they are; what pools its features is trained all the same."""
    style_pooling: Literal["class", "image"] = "class"
    """One style vector for each layout class, from where it is in the style images (no mask needed), or one for all."""
    style_prior: Literal["learned", "standard"] = "learned"
    """Mean and spread of each class's latent, measured in the style images; `standard`: the same for every style."""
    aggregation: Literal["mean", "max", "linear", "attention"] = "attention"
    """How the images of a style set become one style."""
    injection: Literal["all", "bottleneck"] = "all"
    """Style in every residual block, or once as a bias in the middle (the original's way)."""
    style_dim: int = 128
    """Length of the style vector."""
    style_dropout: float = 0.1
    """Probability of the null style in training."""
    layout_dropout: float = 0.15
    """Probability of the null layout in training."""
    unknown_share: float = 0.3
    """Probability that part of a layout is hidden (set to unknown) in training."""
    pseudo_confidence: Optional[float] = 0.8
    """Mean confidence from which an unannotated image gets a real-trained segmenter's reading as layout; null: no."""
    pseudo_use: Literal["layout", "style"] = "layout"
    """Those readings are layouts to draw by and teach the style encoder where classes are; `style`: only the latter."""
    annotated_only_control: Optional[bool] = None
    """Also train the generator on the annotated images alone, as many as ours sees; its grid is in the report."""
    channels: Optional[int] = None
    """Channels of the U-Net's finest level."""
    multipliers: Optional[list[int]] = None
    """Channel multiplier per level; each level after the first halves the resolution."""
    steps: Optional[int] = None
    """Optimiser steps."""
    batch_size: Optional[int] = None
    """Images per step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    ema_decay: float = 0.995
    """Decay of the exponential moving average that is sampled and saved."""
    sharded: bool = False
    """Several processes share out the weights of the generator in training (FSDP), the few-step one's too: less memory,
    more messages, the same result. Pays where a GPU has no room for a copy; no effect on one process."""


@dataclass
class FewStepConfig:
    """The few-step generator: trained on pairs (noise, image) that the full, guided generator draws."""

    pairs: Optional[int] = None
    """Pairs the full generator draws."""
    teacher_nfe: int = 20
    """Network function evaluations behind each pair."""
    nfe: int = 4
    """Network function evaluations of the few-step generator."""
    steps: Optional[int] = None
    """Optimiser steps."""
    batch_size: Optional[int] = None
    """Pairs per step."""
    learning_rate: float = 1e-3
    """Peak learning rate."""


LAYOUT_KINDS = ("real", "prior", "read")
"""What `generate.layouts` joins."""


@dataclass
class GenerateConfig:
    """The synthetic set."""

    images: Optional[int] = None
    """Synthetic images to draw."""
    layouts: str = "real+prior+read"
    """Kinds joined by +, which take turns: `real`, warped annotated label maps; `prior`, random fields matched to them;
    `read`, what a real-trained segmenter sees in images of unannotated patients, warped, if there are any."""
    composition: Optional[str] = None
    """CSV of the fractions of prior layouts: column `group` (`*`: any other), one per class; rows are alternatives."""
    styles: Literal["unannotated", "annotated", "none"] = "unannotated"
    """Patients whose styles are drawn (annotated ones if all are, by `label_budget` null); `none`: without a style."""
    style_images: int = 4
    """Images per style set in sampling; `linear` aggregation takes as many as in training, whatever stands here."""
    generator: Literal["full", "few-step"] = "full"
    """`few-step`: also train one that needs no guidance and few evaluations (section `few_step`), and draw with it."""
    solver: Optional[Literal["euler", "heun", "multistep"]] = None
    """ODE solver; the generator's own when not given, as for the next six."""
    nfe: Optional[int] = None
    """Network function evaluations per image and guidance branch."""
    guidance: Optional[Literal["nested", "composed"]] = None
    """How the two guidance scales combine (see diffusion/sampling.py)."""
    layout_guidance: Optional[float] = None
    """Layout guidance scale; 1 means none."""
    style_guidance: Optional[float] = None
    """Style guidance scale; 1 means none."""
    grain: Optional[float] = None
    """How much of the scanner's noise that the style set shows is added; 0 adds none."""
    bands: Optional[float] = None
    """How far, 0 to 1, the colours of each octave are moved to those of the style set."""
    batch_size: int = 64
    """Images per sampling batch; another changes images by rounding alone: a few pixel values, by one grey level."""


@dataclass
class FilterConfig:
    """What a real-trained segmenter makes of each synthetic pair: it is always asked, and heeded where these say so.

    Off by default: within a laboratory it was worth nothing that could be seen, between two it harmed
    (benchmarks/results/shift.md).
    """

    tolerance: Optional[float] = None
    """Pixels whose loss exceeds `tolerance` x their class's mean loss on real data become ignore; null: none do."""
    max_loss: float = 1.0
    """Pixels with a cross entropy below this many nats are never ignored, however easy their class is on real data."""
    min_agreement: float = 0.0
    """Images whose layout agreement (mean IoU, 0 to 1) with it is lower are dropped, 0.5 say; 0 keeps all."""
    least_kept: float = 0.1
    """Share of the images, those of highest agreement, that stays whatever `min_agreement` says; the report warns."""
    hard_sampling: float = 0.0
    """How much oftener images with layouts and styles that are hard for the segmenter are drawn in training; 0: not."""


@dataclass
class SegmentationConfig:
    """The segmentation network and its training recipes."""

    arms: list[str] = field(default_factory=lambda: list(ARMS))
    """Recipes: `real` and any of stain, transfer, a synthetic set (synthetic, second-round, unfiltered, unstyled,
    annotated-only), self-training, mean-teacher, consistency, joined by + in this order; or `full`, on all masks."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """One training per arm and seed."""
    encoder: Optional[str] = None
    """Encoder of the segmentation-models-pytorch U-Net; `tu-NAME` takes any timm backbone."""
    encoder_weights: Optional[str] = None
    """Local folder or hub id of encoder weights; random initialisation when not given."""
    space_to_depth: Optional[int] = None
    """Pixels folded into channels before the network, which is then 4 x cheaper for 2; 1 with `encoder_weights`."""
    steps: Optional[int] = None
    """Optimiser steps, the same for every arm."""
    batch_size: Optional[int] = None
    """Images per step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    synthetic_share: float = 0.5
    """Share of each batch that is synthetic, self-labelled, or half and half, in the arms that have such images."""
    stain_strength: float = 1.0
    """Strength of the stain augmentation in the arms that have it, and of the strongly changed unannotated images."""
    consistency_weight: float = 1.0
    """Weight of the loss on unannotated images in the arms with mean-teacher or consistency."""
    consistency_confidence: float = 0.9
    """Pixels of unannotated images whose class is at least this sure become labels in the arms with consistency."""
    self_training_confidence: float = 0.6
    """The same, in the arms with self-training, where several segmenters label an image together."""


@dataclass
class EvaluateConfig:
    """Statistics over patients, and what the generator is measured on."""

    bootstrap: int = 5000
    """Bootstrap resamples."""
    style_patients: int = 8
    """Style patients the generator is measured on, at most: as many unannotated but seen, and as many never seen."""
    images_per_style: int = 24
    """Images drawn for each of them."""
    kid_encoder: Optional[str] = None
    """Features of the KID: fixed; a timm model's folder or hub id; `inception:PATH`, torch-fidelity's weights file."""


@dataclass
class RunConfig:
    """Everything a run depends on: a section a stage. `size` presets what is left empty."""

    size: Literal["smoke", "tiny", "small", "base"] = "tiny"
    """One dial: `smoke` (tests), `tiny` (two CPU cores, minutes), `small`, `base` (a GPU)."""
    seed: int = 0
    """Seed of training, planning and sampling."""
    cohort: CohortConfig = field(default_factory=CohortConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    few_step: FewStepConfig = field(default_factory=FewStepConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)

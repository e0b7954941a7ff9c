"""The graph of a run: every stage, and what it reads."""

import dataclasses
import functools

from stedm.arms import (
    FULL_ARM,
    OUR_SETS,
    SECOND_ROUND,
    ingredients,
    self_training_teacher,
    self_training_teachers,
    synthetic_set,
)
from stedm.config import (
    AutoencoderConfig,
    CohortConfig,
    DiffusionConfig,
    EvaluateConfig,
    GenerateConfig,
    RunConfig,
    SplitConfig,
)
from stedm.data.composition import composition_digest
from stedm.stage import Stage, keys_of, later
from stedm.stages.inputs import inputs_of
from stedm.stages.own_encoders import kid_digest, weights_digest
from stedm.stages.prepare import CUT_AS, prepare
from stedm.stages.run_folder import JUDGE_ARM, TEACHER_ARM, RunFolder, teachers, together
from stedm.stages.sampling_settings import check_sampling


def stages_of(config: RunConfig, run: RunFolder) -> list[Stage]:
    """Every stage of a run, in order; first stage and ceiling are the same for every label budget.

    Not so with a second laboratory unless `keep_source`: then the budget decides who of the first is trained on at all.
    Raises UserError for sampling settings that no generator takes.
    """
    check_sampling(config.generate)
    digest = f"{inputs_of(config.cohort, run.data).digest} {CUT_AS}"
    blind = () if _leaves_out_unannotated(config) else ("autoencoder", f"segmentation {FULL_ARM} ")
    return [
        _whoever_is_annotated(stage, digest) if stage.name.startswith(blind) else stage
        for stage in _stages(config, run, digest)
    ]


def _stages(config: RunConfig, run: RunFolder, digest: str) -> list[Stage]:
    names = [(arm, seed) for arm in config.segmentation.arms for seed in config.segmentation.seeds]
    judge = (JUDGE_ARM, config.seed)
    others = [name for name in (*names, *([] if judge in names else [judge])) if name != (TEACHER_ARM, config.seed)]
    control = _control_stages(run, config)
    return [
        Stage(
            "prepare",
            functools.partial(prepare, run.data, config),
            run.data,
            (*_cohort_keys(), "split", "prepare"),
            (),
            extra=digest,
        ),
        Stage(
            "autoencoder",
            later("autoencoder.train_autoencoder", run, config),
            run.autoencoder,
            ("seed", *keys_of("autoencoder", AutoencoderConfig, without=("pretrained",))),
            ("prepare",),
            extra=weights_digest(config.autoencoder.pretrained, key="autoencoder.pretrained"),
        ),
        _segmenter_stage(run, config, TEACHER_ARM, config.seed),
        *_generator_stages(run, config),
        *control,
        *_segmenter_stages(run, config, others),
        Stage(
            "measure",
            later("measure.measure", run, config),
            run.evaluation,
            ("seed", *keys_of("evaluate", EvaluateConfig, without=("bootstrap", "kid_encoder"))),
            ("filter", _segmenter_name(*judge)),
            marker="measure.json",
            extra="colour drift "  # what it measures more than older versions of this format did
            + kid_digest(config.evaluate.kid_encoder, measured=run.evaluation / "generation.json"),
        ),
        Stage(
            "evaluate",
            later("evaluate.evaluate", run, config),
            run.evaluation,
            ("evaluate.bootstrap", "seed", "segmentation.arms", "segmentation.seeds"),
            ("measure", *(_segmenter_name(*name) for name in names)),
            keeps_folder=True,
            extra="main group",  # what a patient counts in: older versions of this format took the first patch's
        ),
        Stage(
            "report",
            later("report.report", run.root),
            run.report,
            ("cohort.licence",),
            ("evaluate", *(stage.name for stage in control if stage.name == "control")),
        ),
    ]


def _generator_stages(run: RunFolder, config: RunConfig) -> list[Stage]:
    """The generator, the synthetic set and the filter."""
    options = config.diffusion
    reads = options.pseudo_confidence is not None and options.unlabelled_share > 0
    pseudo = (_segmenter_name(TEACHER_ARM, config.seed),) if reads else ()
    few = config.generate.generator == "few-step"
    keys = _generator_keys("annotated_only_control")
    return [
        Stage(
            "diffusion",
            later("diffusion.train_diffusion", run, config),
            run.diffusion,
            keys,
            ("prepare", "autoencoder", *pseudo),
            extra=_style_weights(config),
        ),
        *([_few_step_stage(run, config)] if few else []),
        *_synthetic_stages(run, config, "synthetic"),
    ]


def _synthetic_stages(run: RunFolder, config: RunConfig, name: str) -> list[Stage]:
    """Draw and filter a synthetic set: ours, or a control, which has its own styles and is never drawn in few steps."""
    ours, folder = name in OUR_SETS, run.synthetic_set(name)
    few = ours and config.generate.generator == "few-step"
    generator = "control" if name == "annotated-only" else "few-step" if few else "diffusion"
    fixed = {"unstyled": ("styles", "generator"), "annotated-only": ("generator",)}
    unread = ("batch_size", "composition", *fixed.get(name, ()))
    return [
        Stage(
            _synthetic_name("generate", name),
            later("generate.generate", run, config, name=name),
            folder,
            ("seed", *keys_of("generate", GenerateConfig, without=unread)),
            (generator, *_readers(config, name)),
            extra=composition_digest(config.generate.composition),
        ),
        Stage(
            _synthetic_name("filter", name),
            later("filter.filter_synthetic", run, config, name=name),
            folder,
            ("filter", "seed"),
            (_synthetic_name("generate", name), *(_segmenter_name(*teacher) for teacher in teachers(config, name))),
            marker="filter.json",
            keeps_folder=True,
        ),
    ]


def _readers(config: RunConfig, name: str) -> list[str]:
    """The segmenters that a set's layouts are read by, if some are."""
    read = "read" in config.generate.layouts.split("+")
    return [_segmenter_name(*teacher) for teacher in teachers(config, name)] if read else []


def _synthetic_name(verb: str, name: str) -> str:
    return verb if name == "synthetic" else f"{verb} {name}"


def _control_stages(run: RunFolder, config: RunConfig) -> list[Stage]:
    """The control generator and the control sets, where the config or an arm asks for them."""
    wanted = {synthetic_set(arm) for arm in config.segmentation.arms}
    with_generator = config.diffusion.annotated_only_control or "annotated-only" in wanted
    sets = [name for name in ("unstyled", "annotated-only") if name in wanted]
    return [
        *([_control_stage(run, config)] if with_generator else []),
        *(stage for name in sets for stage in _synthetic_stages(run, config, name)),
    ]


def _control_stage(run: RunFolder, config: RunConfig) -> Stage:
    """The same generator on annotated images alone (its steps follow from the share of the others)."""
    return Stage(
        "control",
        later("diffusion.train_control", run, config),
        run.control,
        _generator_keys("annotated_only_control", "pseudo_confidence", "pseudo_use"),
        ("prepare", "autoencoder"),
        extra=_style_weights(config),
    )


def _whoever_is_annotated(stage: Stage, digest: str) -> Stage:
    """The same stage for every label budget and draw, which move no patient into or out of the training images.

    Patches and roles follow from these keys and `digest`, that of the inputs and of how they are cut.
    """
    keys = (*stage.keys, *_cohort_keys(), "prepare", *keys_of("split", SplitConfig, without=("label_budget", "draw")))
    return dataclasses.replace(stage, keys=keys, needs=(), after=stage.needs, extra=f"{stage.extra} {digest}")


def _leaves_out_unannotated(config: RunConfig) -> bool:
    """Whether training patients who are not annotated are left out: those of the source, beside a target."""
    return _two_laboratories(config) and not config.split.keep_source


def _two_laboratories(config: RunConfig) -> bool:
    """Whether another laboratory than the annotated one is named, or drawn."""
    cohort, phantom = config.cohort, config.cohort.phantom
    drawn = cohort.table is None and (phantom.annotated_families is not None or phantom.annotated_scanners is not None)
    return cohort.target is not None or drawn


def _cohort_keys() -> tuple[str, ...]:
    """What the patches depend on: of the cohort all but its licence."""
    return keys_of("cohort", CohortConfig, without=("licence",))


def _generator_keys(*without: str) -> tuple[str, ...]:
    """What a generator's training reads, and its result depends on: not on who keeps which weights meanwhile.

    `_style_weights` has the weights of the style encoder, wherever they are.
    """
    unread = (*without, "sharded", "style_weights")
    return ("seed", "prepare.patch_px", *keys_of("diffusion", DiffusionConfig, without=unread))


def _style_weights(config: RunConfig) -> str:
    return weights_digest(config.diffusion.style_weights, key="diffusion.style_weights")


def _few_step_stage(run: RunFolder, config: RunConfig) -> Stage:
    """The generator of few steps; its pairs are drawn as the synthetic set is."""
    drawing = keys_of("generate", GenerateConfig, without=("batch_size", "images", "composition"))
    return Stage(
        "few-step",
        later("few_step.train_few_step", run, config),
        run.few_step,
        ("seed", "few_step", "diffusion.ema_decay", *drawing),
        ("diffusion", *_readers(config, "synthetic")),
        extra=composition_digest(config.generate.composition),
    )


def _segmenter_name(arm: str, seed: int) -> str:
    return f"segmentation {arm} seed {seed}"


def _segmenter_stages(run: RunFolder, config: RunConfig, names: list[tuple[str, int]]) -> list[Stage]:
    """The segmenters; before those that learn from what others read, in drawn images or in real ones, such images."""
    students = [name for name in names if self_training_teacher(name[0])]
    second = [name for name in names if synthetic_set(name[0]) == SECOND_ROUND and name not in students]
    return [
        *(_segmenter_stage(run, config, *name) for name in names if name not in (*second, *students)),
        *(_synthetic_stages(run, config, SECOND_ROUND) if second else []),
        *(_segmenter_stage(run, config, *name) for name in second),
        *(_labelling_stage(run, config, arm) for arm in self_training_teachers(config.segmentation.arms)),
        *(_segmenter_stage(run, config, *name) for name in students),
    ]


def _labelling_stage(run: RunFolder, config: RunConfig, arm: str) -> Stage:
    """Label the unannotated images by the segmenters of `arm`, for those that train with them."""
    return Stage(
        _labelling_name(arm),
        later("self_training.label_unannotated", run, config, arm=arm),
        run.self_training / arm,
        ("segmentation.self_training_confidence",),
        ("prepare", *(_segmenter_name(*teacher) for teacher in together(config, arm))),
    )


def _labelling_name(arm: str) -> str:
    return f"self-training {arm}"


def _segmenter_stage(run: RunFolder, config: RunConfig, arm: str, seed: int) -> Stage:
    parts, name, teacher = ingredients(arm), synthetic_set(arm), self_training_teacher(arm)
    keys = ["encoder", "space_to_depth", "steps", "batch_size", "learning_rate"]
    keys += ["stain_strength"] if parts & {"stain", "mean-teacher", "consistency"} else []
    keys += ["synthetic_share"] if name or teacher else []
    keys += ["consistency_weight"] if parts & {"mean-teacher", "consistency"} else []
    keys += ["consistency_confidence"] if "consistency" in parts else []
    weights = weights_digest(config.segmentation.encoder_weights, key="segmentation.encoder_weights")
    pairs = {None: (), "unfiltered": ("generate",)}.get(name, (_synthetic_name("filter", name or ""),))
    return Stage(
        _segmenter_name(arm, seed),
        later("segmentation.train_segmenter", run, config, arm=arm, seed=seed),
        run.segmenter(arm, seed),
        tuple(f"segmentation.{key}" for key in keys),
        ("prepare", *pairs, *([_labelling_name(teacher)] if teacher else [])),
        extra=f"{arm} {seed} {weights}" + (" re-stained validation" if _two_laboratories(config) else ""),
    )

"""The generator's figures on made-up generators: one that obeys, one that ignores its conditions, one that copies."""

import dataclasses
import importlib.util

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from stedm.data.phantom import draw_layout, draw_style, render
from stedm.errors import UserError
from stedm.evaluation.encoders import FIXED, kid_encoder, standardised
from stedm.evaluation.features import kid_features
from stedm.evaluation.generation import kid, kid_over_patients
from stedm.evaluation.probe import FIGURES, StyleProbe, group_figures, kid_figures, probe_scale, real_agreement
from stedm.stages.measure import _memorisation, not_compared
from stedm.stages.probe import style_groups
from stedm.stages.report_generation import style_table

CLASSES = ["background", "stroma", "epithelium"]


def _style(number: int):
    return draw_style(("he", "ihc")[number % 2], np.random.default_rng([3, number]), score=3)


def _drawn(layouts: np.ndarray, number: int, *, seed: int) -> np.ndarray:
    rngs = [np.random.default_rng([seed, k]) for k in range(len(layouts))]
    return np.stack([render(layout, _style(number), rng) for layout, rng in zip(layouts, rngs, strict=True)])


def _layouts(seed: int, count: int) -> np.ndarray:
    return np.stack([draw_layout(64, np.random.default_rng([seed, k])) for k in range(count)])


def probe(number: int, **changes: np.ndarray) -> StyleProbe:
    """A patient and a perfect generator, read by a perfect judge."""
    real_maps, layouts = _layouts(10 + number, 10), _layouts(99, 8)
    layouts[-3:] = layouts[-4]
    real = _drawn(real_maps, number, seed=20 + number)
    fields = {
        "patient": f"p{number}",
        "style_images": real[:4],
        "style_maps": real_maps[:4],
        "references": real[4:],
        "reference_maps": real_maps[4:],
        "annotated": np.ones(10, bool),
        "readings": real_maps,
        "drawn": _drawn(layouts, number, seed=40 + number),
        "layouts": layouts,
        "drawn_readings": layouts,
        "elsewhere": _drawn(layouts, number + 1, seed=60 + number),
    }
    return StyleProbe(**fields | changes, repeats=4, num_classes=3)


@pytest.fixture(scope="module")
def perfect() -> list[StyleProbe]:
    return [probe(number) for number in range(3)]


def figures(probes: list[StyleProbe], *, agreement_real: float | None = 0.8) -> dict:
    return group_figures(
        probes,
        scale=probe_scale(probes),
        classes=CLASSES,
        encoder=standardised(kid_features, np.concatenate([p.style_images for p in probes])),
        agreement_real=agreement_real,
    )


def test_perfect_generator_reaches_the_floors(perfect):
    found = figures(perfect)
    assert tuple(found) == FIGURES and None not in found.values()
    assert found["style_ratio"] < 0.15 and found["style_sensitivity"] == 1 - found["style_ratio"]
    assert found["style_distance_matched"] - found["style_distance_real"] < 0.1 * found["style_distance_shuffled"]
    assert found["colour_mean_error"] < 2 * found["colour_mean_error_real"] < 0.05
    assert 0 <= found["colour_mean_drift"] <= found["colour_mean_error"]
    assert found["layout_agreement"] == 1 and found["layout_agreement_relative"] == 1 / 0.8
    assert found["layout_sensitivity"] > 0.3 and 0.2 < found["diversity"] < 1.5
    assert found["kid_images"] == [24, 18] and set(found["style_ratio_by_class"]) == set(CLASSES)
    assert real_agreement(perfect) == 1


def test_one_colour_for_all_is_a_drift(perfect):
    darker = [dataclasses.replace(p, drawn=(p.drawn * 0.8).astype(np.uint8)) for p in perfect]
    found = figures(darker)
    assert found["colour_mean_drift"] > 0.08 > 0.02 > figures(perfect)["colour_mean_drift"]


def test_ignored_conditions_show(perfect):
    ignoring = [dataclasses.replace(p, drawn=perfect[0].drawn, elsewhere=perfect[0].drawn) for p in perfect]
    assert figures(ignoring)["style_sensitivity"] == 0
    same = np.repeat(perfect[0].layouts[:1], 8, axis=0)
    deaf = [dataclasses.replace(p, drawn_readings=same) for p in perfect]
    assert figures(deaf)["layout_sensitivity"] < 0.2 < figures(perfect)["layout_sensitivity"]


def test_sensitivity_to_the_layout_is_unknown_where_all_images_share_one(perfect):
    """As few images as `repeats`: 0 would say that the layout is ignored."""
    names = ("drawn", "layouts", "drawn_readings", "elsewhere")
    few = [dataclasses.replace(p, **{name: getattr(p, name)[-4:] for name in names}) for p in perfect]
    found = figures(few)
    assert found["layout_sensitivity"] is None and found["layout_agreement"] == 1


def test_one_image_again_and_again_has_no_diversity(perfect):
    repeated = [dataclasses.replace(p, drawn=np.repeat(p.drawn[-1:], 8, axis=0)) for p in perfect]
    assert figures(repeated)["diversity"] == 0


def test_what_is_lacking_is_none_and_not_nan(perfect):
    assert figures(perfect, agreement_real=None)["layout_agreement_relative"] is None
    nobody = group_figures(
        [],
        scale=probe_scale(perfect),
        classes=CLASSES,
        encoder=kid_features,
        agreement_real=None,
    )
    assert tuple(nobody) == FIGURES and set(nobody.values()) == {None}
    alone = figures([dataclasses.replace(perfect[0], elsewhere=perfect[0].drawn[:0])])
    assert alone["style_distance_shuffled"] is None and alone["style_ratio"] is None and alone["diversity"] > 0
    unannotated = [dataclasses.replace(p, annotated=np.zeros(10, bool)) for p in perfect]
    assert real_agreement(unannotated) is None


def test_kid_of_two_samples_of_one_distribution_is_zero_on_average(perfect):
    rng = np.random.default_rng(0)
    few = [dataclasses.replace(perfect[0], references=perfect[0].references[:4])]
    found = [kid_figures(few, lambda images: rng.normal(size=(len(images), 188))) for _ in range(200)]
    assert abs(np.mean([one["kid"] for one in found])) < 0.1 > abs(np.mean([one["kid_real"] for one in found]))


def test_kid_takes_features_as_they_are(perfect):
    drawn, real = ([kid_features(getattr(p, name)) for p in perfect] for name in ("drawn", "references"))
    assert kid_figures(perfect, kid_features)["kid"] == kid_over_patients(drawn, real)
    assert kid_figures(perfect[:1], kid_features)["kid"] == kid(drawn[0], real[0])  # nobody else to compare with


def test_fixed_features_are_standardised_on_training_images_of_patients_that_are_not_compared(perfect):
    training = pd.DataFrame({"patient": ["p0", "a", "p1", "b"] * 400})
    others = not_compared(training, {"seen": perfect[:1], "unseen": perfect[1:]})
    assert set(others["patient"]) == {"a", "b"} and len(others) == others.index.nunique() == 512
    assert len(not_compared(training[:4], {"seen": perfect, "unseen": []})) == 2
    real = perfect[0].real
    assert standardised(kid_features, real)(real).std(0) == pytest.approx(1, abs=0.1)
    assert np.abs(standardised(kid_features, real)(255 - real)).max() == 4


def test_copies_are_counted(perfect):
    training = np.concatenate([_drawn(_layouts(70, 20), n, seed=80 + n) for n in range(3, 8)])
    patients = [f"t{n}" for n in range(3, 8) for _ in range(20)]
    copying = [dataclasses.replace(p, drawn=training[8 * k : 8 * k + 8][:, ::-1]) for k, p in enumerate(perfect)]
    found: dict = {"seen": {}, "unseen": {}}
    fresh = _memorisation({"seen": [], "unseen": perfect}, found, training, patients)
    copied = _memorisation({"seen": [], "unseen": copying}, found, training, patients)
    assert fresh["memorised_rate"] < 0.2 and copied["memorised_rate"] == found["unseen"]["memorised_rate"] == 1
    assert fresh["memorised_rate_real"] < 0.2 and copied["nearest_real_ratio"] < 0.05
    assert found["seen"]["memorised_rate"] is None


def test_table_shows_both_groups_and_the_floor(perfect):
    found = figures(perfect)
    rows = style_table({"seen": None, "unseen": found | {"memorised_rate": 0.0}, **found})
    by_label = {row["label"]: row for row in rows}
    assert by_label["matched / shuffled, stroma"]["unseen"] == found["style_ratio_by_class"]["stroma"]
    kid = by_label["KID against the patients' real images"]
    assert (kid["unseen"], kid["seen"], kid["real"]) == (found["kid"], None, found["kid_real"])
    assert style_table({"kid": 1.0}) == style_table(None) == []


def test_validation_patients_stand_in_for_unseen_ones_and_test_patients_never_do():
    patches = pd.DataFrame(
        [("a", "train", True), ("b", "train", False), ("c", "val", True), ("d", "test", True), ("e", "unseen", False)],
        columns=["patient", "split", "annotated"],
    )
    without = patches[patches["split"] != "unseen"]
    measured = [{k: list(rows["patient"]) for k, rows in style_groups(t).items()} for t in (patches, without)]
    assert measured == [{"seen": ["b"], "unseen": ["e"]}, {"seen": ["b"], "unseen": ["c"]}]


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)


def test_fixed_encoder_needs_nothing(no_sockets):
    name, encoder = kid_encoder(None)
    assert name == FIXED and np.array_equal(encoder(IMAGES), kid_features(IMAGES)) and no_sockets == []


def test_timm_folder_is_an_encoder(tmp_path, no_sockets):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0).eval()
    timm.models.save_for_hf(network, tmp_path, safe_serialization=True)
    name, encoder = kid_encoder(str(tmp_path))
    features = encoder(IMAGES)
    assert name == f"timm:{tmp_path}" and features.shape == (3, network.num_features) and np.isfinite(features).all()
    assert np.allclose(features[1:2], encoder(IMAGES[1:2]), atol=1e-5) and np.ptp(features, axis=0).max() > 0
    assert no_sockets == []


def test_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.kid_encoder"):
        kid_encoder(str(tmp_path))


def test_network_that_makes_no_vector_of_an_image_is_no_encoder(tmp_path):
    network = timm.create_model("test_vit", num_classes=0, global_pool="", img_size=32)
    timm.models.save_for_hf(network, tmp_path, safe_serialization=True, model_args={"global_pool": "", "img_size": 32})
    with pytest.raises(UserError, match=r"evaluate\.kid_encoder: .* does not make one vector"):
        kid_encoder(str(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_torch_fidelity_says_what_to_install():
    with pytest.raises(UserError, match="stedm\\[fid\\]"):
        kid_encoder("inception:weights.pth")


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
def test_inception_reads_tensors_and_nothing_else(tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", lambda *_, **__: {})
        patched.setattr(Inception, "load_state_dict", lambda *_, **__: None)
        network = Inception("inception", ["2048"], feature_extractor_weights_path="random")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    _, encoder = kid_encoder(f"inception:{tmp_path / 'weights.pth'}")
    features = encoder(IMAGES)
    assert features.shape == (3, 2048) and np.allclose(features[:1], encoder(IMAGES[:1]), atol=1e-4)
    torch.save(print, tmp_path / "code.pth")
    torch.save({name: tensor * torch.nan for name, tensor in network.state_dict().items()}, tmp_path / "nan.pth")
    torch.save({"any": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "weights.pth").read_bytes()[: 10**6])
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").touch()
    for name in ("code", "nan", "other", "cut", "text", "empty"):
        with pytest.raises(UserError, match=rf"{name}\.pth is no InceptionV3 weights file .*; download") as caught:
            kid_encoder(f"inception:{tmp_path / name}.pth")
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="not found"):
        kid_encoder(f"inception:{tmp_path}")
    with pytest.raises(UserError, match="not found"):
        kid_encoder("inception:nowhere.pth")

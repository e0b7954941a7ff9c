"""The pipeline: image k depends on row k alone, folders are safe to load, conditions do what they say."""

import dataclasses
import json
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stedm.diffusion.pipeline import StyleDiffusion, to_images, to_network
from stedm.diffusion.sampling import Sampling
from stedm.errors import UserError
from stedm.models.autoencoder import FirstStage
from stedm.models.style import StyleExtractor
from stedm.models.unet import UNet

PX, CLASSES = 32, ["background", "stroma", "epithelium"]
RNG = np.random.default_rng(0)
LAYOUTS = RNG.integers(0, 3, (5, PX, PX), dtype=np.uint8)
STYLES = RNG.integers(0, 256, (5, 2, PX, PX, 3), dtype=np.uint8)
SEEDS = [11, 12, 13, 14, 15]


def build(**changes: Any) -> StyleDiffusion:
    """Random weights, disturbed so that what starts at zero takes part."""
    torch.manual_seed(0)
    first_stage = FirstStage.new([16, 16], latent_channels=4, space_to_depth=2)
    unet = UNet(latent_channels=4, num_classes=3, factor=4, channels=16, multipliers=[1, 2], style_dim=8, **changes)
    model = StyleDiffusion(first_stage, StyleExtractor(dim=8, set_size=2, latent_channels=4), unet, CLASSES)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> StyleDiffusion:
    return build()


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """The same image: at most the last bit of a byte may round the other way."""
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 1


def test_bytes_survive_the_way_into_the_network_and_back() -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert (to_images(to_network(every)) == every).all()
    x = to_network(STYLES)
    assert x.shape == (5, 2, 3, PX, PX) and x.min() >= -1 and x.max() <= 1


def test_output_is_one_image_per_seed(model: StyleDiffusion) -> None:
    images = model(LAYOUTS, STYLES, seeds=SEEDS, nfe=2)
    assert images.shape == (5, PX, PX, 3) and images.dtype == np.uint8


@pytest.mark.parametrize("guidance", ["nested", "composed"])
def test_image_k_depends_on_row_k_alone(model: StyleDiffusion, guidance: str) -> None:
    options: dict[str, Any] = {"nfe": 3, "guidance": guidance, "layout_guidance": 2.0, "style_guidance": 1.5}
    together = model(LAYOUTS, STYLES, seeds=SEEDS, **options)
    alone = np.concatenate(
        [model(LAYOUTS[k : k + 1], STYLES[k : k + 1], seeds=SEEDS[k : k + 1], **options) for k in range(5)]
    )
    order = [3, 0, 4, 1, 2]
    shuffled = model(LAYOUTS[order], STYLES[order], seeds=[SEEDS[k] for k in order], **options)
    halves = np.concatenate(
        [model(LAYOUTS[part], STYLES[part], seeds=SEEDS[part], **options) for part in (slice(0, 2), slice(2, 5))]
    )
    assert close(alone, together) and close(halves, together)
    assert (shuffled == together[order]).all()  # the same batch size, bit for bit
    assert (model(LAYOUTS, STYLES, seeds=SEEDS, **options) == together).all()


def test_seed_layout_and_style_all_matter(model: StyleDiffusion) -> None:
    base = model(LAYOUTS[:1], STYLES[:1], seeds=[1], nfe=3)
    for images in (
        model(LAYOUTS[:1], STYLES[:1], seeds=[2], nfe=3),
        model(LAYOUTS[1:2], STYLES[:1], seeds=[1], nfe=3),
        model(LAYOUTS[:1], STYLES[1:2], seeds=[1], nfe=3),
        model(None, STYLES[:1], seeds=[1], nfe=3, size_px=PX),
        model(LAYOUTS[:1], None, seeds=[1], nfe=3),
    ):
        assert (images != base).any()


def test_style_images_may_be_shared_given_one_by_one_or_as_vectors(model: StyleDiffusion) -> None:
    shared = model(LAYOUTS, STYLES[0], seeds=SEEDS, nfe=2)
    repeated = model(LAYOUTS, [STYLES[0]] * 5, seeds=SEEDS, nfe=2)
    vectors = model(LAYOUTS, styles=model.extract_styles([STYLES[0]] * 5), seeds=SEEDS, nfe=2)
    assert (repeated == shared).all() and (vectors == shared).all()
    uneven = [STYLES[0][:1], STYLES[1], np.concatenate([STYLES[2], STYLES[3]]), STYLES[3], STYLES[4]]
    assert model(LAYOUTS, uneven, seeds=SEEDS, nfe=2).shape == shared.shape


def test_mixtures_of_two_styles_begin_and_end_with_them(model: StyleDiffusion) -> None:
    pair = model.extract_styles(STYLES[:2])
    mixed = pair.between([0.0, 0.5, 1.0])
    for given, made in zip(vars(pair).values(), vars(mixed).values(), strict=True):
        torch.testing.assert_close(made[[0, 2]], given, equal_nan=True)
        torch.testing.assert_close(made[1], given.mean(0), equal_nan=True)
    with pytest.raises(ValueError, match="two by two"):
        mixed.between([0.5])


@pytest.mark.parametrize(
    ("scales", "layouts", "styles", "branches"),
    [((1, 1), True, True, 1), ((1.5, 1.5), True, True, 2), ((2, 1.5), True, True, 3), ((2, 2), True, False, 2)],
)
def test_branches_of_guidance_share_one_batch(
    model: StyleDiffusion, scales: tuple[float, float], layouts: bool, styles: bool, branches: int
) -> None:
    sizes: list[int] = []
    handle = model.unet.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    model(
        LAYOUTS[:2] if layouts else None,
        STYLES[:2] if styles else None,
        seeds=[0, 1],
        nfe=4,
        layout_guidance=scales[0],
        style_guidance=scales[1],
    )
    handle.remove()
    assert sizes == [2 * branches] * 4


def test_scale_one_samples_the_conditional_model(model: StyleDiffusion) -> None:
    conditional = model._velocities(torch.from_numpy(LAYOUTS[:2]), model.extract_styles(STYLES[:2]).vectors)
    z, t = torch.randn(2, 4, 8, 8), torch.full((2,), 0.5)
    with torch.no_grad():
        v = conditional(z, t, [(False, False), (True, False), (True, True)])
        alone = conditional(z, t, [(True, True)])
    torch.testing.assert_close(v[2], alone[0], atol=1e-5, rtol=1e-5)


def test_nothing_trains_while_sampling(model: StyleDiffusion) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(LAYOUTS[:1], STYLES[:1], seeds=[0], nfe=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layouts": LAYOUTS[:2], "seeds": [0]}, "2 layouts for 1 seeds"),
        ({"layouts": LAYOUTS[:1], "style_images": STYLES[:2], "seeds": [0]}, "2 style sets for 1 seeds"),
        ({"layouts": None, "seeds": [0]}, "size_px"),
        ({"layouts": LAYOUTS[:1, :30], "seeds": [0]}, "multiples of 8"),
        ({"layouts": LAYOUTS[:1], "seeds": [0], "guidance": "rescaled"}, "nested or composed"),
        ({"layouts": LAYOUTS[0], "seeds": [0]}, r"layouts: uint8 \(32, 32\)"),
        ({"layouts": LAYOUTS[:1, None], "seeds": [0]}, r"layouts: uint8 \(1, 1, 32, 32\)"),
        ({"layouts": LAYOUTS[:1] / 2, "seeds": [0]}, "layouts: float64 .* give integer label maps"),
        (
            {"layouts": LAYOUTS[:1].astype(int) - 1, "seeds": [0]},
            "layouts: int64 .* least value -1; .* 255 for unknown",
        ),
        ({"style_images": [], "seeds": [0]}, "style_images: no style set"),
        (
            {"style_images": STYLES[0, :0], "seeds": [0]},
            r"style_images, set 0: uint8 \(0, 32, 32, 3\); .* one at least",
        ),
        ({"style_images": [STYLES[0], STYLES[0, 0]], "seeds": [0, 1]}, r"set 1: uint8 \(32, 32, 3\)"),
        ({"style_images": STYLES[0, ..., :1], "seeds": [0]}, r"\(2, 32, 32, 1\); give uint8 RGB images \(N, H, W, 3\)"),
        ({"style_images": STYLES[0, ..., 0], "seeds": [0]}, r"\(32, 32\); give uint8 RGB images"),
        ({"style_images": STYLES[0][..., [0, 1, 2, 2]], "seeds": [0]}, r"\(2, 32, 32, 4\); give uint8 RGB images"),
        ({"style_images": STYLES[0] / 255, "seeds": [0]}, "float64 .*; give uint8 RGB images"),
        ({"style_images": STYLES[0, :, :8], "seeds": [0]}, "multiples of 4 and 16 pixels at least"),
        ({"style_images": STYLES[0, :, :30], "seeds": [0]}, "multiples of 4 and 16 pixels at least"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model: StyleDiffusion, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**{"layouts": None, "size_px": PX} | arguments if "style_images" in arguments else arguments)


def test_oblong_images_are_drawn(model: StyleDiffusion) -> None:
    assert model(LAYOUTS[:1, :16], STYLES[:1], seeds=[0], nfe=1).shape == (1, 16, PX, 3)


def test_loading_opens_no_socket_unpickles_nothing_and_gives_the_same_images(
    model: StyleDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "autoencoder/config.json",
        "autoencoder/model.safetensors",
        "model_index.json",
        "style_encoder/config.json",
        "style_encoder/model.safetensors",
        "unet/config.json",
        "unet/model.safetensors",
    ]

    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("loading a model must neither connect nor unpickle")

    for owner, name in (
        (socket, "socket"),
        (socket, "getaddrinfo"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    loaded = StyleDiffusion.from_pretrained(tmp_path)
    monkeypatch.undo()
    assert loaded.classes == CLASSES and not loaded.training
    fresh = model.to(memory_format=torch.channels_last)
    assert close(loaded(LAYOUTS, STYLES, seeds=SEEDS, nfe=2), fresh(LAYOUTS, STYLES, seeds=SEEDS, nfe=2))


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    build(injection="bottleneck").save_pretrained(tmp_path)
    assert StyleDiffusion.from_pretrained(tmp_path).unet.config["injection"] == "bottleneck"
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.parametrize(
    "missing", ["model_index.json", "unet/config.json", "style_encoder/model.safetensors", "autoencoder"]
)
def test_incomplete_folder_is_a_clear_error(model: StyleDiffusion, tmp_path: Path, missing: str) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=missing.split("/")[0].split(".")[0]):
        StyleDiffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"class": "StyleDiffusion"', '{"classes": 3}'])
def test_damaged_index_is_a_clear_error(model: StyleDiffusion, tmp_path: Path, text: str) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(UserError, match=r"model_index\.json"):
        StyleDiffusion.from_pretrained(tmp_path)


def test_index_names_classes_and_parts(model: StyleDiffusion, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    sampling = index.pop("sampling")
    parts = ["autoencoder", "style_encoder", "unet"]
    assert index == {"class": "StyleDiffusion", "classes": CLASSES, "parts": parts, "patch_px": None, "mpp": None}
    assert sampling == dataclasses.asdict(Sampling())


def test_patch_size_and_resolution_travel_with_the_model_and_older_folders_do_not_know_them(
    model: StyleDiffusion, tmp_path: Path
) -> None:
    parts = (model.first_stage, model.style_extractor, model.unet, model.classes)
    StyleDiffusion(*parts, patch_px=PX, mpp=0.5).save_pretrained(tmp_path)
    loaded = StyleDiffusion.from_pretrained(tmp_path)
    assert (loaded.patch_px, loaded.mpp) == (PX, 0.5)
    index = json.loads((tmp_path / "model_index.json").read_text())
    older = {key: value for key, value in index.items() if key not in ("patch_px", "mpp")}
    (tmp_path / "model_index.json").write_text(json.dumps(older))
    loaded = StyleDiffusion.from_pretrained(tmp_path)
    assert loaded.patch_px is None and loaded.mpp is None


def test_sampling_settings_travel_with_the_model_and_can_be_replaced(model: StyleDiffusion, tmp_path: Path) -> None:
    own = Sampling(solver="euler", nfe=3, layout_guidance=1.0, style_guidance=2.0)
    parts = (model.first_stage, model.style_extractor, model.unet, model.classes)
    StyleDiffusion(*parts, own).save_pretrained(tmp_path)
    loaded = StyleDiffusion.from_pretrained(tmp_path)
    assert loaded.sampling == own
    replaced = loaded(LAYOUTS, STYLES, seeds=SEEDS, **dataclasses.asdict(model.sampling))
    assert close(replaced, model(LAYOUTS, STYLES, seeds=SEEDS))
    assert not close(loaded(LAYOUTS, STYLES, seeds=SEEDS), replaced)
    with pytest.raises(TypeError, match="nef"):
        loaded(LAYOUTS, STYLES, seeds=SEEDS, nef=3)

"""While images are drawn, a frozen backbone is asked about each style image once, and no bit depends on when."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from stedm.diffusion.pipeline import StyleDiffusion, Styles
from stedm.diffusion.sampling import Sampling
from stedm.models.autoencoder import FirstStage
from stedm.models.style import StyleExtractor
from stedm.models.unet import UNet
from stedm.stages import few_step, latents
from stedm.stages.latents import KeptPlaces

PX, CPU = 32, torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (6, PX, PX, 3), dtype=np.uint8)
PLAN = [(0, 1, 2), (2, 1, 4), (3, 3, 5), (0, 1, 2), (5,), (4, 0)]
"""Which images each row of a plan takes its style from."""


@pytest.fixture(scope="module")
def model() -> StyleDiffusion:
    torch.manual_seed(0)
    first_stage = FirstStage.new([16, 16], latent_channels=4, space_to_depth=2)
    unet = UNet(latent_channels=4, num_classes=2, factor=4, channels=16, multipliers=[1, 2], style_dim=8)
    extractor = StyleExtractor(dim=8, set_size=3, latent_channels=4, encoder="test_resnet", trainable=False)
    return StyleDiffusion(first_stage, extractor, unet, ["a", "b"]).eval()


@pytest.fixture
def asked(model: StyleDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the backbone is asked about in each of its calls."""
    sizes: list[int] = []
    ask = model.style_extractor.encoder.backbone.forward_features

    def counted(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return ask(x)

    monkeypatch.setattr(model.style_extractor.encoder.backbone, "forward_features", counted)
    return sizes


def styles_of(model: StyleDiffusion, rows: Sequence[Sequence[int]], places: KeptPlaces | None) -> Styles:
    return model.extract_styles([IMAGES[list(row)] for row in rows], places=places)


def test_the_backbone_is_asked_about_each_image_once(model: StyleDiffusion, asked: list[int]) -> None:
    places = KeptPlaces.of(model.style_extractor, CPU)
    for row in PLAN:
        styles_of(model, [row], places)
    assert asked == [1] * len({image for row in PLAN for image in row})
    asked.clear()
    styles_of(model, PLAN, None)
    assert sum(asked) == sum(map(len, PLAN)), "without it, about each image of each row"


def test_the_pairs_of_a_few_step_generator_ask_about_each_image_once(
    model: StyleDiffusion, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = pd.DataFrame({"row": range(len(PLAN)), "seed": range(len(PLAN))})
    layouts = SimpleNamespace(of=lambda row: np.zeros((PX, PX), np.uint8))
    monkeypatch.setattr(few_step, "style_images_of", lambda _, __, rows: [IMAGES[list(PLAN[k])] for k in rows.row])
    places = KeptPlaces.of(model.style_extractor, CPU)
    drawn = [
        few_step._draw_pairs(cast(Any, None), model, cast(Any, layouts), plan, rows, Sampling(nfe=1), places)
        for rows in (plan[:3], plan[3:])
    ]
    assert asked == [1] * len({image for row in PLAN for image in row})
    styles = torch.cat([part["style"] for part in drawn])
    assert torch.equal(styles, styles_of(model, PLAN, KeptPlaces.of(model.style_extractor, CPU)).vectors)


@pytest.mark.parametrize("orders", [[[5, 4, 3, 2, 1, 0]], [[1, 3, 5], [0, 2, 4]], [[4, 5]]], ids=str)
def test_no_bit_depends_on_what_was_asked_before(model: StyleDiffusion, orders: list[list[int]]) -> None:
    """The other order, two ranks, and a run that goes on near its end."""
    whole = vars(styles_of(model, PLAN, KeptPlaces.of(model.style_extractor, CPU)))
    for order in orders:
        part = vars(styles_of(model, [PLAN[k] for k in order], KeptPlaces.of(model.style_extractor, CPU)))
        for name, values in whole.items():
            assert torch.equal(part[name].nan_to_num(), values[order].nan_to_num()), name
    plain = vars(styles_of(model, PLAN, None))
    for name, values in whole.items():
        torch.testing.assert_close(values, plain[name], rtol=1e-2, atol=1e-2, equal_nan=True)


def test_what_is_kept_is_bounded_and_the_last_used_stays(
    model: StyleDiffusion, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = KeptPlaces.of(model.style_extractor, CPU)
    assert places is not None
    one = places(IMAGES[:1]).nbytes
    monkeypatch.setattr(latents, "KEPT_BYTES", 2 * one)
    for k in (1, 0, 2, 0):  # 1 is the one to go
        places(IMAGES[k : k + 1])
    assert len(asked) == 3 and sum(kept.nbytes for kept in places._kept.values()) == 2 * one
    places(IMAGES[1:2])
    assert len(asked) == 4


@pytest.mark.parametrize("changes", [{"encoder": "conv"}, {"encoder": "test_resnet"}], ids=str)
def test_nothing_is_kept_of_an_encoder_that_learns(changes: dict[str, Any]) -> None:
    assert KeptPlaces.of(StyleExtractor(dim=8, set_size=2, latent_channels=4, **changes), CPU) is None

"""Contracts of every network in a model folder: name a class, get nine tests. Then what is special about each."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from stedm.errors import UserError
from stedm.models.autoencoder import FirstStage
from stedm.models.layers import AdaptiveGroupNorm, groups_for, time_features
from stedm.models.model_folder import CONFIG, WEIGHTS, FolderModel
from stedm.models.segmenter import Segmenter
from stedm.models.style import Aggregation, ConvStyleEncoder, RegionPooling, StyleExtractor, region_moments
from stedm.models.unet import LayoutEmbedding, StylePrior, UNet, one_hot_layout
from stedm.training.losses import regions_loss

TIMM = "test_resnet"
AGGREGATIONS = ("mean", "max", "linear", "attention")
B, N, CLASSES, PX = 4, 3, 3, 32


def images(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def unet(**changes: Any) -> UNet:
    defaults: dict[str, Any] = {"latent_channels": 4, "num_classes": CLASSES, "factor": 4, "channels": 16}
    return UNet(**(defaults | {"multipliers": [1, 2], "style_dim": 8} | changes))


def unet_inputs(model: UNet, seed: int = 0) -> dict[str, Tensor]:
    """A batch in which layout and style are given, or not, in all four ways."""
    grid = PX // model.config["factor"]
    numbers = model.config["style_dim"] + 2 * model.config["latent_channels"]
    generator = torch.Generator().manual_seed(seed)
    layout = torch.randint(0, CLASSES, (B, PX, PX), generator=generator)
    layout[:, :4] = 255
    return {
        "z_t": torch.randn(B, model.config["latent_channels"], grid, grid, generator=generator),
        "t": torch.rand(B, generator=generator),
        "layout": layout,
        "layout_given": torch.tensor([True, True, False, False]),
        "style": torch.randn(B, model.config["style_vectors"], numbers, generator=generator),
        "style_given": torch.tensor([True, False, True, False]),
    }


class ModelContract:
    """What every FolderModel promises."""

    output_shape: tuple[int, ...]

    def make(self) -> FolderModel:
        raise NotImplementedError

    def run(self, model: Any, seed: int = 0) -> Tensor:
        raise NotImplementedError

    @pytest.fixture
    def model(self) -> FolderModel:
        torch.manual_seed(0)
        return self.make()

    def test_shape(self, model: FolderModel) -> None:
        output = self.run(model)
        assert output.shape == self.output_shape and torch.isfinite(output).all()

    def test_folder_holds_config_and_safetensors_only(self, model: FolderModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "model")
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [CONFIG, WEIGHTS]
        assert json.loads((tmp_path / "model" / CONFIG).read_text()) == {"class": type(model).__name__, **model.config}

    def test_loaded_model_is_the_saved_one(self, model: FolderModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert loaded.config == model.config and not loaded.training
        state, again = model.state_dict(), loaded.state_dict()
        assert list(state) == list(again)
        assert all(torch.equal(state[name], again[name]) for name in state)
        with torch.no_grad():
            assert torch.equal(self.run(loaded), self.run(model.eval().to(memory_format=torch.channels_last)))

    def test_every_trainable_parameter_learns_within_two_steps(self, model: FolderModel) -> None:
        """The original's style encoder was never trained: 0 of 209 tensors were in its optimiser."""
        model.train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        untouched = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert untouched
        for seed in range(2):
            optimiser.zero_grad()
            output = self.run(model, seed)
            target = torch.randn(output.shape, generator=torch.Generator().manual_seed(9 + seed))
            (output - target).square().mean().backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None and parameter.grad.abs().max() > 1e-9:
                    untouched.discard(name)
            optimiser.step()
        assert untouched == set()

    def test_evaluation_is_deterministic(self, model: FolderModel) -> None:
        model.eval()
        with torch.no_grad():
            assert torch.equal(self.run(model), self.run(model))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("no config", r"config\.json: not found"),
            ("config no JSON", r"config\.json: not valid JSON"),
            ("config no text", r"config\.json: not valid JSON"),
            ("config a list", r"config\.json: expected a JSON object"),
            ("another class", r"config\.json: holds a Impostor"),
            ("unknown argument", r"does not fit its config\.json"),
            ("no weights", r"model\.safetensors: not found"),
            ("half the weights", r"model\.safetensors: does not fit"),
            ("empty weights", r"model\.safetensors: does not fit"),
            ("a pickle", r"model\.safetensors: does not fit"),
            ("a tensor missing", r"model\.safetensors: does not fit"),
            ("a tensor of another shape", r"model\.safetensors: does not fit"),
        ],
    )
    def test_damaged_folder_is_a_clear_error(
        self, model: FolderModel, tmp_path: Path, damage: str, message: str
    ) -> None:
        model.save_pretrained(tmp_path)
        break_folder(tmp_path, damage, model)
        with pytest.raises(UserError, match=message) as caught:
            type(model).from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "executed").exists()


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def break_folder(folder: Path, damage: str, model: nn.Module) -> None:
    config, weights = folder / CONFIG, folder / WEIGHTS
    values = json.loads(config.read_text())
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    first = next(iter(state))
    match damage:
        case "no config":
            config.unlink()
        case "config no JSON":
            config.write_text(config.read_text()[:-5])
        case "config no text":
            config.write_bytes(b"\xff\xfe\x00\x80")
        case "config a list":
            config.write_text("[1, 2]")
        case "another class":
            config.write_text(json.dumps(values | {"class": "Impostor"}))
        case "unknown argument":
            config.write_text(json.dumps(values | {"colour": 1}))
        case "no weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "empty weights":
            weights.write_bytes(b"")
        case "a pickle":
            torch.save({"state": Bomb(folder / "executed")}, weights)
        case "a tensor missing":
            save_file({name: tensor for name, tensor in state.items() if name != first}, weights)
        case "a tensor of another shape":
            save_file(state | {first: torch.zeros(1, 2, 3, 4, 5)}, weights)


class TestUNet(ModelContract):
    output_shape = (B, 4, 8, 8)

    def make(self) -> UNet:
        return unet()

    def run(self, model: UNet, seed: int = 0) -> Tensor:
        return model(**unet_inputs(model, seed))


class TestBottleneckUNet(TestUNet):
    def make(self) -> UNet:
        return unet(injection="bottleneck")


class TestDeepUNetOfTwentyClasses(TestUNet):
    def make(self) -> UNet:
        return unet(num_classes=20, factor=2, multipliers=[1, 2, 2])

    output_shape = (B, 4, 16, 16)


class TestUNetWithAStyleForEachClass(TestUNet):
    def make(self) -> UNet:
        return unet(style_vectors=CLASSES + 1)


class TestBottleneckUNetWithAStyleForEachClass(TestUNet):
    def make(self) -> UNet:
        return unet(style_vectors=CLASSES + 1, injection="bottleneck")


class StyleContract(ModelContract):
    output_shape = (B, 4, 16)
    regions = 4
    aggregation = "attention"
    encoder = "conv"

    def make(self) -> StyleExtractor:
        options = {"encoder": self.encoder, "aggregation": self.aggregation, "regions": self.regions}
        return StyleExtractor(dim=8, set_size=N, latent_channels=4, **options)

    def run(self, model: StyleExtractor, seed: int = 0) -> Tensor:
        return model(images(B, N, 3, PX, PX, seed=seed), images(B, N, 4, 8, 8, seed=seed + 1))


class TestAttentionStyle(StyleContract):
    pass


class TestOneVectorStyle(StyleContract):
    output_shape = (B, 1, 16)
    regions = 1


class TestMeanStyle(StyleContract):
    aggregation = "mean"


class TestMaxStyle(StyleContract):
    aggregation = "max"


class TestLinearStyle(StyleContract):
    aggregation = "linear"


class TestTimmStyle(StyleContract):
    encoder = TIMM


class TestTimmTransformerStyle(StyleContract):
    encoder = "test_vit"


class TestFirstStage(ModelContract):
    output_shape = (B, 3, PX, PX)

    def make(self) -> FirstStage:
        return FirstStage.new([16, 16], latent_channels=4, space_to_depth=2)

    def run(self, model: FirstStage, seed: int = 0) -> Tensor:
        mean, logvar = model.distribution(images(B, 3, PX, PX, seed=seed))
        return model.reconstruct(mean + 0.1 * (0.5 * logvar).exp())


class TestSegmenter(ModelContract):
    output_shape = (2, 4, PX, PX)

    def make(self) -> Segmenter:
        return Segmenter(classes=["a", "b", "c", "d"], encoder=f"tu-{TIMM}", mpp=0.5)

    def run(self, model: Segmenter, seed: int = 0) -> Tensor:
        return model(images(2, 3, PX, PX, seed=seed))


# Layout


def test_layout_enters_at_full_information() -> None:
    """Two label maps that differ in one pixel give different features in that pixel's cell and nowhere else."""
    embedding = LayoutEmbedding(num_classes=5, factor=4, channels=6)
    given = torch.ones(1, dtype=torch.bool)
    one = torch.zeros(1, 16, 16, dtype=torch.uint8)
    for value in (1, 4, 255):
        other = one.clone()
        other[0, 6, 9] = value
        features = [embedding(one_hot_layout(layout, given, 5), given) for layout in (one, other)]
        changed = (features[0] != features[1]).any(1)[0]
        assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("num_classes", [2, 3, 20])
def test_layout_takes_any_number_of_classes_plus_unknown(num_classes: int) -> None:
    embedding = LayoutEmbedding(num_classes, factor=2, channels=4)
    given = torch.ones(1, dtype=torch.bool)
    values = [*range(num_classes), 255]
    maps = [torch.full((1, 4, 4), value, dtype=torch.uint8) for value in [*values, num_classes]]
    *features, last = [embedding(one_hot_layout(layout, given, num_classes), given) for layout in maps]
    assert all(not torch.allclose(a, b) for k, a in enumerate(features) for b in features[:k])
    assert torch.equal(features[-1], last)


def test_null_layout_is_learned_and_not_the_unknown_layout() -> None:
    embedding = LayoutEmbedding(3, factor=2, channels=4)
    layouts = torch.randint(0, 3, (2, 8, 8))
    nothing, everything = torch.tensor([False, False]), torch.tensor([True, True])
    features = embedding(one_hot_layout(layouts, nothing, 3), nothing)
    assert torch.equal(features, embedding.null.view(1, 4, 1, 1).expand(2, 4, 4, 4))
    assert not torch.allclose(
        features, embedding(one_hot_layout(torch.full_like(layouts, 255), everything, 3), everything)
    )
    assert embedding.null.requires_grad


# U-Net


def trained_a_little(model: UNet) -> UNet:
    """Weights that are zero at the start would hide what an input does."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


@pytest.mark.parametrize("injection", ["all", "bottleneck"])
def test_each_sample_is_conditioned_by_its_own_row(injection: str) -> None:
    model = trained_a_little(unet(injection=injection))
    inputs = unet_inputs(model)
    with torch.no_grad():
        together = model(**inputs)
        for k in range(B):
            alone = model(**{name: value[k : k + 1] for name, value in inputs.items()})
            torch.testing.assert_close(alone, together[k : k + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("injection", ["all", "bottleneck"])
def test_style_and_layout_matter_exactly_when_they_are_given(injection: str) -> None:
    model = trained_a_little(unet(injection=injection))
    inputs = unet_inputs(model)
    with torch.no_grad():
        before = model(**inputs)
        style = model(**inputs | {"style": inputs["style"] + 1})
        layout = model(**inputs | {"layout": (inputs["layout"] + 1) % CLASSES})
        time = model(**inputs | {"t": 1 - inputs["t"]})
    assert (style != before).flatten(1).any(1).tolist() == inputs["style_given"].tolist()
    assert (layout != before).flatten(1).any(1).tolist() == inputs["layout_given"].tolist()
    assert (time != before).flatten(1).any(1).all()


def test_style_reaches_every_residual_block() -> None:
    model = unet(injection="all")
    style = torch.randn(B, 1, 16, requires_grad=True)
    received: dict[str, bool] = {}

    def listen(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            received[name] = torch.autograd.grad(arguments[1].sum(), style, retain_graph=True)[0].abs().sum() > 0

        return hook

    norms = {name: module for name, module in model.named_modules() if isinstance(module, AdaptiveGroupNorm)}
    for name, module in norms.items():
        module.register_forward_pre_hook(listen(name))
    model(**unet_inputs(model) | {"style": style})
    assert set(received) == set(norms) and all(received.values())


def test_a_class_is_styled_by_its_own_vector_and_unknown_pixels_by_the_last() -> None:
    """Another style for one class changes the modulation where that class is and nowhere else."""
    block = AdaptiveGroupNorm(16, 4)
    layout = torch.zeros(1, 8, 8, dtype=torch.uint8)
    layout[:, :, 4:], layout[:, 6:] = 1, 255
    onehot = one_hot_layout(layout, torch.ones(1, dtype=torch.bool), 2)
    x, condition = torch.randn(1, 16, 8, 8), torch.randn(1, 3, 4)
    before = block(x, condition, onehot)
    for value, region in enumerate((0, 1, 255)):
        other = condition.clone()
        other[:, value] += 1
        assert torch.equal((block(x, other, onehot) != before).any(1), layout == region)


def test_velocity_of_gaussian_latents_is_exact_before_any_training() -> None:
    """Where mu and sigma are right and latents are independent Gaussians, nothing is left for the network to learn."""
    model = unet(style_vectors=CLASSES + 1)
    nn.init.zeros_(model.conv_out.weight), nn.init.zeros_(model.conv_out.bias)
    mu, sigma = torch.tensor([0.7, -0.4, 0.0, 1.5]), torch.tensor([0.3, 1.0, 2.0, 0.5])
    with torch.no_grad():
        model.prior.gate.bias.fill_(30.0)  # trust what is measured
        measured = torch.cat([mu, 3 * torch.atanh(sigma.log() / 3)])
    n = 4000
    mu, sigma = mu.view(1, 4, 1, 1), sigma.view(1, 4, 1, 1)
    z, e = mu + sigma * torch.randn(n, 4, 8, 8), torch.randn(n, 4, 8, 8)
    given = torch.ones(n, dtype=torch.bool)
    layout = torch.zeros(n, PX, PX, dtype=torch.uint8)
    for time in (0.2, 0.6, 0.95):
        t = torch.full((n,), time)
        z_t = (1 - time) * z + time * e
        style = torch.cat([torch.zeros(8), measured]).expand(n, CLASSES + 1, 16)
        v = torch.cat(
            [
                model(
                    z_t[k : k + 500],
                    t[:500],
                    layout=layout[:500],
                    layout_given=given[:500],
                    style=style[:500],
                    style_given=given[:500],
                )
                for k in range(0, n, 500)
            ]
        ).detach()
        residual = e - z - v
        D = ((1 - time) * sigma) ** 2 + time**2
        torch.testing.assert_close(residual.square().mean((0, 2, 3)), (sigma**2 / D).flatten(), rtol=0.03, atol=0)
        # The best guess leaves an error that z_t says nothing more about.
        assert (residual * (z_t - z_t.mean(0))).mean((0, 2, 3)).abs().max() < 0.03


def test_prior_at_a_border_has_the_moments_of_the_mixture() -> None:
    prior = StylePrior(style_dim=2, latent_channels=1)
    nn.init.constant_(prior.gate.bias, 30.0)
    mu, sigma, share = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.2]), 0.3
    style = torch.cat([torch.zeros(2, 2), torch.stack([mu, 3 * torch.atanh(sigma.log() / 3)], 1)], 1)[None]
    shares = torch.tensor([[1.0, 0.0, share], [0.0, 1.0, 1 - share]]).view(1, 2, 1, 3)
    found = prior(style, shares)
    first = torch.rand(400_000) < share
    drawn = torch.where(first, mu[0], mu[1]) + torch.where(first, sigma[0], sigma[1]) * torch.randn(400_000)
    for value, expected in zip(found, ([2.0, -1.0, float(drawn.mean())], [0.5, 0.2, float(drawn.std())]), strict=True):
        torch.testing.assert_close(value.flatten(), torch.tensor(expected), atol=0.01, rtol=0)


def test_a_gate_that_trusts_nothing_leaves_the_learned_prior() -> None:
    prior = StylePrior(style_dim=2, latent_channels=1)
    nn.init.constant_(prior.gate.bias, -30.0), nn.init.constant_(prior.project.bias, 0.4)
    mu, sigma = prior(torch.randn(3, 1, 4), torch.ones(3, 1, 2, 2))
    torch.testing.assert_close(mu, torch.full_like(mu, 0.4))
    torch.testing.assert_close(sigma.log(), torch.full_like(sigma, 3 * math.tanh(0.4 / 3)))


def test_moments_of_a_region_are_those_of_its_cells_over_the_whole_set() -> None:
    """A class that only one image of the set shows is measured there alone; the last region is everywhere."""
    latents = torch.zeros(1, 2, 1, 4, 4)
    latents[0, 0, 0, 0], latents[0, 1] = torch.tensor([2.0, 2.0, 4.0, 4.0]), 1.0
    found = torch.full((1, 2, 2, 4, 4), 0.0)
    found[0, :, 0] = -30.0
    found[0, 0, 0, 0] = 0.0
    mean, log_std = region_moments(latents, found)[0].chunk(2, dim=1)
    assert mean[0].item() == pytest.approx(3.0, abs=1e-4) and log_std[0].exp().item() == pytest.approx(1.0, abs=1e-3)
    assert mean[1].item() == pytest.approx(float(latents.mean()), abs=1e-5)


def test_a_standard_prior_stays_standard() -> None:
    model = unet(style_prior="standard")
    assert not list(model.prior.parameters())
    mu, sigma = model.prior(torch.randn(2, 1, 16), torch.ones(2, 4, 8, 8))
    assert (mu == 0).all() and (sigma == 1).all()


def test_without_a_layout_every_pixel_is_unknown() -> None:
    layout = torch.zeros(2, 4, 4, dtype=torch.uint8)
    onehot = one_hot_layout(layout, torch.tensor([True, False]), 3)
    assert onehot.argmax(1).flatten(1).unique(dim=1).tolist() == [[0], [3]]


def test_a_number_of_style_vectors_that_fits_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="style_vectors"):
        unet(style_vectors=CLASSES)


def test_a_region_is_described_by_the_places_where_its_class_is_found() -> None:
    """Two tissues side by side: the vector of one of them is its own, however little of it there is."""
    pool = RegionPooling(1, 8, 3)
    with torch.no_grad():
        for linear in (pool.classify[0], pool.classify[2]):
            linear.weight.zero_(), linear.bias.zero_()
        pool.classify[0].weight[0, 0] = 100.0
        pool.classify[2].weight[0, 0] = 1.0
        pool.classify[2].bias[1] = 25.0
        pool.head[0].weight[:, -1] = 0.0  # the share of the image is told as well; not here
        dark, bright = torch.full((1, 3, 1), -0.5), torch.full((1, 61, 1), 0.5)
        mixed = torch.cat([dark, bright], 1)
        described, found = pool(mixed, mixed.square())
        alone = pool(bright, bright.square())[0]
    torch.testing.assert_close(described[:, 0], alone[:, 0], atol=1e-3, rtol=0)
    assert (described[:, 1] - alone[:, 1]).abs().max() > 0.1
    assert (found[:, 1, :3] > -0.01).all() and (found[:, 1, 3:] < -10).all() and (found[:, 2] == 0).all()


def test_the_spread_of_a_region_is_exact_in_half_precision() -> None:
    """A small spread about a large mean: in eight bits it would be off by a tenth, or nothing at all."""
    pool = RegionPooling(1, 4, 1)
    pool.head, pool.region = nn.Identity(), nn.Parameter(torch.zeros(1, 3))
    values = 0.6 + 0.08 * torch.randn(4, 256, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        described = pool(values, values.square())[0][:, 0]  # mean, standard deviation, share
    torch.testing.assert_close(described[:, 0], values.mean((1, 2)), atol=1e-5, rtol=0)
    expected = (values.var((1, 2), correction=0) + 1e-4).sqrt()
    torch.testing.assert_close(described[:, 1], expected, atol=1e-4, rtol=0)


def test_what_is_known_of_a_layout_teaches_where_classes_are() -> None:
    """Dark cells are class 0, bright ones class 1; half of the cells are unknown."""
    torch.manual_seed(0)
    encoder = ConvStyleEncoder(8, 3)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=5e-3)
    for _ in range(60):
        labels = torch.randint(0, 2, (8, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
        x = (labels.float() - 0.5)[:, None].repeat(1, 3, 1, 1) + 0.1 * torch.randn(8, 3, PX, PX)
        known = torch.where(torch.rand(8, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2) < 0.5, labels, 255)
        found = encoder(x)[1]
        loss = regions_loss(found[:, None], known[:, None])
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    right = found[:, :2].argmax(1) == labels[:, ::8, ::8]
    assert right.float().mean() > 0.9
    assert regions_loss(found[:, None], torch.full_like(known[:, None], 255)) == 0
    assert regions_loss(found[:, None, :1], known[:, None]) == 0


def test_a_frozen_backbone_does_not_move_and_its_pooling_learns(tmp_path: Path) -> None:
    save_backbone(tmp_path / "weights")
    extractor = StyleExtractor(
        dim=8, set_size=N, latent_channels=4, encoder=TIMM, weights=str(tmp_path / "weights"), trainable=False
    )
    extractor.train()
    before = {name: tensor.clone() for name, tensor in extractor.encoder.backbone.state_dict().items()}
    extractor(images(2, N, 3, PX, PX), images(2, N, 4, 8, 8)).square().sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in extractor.encoder.backbone.state_dict().items())
    assert not any(p.requires_grad for p in extractor.encoder.backbone.parameters())
    assert all(p.grad is not None for p in extractor.encoder.pool.parameters())
    extractor.save_pretrained(tmp_path / "model")
    assert StyleExtractor.from_pretrained(tmp_path / "model").config["trainable"] is False


def test_nulls_are_learned_parameters() -> None:
    """The original's null style was a constant image pushed through the encoder."""
    model = unet()
    names = dict(model.named_parameters())
    assert names["null_style"].requires_grad and names["layout.null"].requires_grad


def test_unknown_injection_is_refused() -> None:
    with pytest.raises(ValueError, match="all or bottleneck"):
        unet(injection="everywhere")


def test_adaptive_group_norm_is_a_group_norm_scaled_and_shifted() -> None:
    block = AdaptiveGroupNorm(32, 4)
    x, condition, shares = torch.randn(2, 32, 4, 4), torch.randn(2, 1, 4), torch.ones(2, 1, 4, 4)
    scale, shift = block.modulation(condition)[:, 0, :, None, None].chunk(2, dim=1)
    expected = torch.nn.functional.group_norm(x, groups_for(32)) * (1 + scale) + shift
    torch.testing.assert_close(block(x, condition, shares), expected)
    plain = torch.nn.functional.group_norm(x, groups_for(32))
    block.modulation.weight.data.zero_()
    torch.testing.assert_close(block(x, condition, shares), plain)


@pytest.mark.parametrize("channels", [1, 3, 16, 24, 48, 100, 128])
def test_groups_divide_the_channels(channels: int) -> None:
    assert channels % groups_for(channels) == 0


def test_time_features_tell_times_apart() -> None:
    features = time_features(torch.linspace(0, 1, 101), 32)
    assert features.shape == (101, 32) and features.abs().max() <= 1
    distances = torch.cdist(features, features) + torch.eye(101)
    assert distances.min() > 0.05


# Style


@pytest.mark.parametrize("kind", ["mean", "max", "attention"])
def test_aggregation_ignores_the_order_of_the_set(kind: str) -> None:
    aggregation = Aggregation(kind, 8, 5)
    vectors = torch.randn(2, 5, 8)
    shuffled = vectors[:, torch.randperm(5)]
    torch.testing.assert_close(aggregation(vectors), aggregation(shuffled))


@pytest.mark.parametrize("kind", ["mean", "max", "attention"])
def test_set_size_may_differ_from_training(kind: str) -> None:
    aggregation = Aggregation(kind, 8, 4)
    vectors = torch.randn(2, 1, 8)
    once = aggregation(vectors)
    for size in (1, 2, 9):
        torch.testing.assert_close(aggregation(vectors.expand(2, size, 8)), once)


def test_linear_aggregation_refuses_another_set_size() -> None:
    aggregation = Aggregation("linear", 8, 4)
    assert aggregation(torch.randn(2, 4, 8)).shape == (2, 8)
    with pytest.raises(ValueError, match="trained for 4 style images"):
        aggregation(torch.randn(2, 3, 8))


def test_aggregations_are_what_they_are_called() -> None:
    vectors = torch.randn(2, 5, 8)
    torch.testing.assert_close(Aggregation("mean", 8, 5)(vectors), vectors.mean(1))
    torch.testing.assert_close(Aggregation("max", 8, 5)(vectors), vectors.max(1).values)
    with pytest.raises(ValueError, match="mean, max, linear or attention"):
        Aggregation("median", 8, 5)


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_memory_of_an_aggregation_is_linear_in_the_set(kind: str) -> None:
    """The original's set transformer needed 769 MiB per attention matrix and sample."""
    largest = []
    for size in (64, 128):
        saved: list[int] = []
        aggregation = Aggregation(kind, 8, size)

        def pack(x: Tensor, sizes: list[int] = saved) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            aggregation(torch.randn(2, size, 8, requires_grad=True))
        largest.append(sum(saved))
    assert largest[1] <= 2.1 * largest[0]


def test_style_sets_do_not_mix_within_a_batch() -> None:
    extractor = StyleExtractor(dim=8, set_size=N, latent_channels=4).eval()
    sets = images(B, N, 3, PX, PX)
    with torch.no_grad():
        latents = images(B, N, 4, 8, 8)
        together = extractor(sets, latents)
        for k in range(B):
            one = extractor(sets[k : k + 1], latents[k : k + 1])
            torch.testing.assert_close(one, together[k : k + 1], atol=1e-5, rtol=1e-5)


def test_style_encoder_does_not_normalise_the_colour_away() -> None:
    encoder = ConvStyleEncoder(8, 4)
    norms = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)
    assert not [module for module in encoder.stages.modules() if isinstance(module, norms)]
    x = images(1, 3, PX, PX) * 0.3
    with torch.no_grad():
        for channel in range(3):
            tinted = x.clone()
            tinted[:, channel] += 0.3
            assert (encoder(tinted)[0] - encoder(x)[0]).norm() > 2e-3 * encoder(x)[0].norm()


def test_style_encoder_sees_texture_and_takes_any_size() -> None:
    encoder = ConvStyleEncoder(8, 4)
    coarse = images(1, 3, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    fine = coarse.flatten(2)[..., torch.randperm(PX * PX)].view(1, 3, PX, PX)  # the same colours, another texture
    with torch.no_grad():
        assert (encoder(coarse)[0] - encoder(fine)[0]).norm() > 2e-3 * encoder(coarse)[0].norm()
        for size in (16, 48, 112):
            assert torch.isfinite(encoder(images(2, 3, size, size))[0]).all()


def test_style_encoder_survives_an_image_of_one_colour() -> None:
    encoder = ConvStyleEncoder(8, 4)
    flat = torch.full((2, 3, PX, PX), 0.9)
    vectors, found = encoder(flat)
    (vectors.sum() + found.sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())


def save_backbone(
    folder: Path, name: str = TIMM, *, made: Any = None, model_args: Any = None, fixed: bool = False, px: int = 48
) -> nn.Module:
    """A timm model in a local folder, as the hub would deliver it; `model_args` and more that its config.json says.

    made: what the network is made with, where it is not `model_args`.
    """
    torch.manual_seed(7)
    backbone = timm.create_model(name, **(made or model_args or {}) | {"num_classes": 0})
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}, folder / WEIGHTS)
    config = {"architecture": name, "num_classes": 0, "num_features": backbone.num_features}
    read = {"input_size": [3, px, px], "mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2], "fixed_input_size": fixed}
    config |= {"pretrained_cfg": read} | ({} if model_args is None else {"model_args": model_args})
    (folder / CONFIG).write_text(json.dumps(config))
    return backbone


def test_timm_encoder_starts_random_and_needs_no_network(no_sockets: list[Any]) -> None:
    torch.manual_seed(0)
    one = StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder=TIMM)
    torch.manual_seed(1)
    other = StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder=TIMM)
    weights = [next(model.encoder.backbone.parameters()) for model in (one, other)]
    assert not torch.equal(*weights) and no_sockets == []


def test_timm_encoder_takes_weights_from_a_local_folder(tmp_path: Path, no_sockets: list[Any]) -> None:
    backbone = save_backbone(tmp_path / "weights")
    extractor = StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder=TIMM, weights=str(tmp_path / "weights"))
    state = extractor.encoder.backbone.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())
    extractor.eval().save_pretrained(tmp_path / "model")
    (tmp_path / "weights" / WEIGHTS).unlink()
    loaded = StyleExtractor.from_pretrained(tmp_path / "model")
    sets = images(2, N, 3, PX, PX)
    with torch.no_grad():
        latents = images(*sets.shape[:2], 4, 8, 8)
        torch.testing.assert_close(loaded(sets, latents), extractor(sets, latents), atol=1e-5, rtol=1e-5)
    assert no_sockets == []


SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("vit_tiny_patch16_224", {"model_args": SMALL | {"img_size": 64, "dynamic_img_size": True, "num_classes": 9}}),
        ("vit_tiny_patch16_224", {"model_args": SMALL | {"img_size": 32, "reg_tokens": 4}, "fixed": True, "px": 32}),
        ("vit_tiny_patch16_224", {"model_args": SMALL | {"init_values": 1e-5, "mlp_ratio": 2.66}, "px": 224}),
        ("test_vit", {"made": {"img_size": 32}, "fixed": True, "px": 32}),
        (
            "vit_small_patch14_reg4_dinov2",
            {"made": SMALL | {"img_size": 28}, "model_args": SMALL, "fixed": True, "px": 28},
        ),
        ("vit_small_patch14_dinov2", {"model_args": SMALL, "px": 224}),
    ],
    ids=["dynamic", "registers", "scales", "fixed size", "size of H-optimus", "size of no weights"],
)
def test_a_network_of_other_settings_than_its_name_says_is_loaded_again(
    tmp_path: Path, no_sockets: list[Any], name: str, saved: dict[str, Any]
) -> None:
    save_backbone(tmp_path / "weights", name, **saved)
    folder = str(tmp_path / "weights")
    extractor = StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder=name, weights=folder).eval()
    extractor.save_pretrained(tmp_path / "model")
    loaded = StyleExtractor.from_pretrained(tmp_path / "model")
    sets, latents = images(1, N, 3, PX, PX), images(1, N, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(sets, latents), extractor(sets, latents), atol=1e-5, rtol=1e-5)
    assert loaded.config == extractor.config and no_sockets == []
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), extractor.parameters(), strict=True))


@pytest.mark.parametrize(
    "given",
    [
        {"checkpoint_path": "weights"},
        {"pretrained_cfg": "other"},
        {"norm_layer": "layernorm"},
        {"mlp_layer": "timm.layers.SwiGLUPacked"},
        {"weight_init": "os.system"},
        {"img_size": {"size": 64}},
        {"depth": 10**6},
        {"init_values": float("nan")},
        ["img_size"],
    ],
)
def test_settings_of_a_network_are_numbers_and_words(tmp_path: Path, given: Any) -> None:
    save_backbone(tmp_path / "weights", made={"drop_rate": 0.0}, model_args=given)
    options = {"dim": 8, "set_size": N, "latent_channels": 4, "encoder": TIMM}
    with pytest.raises(UserError, match=r"diffusion\.style_encoder: model_args of config\.json") as caught:
        StyleExtractor(**options, weights=str(tmp_path / "weights"))
    assert "\n" not in str(caught.value)
    StyleExtractor(**options).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / CONFIG).read_text())
    (tmp_path / "model" / CONFIG).write_text(json.dumps(config | {"model_args": given}))
    with pytest.raises(UserError, match=r"model_args|too large"):
        StyleExtractor.from_pretrained(tmp_path / "model")


def test_a_folder_of_before_settings_were_kept_is_loaded(tmp_path: Path) -> None:
    extractor = StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder=TIMM)
    extractor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    del config["model_args"]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert StyleExtractor.from_pretrained(tmp_path).config == extractor.config


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "volo_d1_224"])
def test_a_backbone_without_places_is_refused_when_it_is_made(name: str) -> None:
    with pytest.raises(UserError, match=rf"diffusion\.style_encoder: {name} gives neither") as caught:
        StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder=name)
    assert "\n" not in str(caught.value) and "resnet" in str(caught.value)


def test_trying_a_backbone_leaves_it_as_it_was() -> None:
    extractor = StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder=TIMM)
    backbone = extractor.encoder.backbone
    assert backbone.training and int(backbone.state_dict()["bn1.num_batches_tracked"]) == 0
    assert not StyleExtractor(
        dim=8, set_size=N, latent_channels=4, encoder=TIMM, trainable=False
    ).encoder.backbone.training


def test_a_mistyped_backbone_has_a_nearest_name() -> None:
    with pytest.raises(UserError, match=r"did you mean resnet18\?"):
        StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder="resnt18")


@pytest.mark.parametrize("weights", ["./weights", "~/weights", "runs/a/b", "weights", "here/typo"])
def test_a_path_that_is_not_there_is_asked_of_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_sockets: list[Any], weights: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for place in (weights, str(tmp_path / weights)):
        with pytest.raises(UserError, match="is no folder here and no hub id"):
            StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder=TIMM, weights=place)
    assert no_sockets == []


@pytest.mark.parametrize("name", ["resnet18x", "some/where", "no such backbone"])
def test_unknown_backbone_is_the_users_mistake(name: str) -> None:
    with pytest.raises(UserError, match=r"diffusion\.style_encoder") as caught:
        StyleExtractor(dim=8, set_size=N, latent_channels=4, encoder=name)
    assert "\n" not in str(caught.value)


# First stage


def test_latents_have_measured_statistics_and_they_are_saved(tmp_path: Path) -> None:
    stage = FirstStage.new([16, 16], latent_channels=4, space_to_depth=2).eval()
    data = images(24, 3, PX, PX)
    stage.measure(data.split(7))
    with torch.no_grad():
        z = stage.encode(data)  # (24, 4, 8, 8)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    stage.save_pretrained(tmp_path)
    loaded = FirstStage.from_pretrained(tmp_path)
    assert torch.equal(loaded.mean, stage.mean) and torch.equal(loaded.std, stage.std)


def test_decoding_undoes_the_standardisation_and_stays_in_range() -> None:
    stage = FirstStage.new([16, 16], latent_channels=4, space_to_depth=2).eval()
    stage.measure([images(8, 3, PX, PX)])
    x = images(2, 3, PX, PX, seed=1)
    with torch.no_grad():
        raw = stage.distribution(x)[0]
        torch.testing.assert_close(stage.decode(stage.encode(x)), stage.reconstruct(raw).clamp(-1, 1))
        assert stage.decode(100 * torch.randn(2, 4, 8, 8)).abs().max() <= 1


@pytest.mark.parametrize("channels", [[48, 64], [96, 160], [16, 24]])
def test_first_stage_takes_widths_of_any_group(channels: list[int]) -> None:
    stage = FirstStage.new(channels, latent_channels=2, space_to_depth=2)
    assert stage.encode(images(1, 3, 16, 16)).shape == (1, 2, 4, 4)


@pytest.mark.parametrize(("levels", "fold", "factor"), [(1, 1, 1), (2, 2, 4), (3, 2, 8), (3, 1, 4)])
def test_factor_is_pixels_per_latent_cell(levels: int, fold: int, factor: int) -> None:
    stage = FirstStage.new([16] * levels, latent_channels=2, space_to_depth=fold)
    assert stage.factor == factor
    with torch.no_grad():
        assert stage.encode(images(1, 3, 16, 32)).shape == (1, 2, 16 // factor, 32 // factor)


def test_first_stage_refuses_sizes_it_cannot_fold() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        FirstStage.new([16, 16], latent_channels=2, space_to_depth=2).encode(images(1, 3, 30, 32))


def test_first_stage_adopts_a_diffusers_folder(tmp_path: Path, no_sockets: list[Any]) -> None:
    own = FirstStage.new([16, 16], latent_channels=4, space_to_depth=1).eval()
    own.kl.save_pretrained(tmp_path / "kl")
    adopted = FirstStage.from_diffusers(str(tmp_path / "kl")).eval()
    with torch.no_grad():
        x = images(2, 3, PX, PX)
        torch.testing.assert_close(adopted.encode(x), own.kl.encode(x).latent_dist.mean)
    adopted.save_pretrained(tmp_path / "adopted")
    FirstStage.from_pretrained(tmp_path / "adopted")
    assert no_sockets == []


def test_folder_without_an_autoencoder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"autoencoder\.pretrained"):
        FirstStage.from_diffusers(str(tmp_path))


# Segmenter


@pytest.mark.parametrize(("fold", "decoder"), [(1, [64, 48, 32, 16]), (2, [48, 32, 16])])
def test_segmenter_predicts_the_most_probable_class_whatever_the_batch_size(fold: int, decoder: list[int]) -> None:
    segmenter = Segmenter(
        classes=["a", "b", "c"], encoder=f"tu-{TIMM}", decoder_channels=decoder, space_to_depth=fold
    ).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, PX, PX, 3), dtype=np.uint8)
    probabilities = segmenter.probabilities(pixels, batch_size=2)
    assert probabilities.shape == (5, 3, PX, PX)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    labels = segmenter.predict(pixels, batch_size=2)
    assert labels.dtype == np.uint8 and (labels == probabilities.argmax(1)).all()
    np.testing.assert_allclose(probabilities, segmenter.probabilities(pixels, batch_size=5), atol=2e-2)


def test_segmenter_agrees_with_itself_on_mirrored_images() -> None:
    segmenter = Segmenter(classes=["a", "b"], encoder=f"tu-{TIMM}").eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, PX, PX, 3), dtype=np.uint8)
    mirrored = segmenter.probabilities(np.ascontiguousarray(pixels[:, :, ::-1]), views=4)[..., ::-1]
    np.testing.assert_allclose(mirrored, segmenter.probabilities(pixels, views=4), atol=1e-5)


def test_segmenter_takes_encoder_weights_from_a_local_folder(tmp_path: Path, no_sockets: list[Any]) -> None:
    segmenter = Segmenter(classes=["a", "b"], encoder=f"tu-{TIMM}")
    source = Segmenter(classes=["a", "b"], encoder=f"tu-{TIMM}").net.encoder.model.state_dict()
    (tmp_path / "weights").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in source.items()}, tmp_path / "weights" / WEIGHTS)
    segmenter.load_encoder(tmp_path / "weights")
    assert all(torch.equal(tensor, source[name]) for name, tensor in segmenter.net.encoder.model.state_dict().items())
    (tmp_path / "other").mkdir()
    save_file({"something": torch.zeros(1)}, tmp_path / "other" / WEIGHTS)
    with pytest.raises(UserError, match=r"segmentation\.encoder_weights"):
        segmenter.load_encoder(tmp_path / "other")
    large = {name: torch.zeros(*tensor.shape, 2) for name, tensor in source.items()}
    save_file(large, tmp_path / "other" / WEIGHTS)
    for wrong in (tmp_path / "other", tmp_path, tmp_path / "nowhere", "runs/nowhere/weights"):  # other sizes, no file
        with pytest.raises(UserError, match=r"segmentation\.encoder_weights"):
            segmenter.load_encoder(wrong)
    assert no_sockets == []


def test_encoder_weights_of_smps_own_encoders_and_of_another_depth(tmp_path: Path) -> None:
    """smp's own encoders do not say what was missing; a deeper network's weights have all that a shallow one has."""
    for name in ("resnet18", "resnet34"):
        timm.models.save_for_hf(timm.create_model(name), tmp_path / name, safe_serialization=True)
    segmenter = Segmenter(classes=["a", "b"], encoder="resnet18")
    segmenter.load_encoder(tmp_path / "resnet18")  # the classifier is left over, and may be
    saved = load_file(tmp_path / "resnet18" / WEIGHTS)
    assert torch.equal(segmenter.net.encoder.layer4[1].conv2.weight, saved["layer4.1.conv2.weight"])
    with pytest.raises(UserError, match=r"resnet34 does not fit the encoder resnet18 \(it has layer1\.2"):
        segmenter.load_encoder(tmp_path / "resnet34")
    for encoder, wrong, sign in (("tu-resnet34", "resnet18", "lacks"), ("tu-resnet18", "resnet34", "has")):
        with pytest.raises(UserError, match=f"{wrong} does not fit the encoder {encoder} .it {sign} layer1"):
            Segmenter(classes=["a", "b"], encoder=encoder).load_encoder(tmp_path / wrong)


@pytest.mark.parametrize("encoder", ["mit_b2", "no_such_encoder", "tu-no_such_encoder"])
def test_impossible_encoder_is_the_users_mistake(encoder: str) -> None:
    with pytest.raises(UserError, match=r"segmentation\.encoder"):
        Segmenter(classes=["a", "b"], encoder=encoder)


def test_linear_start_keeps_the_colour_of_images_that_are_nearly_all_texture() -> None:
    """Plain principal components give all axes to the texture and lose the hue (seen on EBHI-Seg: all violet)."""
    torch.manual_seed(0)
    grey = torch.randn(16, 1, 32, 32).clamp(-1, 1) * 0.5  # strong, of one pixel's size, without hue
    tint = 0.05 * torch.randn(16, 3, 1, 1)
    images = (grey + tint).clamp(-1, 1)
    first_stage = FirstStage.new([8, 8], latent_channels=6, space_to_depth=2)
    first_stage.start_linear(images)
    shortcut = first_stage.shortcut
    assert shortcut is not None
    mean = F.avg_pool2d(shortcut.decode(shortcut.encode(images)), first_stage.factor)
    assert torch.allclose(mean, F.avg_pool2d(images, first_stage.factor), atol=1e-4)
    latents = shortcut.encode(images)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(6), atol=0.01)

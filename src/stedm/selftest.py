"""The self-test of `stedm doctor`: every part once at its smallest size, in about ten seconds on two cores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import tifffile
import torch
from PIL import Image

from stedm.data.phantom import draw_layout, draw_style, render
from stedm.data.slide import Slide
from stedm.device import best_device
from stedm.diffusion.pipeline import StyleDiffusion, to_network
from stedm.models.autoencoder import FirstStage
from stedm.models.segmenter import Segmenter
from stedm.models.style import StyleExtractor
from stedm.models.unet import UNet
from stedm.training.tasks import AutoencoderTask, DiffusionTask

CLASSES = ["background", "stroma", "epithelium"]
SIZE_PX = 64
_FIT = {"learning_rate": 1e-3, "steps": 1, "seed": 0}


def _drawn() -> tuple[np.ndarray, np.ndarray]:
    """A phantom image (64, 64, 3) and its layout (64, 64)."""
    rng = np.random.default_rng(0)
    layout = draw_layout(SIZE_PX, rng)
    return render(layout, draw_style("he", rng), rng), layout


def untrained() -> StyleDiffusion:
    """An untrained generator, the same in every call."""
    torch.manual_seed(0)
    first_stage = FirstStage.new([16, 16], latent_channels=4, space_to_depth=2)
    extractor = StyleExtractor(dim=16, set_size=1, latent_channels=4, regions=len(CLASSES) + 1)
    sizes = {"latent_channels": 4, "num_classes": len(CLASSES), "factor": first_stage.factor, "style_dim": 16}
    unet = UNet(**sizes, channels=16, multipliers=[1, 2], style_vectors=len(CLASSES) + 1)
    return StyleDiffusion(first_stage, extractor, unet, CLASSES, patch_px=SIZE_PX, mpp=1.0)


def train_and_draw(folder: Path) -> str:
    """Draw the phantom, take one training step of both networks on it, and sample an image in its style."""
    image, layout = _drawn()
    device = best_device()
    model, x = untrained().to(device), to_network(image[None], device)
    z = model.first_stage.encode(x).detach()  # (1, C, h, w)
    layouts = torch.from_numpy(layout[None].astype(np.int64)).to(device)
    given = torch.ones(1, dtype=torch.bool, device=device)
    batch = {"z": z, "style_images": x[None], "style_latents": z[None], "style_layouts": layouts[None]}
    batch |= {"layout": layouts, "layout_given": given, "style_given": given}
    autoencoder = AutoencoderTask(model.first_stage, kl_weight=1e-4, latent_noise=0.3, **_FIT)
    for task, arguments in (
        (autoencoder, {"images": x}),
        (DiffusionTask(model.unet, model.style_extractor, **_FIT), batch),
    ):
        loss = task.training_step(arguments, 0)
        loss.backward()
        torch.optim.AdamW(task.parameters(), lr=1e-3).step()
        _require(bool(torch.isfinite(loss)), f"the loss is {loss.item()}")
    images = model.eval()(layout[None], image[None], seeds=[0], nfe=2)
    _require(images.shape == (1, SIZE_PX, SIZE_PX, 3), f"an image of shape {images.shape} was drawn")
    return "phantom, a training step of first stage and generator, an image drawn"


def segment(folder: Path) -> str:
    """Predict with an untrained segmenter."""
    torch.manual_seed(0)
    segmenter = Segmenter(classes=CLASSES, encoder="tu-test_resnet", space_to_depth=2).to(best_device())
    labels = segmenter.predict(_drawn()[0][None])
    _require(labels.shape == (1, SIZE_PX, SIZE_PX) and labels.max() < len(CLASSES), "the label map has a wrong shape")
    return "a label map predicted"


def files(folder: Path) -> str:
    """Write an image as PNG, as OME-TIFF and as a tiled pyramid, and read each as a slide: the same pixels."""
    image = _drawn()[0]
    Image.fromarray(image).save(folder / "plain.png")
    tifffile.imwrite(folder / "one.ome.tif", image, tile=(32, 32), photometric="rgb", compression="zlib", ome=True)
    with tifffile.TiffWriter(folder / "pyramid.tif") as tiff:
        for level in range(2):
            shown = image[:: 2**level, :: 2**level]
            options = {"tile": (32, 32), "photometric": "rgb", "subfiletype": level, "metadata": None}
            tiff.write(shown, compression="jpeg" if level else "zlib", **options)
    for name in ("plain.png", "one.ome.tif", "pyramid.tif"):
        with Slide.open(folder / name, mpp=1.0) as slide:
            read = slide.read(0, 0, size_px=SIZE_PX, mpp=1.0)
        _require(np.array_equal(read, image), f"{name} was read with other pixels than were written")
    vendor = openslide.OpenSlide.detect_format(str(folder / "pyramid.tif"))
    _require(vendor == "generic-tiff", f"OpenSlide takes a tiled TIFF for {vendor}")
    return "PNG, OME-TIFF and a pyramid written and read"


def weights(folder: Path) -> str:
    """Write a model folder and load it: the same tensors."""
    model = untrained()
    model.save_pretrained(folder)
    loaded = StyleDiffusion.from_pretrained(folder).state_dict()
    same = all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    _require(same, "a model folder was read with other weights than were written")
    return "a model folder written and read, bit for bit"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ArithmeticError(message)


STEPS: tuple[tuple[str, Callable[[Path], str]], ...] = (
    ("networks", train_and_draw),
    ("segmenter", segment),
    ("slides", files),
    ("weights", weights),
)
"""Name -> what is tried in an empty folder; each says what worked, and raises otherwise."""

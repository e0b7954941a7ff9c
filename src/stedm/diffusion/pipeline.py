"""StyleDiffusion: the three networks together, and how an image is made."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stedm import hub
from stedm.device import autocast
from stedm.diffusion.bands import match_bands, measure_bands
from stedm.diffusion.grain import LEAST_PX, add_grain, measure_grain, middle_of
from stedm.diffusion.sampling import SOLVERS, Branch, Sampling, guidance_weights, guided, noise_from_seeds
from stedm.diffusion.tones import keep_tones, measure_tones
from stedm.errors import UserError
from stedm.files import atomic_folder, read_json, reason_of, write_json
from stedm.models.autoencoder import FirstStage
from stedm.models.style import StyleExtractor
from stedm.models.unet import UNet, one_hot_layout

INDEX = "model_index.json"
Images = NDArray[np.uint8]
Places = Callable[[Images], Tensor]


def to_network(images: Images, device: torch.device | None = None) -> Tensor:
    """uint8 images (..., H, W, 3) -> float tensor (..., 3, H, W) in [-1, 1], on the CPU or on `device`."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).movedim(-1, -3).float() / 127.5 - 1


def to_images(x: Tensor) -> Images:
    """Float tensor (..., 3, H, W) in [-1, 1] -> uint8 images (..., H, W, 3)."""
    pixels = ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.movedim(-3, -1).cpu().numpy()


def read_index(folder: str | Path) -> dict[str, Any]:
    """What model_index.json says, as arguments of `StyleDiffusion`: classes, sampling, patch_px and mpp.

    The last two are None in folders written before they were stored. Raises UserError for a missing or damaged index.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise UserError(f"{path}: not found; name the `diffusion` folder of a run")
    try:
        index = read_json(path)
        names, patch_px, mpp = index["classes"], index.get("patch_px"), index.get("mpp")
        if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() for name in names):
            raise ValueError("the classes are no list of names")
        if not (patch_px is None or (isinstance(patch_px, int) and 1 <= patch_px <= 2**14)):
            raise ValueError(f"patch_px {patch_px}")
        if not (mpp is None or 1e-4 <= mpp <= 1e4):
            raise ValueError(f"mpp {mpp}")
        return {"classes": names, "sampling": Sampling(**index.get("sampling", {})), "patch_px": patch_px, "mpp": mpp}
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); copy the model folder again") from None


def _check_styles(style_images: Images | Sequence[Images], multiple: int) -> None:
    """Refuse what are no style sets of images with sides of LEAST_PX or more, and multiples of `multiple`."""
    if len(style_images) == 0:
        raise ValueError("style_images: no style set; give one array (N, H, W, 3), or one for each image")
    for k, images in enumerate(map(np.asarray, style_images)):
        got = f"style_images, set {k}: {images.dtype} {images.shape}"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
            raise ValueError(f"{got}; give uint8 RGB images (N, H, W, 3), one at least")
        if min(images.shape[1:3]) < LEAST_PX or any(side % multiple for side in images.shape[1:3]):
            raise ValueError(f"{got}; sides must be multiples of {multiple} and {LEAST_PX} pixels at least")


@dataclass(frozen=True)
class Styles:
    """Styles of B images, as `StyleDiffusion.extract_styles` reads them from style sets."""

    vectors: Tensor
    """(B, K, d + 2 C): what the style extractor says."""
    grain: Tensor
    """(B, LEVELS, 4): the scanner's noise by brightness, as `measure_grain` says, images in [-1, 1]."""
    tones: Tensor
    """(B, 2, 3): darkest and lightest value of each colour, in [-1, 1]."""
    bands: Tensor
    """(B, K, OCTAVES, 3, 3): covariance of the colours in each octave and region, as `measure_bands` says."""

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: Tensor | slice) -> "Styles":
        return Styles(*(values[rows] for values in vars(self).values()))

    def between(self, amounts: Sequence[float]) -> "Styles":
        """Mixtures of two styles (B = 2), one for each amount: 0 is the first, 1 the second."""
        if len(self) != 2:
            raise ValueError(f"styles are mixed two by two, and these are {len(self)}")

        def mixed(pair: Tensor) -> Tensor:
            share = torch.as_tensor(amounts, dtype=pair.dtype, device=pair.device).view(-1, *[1] * (pair.ndim - 1))
            return torch.lerp(pair[:1], pair[1:], share)

        return Styles(*(mixed(values) for values in vars(self).values()))


class StyleDiffusion(nn.Module):
    """Draws images that follow a layout in the style of reference images.

    >>> model = StyleDiffusion.from_pretrained("runs/demo/diffusion")
    >>> images = model(layouts, style_images, seeds=[0, 1, 2])
    """

    def __init__(
        self,
        first_stage: FirstStage,
        style_extractor: StyleExtractor,
        unet: UNet,
        classes: list[str],
        sampling: Sampling | None = None,
        *,
        patch_px: int | None = None,
        mpp: float | None = None,
    ) -> None:
        """patch_px, mpp: width in pixels and microns per pixel of the patches it was trained on; None: not known."""
        super().__init__()
        self.first_stage, self.style_extractor, self.unet = first_stage, style_extractor, unet
        self.classes, self.sampling = list(classes), sampling or Sampling()
        self.patch_px, self.mpp = patch_px, mpp

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, revision: str | None = None) -> Self:
        """Load a `diffusion/` folder written by `save_pretrained`, or the copy of a hub id: nothing is executed.

        Text of the form `user/name` is a hub id where no such folder is (`hub.local_folder`); a Path never is.
        """
        folder = hub.local_folder(folder, revision=revision)
        index = read_index(folder)
        model = cls(
            FirstStage.from_pretrained(folder / "autoencoder"),
            StyleExtractor.from_pretrained(folder / "style_encoder"),
            UNet.from_pretrained(folder / "unet"),
            **index,
        )
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model_index.json and one sub-folder (config.json + safetensors) per network."""
        folder = Path(folder)
        parts = {"autoencoder": self.first_stage, "style_encoder": self.style_extractor, "unet": self.unet}
        for name, part in parts.items():
            with atomic_folder(folder / name) as temporary:
                part.save_pretrained(temporary)
        index: dict[str, Any] = {"class": "StyleDiffusion", "classes": self.classes, "parts": list(parts)}
        index |= {"patch_px": self.patch_px, "mpp": self.mpp}
        write_json(folder / INDEX, index | {"sampling": dataclasses.asdict(self.sampling)})

    def push_to_hub(
        self, repo_id: str, *, card: str | Path | None = None, private: bool = True, token: str | None = None
    ) -> str:
        """Put the model into a repository of the Hugging Face hub; see `hub.push`."""
        return hub.push(self, repo_id, card=card, private=private, token=token)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def extract_styles(self, style_images: Images | Sequence[Images], *, places: Places | None = None) -> Styles:
        """Style sets -> B styles. One array (B, N, H, W, 3) uint8, or a sequence of B sets (N_b, H, W, 3).

        places: what `StyleExtractor.frozen_backbone` says of a set, (N, h', w', F), where that is kept.
        Raises ValueError, as drawing does, for what is no style set of images as large as the networks need.
        """
        _check_styles(style_images, self.first_stage.factor)
        said = [None if places is None else places(images)[None] for images in style_images]
        read = [self._read_style(to_network(x, self.device), kept) for x, kept in zip(style_images, said, strict=True)]
        return Styles(*(torch.stack(parts) for parts in zip(*read, strict=True)))

    def _read_style(self, images: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors (K, d + 2 C), grain, tones and bands of one style set (N, 3, H, W)."""
        with autocast(self.device):
            latents = self.first_stage.encode(images)  # (N, C, h, w)
            vectors, found = self.style_extractor.describe(images[None], latents[None], places=places)
            middle, middle_latents = middle_of(images, latents)
            reconstructed = self.first_stage.decode(middle_latents).float()
        grain, bands = measure_grain(middle, reconstructed), measure_bands(images, found[0])
        return vectors[0].float(), grain, measure_tones(images), bands

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        layouts: Images | None,
        style_images: Images | Sequence[Images] | None = None,
        *,
        seeds: Sequence[int],
        styles: Styles | None = None,
        size_px: int | None = None,
        **sampling: Any,
    ) -> Images:
        """Draw len(seeds) images (B, H, W, 3) uint8; image k depends on row k alone, up to rounding by the size of B.

        layouts: label maps (B, H, W) uint8, values >= number of classes (255) unknown; None draws without a layout.
        style_images: one style set (N, H, W, 3) for all images, or a set per image; None draws without a style.
        styles: B styles from `extract_styles`, instead of style_images.
        size_px: image side when there are no layouts. Sides must be multiples of `unet.grid_multiple` pixels.
        sampling: fields of `Sampling` (nfe, solver, guidance, ...) that replace the model's own.
        """
        if style_images is not None:
            shared = isinstance(style_images, np.ndarray) and style_images.ndim == 4
            styles = self.extract_styles([style_images] if shared else style_images)  # type: ignore[list-item]
            styles = styles[torch.zeros(len(seeds), dtype=torch.long)] if shared else styles
        options = dataclasses.replace(self.sampling, **sampling)
        z = self.draw_latents(
            layouts, None if styles is None else styles.vectors, options, seeds=seeds, size_px=size_px
        )
        with autocast(self.device):
            x = self.first_stage.decode(z).float()  # (B, 3, H, W)
        if styles is not None:
            # Tones first: a few black pixels would pass for strong octaves.
            x = keep_tones(add_grain(x, styles.grain, options.grain, seeds=seeds), styles.tones)
            x = match_bands(x, styles.bands, self._regions(layouts, x), options.bands)
        return to_images(x)

    def _regions(self, layouts: Images | None, x: Tensor) -> Tensor:
        """Where the K regions of a style are in images (B, 3, H, W): the classes and the unknown, or everywhere."""
        if self.style_extractor.config["regions"] == 1:
            return torch.ones_like(x[:, :1])
        layout = torch.zeros_like(x[:, 0]) if layouts is None else torch.from_numpy(np.array(layouts)).to(x.device)
        given = torch.full((len(x),), layouts is not None, device=x.device)
        return one_hot_layout(layout, given, len(self.classes))

    @torch.no_grad()
    def draw_latents(
        self,
        layouts: Images | None,
        styles: Tensor | None,
        options: Sampling,
        *,
        seeds: Sequence[int],
        size_px: int | None = None,
    ) -> Tensor:
        """The latents (B, C, h, w) behind `__call__`, which says what the arguments are; styles (B, K, d + 2 C)."""
        B = len(seeds)
        if layouts is not None and (layouts.ndim != 3 or layouts.dtype.kind not in "iub" or np.any(layouts < 0)):
            kind = f"{layouts.dtype} {layouts.shape}, least value {layouts.min(initial=0)}"
            raise ValueError(f"layouts: {kind}; give integer label maps (B, H, W), 0 or more, 255 for unknown")
        height, width = layouts.shape[1:] if layouts is not None else (size_px, size_px)
        self._check(B, layouts=layouts, styles=styles, height=height, width=width)
        weights = guidance_weights(
            options.guidance,
            layout_guidance=options.layout_guidance,
            style_guidance=options.style_guidance,
            has_layout=layouts is not None,
            has_style=styles is not None,
        )
        layout = torch.full((B, height, width), 255) if layouts is None else torch.from_numpy(np.array(layouts))  # type: ignore[arg-type]
        style = self.null_styles(B) if styles is None else styles
        velocity = guided(self._velocities(layout.to(self.device), style.to(self.device)), weights)
        factor = self.first_stage.factor
        shape = (self.first_stage.latent_channels, height // factor, width // factor)  # type: ignore[operator]
        with autocast(self.device):
            return SOLVERS[options.solver](velocity, noise_from_seeds(seeds, shape).to(self.device), options.nfe)

    def null_styles(self, n: int) -> Tensor:
        """The learned null style, n times: (n, K, d + 2 C)."""
        return self.unet.null_style.detach().expand(n, *self.unet.null_style.shape)

    def _velocities(self, layout: Tensor, style: Tensor):  # type: ignore[no-untyped-def]
        """The network asked in several ways at once: (z_t, t, K branches) -> (K, B, C, h, w)."""

        def velocities(z_t: Tensor, t: Tensor, branches: list[Branch]) -> Tensor:
            K, B = len(branches), len(z_t)
            given = torch.tensor(branches, device=z_t.device).repeat_interleave(B, dim=0)  # (K B, 2)
            v = self.unet(
                z_t.repeat(K, 1, 1, 1).contiguous(memory_format=torch.channels_last),
                t.repeat(K),
                layout=layout.repeat(K, 1, 1),
                layout_given=given[:, 0],
                style=style.repeat(K, 1, 1),
                style_given=given[:, 1],
            )
            return v.float().unflatten(0, (K, B))  # (K, B, C, h, w)

        return velocities

    def _check(
        self, B: int, *, layouts: Images | None, styles: Tensor | None, height: int | None, width: int | None
    ) -> None:
        """Refuse what cannot be drawn, naming the fix."""
        multiple = self.unet.grid_multiple
        if height is None or width is None:
            raise ValueError("no layouts: say the image side with size_px")
        if height % multiple or width % multiple:
            raise ValueError(f"images of {height} x {width} pixels: sides must be multiples of {multiple}")
        for name, given in (("layouts", layouts), ("style sets", styles)):
            if given is not None and len(given) != B:
                raise ValueError(f"{len(given)} {name} for {B} seeds: give one per seed")

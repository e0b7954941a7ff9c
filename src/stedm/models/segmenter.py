"""The segmentation network: a segmentation-models-pytorch U-Net that carries its class names and resolution."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stedm import hub
from stedm.device import autocast
from stedm.errors import UserError
from stedm.files import reason_of
from stedm.models.model_folder import WEIGHTS, FolderModel
from stedm.models.timm_backbone import NAME, weights_source

_COLOUR = re.compile("#[0-9a-fA-F]{6}")
FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))


class Segmenter(FolderModel):
    """Images -> class scores.

    classes: class names in label order. encoder: any smp encoder, or `tu-NAME` for a timm backbone; the `mit_b*`
    encoders are refused (non-commercial licence). space_to_depth: fold size s; the network sees (3 s^2, H/s, W/s) and
    its scores are unfolded again, so that nothing runs at full resolution; 1 for encoders with pretrained weights.
    mpp, patch_px: microns per pixel and width of the training patches. colours: "#rrggbb" of each class in pictures and
    outlines.
    """

    def __init__(
        self,
        *,
        classes: list[str],
        encoder: str = "resnet18",
        decoder_channels: list[int] | None = None,
        space_to_depth: int = 1,
        mpp: float | None = None,
        patch_px: int | None = None,
        colours: list[str] | None = None,
    ) -> None:
        super().__init__()
        _check(encoder, classes, colours)
        decoder = decoder_channels or [64, 48, 32, 16]
        self.config: dict[str, Any] = {
            "classes": list(classes),
            "encoder": encoder,
            "decoder_channels": decoder,
            "space_to_depth": space_to_depth,
            "mpp": mpp,
            "patch_px": patch_px,
            "colours": colours,
        }
        self.classes, self.mpp, self.patch_px, self.colours = list(classes), mpp, patch_px, colours
        self.space_to_depth, self.multiple_px = space_to_depth, space_to_depth * 2 ** len(decoder)
        try:
            self.net = smp.Unet(
                encoder,
                encoder_depth=len(decoder),
                encoder_weights=None,
                decoder_channels=tuple(decoder),
                in_channels=3 * space_to_depth**2,
                classes=len(classes) * space_to_depth**2,
            )
        except Exception as error:
            raise UserError(
                f"segmentation.encoder: smp cannot make {encoder!r} ({str(error).splitlines()[0]})"
            ) from error

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, revision: str | None = None) -> Self:
        """Load from a local folder, or the copy of a hub id `user/name` (`hub.local_folder`), in eval mode."""
        return super().from_pretrained(hub.local_folder(folder, revision=revision))

    def push_to_hub(
        self, repo_id: str, *, card: str | Path | None = None, private: bool = True, token: str | None = None
    ) -> str:
        """Put the model into a repository of the Hugging Face hub; see `hub.push`."""
        return hub.push(self, repo_id, card=card, private=private, token=token)

    def load_encoder(self, weights: str | Path) -> None:
        """Start the encoder from a local folder (model.safetensors) or, when it is no folder, a timm hub id.

        Raises UserError for what is neither, and for weights of another network.
        """
        import timm
        from safetensors.torch import load_file

        key = "segmentation.encoder_weights"
        source = weights_source(str(weights), key=key)
        kind, _, place = source.partition(":")
        encoder = getattr(self.net.encoder, "model", self.net.encoder)
        misfit = f"{key}: {weights} does not fit the encoder {self.config['encoder']}"
        try:
            if kind == "local-dir":
                state = load_file(Path(place) / WEIGHTS)
            else:
                state = timm.create_model(source, pretrained=True).state_dict()
            result = nn.Module.load_state_dict(encoder, state, strict=False)  # smp's own encoders return nothing
        except Exception as error:  # missing, damaged, of other sizes, or not to be had from the hub
            raise UserError(f"{misfit} ({reason_of(error)}); name other weights, or their encoder") from error
        if not_of_it := _of_another_network(result.missing_keys, result.unexpected_keys, used=set(state)):
            raise UserError(f"{misfit} ({not_of_it}); name other weights, or their encoder")

    def forward(self, images: Tensor, *, feature_dropout: float = 0.0) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], H and W multiples of s 2^(decoder levels) -> logits (B, N, H, W).

        feature_dropout: share of the encoder's channels that are dropped (a perturbation in training, Yang 2023).
        """
        folded = F.pixel_unshuffle(images, self.space_to_depth).contiguous(memory_format=torch.channels_last)
        features = [F.dropout2d(level, feature_dropout) for level in self.net.encoder(folded)]
        return F.pixel_shuffle(self.net.segmentation_head(self.net.decoder(features)), self.space_to_depth)

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8], *, views: int = 1, batch_size: int = 64) -> NDArray[np.float32]:
        """Images (n, H, W, 3) uint8 -> class probabilities (n, N, H, W), averaged over the first `views` of 4 flips."""
        return np.concatenate([part.cpu().numpy() for part in self._read(images, views, batch_size)])

    @torch.no_grad()
    def predict(self, images: NDArray[np.uint8], *, batch_size: int = 64) -> NDArray[np.uint8]:
        """Images (n, H, W, 3) uint8 -> label maps (n, H, W) uint8."""
        parts = self._read(images, 1, batch_size)
        return np.concatenate([part.argmax(1).to(torch.uint8).cpu().numpy() for part in parts])

    def _read(self, images: NDArray[np.uint8], views: int, batch_size: int) -> Iterator[Tensor]:
        """Class probabilities (b, N, H, W) of the images, batch by batch, where the network is."""
        self.eval()
        device = next(self.parameters()).device
        for start in range(0, len(images), batch_size):
            x = torch.from_numpy(images[start : start + batch_size]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            x = x.contiguous(memory_format=torch.channels_last)
            total = torch.zeros(len(x), len(self.classes), *x.shape[-2:], device=device)
            for dims in FLIPS[:views]:
                with autocast(device):
                    logits = self(x.flip(dims))
                total += logits.float().softmax(1).flip(dims) / min(views, len(FLIPS))
            yield total


def _of_another_network(missing: list[str], unexpected: list[str], *, used: set[str]) -> str:
    """What shows that weights are another network's; "" if nothing does.

    An encoder has no classifier and may lack the last blocks: whole blocks may be left over, but no part of one.
    """
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    blocks = {name.partition(".")[0] for name in used.difference(unexpected)}
    surplus = [name for name in unexpected if name.partition(".")[0] in blocks]
    return f"it lacks {missing[0]}" if missing else f"it has {surplus[0]}, the encoder has not" if surplus else ""


def _check(encoder: str, classes: list[str], colours: list[str] | None) -> None:
    if encoder.startswith("mit_b"):
        raise UserError(f"segmentation.encoder: {encoder} has a non-commercial licence; use resnet18 or tu-NAME")
    if not NAME.fullmatch(encoder):  # timm would fetch what `tu-hf-hub:` and the like stand before
        raise UserError(f"segmentation.encoder: {encoder!r} is no encoder's name; use resnet18 or tu-NAME")
    if not classes or not all(isinstance(name, str) and name.isprintable() for name in classes):
        raise ValueError(f"classes {classes!r}: name them in printable characters")
    if colours is not None and (len(colours) != len(classes) or not all(map(_COLOUR.fullmatch, colours))):
        raise ValueError(f"colours {colours!r}: give one like #2f7f86 for each class")

"""What the kernel inception distance is measured on: fixed features, or the pooled features of a network."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F

from stedm.errors import UserError
from stedm.evaluation.features import kid_features
from stedm.evaluation.generation import Scale
from stedm.files import reason_of
from stedm.models.tensor_file import read_tensors
from stedm.models.timm_backbone import timm_backbone

FIXED = "stain+texture+random"
"""Name of the features that need no weights."""
_KEY = "evaluate.kid_encoder"
_INCEPTION = "inception:"
_BATCH = 64

Encoder = Callable[[np.ndarray], np.ndarray]
"""uint8 images (n, H, W, 3) -> float features (n, d)."""


def kid_encoder(name: str | None, *, device: torch.device | None = None) -> tuple[str, Encoder]:
    """Return the encoder's full name and the encoder, whose features are those of the network or formulas as they are.

    Args:
        name: None for `kid_features`; a local folder or hub id of a timm model; `inception:PATH` for torch-fidelity's
            InceptionV3 with the weights file at PATH, the one that published distances are measured on.
        device: where a network runs; the CPU when not given.

    Raises:
        UserError: if the network or its weights cannot be had.
    """
    if name is None:
        return full_name(name), kid_features
    device, file = device or torch.device("cpu"), inception_file(name)
    return full_name(name), _timm(name, device) if file is None else _inception(file, device)


def full_name(name: str | None) -> str:
    """What results call an encoder that the config calls `name`."""
    if name is None:
        return FIXED
    return name if name.startswith(_INCEPTION) else f"timm:{name}"


def inception_file(name: str) -> Path | None:
    """PATH of `inception:PATH`; None for timm's."""
    return Path(name.removeprefix(_INCEPTION)).expanduser() if name.startswith(_INCEPTION) else None


def standardised(encoder: Encoder, images: np.ndarray) -> Encoder:
    """The encoder on the scale of its features of `images`, so that none outweighs the others by its unit alone.

    For `kid_features`; a network's features stay as they are, as in published distances.

    Args:
        encoder: the encoder.
        images: uint8 (n, H, W, 3), none of those compared: these lie closer to the middle of a scale of their own than
            new images of the same distribution do, which a distance would show.
    """
    scale = Scale.fit(encoder(images))
    return lambda compared: scale(encoder(compared))


def _in_batches(network: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Encoder:
    @torch.no_grad()
    def encode(images: np.ndarray) -> np.ndarray:
        rows = []
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH]))
            rows.append(network(batch.movedim(-1, 1).to(device)).float().cpu())
        return torch.cat(rows).double().numpy()

    return encode


def _timm(name: str, device: torch.device) -> Encoder:
    backbone = timm_backbone(name, name, key=_KEY)[0].to(device).eval()
    data = timm.data.resolve_model_data_config(backbone)
    size_px = data["input_size"][-1]
    mean, std = (torch.tensor(data[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))

    def pooled(pixels: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(pixels / 255, size=(size_px, size_px), mode="bilinear", antialias=True)
        features: torch.Tensor = backbone((x - mean) / std)
        if features.ndim != 2:
            raise ValueError(f"features {list(features.shape)}")
        return features

    encoder = _in_batches(pooled, device)
    try:
        _try(encoder, size_px)
    except Exception as error:  # backbones that return something else fail in as many ways
        raise UserError(
            f"{_KEY}: {name} does not make one vector of an image ({reason_of(error)}); take another"
        ) from error
    return encoder


def _inception(weights: Path, device: torch.device) -> Encoder:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError(f"{_KEY}: `inception:` needs torch-fidelity; pip install stedm[fid]") from None
    # torch-fidelity would unpickle whatever is in the file; it is given the tensors that the strict reader found.
    tensors = io.BytesIO()
    if not weights.is_file():
        raise UserError(f"{_KEY}: {weights} not found; name torch-fidelity's InceptionV3 weights file")
    try:
        torch.save(read_tensors(weights), tensors)
        tensors.seek(0)
        network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=tensors)
        encoder = _in_batches(lambda pixels: network(pixels)[0], device)
        network.to(device).eval()
        _try(encoder, 299)
    except Exception as error:
        raise UserError(
            f"{_KEY}: {weights} is no InceptionV3 weights file ({reason_of(error)}); download it again"
        ) from error
    return encoder


def _try(encoder: Encoder, size_px: int) -> None:
    """Raise ValueError unless the features of a black image are numbers: weights may be none."""
    if not np.isfinite(encoder(np.zeros((1, size_px, size_px, 3), np.uint8))).all():
        raise ValueError("its features are no numbers")

"""Encoders from elsewhere that a config names: made before anything is trained, and told apart by their weights."""

import functools
import hashlib
from collections.abc import Container
from pathlib import Path

from stedm.config import RunConfig
from stedm.errors import UserError
from stedm.files import reason_of

_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar")
"""Files that timm would read weights from."""


def check_encoders(config: RunConfig, keys: Container[str] | None) -> None:
    """Make every encoder from elsewhere that some stage will need, and forget it: a mistake must not be found late.

    keys: of the config, that the stages to be done read; None: all. Raises UserError for names that timm does not
    know, folders that are not there, weights that do not fit, and networks that cannot take the part.
    """
    diffusion, segmentation = config.diffusion, config.segmentation
    if diffusion.style_encoder != "conv" and (keys is None or "diffusion.style_encoder" in keys):
        from stedm.models.style import TimmStyleEncoder

        TimmStyleEncoder(diffusion.style_encoder, 1, 1, weights=diffusion.style_weights)
    if segmentation.encoder_weights and (keys is None or "segmentation.encoder" in keys):
        from stedm.models.segmenter import Segmenter

        Segmenter(classes=["any"], encoder=segmentation.encoder).load_encoder(segmentation.encoder_weights)
    if config.evaluate.kid_encoder and (keys is None or "evaluate.kid_encoder" in keys):
        from stedm.evaluation.encoders import kid_encoder

        kid_encoder(config.evaluate.kid_encoder)


def weights_digest(weights: str | None, *, key: str) -> str:
    """What a folder of weights holds, wherever it is: 64 hexadecimal digits; a hub id as it is; "" for None.

    key: of the config, for messages. Raises UserError for what is neither, and for files that cannot be read.
    """
    if weights is None:
        return ""
    from stedm.models.timm_backbone import weights_source

    kind, _, place = (source := weights_source(weights, key=key)).partition(":")
    if kind != "local-dir":
        return source
    digest = hashlib.sha256()
    try:
        for path in sorted(Path(place).iterdir()):
            if path.name == "config.json" or path.suffix in _SUFFIXES:
                state = path.stat()
                digest.update(f"{path.name} {_sha256(path, state.st_size, state.st_mtime_ns)}\n".encode())
    except OSError as error:
        raise UserError(f"{key}: {weights} cannot be read ({reason_of(error)}); copy the folder again") from None
    return digest.hexdigest()


@functools.cache  # gigabytes, which every part of an experiment asks for
def _sha256(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file that had this size and time of change."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

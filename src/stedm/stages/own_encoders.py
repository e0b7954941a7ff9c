"""Encoders from elsewhere that a config names: made before anything is trained, and told apart by their weights."""

import functools
import hashlib
from collections.abc import Container
from pathlib import Path

from stedm.config import RunConfig
from stedm.errors import UserError
from stedm.files import read_json, reason_of

_KID = "evaluate.kid_encoder"
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
    if config.evaluate.kid_encoder and (keys is None or "evaluate.images_per_style" in keys):
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


def kid_digest(name: str | None, *, measured: Path) -> str:
    """What the weights of `evaluate.kid_encoder` are, as of `weights_digest`; of a file by its content too.

    measured: generation.json, which says it of weights that are gone since it was measured by them: they stop nothing
    that does not read them. Raises UserError for all others that cannot be read.
    """
    if name is None:
        return ""
    from stedm.evaluation.encoders import full_name, inception_file

    try:
        file = inception_file(name)
        return weights_digest(name, key=_KID) if file is None else _file_digest(file)
    except UserError:
        known = read_json(measured) if measured.is_file() else None
        if not isinstance(known, dict) or known.get("kid_encoder") != full_name(name) or not known.get("kid_weights"):
            raise
        return str(known["kid_weights"])


def _file_digest(path: Path) -> str:
    try:
        state = path.stat()
        return _sha256(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{_KID}: {path} cannot be read ({reason_of(error)}); name a weights file") from None


@functools.cache  # gigabytes, which every part of an experiment asks for
def _sha256(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file that had this size and time of change."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

"""Few-label histopathology segmentation with style-extracting diffusion."""

import importlib
import importlib.metadata
from typing import Any

__version__ = importlib.metadata.version("stedm")

_HOME = {
    "StyleDiffusion": "stedm.diffusion.pipeline",
    "Segmenter": "stedm.models.segmenter",
    "RunConfig": "stedm.config",
    "UserError": "stedm.errors",
    "load_config": "stedm.config_file",
    "run_all": "stedm.run",
}
__all__ = ["RunConfig", "Segmenter", "StyleDiffusion", "UserError", "__version__", "load_config", "run_all"]


def __getattr__(name: str) -> Any:
    """Load public names when they are first used: importing stedm stays cheap."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'stedm' has no attribute {name!r}")

"""The fingerprint of a stage: whether its results are still those of this config and these inputs."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from stedm.config import RunConfig
from stedm.config_cohort import wherever_tables_are
from stedm.errors import UserError
from stedm.files import read_json
from stedm.stage import Stage

FORMAT = 15
"""Raise when a stage's results change for the same config: old run folders are then redone."""


def fingerprint_of(stage: Stage, config: RunConfig, fingerprints: dict[str, str]) -> str:
    """SHA-256 over the config values a stage reads and the fingerprints of the stages it reads."""
    config = dataclasses.replace(config, cohort=wherever_tables_are(config.cohort))
    content = {
        "format": FORMAT,
        "stage": stage.name,
        "config": {key: _lookup(config, key) for key in stage.keys},
        "needs": {name: fingerprints[name] for name in stage.needs},
        "extra": stage.extra,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _lookup(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def fingerprint_in(marker: Path) -> str | None:
    """The fingerprint in a stage's marker; None without one and for a damaged one: the stage is then not done."""
    try:
        content = read_json(marker) if marker.exists() else None
    except UserError:
        return None
    return content.get("fingerprint") if isinstance(content, dict) else None

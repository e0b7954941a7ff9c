"""A stage of a run: what it does, where, and everything its result depends on."""

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One unit of work: what it does, where, and everything its result depends on.

    keys: config sections, or dotted keys, that it reads. needs: names of the stages whose results it reads.
    """

    name: str
    action: Callable[..., None]
    folder: Path
    keys: tuple[str, ...]
    needs: tuple[str, ...]
    marker: str = "fingerprint.json"
    extra: str = ""
    keeps_folder: bool = False
    """Shares its folder with an earlier stage: cleaning up must not remove it."""
    after: tuple[str, ...] = ()
    """Stages that come first, but of whose results only what `keys` and `extra` say is read."""

    @property
    def begun(self) -> Path:
        """Says, as long as the stage is not done, what is being made."""
        return self.folder / f"begun-{self.marker}"


def needed(stages: list[Stage], until: str) -> list[Stage]:
    """The stages called `until...` and everything they depend on, in order."""
    wanted = {stage.name for stage in stages if stage.name.startswith(until)}
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update((*stage.needs, *stage.after))
    return [stage for stage in stages if stage.name in wanted]


def keys_of(section: str, cls: type, *, without: tuple[str, ...]) -> tuple[str, ...]:
    """Every dotted key of a section but those named."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in without]
    return tuple(f"{section}.{name}" for name in names)


def later(name: str, /, *arguments: Any, **options: Any) -> Callable[[], None]:
    """A call of stedm.stages.<module>.<function> that imports it then: errors in a config or a table come at once."""

    def action() -> None:
        module, _, function = name.partition(".")
        getattr(importlib.import_module(f"stedm.stages.{module}"), function)(*arguments, **options)

    return action

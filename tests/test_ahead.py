"""Results made ahead in threads: in order, each once, and of a synthetic set the same images."""

import shutil
from pathlib import Path

import pytest

from stedm.config_file import load_config
from stedm.stages import generate
from stedm.stages.run_folder import RunFolder


@pytest.mark.parametrize("name", ["synthetic", "second-round"])
def test_images_whose_layouts_were_made_ahead_are_the_same(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(smallest_run, run.root)
    config = load_config(run.root / "config.yaml")
    config.generate.batch_size = 2  # several batches; rows do not depend on it, up to rounding
    folder = run.synthetic_set(name)
    drawn = []
    for ahead in (0, 3):
        shutil.rmtree(folder)
        monkeypatch.setattr(generate, "made_ahead", lambda ahead=ahead: ahead)
        generate.generate(run, config, name=name)
        drawn.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")})
    assert len(drawn[0]) == 2 * config.generate.images and drawn[0] == drawn[1]

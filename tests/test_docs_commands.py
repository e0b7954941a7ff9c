"""Every command block in README and docs is run at the smallest size beside a finished run, or a table says why not."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from PIL import Image

from stedm.cli import COMMANDS, main
from stedm.cli_generate import asks_for

pytestmark = pytest.mark.timeout(900)  # 20 s of processor time for the run beside which the commands are tried
ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
RUN_ELSEWHERE = {"docs/how-to/own-cohort.md": "tests/test_own_cohort.py"}
"""Pages whose commands another test runs, in order, on files of their own."""
NOT_RUN = {
    "torchrun": "needs several GPUs; tests/test_ranks.py starts it with two processes on the CPU",
    "sbatch": "needs SLURM",
    "pip": "needs the package registry",
    "pip-audit": "needs the advisory database",
    "python -m pip": "needs the package registry",
    "stedm studio": "serves until it is ended; tests/test_studio_page.py starts it",
}
"""How the commands begin that are not run here, and why."""
SMALL = {
    "size": "smoke",
    "cohort": {
        "phantom": {
            "train_patients": 5,
            "val_patients": 1,
            "test_patients": 3,
            "unseen_patients": 0,
            "slide_px": 64,
        }
    },
    "split": {"label_budget": 2},
    "diffusion": {"annotated_only_control": False},
    "segmentation": {"seeds": [0], "arms": ["real+stain", "real+stain+synthetic"]},
    "generate": {"images": 8},
    "evaluate": {"bootstrap": 100, "images_per_style": 4},
}
"""The config of every run here."""


def commands_of(text: str) -> list[list[str]]:
    """The commands of a page's blocks, as words; a line that ends in a backslash goes on in the next."""
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line.removeprefix(".venv/bin/"), comments=True))]


def every_command() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        if name not in RUN_ELSEWHERE:
            yield from ((name, words) for words in commands_of(page.read_text(encoding="utf-8")))


def begins(line: str, words: str) -> bool:
    """Whether a command begins with these words."""
    return f"{line} ".startswith(f"{words} ")


CASES = [(page, line) for line, page in {shlex.join(words): page for page, words in every_command()}.items()]
"""A command that stands on several pages is run once."""
RUN_HERE = [(page, line) for page, line in CASES if not any(begins(line, words) for words in NOT_RUN)]


def flags(values: dict, prefix: str = "") -> list[str]:
    """A config as words of the command line."""
    words = []
    for key, value in values.items():
        inner = flags(value, f"{prefix}{key}.") if isinstance(value, dict) else []
        words += inner or [f"--{prefix}{key}", yaml.safe_dump(value, default_flow_style=True).split("\n")[0]]
    return words


def save_images(folder: Path, names: list[str], *, side_px: int = 96) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(90, 200, (side_px, side_px, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' commands name: inputs, and finished runs."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("examples", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "my_cohort.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    assert main(["demo", "--out", str(folder / "runs/demo"), "--jobs", "1", *flags(SMALL)]) == 0
    for name in ("my", "run", "try", "look"):  # finished, too: their commands find every stage unchanged
        shutil.copytree(folder / "runs/demo", folder / "runs" / name)
    save_images(folder / "my_images", ["a.png", "b.png"])
    save_images(folder, ["slide.png"], side_px=160)
    torch.manual_seed(0)
    timm.models.save_for_hf(
        timm.create_model("test_resnet", pretrained=False), folder / "weights", safe_serialization=True
    )
    rows = []
    for patient in ("p1", "p2"):
        for kind in ("truth", "prediction"):
            label_map = np.random.default_rng(len(rows)).integers(0, 3, (16, 16), dtype=np.uint8)
            Image.fromarray(label_map).save(folder / f"{kind}_{patient}.png")
        rows.append({"patient": patient, "truth": f"truth_{patient}.png", "prediction": f"prediction_{patient}.png"})
    pd.DataFrame(rows).to_csv(folder / "predictions.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def of_page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A copy for each page: its commands follow upon each other, and do not meet those of other pages."""
    return {page: Path(shutil.copytree(folder, tmp_path_factory.mktemp("page") / "work")) for page, _ in RUN_HERE}


def smaller(words: list[str]) -> list[str]:
    """A command of stedm, with what makes a run of it small; what continues a run has its config."""
    runs_stages = " ".join(words[: 1 + (words[0] == "train")]) in COMMANDS and not asks_for(words)
    given = {word.split("=")[0] for word in words}
    if runs_stages:
        words = [*words, "--jobs", "1"] if "--jobs" not in given else words
        if words[0] == "demo" or (words[0] == "run" and not given & {"--config", "--arms", "--seeds", "--budgets"}):
            words = [words[0], *flags(SMALL), *words[1:]]
    return words


def run(words: list[str]) -> None:
    """One command of a page, in this process."""
    if words[0] == "stedm":
        assert main(smaller(words[1:])) == 0, " ".join(words)
    elif words[0] == "python":
        small = [word.removeprefix("--") for word in flags(SMALL)]
        pairs = [f"{key}={value}" for key, value in zip(small[::2], small[1::2], strict=True) if key != "size"]
        takes_keys = "--set" in Path(words[1]).read_text(encoding="utf-8")
        sys.argv = [*words[1:], *(["--set", *pairs] if takes_keys else [])]
        runpy.run_path(words[1], run_name="__main__")
    else:  # what its recipes call is in the other blocks; here the target must exist
        assert words[0] == "make", f"no way to run {words[0]}: add it to NOT_RUN with a reason"
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True)


@pytest.mark.parametrize(("page", "line"), RUN_HERE, ids=[f"{page}:{line[:60]}" for page, line in RUN_HERE])
def test_command_of_a_page_runs(
    of_page: dict[str, Path], page: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(of_page[page])
    monkeypatch.setattr(sys, "argv", [])
    run(shlex.split(line))


def test_nothing_is_left_out_without_need() -> None:
    assert [words for words in NOT_RUN if not any(begins(line, words) for _, line in CASES)] == []
    for page, test in RUN_ELSEWHERE.items():
        assert BLOCK.search((ROOT / page).read_text(encoding="utf-8"))
        assert page in (ROOT / test).read_text(encoding="utf-8")
    assert len(RUN_HERE) > 15


def test_blocks_are_marked_so_that_they_are_found() -> None:
    """A command in a block of another language, or of none, would be run by nobody."""
    hidden = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            if language not in ("bash", "sh", "shell", "console") and re.search(r"^(\$ |stedm \w+ |make \w)", block):
                hidden.append(f"{page.relative_to(ROOT)}: {block.splitlines()[0]}")
    assert hidden == []


def test_run_folder_page_names_what_a_run_leaves(folder: Path) -> None:
    page = (ROOT / "docs/reference/run-folder.md").read_text(encoding="utf-8")
    run = folder / "runs/my"
    names = [path.name for path in run.iterdir()] + [path.name for path in (run / "evaluation").iterdir()]
    assert [name for name in names if name not in page and name != "fingerprint.json"] == []
    for table in ("data/patches.parquet", "synthetic/plan.parquet", "synthetic/manifest.parquet"):
        columns = [name for name in pd.read_parquet(run / table).columns if not name.startswith("fraction_")]
        assert [name for name in columns if f"`{name}`" not in page] == [], table

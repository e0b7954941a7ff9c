"""What is released: one version everywhere, and a wheel that runs without the repository."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return next(out.glob("*.whl"))


def test_version_is_the_same_everywhere_and_semantic(wheel: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    latest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert latest is not None and latest[1] == str(cited) == version == wheel.name.split("-")[1]


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    expected = {name.removeprefix("src/") for name in tracked}
    if not expected:
        pytest.skip("not a git checkout: nothing to compare with")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected and "stedm/py.typed" in names
    licences = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/LICENSE")]
    assert len(licences) == 1


def test_installed_elsewhere_the_wheel_runs_the_smoke_demo(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are this environment's: a registry is not asked."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import stedm; print(stedm.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert found.stdout.startswith(str(site))  # not the repository's
    command = [str(site / "bin" / "stedm"), "demo", "--size", "smoke", "--segmentation.seeds", "[0]"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "demo" / "report" / "index.html").is_file()


def test_dockerfile_copies_what_the_build_needs() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = {word for line in dockerfile.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "src"} and all(f"!{name}" in ignored for name in copied)
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^USER (?!root)", dockerfile, flags=re.MULTILINE)


def test_issue_templates_are_forms_that_ask_something() -> None:
    forms = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")]
    asking = [form for form in forms if "body" in form]
    assert len(asking) == 2 and all(form["name"] and form["description"] and form["body"] for form in asking)

"""What is released: one version everywhere, and a wheel that runs without the repository."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from spawned import without_network

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


def required(name: str, extras: frozenset[str], found: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Names of the distributions that `name` asks for, and those ask for, here, and its own."""
    if (name, extras) in found:
        return set()
    found.add((name, extras))
    wanted = [Requirement(line) for line in importlib.metadata.requires(name) or []]
    names = {name}
    for one in wanted:
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            names |= required(one.name, frozenset(one.extras), found)
    return names


def link_dependencies(site: Path) -> None:
    """Put what stedm asks for, and nothing else, into an empty environment: links, for it is gigabytes."""
    for name in required("stedm", frozenset(), set()) - {"stedm"}:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))


DEMO = (
    "demo --size smoke --segmentation.seeds [0]",
    "train few-step runs/demo --generate.generator few-step",
    "generate --model runs/demo/few_step --style-images runs/demo/data/images --n 2 --nfe 2 --out new",
    "segment runs/demo/synthetic/images/s000000.png --model runs/demo --mpp 1 --everywhere --out out",
)
"""What `make demo` runs, at the smallest size, and the commands that it names at its end."""


@pytest.mark.timeout(900)  # a whole run, beside the other tests, on any machine
def test_installed_in_an_environment_of_its_own_the_wheel_runs_the_smoke_demo(wheel: Path, tmp_path: Path) -> None:
    """With what the wheel asks for and no more: a tool of the developers' must not be missed. And without network."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True, timeout=120)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    link_dependencies(site)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    absent = [str(python), "-c", "import stedm; print(stedm.__file__); import pytest"]
    found = subprocess.run(absent, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert found.stdout.startswith(str(site)) and "No module named 'pytest'" in found.stderr
    behind_guard = without_network(environment, tmp_path / "attempts")
    for words in DEMO:
        command = [str(python.parent / "stedm"), *words.split()]
        result = subprocess.run(command, cwd=tmp_path, env=behind_guard, capture_output=True, text=True, timeout=880)
        assert result.returncode == 0, result.stderr
        assert not (tmp_path / "attempts").exists(), (words, (tmp_path / "attempts").read_text())
    made = ("runs/demo/report/index.html", "runs/demo/few_step/metrics.csv", "new/manifest.parquet", "out/areas.csv")
    assert [name for name in made if not (tmp_path / name).is_file()] == []


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

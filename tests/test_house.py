"""The house rules that can be checked: layers, sizes, declared dependencies, documents and configs that hold true."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from stedm.config_file import load_config

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPRODUCE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEXT_SUFFIXES = {"", ".cff", ".css", ".html", ".ipynb", ".j2", ".js", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}

ABSOLUTE_PATH = re.compile(r"""(?<=["'\s=(`])/[\w-][\w.-]*/[\w./-]+""")
ALLOWED_ABSOLUTE = ("/dev/null", "/proc/", "/sys/fs/cgroup/", "/no/such/", "/path/to/", "/usr/bin/env")
PARENT_PATH = re.compile(r"(?<!\.)(?:\.\./)+")


def run_python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def tracked_texts() -> list[Path]:
    """Text files of the repository that git tracks or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / line for line in listing.stdout.splitlines()]
    return [path for path in paths if path.suffix in TEXT_SUFFIXES and path.is_file()]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def shell_commands(program: str) -> list[list[str]]:
    """Commands of README and reproduce.md that call `program`, as words: shell blocks and inline code alike."""
    lines = [line for block in code_blocks("bash") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL) + REPRODUCE
    lines += re.findall(r"`([^`\n]+)`", prose)
    commands = [shlex.split(line.removeprefix(".venv/bin/"), comments=True) for line in lines]
    return [words for words in commands if words[:1] == [program] and len(words) > 1]


def test_no_source_file_is_longer_than_300_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_nothing_points_outside_the_repository() -> None:
    found = []
    for path in tracked_texts():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        if name.name == "Dockerfile":  # its paths are those of the image it makes
            continue
        found += [f"{name}: {hit}" for hit in ABSOLUTE_PATH.findall(text) if not hit.startswith(ALLOWED_ABSOLUTE)]
        climbs = max((len(hit) // 3 for hit in PARENT_PATH.findall(text)), default=0)
        # Documents and configs may name a neighbour relative to themselves; in code such a path depends on the caller.
        allowed = len(name.parts) - 1 if path.suffix in {".ipynb", ".md", ".yaml", ".yml"} else 0
        found += [f"{name}: climbs {climbs} folders up"] if climbs > allowed else []
    assert found == []


def test_git_ignores_no_source_file() -> None:
    tracked = set(tracked_texts())
    assert [str(path.relative_to(ROOT)) for path in SOURCES if path not in tracked] == []


def test_layers_hold() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_stedm_is_cheap() -> None:
    heavy = ("torch", "lightning", "diffusers", "pandas", "timm", "matplotlib", "openslide", "scipy")
    loaded = run_python(f"import sys, stedm; print(*[name for name in {heavy} if name in sys.modules])")
    assert loaded.split() == []


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras if name != "dev")]
    names = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for group in groups for line in group}
    distributions = packages_distributions()
    undeclared = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"stedm"}:
                owners = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
                undeclared |= {f"{path.relative_to(ROOT)}: {module}"} if not owners & names else set()
    assert undeclared == set()


def test_one_version_everywhere() -> None:
    version = PYPROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_loads(path: Path) -> None:
    config = load_config(path, [])
    assert config.prepare.patch_px % 16 == 0
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.size == given["size"]
    assert config.split.label_budget == given["split"]["label_budget"]


def test_readme_is_short_and_its_links_exist() -> None:
    assert len(README.splitlines()) <= 150
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []
    named = re.findall(r"`((?:configs|docs|examples|benchmarks)/[\w./-]+)`", README)
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = re.findall(r"`((?:data|diffusion|evaluation|models|stages|training)/\w+\.py)`", README)
    assert [name for name in modules if not (ROOT / "src/stedm" / name).exists()] == []


def test_readme_make_commands_are_targets() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    commands = shell_commands("make")
    assert commands
    assert [words for words in commands if words[1] not in targets] == []


def test_every_picture_and_every_result_has_its_command() -> None:
    pictures = sorted((ROOT / "docs" / "images").glob("*.png"))
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    assert pictures and results
    assert [path.name for path in (*pictures, *results) if f"/{path.name})" not in REPRODUCE] == []


def test_benchmark_commands_exist_with_their_options() -> None:
    commands = shell_commands("python")
    assert len(commands) >= 4
    for words in commands:
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        options = [word for word in words if word.startswith("--")]
        assert [option for option in options if f'add_argument("{option}"' not in source] == [], words[1]


def test_readme_stedm_commands_exist_with_their_options() -> None:
    commands = shell_commands("stedm")
    assert commands
    helps: dict[tuple[str, ...], str] = {}
    for words in commands:
        verbs = words[1:3] if words[1] == "train" else words[1:2]
        if tuple(verbs) not in helps:
            command = [sys.executable, "-m", "stedm.cli", *verbs, "--help"]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, f"stedm {' '.join(verbs)}: {result.stderr}"
            helps[tuple(verbs)] = result.stdout
        text = helps[tuple(verbs)]
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        unknown = [option for option in options if option not in text and f"\n  {option[2:]}: " not in text]
        assert unknown == [], " ".join(words)


def test_readme_python_compiles_and_its_names_are_public() -> None:
    import stedm

    for block in code_blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "stedm":
                assert [alias.name for alias in node.names if alias.name not in stedm.__all__] == []
                assert all(hasattr(stedm, alias.name) for alias in node.names)


def test_readme_yaml_is_a_valid_config(tmp_path: Path) -> None:
    blocks = code_blocks("yaml")
    assert blocks
    for block in blocks:
        path = tmp_path / "cohort.yaml"
        path.write_text(block, encoding="utf-8")
        assert load_config(path, []).cohort.columns["patient"] == "case_id"

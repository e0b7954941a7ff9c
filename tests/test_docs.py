"""The documentation builds strictly, needs no other host, and its generated pages say what the code says."""

import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stedm.cli import COMMANDS, OTHERS
from stedm.config_file import keys_with_help

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
"""Elements that load what this attribute names; `link` does, too, unless it only states a relation."""


class Loaded(HTMLParser):
    """The addresses that a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.found.append(given.get("href") or "")
        elif tag in LOADING:
            self.found.append(given.get(LOADING[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name, reason="the extra `docs` is not installed")
    out = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def text_of(page: Path) -> str:
    """What a reader sees of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8"))).split())


def address(page: Path) -> str:
    """Where the site has one of the pages."""
    name = page.relative_to(ROOT / "docs").with_suffix("")
    return "index.html" if name.name == "index" else f"{name}/index.html"


def test_every_page_is_in_the_site_and_loads_from_nowhere_else(site: Path) -> None:
    assert [page.name for page in PAGES if not (site / address(page)).is_file()] == []
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    remote = []
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        remote += [f"{page.relative_to(site)}: {url}" for url in loaded.found if re.match(r"(\w+:)?//", url)]
    styles = [
        path for path in site.rglob("*.css") if re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text())
    ]
    assert (remote, styles) == ([], [])


def test_commands_and_keys_are_all_there(site: Path) -> None:
    commands = text_of(site / "reference/commands/index.html")
    helps = [*(command.help for command in COMMANDS.values()), *(text for _, text in OTHERS.values())]
    helps += ["--style-images", "--min_area_um2", "--print_config", "--shard-size", "--no-browser"]
    assert [text for text in helps if text[1:].replace("`", "") not in commands] == []
    config = text_of(site / "reference/config/index.html")
    missing = [key for key, _, text, _ in keys_with_help() if key not in config or " ".join(text.split()[:3]) == ""]
    assert missing == [] and "tiny: 1200" in config  # presets


def test_public_names_have_their_docstrings(site: Path) -> None:
    text = text_of(site / "reference/api/index.html")
    for said in ("Draws images that follow a layout", "Run every stage", "Read a YAML config", "from_pretrained"):
        assert said in text
    assert "velocity" in text_of(site / "reference/diffusion/index.html")


def test_links_to_lines_and_formulas_are_shown(site: Path) -> None:
    method = (site / "method/index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="\.\./(repository/src/[\w/.]+)/#(L\d+)"', method)
    assert len(links) > 50
    for folder in {folder for folder, _ in links}:
        listing = (site / folder / "index.html").read_text(encoding="utf-8")
        assert [line for other, line in links if other == folder and f'id="{line}"' not in listing] == []
    seen = text_of(site / "method/index.html")
    aligned = (ROOT / "docs/method.md").read_text(encoding="utf-8").count(r"\begin{aligned}")
    assert "<mi>&</mi>" not in method and method.count("<mtable") == aligned > 0
    assert method.count("<math") > 90 and "zformula" not in method and "\\frac" not in seen and "$" not in seen


def test_the_notebook_is_a_page_with_its_pictures(site: Path) -> None:
    page = site / "repository/examples/story.ipynb/index.html"
    cells = json.loads((ROOT / "examples/story.ipynb").read_text(encoding="utf-8"))["cells"]
    pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    assert page.read_text(encoding="utf-8").count('src="data:image/png;base64,') == pictures > 0
    assert "Where to go next" in text_of(page)  # its links are followed by the strict build


def test_the_navigation_has_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if str(page.relative_to(ROOT / "docs")) not in config] == []
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name != "index.md" and f"{page.name})" not in index] == []

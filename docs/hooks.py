"""What mkdocs adds to the pages: the generated reference, files of the repository that pages link to, and formulas.

Links that leave docs/ work on a repository's website as they are. In the site each file they name, and each file those
name, becomes a page of its own under `repository/`, sources with their line numbers: the site needs no other host.
"""

import html
import json
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

import stedm
from stedm import cli, cli_export, cli_generate, cli_segment, cli_studio, doctor
from stedm.config import RunConfig
from stedm.config_file import keys_with_help
from stedm.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("data", "models", "diffusion", "training", "evaluation", "stages")
"""Packages whose modules have a page of the API reference."""
_FENCED = re.compile(r"(^```.*?^```)", flags=re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`[^`\n]+`)")
_LINK = re.compile(r"\]\(([^()\s#]+)(#[^()\s]*)?\)")
_DISPLAY = re.compile(r"^```math\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\$([^$\n]+(?:\n[^$\n]+)?)\$")
_formulas: list[str] = []
"""MathML of the page at hand; its Markdown has a word for each, which no rule of Markdown touches."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated, and what the pages link to."""
    os.environ["COLUMNS"] = "100"  # the width of the help texts
    pages = {"reference/commands.md": commands(), "reference/config.md": config_keys(), "reference/api.md": api()}
    pages |= {f"reference/{layer}.md": modules(layer) for layer in LAYERS}
    texts = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    for path in outside(texts):
        pages[site_uri(path)] = listing(path)
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages of the site, and take formulas out."""
    uri = page.file.src_uri
    path = uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"
    _formulas.clear()
    if path.endswith(".md") and not uri.startswith("repository/docs/"):
        markdown = _DISPLAY.sub(lambda found: f"\n{_formula(found[1], 'block')}\n", markdown)
        markdown = _outside_code(markdown, lambda text: _INLINE.sub(lambda found: _formula(found[1], "inline"), text))
        markdown = _LINK.sub(lambda found: f"]({_in_site(path, found[1])}{found[2] or ''})", markdown)
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the formulas back, as MathML, which browsers draw without a script."""
    return re.sub(r"zformula(\d+)z", lambda found: _formulas[int(found[1])], html)


def _formula(latex: str, display: str) -> str:
    # The converter knows `aligned` by another name. A formula wider than the page scrolls.
    mathml = convert(latex.replace("{aligned}", "{align*}"), display=display)
    wide = display == "block"
    _formulas.append(f'<span style="display: block; overflow-x: auto">{mathml}</span>' if wide else mathml)
    return f"zformula{len(_formulas) - 1}z"


def _outside_code(markdown: str, change: Any) -> str:
    """The text with `change` applied to what is in no code."""
    parts = []
    for k, block in enumerate(_FENCED.split(markdown)):
        parts += [block] if k % 2 else [word if j % 2 else change(word) for j, word in enumerate(_CODE.split(block))]
    return "".join(parts)


def targets(path: str, text: str) -> Iterator[str]:
    """Paths in the repository of the files that a page links to."""
    for found in _LINK.finditer(_FENCED.sub("", text)):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[1]))
        if "://" not in found[1] and (ROOT / target).is_file():
            yield target


def outside(texts: list[tuple[str, str]]) -> list[str]:
    """Files outside of docs/ that the pages (path, text) link to, and those that these link to."""
    found: set[str] = set()
    while texts:
        path, text = texts.pop()
        for target in targets(path, text):
            if not target.startswith("docs/") and target not in found:
                found.add(target)
                if target.endswith((".md", ".ipynb")):
                    texts.append((target, listing(target)))
    return sorted(found)


def site_uri(path: str) -> str:
    """Where the site has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def _in_site(path: str, link: str) -> str:
    """A link of the page at `path`, as the site needs it."""
    if next(targets(path, f"]({link})"), None) is None:
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return posixpath.relpath(site_uri(target), posixpath.dirname(site_uri(path)))


def listing(path: str) -> str:
    """A Markdown file as it is, a notebook as one; anything else with numbered lines, `#L7` the seventh."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    if path.endswith(".ipynb"):
        return "\n\n".join(part for cell in json.loads(text)["cells"] for part in _cell(cell))
    try:
        lexer = get_lexer_for_filename(path)
    except ClassNotFound:
        lexer = TextLexer()
    shown = highlight(text, lexer, HtmlFormatter(lineanchors="L", linenos="inline", wrapcode=True))
    return f"# {path}\n\n" + re.sub(r'"L-(\d+)"', r'"L\1"', shown)


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    """A notebook's cell as Markdown, with what came out of it: pictures, tables, text."""
    source = "".join(cell["source"])
    yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).replace("\n", "")
            yield f'<img alt="what the cell above shows" src="data:image/png;base64,{picture}">'
        elif "text/html" in data:
            yield "".join(data["text/html"])
        else:
            yield f"```text\n{''.join(output.get('text', data.get('text/plain', ''))).rstrip()}\n```"


def commands() -> str:
    """The commands, from their parsers."""
    parts = ["# Commands\n\nGenerated from the parsers; `stedm COMMAND --help` says the same."]
    for name, command in cli.COMMANDS.items():
        parts.append(
            f"## stedm {name}\n\n{command.help[0].upper()}{command.help[1:]}.\n\n```text\n{command.example}\n```"
        )
    shared = cli.parser("COMMAND", cli.COMMANDS["run"]).format_help()
    usage, options = shared.partition("\n\n")[0], shared[shared.index("options:") : shared.index("example:")]
    parts.append(f"## Options of all commands above\n\n```text\n{usage}\n\n{options.rstrip()}\n```")
    parts.append("Every key of the [config](config.md) is a flag, too: `--KEY VALUE`.")
    others = {"generate --model": cli_generate, "export": cli_export, "segment": cli_segment, "studio": cli_studio}
    others["doctor"] = doctor
    for name, module in others.items():
        parts.append(f"## stedm {name}\n\n```text\n{module.parser().format_help().rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def config_keys() -> str:
    """The schema of the config, from the dataclasses."""
    head = "# Config\n\nGenerated from the dataclasses. A key that is left out has its default, or what `size` presets."
    parts = [f"{head}\n\n{_table(RunConfig, '')}"]
    parts += [f"## {name}\n\n{kind.__doc__}\n\n{_table(kind, f'{name}.')}" for name, kind in _sections(RunConfig, "")]
    return "\n\n".join(parts) + "\n"


def _sections(cls: type, prefix: str) -> Iterator[tuple[str, type]]:
    """(dotted name, dataclass) of each section, those in a section after it."""
    for field in fields(cls):
        for kind in (field.type, *get_args(field.type)):
            if isinstance(kind, type) and is_dataclass(kind):
                yield f"{prefix}{field.name}", kind
                yield from _sections(kind, f"{prefix}{field.name}.")


def _table(cls: type, prefix: str) -> str:
    """The keys of one section, without those of the sections in it."""
    rows = ["| key | what it is | default | meaning |", "|---|---|---|---|"]
    for key, kind, text, default in keys_with_help(cls, prefix):
        if key.count(".") == prefix.count("."):
            cells = (f"`{key}`", kind, _default(key, default), text)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(key: str, default: Any) -> str:
    """The default; where it is left to `size`, what each size has."""
    section, _, name = key.partition(".")
    sizes = {size: preset[section][name] for size, preset in PRESETS.items() if name in preset.get(section, {})}
    if sizes:
        return "<br>".join(f"{size}: `{value}`" for size, value in sizes.items())
    return "null" if default is None else f"`{html.escape(str(default))}`"


def api() -> str:
    """The public names."""
    head = "# Public names\n\n`from stedm import ...`: these names change only with a line in the changelog."
    parts = [f"::: {module}.{name}\n    options:\n      heading_level: 2" for name, module in stedm._HOME.items()]
    layers = ", ".join(f"[{layer}]({layer}.md)" for layer in LAYERS)
    return "\n\n".join([head, *parts, f"What is inside, package by package: {layers}."]) + "\n"


def modules(layer: str) -> str:
    """All modules of a package."""
    package = ROOT / "src" / "stedm" / layer
    names = sorted(path.stem for path in package.glob("*.py") if path.stem != "__init__")
    parts = [f"::: stedm.{layer}.{name}\n    options:\n      heading_level: 2" for name in names]
    return "\n\n".join([f"# stedm.{layer}\n\nInside of stedm: names may change.", *parts]) + "\n"

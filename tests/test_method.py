"""docs/method.md points at the lines it talks about, and no figure is missing."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHOD = ROOT / "docs" / "method.md"
FENCED = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\[\]]+)\]\(([^()\s]+)\)")


def links(text: str) -> list[tuple[str, str, str]]:
    """(text, path, anchor) of every relative link outside of fenced blocks; path or anchor may be empty."""
    found = [(label, *target.partition("#")[::2]) for label, target in LINK.findall(FENCED.sub("", text))]
    return [(label, path, anchor) for label, path, anchor in found if "://" not in path]


def definitions(body: list[ast.stmt], prefix: str = "") -> dict[str, int]:
    """Dotted name -> line of every function, class, constant and field of a Python module."""
    lines: dict[str, int] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            lines[prefix + node.name] = node.lineno
            if isinstance(node, ast.ClassDef):
                lines |= definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            lines |= {prefix + target.id: node.lineno for target in targets if isinstance(target, ast.Name)}
    return lines


def right_lines(path: Path, name: str) -> list[int]:
    """Lines a link called `name` may point to: where the file defines it; where it holds the word, if it does not."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        defined = definitions(ast.parse(text).body)
        lines = [line for known, line in defined.items() if f".{known}".endswith(f".{name}")]
        if lines:
            return lines
    word = re.compile(rf"(?<!\w){re.escape(name.rpartition('.')[2])}(?!\w)")
    return [number for number, line in enumerate(text.splitlines(), 1) if word.search(line)]


def complaint(folder: Path, label: str, path: str, anchor: str) -> str | None:
    """What is wrong with a link to a line, and the right line; None when nothing is."""
    name = label.strip("`")
    if label != f"`{name}`":
        return f"[{label}]({path}#{anchor}): write the name it points to in backticks, and nothing else"
    lines = right_lines(folder / path, name)
    if not lines:
        return f"[{label}]({path}#{anchor}): no such name there; was it renamed or moved to another file?"
    if int(anchor[1:]) in lines:
        return None
    return f"[{label}]({path}#{anchor}): should be " + " or ".join(f"#L{line}" for line in lines)


def test_every_link_to_a_line_meets_the_name_it_mentions() -> None:
    to_lines = [link for link in links(METHOD.read_text(encoding="utf-8")) if re.fullmatch(r"L\d+", link[2])]
    assert len(to_lines) > 50
    wrong = [message for link in to_lines if (message := complaint(METHOD.parent, *link))]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_every_relative_link_exists() -> None:
    """But those to pages that `make docs` generates; there a dead link is an error."""
    generated = re.compile(r"(?:\.\./)?reference/\w+\.md")
    for document in sorted((ROOT / "docs").rglob("*.md")):
        paths = [path for _, path, _ in links(document.read_text(encoding="utf-8")) if not generated.fullmatch(path)]
        assert [path for path in paths if not (document.parent / path).exists()] == [], document.name


def test_no_figure_is_left_to_fill_in() -> None:
    documents = sorted((ROOT / "docs").rglob("*.md"))
    assert METHOD in documents
    missing = [
        f"{document.name}:{number}: {line[line.index('TODO') :]}"
        for document in documents
        for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1)
        if "TODO" in line
    ]
    assert missing == []


def test_a_link_that_went_astray_is_told_the_right_line(tmp_path: Path) -> None:
    head = 'LIMIT = 3\n\n\nclass Net:\n    """Uses LIMIT."""\n\n    width: int = 1\n\n'
    method = "    def forward(self, x):\n        y = 2 * x\n        return y\n"
    (tmp_path / "net.py").write_text(head + method, encoding="utf-8")
    for name, line in {"LIMIT": 1, "Net": 4, "width": 7, "forward": 9, "Net.forward": 9}.items():
        assert complaint(tmp_path, f"`{name}`", "net.py", f"L{line}") is None
        message = complaint(tmp_path, f"`{name}`", "net.py", f"L{line + 1}")
        assert message is not None and message.endswith(f"should be #L{line}")
    # A name that is nowhere defined may be met on any line that holds it.
    assert complaint(tmp_path, "`y`", "net.py", "L11") is None
    assert str(complaint(tmp_path, "`y`", "net.py", "L9")).endswith("should be #L10 or #L11")
    assert "renamed" in str(complaint(tmp_path, "`backward`", "net.py", "L9"))
    assert "backticks" in str(complaint(tmp_path, "see here", "net.py", "L1"))


def test_links_are_found_outside_of_formulas() -> None:
    text = "[`a`](x.py#L3), [page](y.md), [web](https://example.org/z)\n```math\n[v](l)\n```\n"
    assert links(text) == [("`a`", "x.py", "L3"), ("page", "y.md", "")]

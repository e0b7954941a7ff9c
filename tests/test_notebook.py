"""The notebook: its cells run in order at the smallest size, and what is kept beside them is whole, and honest."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stedm.cli import COMMANDS, OTHERS

pytestmark = pytest.mark.timeout(900)  # a whole run at the smallest size
NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "story.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
TEXT = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
SMALL = {
    "size": "smoke",
    "cohort.phantom.train_patients": "5",
    "cohort.phantom.val_patients": "1",
    "cohort.phantom.test_patients": "3",
    "cohort.phantom.unseen_patients": "2",
    "cohort.phantom.slide_px": "64",
    "split.label_budget": "2",
    "diffusion.annotated_only_control": "false",
    "segmentation.arms": "[real+stain, real+stain+synthetic]",
    "segmentation.seeds": "[0]",
    "generate.images": "8",
    "evaluate.bootstrap": "100",
    "evaluate.images_per_style": "2",
}
RUN_CELLS = """
import json, sys
names = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(json.loads(sys.argv[2]))
import matplotlib.pyplot
print("figures:", len(matplotlib.pyplot.get_fignums()))
"""
"""What Jupyter does, without it; the cell tagged `parameters` is overruled, as papermill does."""


def outputs(kind: str) -> list[str]:
    """What the committed cells show: `image/png`, or the text of everything else."""
    shown = [output for cell in CODE for output in cell["outputs"]]
    if kind == "image/png":
        return ["".join(output["data"][kind]) for output in shown if kind in output.get("data", {})]
    parts = [output.get("text", []) for output in shown]
    parts += [text for output in shown for form, text in output.get("data", {}).items() if form.startswith("text/")]
    return ["".join(part) for part in parts]


def test_its_cells_run_from_the_first_to_the_last(tmp_path: Path) -> None:
    settings = [word for key, value in SMALL.items() for word in (f"--{key}", value)]
    parameters = json.dumps({"OUT": "story", "SETTINGS": settings})
    command = [sys.executable, "-c", RUN_CELLS, str(NOTEBOOK), parameters]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "done: open story/report/index.html" in done.stdout
    assert "of 3 patients gain from real+stain to real+stain+synthetic" in done.stdout
    assert f"figures: {len(outputs('image/png'))}\n" in done.stdout


def test_every_cell_was_run_in_order_and_none_failed() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {output["output_type"] for cell in CODE for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for cell in CODE for output in cell["outputs"]} == {"stdout"}
    assert [number for number, cell in enumerate(CODE) if not cell["outputs"]] == [0, 1]  # settings and helpers


def test_the_pictures_are_kept_and_show_something() -> None:
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in outputs("image/png")]
    assert len(pictures) >= 6
    assert all(min(picture.size) > 100 and np.asarray(picture).std() > 10 for picture in pictures)
    assert NOTEBOOK.stat().st_size < 1_500_000


def test_what_it_said_names_the_report_the_figures_and_no_machine() -> None:
    said = "\n".join(outputs("text"))
    assert "report/index.html" in said
    assert re.search(r"real\+stain\+synthetic against real\+stain: [+-]0\.\d{3} \(", said)
    assert re.findall(r"(?:^|[\s\"'(=])(/[\w.-]+/[\w./-]*|~/)", said, flags=re.MULTILINE) == []


def test_its_links_lead_somewhere_and_its_commands_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) > 8
    assert [link for link in links if not (NOTEBOOK.parent / link).is_file()] == []
    commands = re.findall(r"`stedm ([^`]+)`", TEXT)
    known = {*COMMANDS, *OTHERS}
    assert [words for words in commands if not {words.split()[0], " ".join(words.split()[:2])} & known] == []

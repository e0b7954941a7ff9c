"""The first five minutes: what to do next is said with no argument, in every help, and at the end of every command."""

import io
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from stedm.cli import COMMANDS, _next_step, main
from stedm.config_file import load_config

pytestmark = pytest.mark.timeout(900)
EVERY = [*COMMANDS, "generate --model DIR", "export", "segment", "studio", "doctor"]
SMALL = {
    "size": "smoke",
    "cohort.phantom.train_patients": 4,
    "cohort.phantom.val_patients": 1,
    "cohort.phantom.test_patients": 3,
    "cohort.phantom.unseen_patients": 0,
    "cohort.phantom.slide_px": 64,
    "split.label_budget": 2,
    "diffusion.annotated_only_control": "false",
    "segmentation.seeds": "[0]",
    "segmentation.arms": "[real+stain, real+stain+synthetic]",
    "generate.generator": "few-step",
    "generate.images": 8,
    "evaluate.bootstrap": 100,
    "evaluate.images_per_style": 4,
}
FLAGS = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints; help ends the process with 0."""
    capsys.readouterr()
    try:
        assert main(words) == 0
    except SystemExit as ended:
        assert ended.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("words", "code"), [("", 141), ("--version", 141), ("run --help", 0)])
def test_a_reader_that_stops_early_is_no_error(words: str, code: int) -> None:
    """As in `stedm | head`; argparse itself writes on into nothing."""
    command = f"{{ {sys.executable} -m stedm.cli {words}; echo $? >&2; }} | true"
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert said.stderr == f"{code}\n"


def test_without_an_argument_the_next_steps_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys)
    assert all(f"  stedm {name} " in text for name in (*COMMANDS, "export", "segment", "studio", "doctor"))
    _, _, after = text.partition("What to do next:")
    steps = [line.split() for line in after.strip().splitlines()]
    assert [words[:2] for words in steps] == [["stedm", "demo"], ["stedm", "run"], ["stedm", "COMMAND"]]
    assert "runs/demo/report/index.html" in after


@pytest.mark.parametrize("name", EVERY)
def test_every_help_has_an_example_with_options_that_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, *name.split(), "--help")
    examples = re.findall(rf"^(?:example:)?\s+(stedm {name.split()[0]}\b.*)$", text, flags=re.MULTILINE)
    assert examples
    helps = text + said(capsys, "generate", "--model", "DIR", "--help")
    options = [word for example in examples for word in shlex.split(example) if word.startswith("--")]
    assert [option for option in options if option not in helps and f"\n  {option[2:]}: " not in helps] == []


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A run made stage by stage, each command being the one that the command before has named; what each has said."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("first")
        patch.chdir(folder)
        texts: dict[str, str] = {}
        words = ["prepare", "--out", "runs/my run", *FLAGS]
        while len(texts) < len(COMMANDS):
            name = " ".join(words[:2]) if words[0] == "train" else words[0]
            with redirect_stdout(io.StringIO()) as printed:
                assert main([*words, "--jobs", "1"]) == 0, name
            texts[name] = printed.getvalue()
            if name == "report":
                break
            words = next_of(texts[name])
        return folder, texts


def next_of(text: str) -> list[str]:
    """The command that a text names, as words after `stedm`."""
    found = re.search(r"^next: stedm (.*)$", text, flags=re.MULTILINE)
    assert found, text
    return shlex.split(found[1], comments=True)


def test_each_command_names_the_next_one_and_they_lead_to_the_report(stages: tuple[Path, dict[str, str]]) -> None:
    folder, texts = stages
    order = [name for name in COMMANDS if name not in ("demo", "run", "train few-step")]
    assert list(texts) == order
    for name, text in texts.items():
        opened = re.search(r"^done: open (.*)$", text, flags=re.MULTILINE)
        assert opened and (folder / opened[1]).exists() and (folder / opened[1]).name != "my run", name
        assert not (folder / opened[1]).is_dir() or list((folder / opened[1]).iterdir()), name
    assert load_config(folder / "runs/my run/config.yaml").generate.images == 8


def test_a_run_without_a_generator_leads_to_its_segmenters(tmp_path: Path) -> None:
    (tmp_path / "segmentation" / "real" / "seed0").mkdir(parents=True)
    (tmp_path / "diffusion").mkdir()  # nothing in it yet
    words = shlex.split(_next_step(tmp_path, "run").partition("next: ")[2], comments=True)
    assert words[:5] == ["stedm", "segment", "SLIDE", "--model", str(tmp_path)]


def test_the_report_leads_to_the_style_of_own_images(
    stages: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, texts = stages
    monkeypatch.chdir(folder)
    own = tmp_path / "own"
    own.mkdir()
    for path in sorted((folder / "runs/my run/data/phantom/images").iterdir())[:2]:
        shutil.copy(path, own)
    words = [str(own) if word == "FOLDER" else word for word in next_of(texts["report"])]
    assert main([*words, "--n", "2"]) == 0
    assert Path("new_images/contact_sheet.png").is_file()


@pytest.mark.parametrize("words", [["train"], ["train", "--help"], ["trian"], ["segmnt"]])
def test_a_wrong_command_is_told_the_right_ones(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    right = "segment" if words == ["segmnt"] else "train diffusion" if words[0] == "train" else "train"
    assert f"`stedm {right}" in message and len(message.splitlines()) == 1

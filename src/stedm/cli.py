"""Command line: a table of commands, no logic."""

import argparse
import difflib
import os
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import stedm
from stedm import cli_export, cli_generate, cli_segment, cli_studio, doctor, ranks
from stedm.config_file import dump_config, extended, kept, keys_with_help, load_config, refuse_another_cohort
from stedm.errors import UserError
from stedm.interruption import Terminated, terminable


@dataclass(frozen=True)
class Command:
    """One command: its help, an example, up to which stage it runs, and what is worth a look afterwards."""

    help: str
    example: str
    until: str | None
    out: str = "runs/run"
    results: tuple[str, ...] = ("report/index.html",)
    """Patterns in the run folder; the first that is there is named when the command is done."""


COMMANDS = {
    "demo": Command("everything below on a procedural cohort, then the report", "stedm demo", None, "runs/demo"),
    "run": Command("all stages, resuming", "stedm run --config my.yaml --out runs/my", None),
    "prepare": Command(
        "cohort table -> patches and splits",
        "stedm prepare --config my.yaml --out runs/my",
        "prepare",
        results=("data/alignment/*.jpg", "data/overlays/*.png", "data/patches.parquet"),
    ),
    "train autoencoder": Command(
        "the first stage",
        "stedm train autoencoder --config my.yaml --out runs/my",
        "autoencoder",
        results=("autoencoder/samples/reconstructions.png", "autoencoder/metrics.csv", "autoencoder/config.json"),
    ),
    "train diffusion": Command(
        "the generator",
        "stedm train diffusion --config my.yaml --out runs/my",
        "diffusion",
        results=("diffusion/samples/style_by_layout.png", "diffusion/metrics.csv"),
    ),
    "train few-step": Command(
        "the few-step generator",
        "stedm train few-step --config my.yaml --generate.generator few-step --out runs/my",
        "few-step",
        results=("few_step/samples/style_by_layout.png", "few_step/metrics.csv"),
    ),
    "generate": Command(
        "plan and draw synthetic images; `--model DIR --help`: in the style of any slide",
        f"stedm generate --config my.yaml --out runs/my\n  {cli_generate.EXAMPLE}",
        "generate",
        results=("synthetic/manifest.parquet",),
    ),
    "filter": Command(
        "judge synthetic images",
        "stedm filter --config my.yaml --out runs/my",
        "filter",
        results=("synthetic/manifest.parquet",),
    ),
    "train segmentation": Command(
        "the arms",
        "stedm train segmentation --config my.yaml --out runs/my",
        "segmentation",
        results=("segmentation/*/*/metrics.csv",),
    ),
    "evaluate": Command(
        "score the arms patient by patient",
        "stedm evaluate --config my.yaml --out runs/my",
        "evaluate",
        results=("evaluation/per_patient.csv",),
    ),
    "report": Command("one self-contained HTML file", "stedm report runs/my", "report"),
}
"""In the order of the stages."""
OTHERS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "export": (cli_export.export, cli_export.HELP),
    "segment": (cli_segment.segment, cli_segment.HELP),
    "studio": (cli_studio.run, cli_studio.HELP),
    "doctor": (doctor.main, doctor.HELP),
}
"""Commands that are no stages of a run: what they call with the words after them, and their help."""
LISTS = {"arms": "segmentation.arms", "seeds": "segmentation.seeds", "budgets": "experiment.budgets"}
"""Short flags that add to what the run folder has, and their keys."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code.

    0, 1 when slides were skipped or `doctor` finds something broken, 2 for a mistake of the user's, 130 and 143 when
    interrupted by Ctrl-C and SIGTERM, 141 when nobody reads on, as in `stedm --help | head`.
    """
    try:
        try:
            code = _explained(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
        return ranks.end(code)
    except BrokenPipeError:
        if _is_read():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be written
        return 141


def _is_read() -> bool:
    """Whether standard output still has a reader: the broken pipe may be another."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    return not any(event & select.POLLERR for _, event in pipe.poll(0))


def _explained(words: list[str]) -> int:
    """The exit code, after a line for what went wrong."""
    try:
        with terminable(), ranks.joined():
            if not ranks.is_first():
                return ranks.follow()
            with ranks.leading():
                return _main(words)
    except argparse.ArgumentError as error:
        print(f"stedm: {_printable(str(error))}", file=sys.stderr)
        return 2
    except UserError as error:
        if said := ranks.say(error):
            print(_printable(said), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if ranks.is_first():
            print("stedm: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except Terminated:
        if ranks.is_first():
            print("stedm: ended by SIGTERM; the same command continues where it stopped", file=sys.stderr)
        return 143


def _printable(text: str) -> str:
    """The text with what would steer a terminal, or is no Unicode, written out: names come from anybody's files."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(stedm.__version__)
        return 0
    if words[0] in OTHERS:
        return OTHERS[words[0]][0](words[1:])
    name = " ".join(words[:2]) if words[0] == "train" else words[0]
    if name not in COMMANDS:
        known = [*COMMANDS, *OTHERS]
        verbs = difflib.get_close_matches(words[0], {each.split()[0] for each in known})
        near = [f"`stedm {each}`" for each in known if each.split()[0] in verbs]
        meant = f" did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"unknown command `{name}`;{meant} `stedm --help` lists them")
    if name == "generate" and cli_generate.asks_for(words[1:]):
        return cli_generate.run(words[1:])
    return _run_command(name, COMMANDS[name], words[len(name.split()) :])


def _run_command(name: str, command: Command, words: list[str]) -> int:
    if words and Path(words[0]).is_dir():
        words = ["--out", *words]
    options, overrides = parser(name, command).parse_known_args(words)
    config_path = options.config
    saved = Path(options.out) / "config.yaml"
    added = {key: getattr(options, flag) for flag, key in LISTS.items() if getattr(options, flag) is not None}
    extends = bool(added) or options.draws is not None
    # A saved config has the presets of its size.
    afresh = (name == "demo" and not extends) or (name in ("demo", "run") and options.size)
    if config_path is None and saved.exists() and not afresh:
        config_path = str(saved)
    flags = _flags(overrides, options.size)
    earlier = kept(LISTS.values(), saved, load_config(config_path, flags)) if extends and saved.exists() else []
    more = [extended(key, listed, saved) for key, listed in added.items()]
    more += [] if options.draws is None else [f"experiment.draws={options.draws}"]
    config = load_config(config_path, [*earlier, *flags, *more])
    if options.print_config:
        print(dump_config(config), end="")
        return 0
    if config_path is None:
        refuse_another_cohort(config, saved)
    from stedm.run import run_all

    jobs = options.jobs or _default_jobs()
    slide_jobs = options.jobs or len(os.sched_getaffinity(0))
    folder = run_all(config, options.out, until=command.until, jobs=jobs, slide_jobs=slide_jobs)
    print(_next_step(folder, name))
    return 0


def _flags(words: list[str], size: str | None) -> list[str]:
    """`--section.key value` and `--section.key=value` -> `section.key=value`."""
    overrides = [f"size={size}"] if size else []
    while words:
        word, *words = words
        if not word.startswith("--"):
            raise UserError(f"{word!r} is no folder here, and options look like --section.key value")
        if "=" not in word:
            if not words:
                raise UserError(f"{word}: expected a value after it")
            word, words = f"{word}={words[0]}", words[1:]
        overrides.append(word[2:])
    return overrides


def parser(name: str, command: Command) -> argparse.ArgumentParser:
    """The options of a command that runs stages; the keys of the config are its epilog."""
    parser = argparse.ArgumentParser(
        prog=f"stedm {name}",
        description=f"stedm {name}: {command.help}. Whatever is done and unchanged is skipped.",
        epilog=f"example:\n  {command.example}\n\nevery key of the config is a flag, --KEY VALUE:\n{_keys()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", help="YAML config; without it the run folder's own config.yaml, or the defaults")
    parser.add_argument(
        "--out", default=command.out, help=f"run folder, the flag may be left out (default: {command.out})"
    )
    parser.add_argument("--size", help="smoke, tiny, small or base: the one dial")
    for flag, key in LISTS.items():
        parser.add_argument(f"--{flag}", help=f"separated by commas: added to those of the run folder, if any ({key})")
    parser.add_argument(
        "--draws", type=int, help="of annotated patients, those that are there included (experiment.draws)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="stages, and slides in prepare, at the same time (default: CPU cores, for stages at most 4; 1 on a GPU)",
    )
    parser.add_argument("--print_config", action="store_true", help="print the resolved config and stop")
    return parser


def _default_jobs() -> int:
    import torch

    return 1 if torch.cuda.is_available() else min(4, len(os.sched_getaffinity(0)))


def _keys() -> str:
    return "\n".join(
        f"  {key}: {kind} (default: {'null' if value is None else value})\n      {text}"
        for key, kind, text, value in keys_with_help()
    )


def _overview() -> str:
    rows = "\n".join(f"  stedm {name:<20} {command.help}" for name, command in COMMANDS.items())
    rows += "".join(f"\n  stedm {name:<20} {text}" for name, (_, text) in OTHERS.items())
    return (
        "stedm: few-label histopathology segmentation with style-extracting diffusion\n\n"
        f"{rows}\n\nWhat to do next:\n"
        "  stedm demo                                 on the CPU, minutes; then open runs/demo/report/index.html\n"
        "  stedm run --config my.yaml --out runs/my   your own images: my.yaml names a table of them\n"
        "  stedm COMMAND --help                       options and an example"
    )


def _next_step(folder: Path, name: str) -> str:
    """What is worth a look, and the command after this one."""
    patterns = COMMANDS[name].results
    found = ((path.parent if "*" in pattern else path) for pattern in patterns for path in _in_run(folder, pattern))
    done = f"done: open {next(found, folder)}"
    if COMMANDS[name].until not in (None, "report"):
        names = [other for other in COMMANDS if other != "train few-step" or name == other]
        return f"{done}\nnext: stedm {names[names.index(name) + 1]} {shlex.quote(str(folder))}"
    steps = []
    if generators := _in_run(folder, "diffusion/model_index.json"):
        model = shlex.quote(str(generators[0].parent))
        steps = [f"generate --model {model} --style-images FOLDER --out new_images  # in the style of your images"]
    run = next(iter(_in_run(folder, "segmentation/")), folder / "segmentation").parent
    steps += [f"segment SLIDE --model {shlex.quote(str(run))} --out segmented  # outlines for QuPath"]
    return f"{done}\nnext: " + "\n      ".join(f"stedm {step}" for step in steps)


def _in_run(folder: Path, pattern: str) -> list[Path]:
    """What fits the pattern in the run folder, or in those of its label budgets and folds."""
    return sorted(folder.glob(pattern)) or sorted(folder.glob(f"*/{pattern}"))


if __name__ == "__main__":
    sys.exit(main())

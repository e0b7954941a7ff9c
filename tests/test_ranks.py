"""Ranks: who is who, what each takes, and that training, drawing and judging do not depend on how many there are."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from differing import differing
from PIL import Image
from spawned import SRC, call_ranks, last_words, run_ranks, start_ranks
from test_end_to_end import OPTIONS
from test_training import (
    LAYOUTS,
    Interrupted,
    diffusion_batches,
    diffusion_task,
    equal,
    interrupted,
    segmentation_task,
    train,
)
from torch import Tensor

from stedm import device, ranks
from stedm.cli import main
from stedm.config_file import load_config
from stedm.data.synthetic import SyntheticSet
from stedm.diffusion.sampling import noise_from_seeds
from stedm.errors import SharedError, UserError
from stedm.files import read_json
from stedm.ranks import Place, everyones, first_host, gathered, place, refuse_uneven, share, total
from stedm.run import run_all
from stedm.segment import hands
from stedm.stages.filter import filter_synthetic
from stedm.stages.generate import generate
from stedm.stages.run_folder import RunFolder
from stedm.stages.self_training import label_unannotated, self_labelled
from stedm.team import rounds
from stedm.training.batches import PairBatches
from stedm.training.tasks import FewStepTask
from stedm.training.trainer import fit

SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", *SRUN):
        monkeypatch.delenv(name, raising=False)

    def change(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return change


def test_a_rank_ends_at_once_with_its_exit_code_and_a_process_alone_returns_it(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = list[int]()
    monkeypatch.setattr(os, "_exit", ended.append)
    assert ranks.end(2) == 2 and ended == []
    environment(RANK=1, WORLD_SIZE=2, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2)
    ranks.end(3)
    assert ended == [3]


def test_place_is_what_the_launcher_says(environment: Callable[..., None]) -> None:
    assert place() == Place() and ranks.is_first()
    environment(SLURM_NTASKS=8, SLURM_PROCID=0, SLURM_LOCALID=0)  # a batch script, in which `srun` was forgotten
    assert place() == Place()
    environment(**SRUN)
    assert place() == Place(5, 8, 1, 4) and not ranks.is_first()
    environment(RANK=2, WORLD_SIZE=3, LOCAL_RANK=0, LOCAL_WORLD_SIZE=1)  # `srun torchrun`
    assert place() == Place(2, 3, 0, 1)
    ranks.leave()
    assert place() == Place()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu[03-05,09],cpu1", "gpu03"),
        ("a-1,a-2", "a-1"),
        ("n[7]", "n7"),
        ("x1.site,x2.site", "x1.site"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_every_row_is_one_ranks(environment: Callable[..., None]) -> None:
    taken = []
    for rank in range(3):
        environment(RANK=rank, WORLD_SIZE=3)
        taken.append(share(torch.arange(10)).tolist())
    assert sorted(row for rows in taken for row in rows) == list(range(10)) and {len(rows) for rows in taken} == {3, 4}


def test_batch_that_cannot_be_shared_evenly_is_refused(environment: Callable[..., None], tmp_path: Path) -> None:
    environment(RANK=0, WORLD_SIZE=3)
    refuse_uneven("diffusion.batch_size", 9)
    with pytest.raises(UserError, match=r"diffusion\.batch_size: 8 rows .* 3 processes"):
        refuse_uneven("diffusion.batch_size", 8)
    with pytest.raises(UserError, match=r"autoencoder\.batch_size: 4 rows"):
        run_all(load_config(overrides=["size=smoke"]), tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_slurm_example_is_a_command_of_ours() -> None:
    script = Path(__file__).resolve().parents[1] / "examples" / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    command = script.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()[-1]
    program, *flags = shlex.split(command.partition("-m stedm.cli ")[2])
    assert program == "run" and flags == ["--config", "$config", "--out", "$out"]


def test_mistake_that_all_meet_is_said_once(environment: Callable[..., None]) -> None:
    said = []
    for rank in range(2):
        environment(RANK=rank, WORLD_SIZE=2)
        said.append([ranks.say(SharedError("NaN")), ranks.say(UserError("no disk"))])
    assert said == [["stedm: NaN", "stedm: no disk"], ["", "stedm, process 1 of 2: no disk"]]


def job(name: str, *needs: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, needs=needs, source=None, stage=SimpleNamespace(name=name))


def test_segmenters_are_dealt_as_soon_as_what_they_need_is_done(environment: Callable[..., None]) -> None:
    jobs: list[Any] = [
        job("segmentation a"),
        job("diffusion", "segmentation a"),
        job("segmentation b", "diffusion"),
        job("segmentation c"),
        job("evaluate", "segmentation b", "segmentation c"),
    ]
    alone = [[one.name for one in some] for some in rounds(jobs)]
    assert alone == [[one.name] for one in jobs]
    environment(RANK=0, WORLD_SIZE=2)
    dealt = [[one.name for one in some] for some in rounds(jobs)]
    assert dealt == [["segmentation a", "segmentation c"], ["diffusion"], ["segmentation b"], ["evaluate"]]


def test_slides_are_dealt_by_size(tmp_path: Path) -> None:
    slides = [tmp_path / f"{k}.svs" for k in range(5)]
    for path, size in zip(slides, (10, 100, 40, 30, 35), strict=True):
        path.write_bytes(b"x" * size)
    dealt = hands(slides, 2)
    assert dealt == [slides[:2], slides[2:]] and hands(slides, 1) == [slides]


def few_step_task() -> tuple[FewStepTask, PairBatches]:
    unet = diffusion_task().unet
    z = noise_from_seeds(range(100, 116), (4, 8, 8)).half()
    style = torch.zeros(16, *unet.null_style.shape)
    pairs = {"seeds": torch.arange(16), "z": z, "layout": torch.from_numpy(LAYOUTS), "style": style}
    return FewStepTask(unet, learning_rate=2e-3, steps=8, seed=0), PairBatches(pairs, batch_size=4, seed=0)


def losses(folder: Path) -> np.ndarray:
    return pd.read_csv(folder / "metrics.csv")["loss"].to_numpy()


def train_every_recipe(out: Path) -> None:
    """In each process: train together what is shared, and check that all end with the same weights."""
    device.has_fast_bf16 = lambda _: False  # single precision: what is left is the order of sums
    for name in ("autoencoder", "diffusion"):
        own = train(name, out / name)
        for other in everyones(own):
            assert equal(own, other), name
    task, batches = few_step_task()
    fit(task, batches, folder=out / "few-step", description="few-step", ema_decay=0.9, stretches=4)
    if not (out / "stopped").exists():  # the first time: stop on the way
        with pytest.raises(Interrupted):
            train("diffusion", out / "stopped", interrupted(diffusion_batches(), 5))
    # Segmenters are not shared: each rank trains its own, while the other trains another or none.
    if place().rank == place().world - 1:
        torch.save(train("segmentation", out / "segmentation"), out / "segmentation.pt")


def check_collectives() -> None:
    here = place()
    rows = torch.arange(2.0 * here.world).view(-1, 1)
    assert torch.equal(gathered(share(rows)), rows)
    assert total(torch.tensor(here.rank + 1.0)).item() == here.world * (here.world + 1) / 2
    assert everyones(here.rank) == list(range(here.world))


def check_not_finite(out: Path) -> None:
    """A loss that is not finite on one rank stops all of them at the same step."""
    poisoned = diffusion_batches()

    def batch_of_step(step: int) -> dict[str, Tensor]:
        batch = poisoned(step)
        if step == 2 and place().rank == 1:
            batch["z"][:] = torch.nan
        return batch

    with pytest.raises(SharedError, match="loss is nan at step 3"):
        train("diffusion", out / "nan", batch_of_step)


def two_ranks(out: Path) -> None:
    check_collectives()
    train_every_recipe(out)
    check_not_finite(out)


def test_training_is_the_same_on_one_and_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss curves within 1e-4 of each other, relatively; segmenters bit for bit; a stopped training resumes on one."""
    monkeypatch.setattr(device, "has_fast_bf16", lambda _: False)
    call_ranks(2, two_ranks, tmp_path / "two")
    train_every_recipe(tmp_path / "one")
    for name in ("autoencoder", "diffusion", "few-step"):
        one, two = losses(tmp_path / "one" / name), losses(tmp_path / "two" / name)
        assert len(one) == 8
        np.testing.assert_allclose(two, one, rtol=1e-4, err_msg=name)
    one, two = (torch.load(tmp_path / d / "segmentation.pt", weights_only=True) for d in ("one", "two"))
    assert equal(one, two)
    train("diffusion", tmp_path / "two" / "stopped")
    np.testing.assert_allclose(losses(tmp_path / "two" / "stopped"), losses(tmp_path / "one" / "diffusion"), rtol=1e-4)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a segmenter in `model`, and `slides`: three of different widths, each with regions of its own."""
    folder = tmp_path_factory.mktemp("segment")
    segmentation_task().segmenter.save_pretrained(folder / "model")
    (folder / "slides").mkdir()
    rng = np.random.default_rng(0)
    for k in range(3):
        blocks = rng.integers(0, 256, (8, 8 + 4 * k, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(folder / "slides" / f"a{k}.png")
    return folder


def segment_words(slides: Path, out: Path) -> list[str]:
    flags = ["--model", slides / "model", "--mpp", 1, "--everywhere", "--out", out, "--window_px", 64]
    flags += ["--overlap_px", 16, "--min_area_um2", 1, "--jobs", 1]
    return ["segment", str(slides / "slides"), *map(str, flags)]


@pytest.fixture(scope="module")
def segmented(slides: Path) -> dict[str, bytes]:
    """The files that one process makes of the slides."""
    assert main(segment_words(slides, slides / "alone")) == 0
    found = files_of(slides / "alone")
    assert set(found) == {"areas.csv", *(f"a{k}.{kind}" for k in range(3) for kind in ("tif", "json", "geojson"))}
    assert all(found[f"a{k}.geojson"].count(b"Polygon") > 3 for k in range(3))
    return found


def files_of(out: Path) -> dict[str, bytes]:
    """Of what is in a folder, folders included, the bytes."""
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in out.iterdir()}


def test_slides_segmented_by_two_processes_are_the_same_files_and_a_bad_one_is_skipped(
    slides: Path, segmented: dict[str, bytes], tmp_path: Path
) -> None:
    """Label map pyramids, outlines, records and areas, bit for bit."""
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    verb, folder, *flags = segment_words(slides, tmp_path / "out")
    first, second = run_ranks(2, [verb, folder, str(tmp_path / "bad.png"), *flags])
    assert first[0] == 1 and "1 of 4 slides were skipped" in first[1], first
    assert second[:2] == (0, "") and "mm2" in second[2], second
    assert differing(files_of(tmp_path / "out"), segmented) == {}


def test_torchrun_starts_two_processes_that_segment_as_one(
    slides: Path, segmented: dict[str, bytes], tmp_path: Path
) -> None:
    """The launcher itself, and not its variables alone."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--tee", "3"]
    command = [*launcher, "--log-dir", str(tmp_path / "log"), "-m", "stedm.cli"]
    settings = {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, *command, *segment_words(slides, tmp_path / "out")],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    said = (result.stdout + result.stderr).splitlines()
    for rank in range(2):  # each has segmented one at least
        assert any(line.startswith(f"[default{rank}]:a") and "mm2" in line for line in said), result
    assert sum("[default0]:next: " in line for line in said) == sum(":next: " in line for line in said) == 1
    assert differing(files_of(tmp_path / "out"), segmented) == {}


FEW = OPTIONS | {
    "segmentation.seeds": "[0]",
    "segmentation.arms": "[real]",
    "generate.images": 24,
    "generate.batch_size": 2,
}


def words(command: str, out: Path) -> list[str]:
    flags = [word for key, value in FEW.items() for word in (f"--{key}", str(value))]
    return [*command.split(), "--out", str(out), *flags]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the filter, by two processes, whose generator was sharded: tests go on with it as with any other."""
    out = tmp_path_factory.mktemp("ranks") / "run"
    first, second = run_ranks(2, [*words("filter", out), "--diffusion.sharded", "true"])
    assert first[0] == second[0] == 0, last_words(first, second)
    assert "done:" in first[1] and "diffusion" in first[2]
    assert second[1:] == ("", "")  # one speaks
    return out


def drawn(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("synthetic/*/*.png"))}


def again(made: Path, out: Path, *without: str) -> Path:
    """The run as it was before anything was drawn, or without what has these names."""
    shutil.copytree(made, out, ignore=shutil.ignore_patterns(*(without or ["synthetic"]), ".lock"))
    return out


def draw_and_judge(out: Path) -> None:
    ranks.PORTION = 2  # several portions: each rank has some
    run, config = RunFolder(out), load_config(out / "config.yaml")
    generate(run, config)
    everyones(None)
    filter_synthetic(run, config)
    everyones(None)
    label_unannotated(run, config, arm="real+stain")
    everyones(None)


@pytest.mark.timeout(900)
def test_drawing_and_judging_are_the_same_on_one_two_and_three_processes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images, masks, plan, the filter's verdict and what is read in real images, bit for bit."""
    monkeypatch.setattr(ranks, "PORTION", 2)
    draw_and_judge(again(made, tmp_path / "one"))
    call_ranks(3, draw_and_judge, again(made, tmp_path / "three"))
    one = drawn(tmp_path / "one")
    assert len(one) == 3 * 24 and one == drawn(tmp_path / "three")
    unjudged = {name: pixels for name, pixels in drawn(made).items() if "filtered" not in name}
    assert unjudged.items() <= one.items()  # those of two processes
    for table in ("plan", "manifest"):
        tables = [pd.read_parquet(tmp_path / d / "synthetic" / f"{table}.parquet") for d in ("one", "three")]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    read = [self_labelled(RunFolder(tmp_path / d), "real+stain") for d in ("one", "three")]
    assert read[0] is not None and read[1] is not None and len(read[0].images) > 4  # three portions at least
    np.testing.assert_array_equal(read[0].label_maps, read[1].label_maps)
    assert read_json(tmp_path / "three" / "synthetic" / "throughput.json")["images"] == 24


@pytest.mark.timeout(900)
def test_rank_that_dies_ends_the_others_and_leaves_a_run_that_resumes(made: Path, tmp_path: Path) -> None:
    out = again(made, tmp_path / "run")
    first, second = start_ranks(2, words("filter", out))
    while second.poll() is None and not (out / "synthetic" / "images" / "s000001.png").exists():
        time.sleep(0.02)
    second.kill()
    _, said = first.communicate(timeout=400)
    assert first.returncode == 2 and "another process of this command ended" in said and "Traceback" not in said
    assert not (out / "synthetic" / "fingerprint.json").exists()
    assert main(words("filter", out)) == 0
    assert drawn(out) == drawn(made)


def run_until_one_dies(rank: int, function: str, call: int, words: list[str]) -> None:
    """Run a command in two ranks, of which one is killed at a call of a function, and check how the other ends."""
    program = [str(Path(__file__).with_name("dying.py")), str(rank), function, str(call)]
    ended = run_ranks(2, words, program=program, timeout=250)
    assert ended[rank][0] == -signal.SIGKILL, ended
    code, _, said = ended[1 - rank]
    assert code == 2 and "another process of this command ended; what is finished is kept" in said, ended
    assert "Traceback" not in said


@pytest.mark.timeout(900)
def test_rank_that_dies_while_the_generator_trains_leaves_a_training_that_continues(made: Path, tmp_path: Path) -> None:
    """Without its rank, from the last checkpoint, with the losses of a training that was not disturbed."""
    out = again(made, tmp_path / "run", "synthetic", "diffusion")
    command = [*words("train diffusion", out), "--diffusion.sharded", "false", "--jobs", "1"]
    run_until_one_dies(1, "stedm.training.tasks:DiffusionTask.training_step", 5, command)
    assert (out / "diffusion" / "training" / "last.ckpt").exists()
    before = (out / "diffusion" / "metrics.csv").read_text().splitlines()
    assert len(before) == 1 + 4 and not (out / "diffusion" / "fingerprint.json").exists()
    assert main(command) == 0
    assert (out / "diffusion" / "metrics.csv").read_text().splitlines()[:5] == before
    np.testing.assert_allclose(losses(out / "diffusion"), losses(made / "diffusion"), rtol=1e-3)


def killed_while_read(made: Path, out: Path, rank: int, stage: str, command: list[str]) -> Path:
    """A copy of the run in which a rank died at the third mask that it wrote in a stage; the stage is not done."""
    again(made, out, "filtered", "filter.json")
    run_until_one_dies(rank, f"stedm.stages.{stage}:write_png_atomically", 3, [*command, "--jobs", "1"])
    assert len(list(out.glob("*/filtered/*.png")) + list(out.glob("self-training/*/masks/*.png"))) > 2
    assert not list(out.glob("synthetic/filter.json")) + list(out.glob("self-training/*/fingerprint.json"))
    return out


@pytest.mark.timeout(900)
def test_first_rank_that_dies_while_images_are_judged_leaves_a_filter_that_one_process_does_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "PORTION", 2)
    whole, command = again(made, tmp_path / "whole", "filtered"), words("filter", tmp_path / "run")
    filter_synthetic(RunFolder(whole), load_config(whole / "config.yaml"))
    out = killed_while_read(made, tmp_path / "run", 0, "filter", command)
    assert main([*command, "--jobs", "1"]) == 0
    assert differing(drawn(out), drawn(whole)) == {}
    tables = [pd.read_parquet(folder / "synthetic" / "manifest.parquet") for folder in (out, whole)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.timeout(900)
def test_rank_that_dies_while_segmenters_label_leaves_labels_that_one_process_makes_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "PORTION", 2)
    whole, command = again(made, tmp_path / "whole"), words("train segmentation", tmp_path / "run")
    label_unannotated(RunFolder(whole), load_config(whole / "config.yaml"), arm="real+stain")
    command += ["--segmentation.arms", "[real+stain, real+stain+self-training]"]
    out = killed_while_read(made, tmp_path / "run", 1, "self_training", command)
    assert main([*command, "--jobs", "1"]) == 0
    folders = [folder / "self-training" / "real+stain" for folder in (out, whole)]
    assert differing(*(files_of(folder / "masks") for folder in folders)) == {}
    pd.testing.assert_frame_equal(*(pd.read_parquet(folder / "manifest.parquet") for folder in folders))


def test_rank_that_dies_while_slides_are_segmented_leaves_what_one_process_finishes(
    slides: Path, segmented: dict[str, bytes], tmp_path: Path
) -> None:
    command = segment_words(slides, tmp_path / "out")
    run_until_one_dies(1, "stedm.stages.segment:write_label_pyramid", 1, command)
    left = files_of(tmp_path / "out")
    assert "areas.csv" in left and 0 < sum(name.endswith(".tif") for name in left) < 3
    assert main(command) == 0
    assert differing(files_of(tmp_path / "out"), segmented) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whole_run_on_two_processes(tmp_path: Path) -> None:
    """Segmenters trained on real images are the same bits; drawn images differ by grey levels, from rounding."""
    assert main(words("run", tmp_path / "one")) == 0
    assert [code for code, *_ in run_ranks(2, words("run", tmp_path / "two"), timeout=1500)] == [0, 0]
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert {str(path.relative_to(one.root)) for path in one.root.rglob("*")} == {
        str(path.relative_to(two.root)) for path in two.root.rglob("*")
    }
    for arm in ("real", "real+stain", "full"):
        weights = [run.segmenter(arm, 0) / "model.safetensors" for run in (one, two)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), arm
    for stage in ("autoencoder", "diffusion"):
        np.testing.assert_allclose(losses(two.root / stage), losses(one.root / stage), rtol=2e-3)
    sets = [SyntheticSet(run.synthetic) for run in (one, two)]
    images = [each.images(np.arange(24)).astype(int) for each in sets]
    assert sets[0].manifest["seed"].equals(sets[1].manifest["seed"])
    assert np.abs(images[0] - images[1]).mean() < 1

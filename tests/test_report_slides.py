"""The report on slides: overlays with names and counts, warnings for what was left out, nothing for small images."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.data.slide import Slide
from stedm.data.slide_tissue import SlideTissue
from stedm.files import write_json
from stedm.stages.report_pictures import PAGE_PX
from stedm.stages.report_slides import slide_warnings, slides_section
from stedm.stages.slide_overlay import LEFT_OUT, TISSUE, overlay


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three slides with 2, 0 and 1 patches, one damaged."""
    for number, name in enumerate(("alpha", "beta", "gamma")):
        (tmp_path / "overlays").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / "overlays" / f"r{number:05d}.png")
        write_json(tmp_path / "slides" / f"r{number:05d}.json", {"key": "", "slide": name, "records": []})
    pd.DataFrame({"source": ["r00000", "r00000", "r00002"]}).to_parquet(tmp_path / "extracted.parquet")
    lost = {"slide": ["delta"], "patient": ["007"], "image": ["delta.svs"], "reason": ["delta.svs: unreadable"]}
    pd.DataFrame(lost).to_csv(tmp_path / "skipped.csv", index=False)
    return tmp_path


def test_overlays_are_shown_with_names_and_counts(data: Path) -> None:
    section = slides_section(data)
    assert section is not None and section["all"] == 3
    assert [(slide["name"], slide["patches"]) for slide in section["slides"]] == [
        ("alpha", 2),
        ("beta", 0),
        ("gamma", 1),
    ]
    assert all(slide["picture"].uri.startswith("data:image/jpeg;base64,") for slide in section["slides"])


def test_many_overlays_are_all_shown_small_and_too_many_are_sampled(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3, 60):
        Image.new("RGB", (480, 400)).save(data / "overlays" / f"r{number:05d}.png")
    section = slides_section(data)
    assert section is not None and section["all"] == len(section["slides"]) == 60
    shown = Image.open(io.BytesIO(base64.b64decode(section["slides"][-1]["picture"].uri.split(",")[1])))
    assert shown.size == (PAGE_PX // 4, round(400 / 480 * PAGE_PX / 4))  # an eighth of the page, on fine screens
    monkeypatch.setattr("stedm.stages.report_slides.MOST_SLIDES", 20)
    section = slides_section(data)
    assert section is not None and section["all"] == 60 and len(section["slides"]) == 20
    assert section["slides"][0]["name"] == "alpha" and section["slides"][-1]["name"] == "r00059"


def test_what_was_left_out_is_warned_of(data: Path) -> None:
    skipped, bare = slide_warnings(data)
    assert "One slide was damaged" in skipped and "delta.svs: unreadable" in skipped
    assert "beta" in bare and "alpha" not in bare and "prepare.min_tissue" in bare


def test_small_images_have_no_section_and_no_warnings(tmp_path: Path) -> None:
    assert slides_section(tmp_path) is None and slide_warnings(tmp_path) == []


def test_an_overlay_fades_what_was_not_cut_and_outlines_tissue(tmp_path: Path) -> None:
    image = np.full((600, 600, 3), 240, np.uint8)
    image[150:450, 150:450] = (180, 90, 160)
    image[20:80, 20:580] = (30, 130, 80)  # green ink
    Image.fromarray(image).save(tmp_path / "slide.png")
    with Slide.open(tmp_path / "slide.png", mpp=4.0) as slide:
        tissue = SlideTissue(slide, patch_um=32.0)
    pixels = np.asarray(overlay(tissue, [(600.0, 600.0)], patch_um=600.0))
    assert pixels.shape == (480, 480, 3)
    assert (pixels[40, 240] == LEFT_OUT).all()  # 200 microns below the upper edge
    assert (pixels[200, 200] == (180, 90, 160)).all()  # in the patch
    assert (pixels[300, 300] > pixels[200, 200]).all() and (pixels[300, 300] != 240).all()
    assert (pixels == TISSUE).all(-1).sum() > 4 * 200


def test_a_small_slide_is_enlarged(tmp_path: Path) -> None:
    image = np.full((120, 60, 3), 240, np.uint8)
    image[30:90, 10:50] = (180, 90, 160)
    Image.fromarray(image).save(tmp_path / "slide.png")
    with Slide.open(tmp_path / "slide.png", mpp=4.0) as slide:
        tissue = SlideTissue(slide, patch_um=32.0)
    pixels = np.asarray(overlay(tissue, [(0.0, 0.0)], patch_um=480.0))
    assert pixels.shape == (480, 240, 3) and (pixels[240, 120] == (180, 90, 160)).all()
    assert (pixels[240] == TISSUE).all(-1).sum() == 2  # a line at either side

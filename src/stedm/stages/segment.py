"""Segment one slide: label map pyramid, outlines for QuPath, area of each class; whatever is there is kept."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from stedm.data.area import area_file, open_area
from stedm.data.geojson import write_features
from stedm.data.label_bands import LabelRows, Labels
from stedm.data.label_pyramid import LabelPyramid, write_label_pyramid
from stedm.data.region_outlines import outlines
from stedm.data.slide import Slide
from stedm.device import worker_device
from stedm.errors import UserError
from stedm.files import locked, read_json, remove_folder, write_json, writing
from stedm.models.ensemble import Ensemble
from stedm.models.model_folder import CONFIG, WEIGHTS
from stedm.progress import Bar
from stedm.stages.predict import Prediction
from stedm.stages.prepare_slide import MOST_ENLARGED
from stedm.stages.report_pictures import class_colours
from stedm.stages.segment_record import (
    identity,
    is_record,
    is_written_by,
    outlines_in,
    record_of,
    remove_written_by,
    write_record,
    written,
)

FORMAT = 3
"""Raise it when the same model and settings give another label map or other outlines."""


@dataclass(frozen=True)
class SegmentOptions:
    """What `segment_slide` does beside predicting."""

    model: tuple[Path, ...]
    """Segmenter folders; of several, the probabilities are averaged."""
    mpp: float | None = None
    """Microns per pixel of the slides; None: what their files say."""
    window_px: int = 512
    """Width of the windows the network sees, at least that of its training patches."""
    overlap_px: int = 128
    """Overlap of neighbouring windows."""
    everywhere: bool = False
    """Predict glass too."""
    tissue: Path | None = None
    """Where to predict, instead of the tissue that is found: a mask of the whole slide, polygons, or a folder of them
    with the slides' names."""
    min_area_um2: float = 100.0
    """Smaller regions get no outline, smaller holes are closed; label map and areas keep them."""
    tolerance_px: float = 0.4
    """Pixels of the label map by which outlines may deviate; 0 follows the pixels' edges."""
    classes: tuple[str, ...] | None = None
    """Classes that get outlines; None: all."""
    origin: Literal["slide", "bounds"] = "bounds"
    """Where outlines and polygons of `tissue` have (0, 0): as in QuPath at the corner of the slide's scanned bounds, if
    the file states any, or at that of the whole slide. The label map is always of the whole slide."""
    gz: bool = False
    """Outlines as `.geojson.gz`."""


_OF_OUTLINES = ("min_area_um2", "tolerance_px", "classes", "origin", "gz")


@dataclass(frozen=True)
class Outcome:
    """What became of a slide, in words for the user."""

    summary: str = ""
    """Areas."""
    warning: str = ""
    """About its resolution."""
    error: str = ""
    """Why it was skipped."""
    unchanged: bool = False
    """Whether everything was there already."""


def working_folder(path: Path, out: Path) -> Path:
    """Where the results of a slide are prepared; it is there only while they are."""
    return out / f".{path.stem}.segmenting"


def segment_slide(path: Path, out: Path, options: SegmentOptions) -> Outcome:
    """Write NAME.tif, NAME.geojson and NAME.json, NAME being the stem of `path`, into `out`.

    Finished results of the same slide, model and settings are kept; a killed attempt is continued, with the same
    result. Raises UserError for a slide that cannot be read, and rather than overwrite another slide's results, or a
    file that it has not written or that was changed since.
    """
    work, record_path = working_folder(path, out), out / f"{path.stem}.json"
    tif = out / f"{path.stem}.tif"
    geojson, other = (out / f"{path.stem}.geojson{'.gz' * gz}" for gz in (options.gz, not options.gz))
    working = work.exists()
    record = record_of(path, record_path)
    foreign = [file for file in (record_path, tif, geojson) if file.exists() and not is_record(record)]
    if foreign and not (working or work.exists()):
        raise UserError(f"{foreign[0]}: there already, and not written by stedm; choose another folder with --out")
    with Slide.open(path, mpp=options.mpp) as slide:
        model = Ensemble.from_pretrained(options.model)
        slide_mpp = _slide_mpp(slide, model.mpp)
        keys = _fingerprints(path, options, slide_mpp)
        if not work.exists() and _is_done(record, keys, tif, geojson):
            return Outcome(unchanged=True)
        if geojson.exists() and not is_written_by(record_of(path, record_path), geojson):
            raise UserError(f"{geojson}: there already, and not as stedm has written it; move it away, or use --out")
        with writing(tif), _locked(work):
            record = record_of(path, record_path)  # another process may have been here until now
            if _is_done(record, keys, tif, geojson):
                return Outcome(unchanged=True)
            earlier = record.get("fingerprints", {})
            if earlier.get("labels") != keys["labels"] or not tif.exists():
                record = _labels(slide, model, options, work=work, tif=tif, key=keys["labels"]) | outlines_in(record)
                write_record(record_path, record, work)
            made = work / geojson.name
            record |= _outlines(slide, model, options, work=work, tif=tif, made=made)
            remove_written_by(record, geojson, other)  # killed from here on, there is no file, or the record's
            record |= written(made)
            record["fingerprints"]["outlines"] = keys["outlines"]
            write_record(record_path, record, work)
            os.replace(made, geojson)
    areas = ", ".join(f"{name} {area:.4g} mm2" for name, area in record["area_mm2"].items())
    return Outcome(areas, _doubts(path, options, slide_mpp, record["mpp"]))


def _is_done(record: Any, keys: dict[str, str], tif: Path, geojson: Path) -> bool:
    return is_record(record) and record["fingerprints"] == keys and tif.exists() and geojson.exists()


def outlined(options: SegmentOptions, classes: list[str]) -> list[int]:
    """Labels that get outlines. Raises UserError for names that are no class of the model's."""
    names = classes if options.classes is None else options.classes
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UserError(f"--classes: the model has no class {unknown[0]!r}, but {', '.join(classes)}")
    return [classes.index(name) for name in names]


def _tissue_file(path: Path, options: SegmentOptions) -> str:
    return "" if options.tissue is None else str(area_file(options.tissue, path))


def _slide_mpp(slide: Slide, model_mpp: float | None) -> float:
    try:
        mpp = slide.mpp
    except UserError:
        raise UserError(f"{slide.path}: microns per pixel unknown; give --mpp") from None
    if model_mpp is not None and mpp > MOST_ENLARGED * model_mpp:
        raise UserError(
            f"{slide.path}: at {mpp:g} microns per pixel it would be enlarged {mpp / model_mpp:.0f} times to the"
            f" model's {model_mpp:g}; correct it with --mpp, or train a model for slides as coarse as this"
        )
    return mpp


def _labels(
    slide: Slide, model: Ensemble, options: SegmentOptions, *, work: Path, tif: Path, key: str
) -> dict[str, Any]:
    """Predict and write the label map; what the record says of it."""
    key_path = work / "key.json"
    if key_path.exists() and read_json(key_path) != key:
        remove_folder(work / "bands")
    write_json(key_path, key)
    prediction = Prediction.plan(
        slide,
        model.to(worker_device()),
        window_px=options.window_px,
        overlap_px=options.overlap_px,
        everywhere=options.everywhere,
        folder=work / "bands",
        area=open_area(_tissue_file(slide.path, options), slide, origin=options.origin),
    )
    bands = prediction.run()
    made = work / tif.name
    with _Watched(bands, f"{slide.path.name}: label map", work) as watched:
        counts = write_label_pyramid(
            made, watched, mpp=prediction.mpp, classes=model.classes, colours=_colours(model), scratch=work / "levels"
        )
    os.replace(made, tif)
    areas = {name: int(counts[label]) * prediction.mpp**2 / 1e6 for label, name in enumerate(model.classes)}
    return {
        **identity(slide.path),
        "slide_mpp": slide.mpp,
        "mpp": prediction.mpp,
        "area_mm2": areas,
        "model": [str(folder) for folder in options.model],
        "fingerprints": {"labels": key},
    }


def _outlines(
    slide: Slide, model: Ensemble, options: SegmentOptions, *, work: Path, tif: Path, made: Path
) -> dict[str, Any]:
    """Trace the outlines and write them to `made`; what the record says of them."""
    mpp = model.mpp or slide.mpp
    origin_px = slide.bounds_px[:2] if options.origin == "bounds" else (0, 0)
    with LabelPyramid(tif) as labels, _Watched(labels, f"{slide.path.name}: outlines", work) as watched:
        traced = outlines(
            watched,
            tolerance_px=options.tolerance_px,
            min_area_px=options.min_area_um2 / mpp**2,
            classes=outlined(options, model.classes),
        )
        counts = write_features(
            made,
            traced,
            classes=model.classes,
            colours=_colours(model),
            scale=mpp / slide.mpp,
            origin_px=origin_px,
        )
    return {"outlines": dict(zip(model.classes, counts, strict=True))}


class _Watched:
    """A label map with a progress bar over its rows as they are read."""

    def __init__(self, labels: LabelRows, description: str, folder: Path) -> None:
        self.width_px, self.height_px, self._labels = labels.width_px, labels.height_px, labels
        self._bar = Bar(description, total=self.width_px * self.height_px / 1e6, folder=folder)

    def rows(self, start: int, stop: int) -> Labels:
        """See `LabelRows.rows`."""
        rows = self._labels.rows(start, stop)
        self._bar.update(stop * self.width_px / 1e6, unit="megapixels")
        return rows

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()


def _colours(model: Ensemble) -> list[str]:
    return model.colours or list(class_colours(model.classes).values())


def _fingerprints(path: Path, options: SegmentOptions, slide_mpp: float) -> dict[str, str]:
    """SHA-256 of all that label map and outlines depend on."""
    settings = dataclasses.asdict(options) | {"model": None, "mpp": slide_mpp}
    if settings.pop("tissue") is not None:
        tissue = Path(_tissue_file(path, options))
        settings["tissue"] = [tissue.name, tissue.stat().st_size, tissue.stat().st_mtime_ns, options.origin]
    outline_settings = {name: settings.pop(name) for name in _OF_OUTLINES}
    model = hashlib.sha256()
    for folder in options.model:
        model.update((folder / CONFIG).read_bytes() + (folder / WEIGHTS).read_bytes())
    state = path.stat()
    content = [FORMAT, path.name, state.st_size, state.st_mtime_ns, model.hexdigest(), settings]
    labels = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    every = json.dumps([labels, outline_settings], sort_keys=True)
    return {"labels": labels, "outlines": hashlib.sha256(every.encode()).hexdigest()}


def _doubts(path: Path, options: SegmentOptions, slide_mpp: float, mpp: float) -> str:
    """What the user should know of a slide's resolution, if anything."""
    if slide_mpp > 1.5 * mpp:
        return f"; its {slide_mpp:g} microns per pixel are coarser than the model's {mpp:g}"
    with Slide.open(path) as slide, suppress(UserError):  # it may not say: that is what the option is for
        if options.mpp is not None and abs(slide.mpp / options.mpp - 1) > 0.05:
            return f"; the file says {slide.mpp:g} microns per pixel, --mpp {options.mpp:g} was used"
    return ""


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Hold a slide's working folder, which is removed at the end unless there is an error."""
    if work.is_symlink():
        raise UserError(f"{work}: is a link, and stedm would write where it leads; remove it")
    busy = "another stedm process is working on this slide; wait for it"
    with locked(work / "lock", folder=work.parent, fix="choose another folder with --out", busy=busy):
        yield
        shutil.rmtree(work, ignore_errors=True)  # the next process may be waiting in it

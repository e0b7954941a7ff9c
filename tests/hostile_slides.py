"""Slides of scanners, BigTIFF, and InceptionV3's weights, for the harness of mutations.py: small files of each."""

import configparser
import functools
import io
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import tifffile
from hostile_formats import APERIO, _plain, _pyramid, _read_mask, pixels, read_slide
from mutations import Format, Kind
from PIL import Image

WIDTH, HEIGHT = 256, 192
SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="256000" sizeY="192000"><image>
<creationDate>2010</creationDate><device model="x" version="1"/>
<pixels sizeX="256" sizeY="192"><dimension sizeX="256" sizeY="192" r="0" ifd="0"/>
<dimension sizeX="128" sizeY="96" r="1" ifd="1"/></pixels>
<view sizeX="128000" sizeY="96000" offsetX="0" offsetY="0"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image></collection></scn>"""
"""What a Leica file says of itself: the view is in nanometres."""
BIF = """<?xml version="1.0"?><EncodeInfo Ver="2"><SlideInfo><ServerDirectory/>
<AoiInfo XIMAGESIZE="64" YIMAGESIZE="64" NumRows="3" NumCols="4" Pos-X="0" Pos-Y="0"/></SlideInfo>
<SlideStitchInfo>
<ImageInfo AOIScanned="1" AOIIndex="0" NumRows="3" NumCols="4" Width="64" Height="64" Pos-X="0" Pos-Y="0">
{joints}</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>"""
ISCAN = '<?xml version="1.0"?><Metadata><iScan Magnification="20" ScanRes="0.5" UnitNumber="1"/></Metadata>'


def _jpeg(level: int) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels(WIDTH, HEIGHT)[:: 2**level, :: 2**level]).save(
        written, "JPEG", subsampling=0, restart_marker_blocks=8
    )
    return written.getvalue()


def ndpi(folder: Path) -> Path:
    """Hamamatsu: JPEG strips in a TIFF whose offsets have their upper halves behind each directory."""
    path, content = folder / "slide.ndpi", bytearray(b"II*\0" + bytes(8))
    follows = 4  # where the place of the next directory is to be written
    for level in range(2):
        data = _jpeg(level)
        start = len(content)
        content += data + b"\0" * (-len(data) % 2)
        rationals, (lens,) = len(content), struct.unpack("<I", struct.pack("<f", 20 / 2**level))
        content += struct.pack("<II", 20_000, 1)
        entries = [
            (256, 4, WIDTH >> level), (257, 4, HEIGHT >> level), (258, 3, 8), (259, 3, 7), (262, 3, 6), (273, 4, start),
            (277, 3, 3), (278, 4, HEIGHT >> level), (279, 4, len(data)), (282, 5, rationals), (283, 5, rationals),
            (296, 3, 3), (65420, 4, 1), (65424, 9, 0), (65421, 11, lens),
        ]  # fmt: skip
        content[follows : follows + 8] = struct.pack("<Q", len(content))
        content += struct.pack("<H", len(entries))
        for tag, kind, value in entries:
            content += struct.pack("<HHII", tag, kind, 1, value)
        follows = len(content)
        content += bytes(8) + bytes(4 * len(entries))
    path.write_bytes(content)
    return path


def scn(folder: Path) -> Path:
    """Leica: a BigTIFF whose first description says what each directory is."""
    with tifffile.TiffWriter(folder / "slide.scn", bigtiff=True) as tiff:
        for level in range(2):
            tiff.write(pixels(WIDTH, HEIGHT)[:: 2**level, :: 2**level], tile=(64, 64), photometric="rgb", metadata=None,
                       compression="jpeg", description=SCN if level == 0 else None)  # fmt: skip
    return folder / "slide.scn"


def bif(folder: Path) -> Path:
    """Ventana: tiles that a stitching table joins."""
    joint = (
        '<TileJointInfo FlagJoined="1" Confidence="99" Direction="{}" Tile1="{}" Tile2="{}" OverlapX="0" OverlapY="0"/>'
    )
    number = [[4 * y + (3 - x if y % 2 else x) + 1 for x in range(4)] for y in range(3)]  # to and fro, from below
    joints = [joint.format("RIGHT", number[y][x], number[y][x + 1]) for y in range(3) for x in range(3)]
    joints += [joint.format("UP", number[y][x], number[y + 1][x]) for y in range(2) for x in range(4)]
    with tifffile.TiffWriter(folder / "slide.bif", bigtiff=True) as tiff:
        tiff.write(pixels(64, 64), photometric="rgb", description="Label Image", metadata=None,
                   extratags=[(700, 1, None, ISCAN.encode(), True)])  # fmt: skip
        for level in range(2):
            xmp = [(700, 1, None, BIF.format(joints="".join(joints)).encode(), True)] if level == 0 else []
            tiff.write(pixels(WIDTH, HEIGHT)[:: 2**level, :: 2**level], tile=(64, 64), photometric="rgb", metadata=None,
                       compression="jpeg", description=f"level={level} mag={20 / 2**level:g} quality=95",
                       extratags=xmp)  # fmt: skip
    return folder / "slide.bif"


def vms(folder: Path) -> Path:
    """Hamamatsu: a key file that names JPEG files."""
    for level, name in ((0, "image.jpg"), (2, "map.jpg")):
        (folder / name).write_bytes(_jpeg(level))
    keys = {"NoLayers": 1, "NoJpegColumns": 1, "NoJpegRows": 1, "ImageFile": "image.jpg", "MapFile": "map.jpg",
            "PhysicalWidth": 128000, "PhysicalHeight": 96000, "SourceLens": 20}  # fmt: skip
    text = "\n".join(f"{key}={value}" for key, value in keys.items())
    (folder / "slide.vms").write_text(f"[Virtual Microscope Specimen]\n{text}\n")
    return folder / "slide.vms"


def mrxs(folder: Path) -> Path:
    """3DHISTECH: a thumbnail, and a folder of an index, keys and JPEG tiles."""
    inside = folder / "slide"
    inside.mkdir()
    Image.fromarray(pixels(64, 48)).save(folder / "slide.mrxs", "JPEG")
    tiles, data = [], bytearray()
    for level in range(2):
        image, step = pixels(WIDTH, HEIGHT)[:: 2**level, :: 2**level], 2**level
        for y in range(-(-HEIGHT // 64 // step)):
            for x in range(WIDTH // 64 // step):
                written = io.BytesIO()
                Image.fromarray(image[64 * y : 64 * y + 64, 64 * x : 64 * x + 64]).resize((64, 64)).save(
                    written, "JPEG"
                )
                tiles.append((level, (y * step) * (WIDTH // 64) + x * step, len(data), len(written.getvalue())))
                data += written.getvalue()
    (inside / "Data0000.dat").write_bytes(data)
    identity = "0123456789ABCDEF0123456789ABCDEF"
    table = 5 + len(identity) + 8
    index = bytearray(b"01.02" + identity.encode() + struct.pack("<ii", table, table) + bytes(8))
    for level in range(2):
        mine = [tile for tile in tiles if tile[0] == level]
        struct.pack_into("<i", index, table + 4 * level, len(index))
        page = len(index) + 8
        index += struct.pack("<ii", 0, page) + struct.pack("<ii", len(mine), 0)
        for _, place, offset, length in mine:
            index += struct.pack("<iiii", place, offset, length, 0)
    (inside / "Index.dat").write_bytes(index)
    keys = configparser.ConfigParser()
    keys.optionxform = str  # type: ignore[assignment, method-assign]
    keys["GENERAL"] = {"SLIDE_ID": identity, "IMAGENUMBER_X": "4", "IMAGENUMBER_Y": "3", "SLIDE_VERSION": "01.02",
                       "OBJECTIVE_MAGNIFICATION": "20", "CameraImageDivisionsPerSide": "1"}  # fmt: skip
    keys["HIERARCHICAL"] = {"HIER_COUNT": "1", "NONHIER_COUNT": "0", "INDEXFILE": "Index.dat",
                            "HIER_0_NAME": "Slide zoom level", "HIER_0_COUNT": "2"}  # fmt: skip
    for level in range(2):
        keys["HIERARCHICAL"][f"HIER_0_VAL_{level}"] = f"ZoomLevel_{level}"
        keys["HIERARCHICAL"][f"HIER_0_VAL_{level}_SECTION"] = f"LEVEL_{level}"
        keys[f"LEVEL_{level}"] = {"OVERLAP_X": "0", "OVERLAP_Y": "0", "MICROMETER_PER_PIXEL_X": f"{0.5 * 2**level}",
                                  "MICROMETER_PER_PIXEL_Y": f"{0.5 * 2**level}", "IMAGE_FORMAT": "JPEG",
                                  "IMAGE_FILL_COLOR_BGR": "16777215", "IMAGE_CONCAT_FACTOR": str(level),
                                  "DIGITIZER_WIDTH": "64", "DIGITIZER_HEIGHT": "64"}  # fmt: skip
    keys["DATAFILE"] = {"FILE_COUNT": "1", "FILE_0": "Data0000.dat"}
    with open(inside / "Slidedat.ini", "w") as file:
        keys.write(file, space_around_delimiters=True)
    return folder / "slide.mrxs"


def _mask(folder: Path) -> Path:
    tifffile.imwrite(folder / "mask.tif", pixels()[..., 0] // 200, compression="zlib", bigtiff=True)
    return folder / "mask.tif"


@functools.cache
def _weights() -> bytes:
    """Weights of the right names and shapes, all of them zero, in 140 kB."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    patched = mock.patch.multiple(torch, load=lambda *_, **__: {})
    with patched, mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None):
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="none")
    written = io.BytesIO()
    torch.save({k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in network.state_dict().items()}, written)
    return written.getvalue()


def _inception(folder: Path) -> Path:
    (folder / "weights.pth").write_bytes(_weights())
    return folder / "weights.pth"


def _read_inception(path: Path) -> Any:
    from stedm.evaluation.encoders import kid_encoder

    return kid_encoder(f"inception:{path}")


def _beside(name: str, write: Callable[[Path], Path], spoiled: str, kind: Kind = "bytes") -> Format:
    """A file that a slide needs; the slide is read."""

    def written(folder: Path) -> Path:
        write(folder)
        return folder / spoiled

    def read(path: Path) -> Any:
        (slide,) = path.parents[spoiled.count("/")].glob("slide.*")
        return read_slide(slide)

    return Format(f"{name}: {spoiled}", written, read, kind)


SLIDES = (
    Format("BigTIFF", _plain(".tif", big_tiff=True), read_slide, "tiff"),
    Format("BigTIFF pyramid", _pyramid("slide.tif", compression="zlib", big=True), read_slide, "tiff"),
    Format("BigTIFF pyramid, JPEG", _pyramid("slide.tif", compression="jpeg", big=True), read_slide, "tiff"),
    Format("BigTIFF, OME", _pyramid("slide.ome.tif", ome=True, compression="zlib", big=True), read_slide, "tiff"),
    Format("BigTIFF mask", _mask, _read_mask, "tiff"),
    Format("TIFF pyramid, its fields", _pyramid("slide.tif", compression="zlib"), read_slide, "tiff"),
    Format("OME-TIFF, its fields", _pyramid("slide.ome.tif", ome=True, compression="zlib"), read_slide, "tiff"),
    Format("SVS, its fields", _pyramid("slide.svs", description=APERIO, compression="jpeg"), read_slide, "tiff"),
    Format("NDPI", ndpi, read_slide, "tiff"),
    Format("SCN", scn, read_slide, "tiff"),
    Format("BIF", bif, read_slide, "tiff"),
    _beside("VMS", vms, "slide.vms", "text"),
    _beside("VMS", vms, "image.jpg"),
    _beside("MRXS", mrxs, "slide.mrxs"),
    _beside("MRXS", mrxs, "slide/Slidedat.ini", "text"),
    _beside("MRXS", mrxs, "slide/Index.dat"),
    _beside("MRXS", mrxs, "slide/Data0000.dat"),
    *([Format("inception weights", _inception, _read_inception)] if find_spec("torch_fidelity") else []),
)

"""The studio in a real browser: painted, drawn, compared and downloaded, by pointer and by keyboard."""

import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from mutations import ROOT, UP, with_checksums
from mutations_tiff import chained
from PIL import Image

from stedm.errors import UserError
from stedm.studio.server import HOST, POLICY, start
from stedm.studio.workbench import Workbench

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'stedm[studio]'")
pytestmark = pytest.mark.timeout(900)  # the first test waits for the run
WAIT_MS = 120_000
"""For what takes a second on a free machine."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass
class Served:
    """A page that is being served, and where its process tried to connect to."""

    url: str
    page: Any
    bench: Workbench
    strangers: list[Any] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(smallest_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of the smallest run; what this process wants to reach beyond this machine fails, and is noted."""
    strangers: list[Any] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def refuse_stranger(host: Any) -> None:
        if host not in (HOST, "localhost", "::1", None):
            strangers.append(host)
            raise OSError(f"a test tried to reach {host}")

    def watched_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            refuse_stranger(address[0])
        connect(self, address)

    def watched_look_up(host: Any, *rest: Any, **options: Any) -> Any:
        refuse_stranger(host)
        return look_up(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", watched_connect)
        patch.setattr(socket, "getaddrinfo", watched_look_up)
        patch.setattr(os, "environ", os.environ.copy())
        bench = Workbench(smallest_run, scratch=tmp_path_factory.mktemp("scratch"))
        page, url = start(bench, port=free_port())
        yield Served(url, page, bench, strangers)
        page.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium on the path")
    with sync.sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
        browser = playwright.chromium.launch(executable_path=path, args=options, timeout=WAIT_MS)
        yield browser
        browser.close()


class Visit:
    """A visitor of the page who notes errors and requests to anyone else."""

    def __init__(self, browser: Any, url: str, *, width: int = 1280) -> None:
        self.url = url
        self.errors: list[str] = []
        self.strangers: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._note)
        self.page.goto(url)
        self.page.wait_for_function("document.querySelector('canvas')?.width > 100")
        self.page.wait_for_timeout(500)

    def _note(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.strangers.append(request.url)

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab).click()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def tool(self, name: str) -> Any:
        """A button of the canvas."""
        return self.page.locator(".lc").get_by_role("button", name=name, exact=True)

    def cell(self, x: float, y: float) -> None:
        """Click on the canvas, x and y as shares of its side."""
        canvas = self.page.locator("canvas")
        area = canvas.bounding_box()
        canvas.click(position={"x": x * area["width"], "y": y * area["height"]})

    def give(self, chooser: Any, path: Path) -> None:
        """Choose a file, and wait until the server has it and the page lists it.

        Its row, not its name: that also shows while it is on its way, and is two words once it has come.
        """
        with self.page.expect_response(lambda answer: "/upload?" in answer.url):
            chooser.set_input_files(path)
        self.page.get_by_role("cell", name=path.name, exact=True).wait_for()
        self.page.wait_for_timeout(1000)

    def drawn(self, count: int) -> None:
        """Wait until a result shows this many pictures, and the download is ready."""
        self.page.wait_for_function(f"document.querySelectorAll('#drawn figure').length === {count}")
        self.page.wait_for_function("!document.querySelector('#download-drawing').disabled")

    def download(self, selector: str) -> Path:
        with self.page.expect_download() as waiting:
            self.page.locator(selector).click()
        return Path(waiting.value.path())


@pytest.fixture
def visit(served: Served, chromium: Any) -> Iterator[Visit]:
    """One visit; afterwards, no error on the console, and nobody else was asked for anything."""
    visitor = Visit(chromium, served.url)
    yield visitor
    visitor.page.close()
    assert visitor.errors == []
    assert visitor.strangers == []
    assert served.strangers == []


def contents(path: Path) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    """Names, mask and settings of a downloaded drawing."""
    with zipfile.ZipFile(path) as archive:
        mask = np.asarray(Image.open(io.BytesIO(archive.read("mask.png"))))
        return archive.namelist(), mask, json.loads(archive.read("drawing.json"))


# The server


def ask(url: str, **headers: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def test_it_serves_this_machine_alone(served: Served) -> None:
    assert served.url.startswith(f"http://{HOST}:")
    assert served.page.share is False
    assert served.page.server.config.host == HOST
    status, headers = ask(served.url)
    assert status == 200
    assert headers["content-security-policy"] == POLICY
    assert ask(served.url, Host="elsewhere.example")[0] == 400  # a name that somebody points at this machine


def test_it_hands_out_no_files(served: Served, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, served.bench.run.root / "config.yaml", Path(__file__), "/proc/cpuinfo"):
        assert ask(f"{served.url}gradio_api/file={path}")[0] in (403, 404)


def test_it_takes_no_larger_upload_than_it_says(served: Served) -> None:
    def status(size: int) -> int:
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
        request = urllib.request.Request(f"{served.url}gradio_api/upload", data=head + bytes(size) + b"\r\n--b--\r\n")
        request.add_header("Content-Type", "multipart/form-data; boundary=b")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status(1000) == 200
    assert status(65 * 2**20) == 413


def sent(url: str, body: bytes, kind: str) -> Any:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def uploaded(served: Served, name: str, content: bytes) -> dict[str, Any]:
    """A file given to the server as the page gives it, as the page then speaks of it."""
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = "multipart/form-data; boundary=b"
    (path,) = sent(f"{served.url}gradio_api/upload", head + content + b"\r\n--b--\r\n", kind)
    return file_data(path)


def file_data(path: object) -> dict[str, Any]:
    return {"path": str(path), "url": str(path), "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}


def event(served: Served, kinds: list[str], data: list[Any]) -> tuple[bool, str]:
    """Make happen on the server what has inputs of these kinds; whether it went well, and what was said."""
    config, session = served.page.config, uuid.uuid4().hex
    kind_of = {part["id"]: part["type"] for part in config["components"]}
    found = next(e for e in config["dependencies"] if [kind_of[part] for part in e["inputs"]] == kinds)
    joined = {"data": data, "fn_index": found["id"], "session_hash": session}
    sent(f"{served.url}gradio_api/queue/join", json.dumps(joined).encode(), "application/json")
    with urllib.request.urlopen(f"{served.url}gradio_api/queue/data?session_hash={session}", timeout=120) as answer:
        for line in answer:
            said = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if said.get("msg") == "process_completed":
                return bool(said["success"]), json.dumps(said["output"])
    raise AssertionError("the server did not answer")


LABEL_MAP = ["uploadbutton"]
SEGMENT = ["file", "textbox", "number", "checkbox"]
STYLE = ["radio", "dropdown", "dropdown", "textbox", "file", "number", "slider", "number"]
SEED = ["number"]


def with_file(kinds: list[str], served: Served, given: dict[str, Any]) -> list[Any]:
    """What an event is called with: the file where files go, or where none should be."""
    patient = served.bench.patients()[0].name
    return {
        "uploadbutton": [given],
        "file": [given, "", 0, False],
        "radio": ["own images", patient, "all slides", "", [given], 0, 1, 0],
        "number": [given],
    }[kinds[0]]


def test_what_was_uploaded_is_taken(served: Served) -> None:
    layout = Image.fromarray(np.full((served.bench.patch_px,) * 2, 1, np.uint8))
    buffer = io.BytesIO()
    layout.save(buffer, format="PNG")
    given = uploaded(served, "map.png", buffer.getvalue())
    went_well, said = event(served, LABEL_MAP, [given])
    assert went_well and "labels" in said
    went_well, said = event(served, STYLE, with_file(STYLE, served, given))
    assert went_well and "<figure>" in said


def png(side: int, value: int = 1, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side), value).save(buffer, format="PNG")
    return buffer.getvalue()


NAMES = [
    f"{UP * 6}climbs.png",
    "..\\..\\climbs.png",
    f"{ROOT}tmp/absolute.png",
    "%2e%2e%2fclimbs.png",
    f"{UP * 3}stedm/x.png/..",
    "..",
    ".",
    "a\x00b.png",
    "x" * 5000 + ".png",
    "<img src=x onerror=alert(1)>.png",
    "$(touch x).png",
    "-rf.png",
    "CON.png",
    "漢字 🧬.png",
    "no suffix",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
def test_no_name_of_an_upload_leads_out_of_its_folder(served: Served, name: str) -> None:
    watched = served.bench.scratch.parent
    before = {path for path in watched.rglob("*") if served.bench.uploads not in (path, *path.parents)}
    try:
        given = uploaded(served, name, png(served.bench.patch_px))
    except (urllib.error.HTTPError, OSError) as error:
        assert getattr(error, "code", 0) in (400, 404, 413, 422, 500), error  # refused: nothing is kept
    else:
        path = Path(given["path"])
        assert path.resolve().is_relative_to(served.bench.uploads.resolve()) and path.is_file()
        for kinds in (LABEL_MAP, STYLE):
            went_well, said = event(served, kinds, with_file(kinds, served, given))
            assert went_well or "Please upload a file that is one of these formats" in said, said
            assert "<img src=x" not in said and "Traceback" not in said
    assert before == {path for path in watched.rglob("*") if served.bench.uploads not in (path, *path.parents)}
    assert ask(served.url)[0] == 200 and served.strangers == []


@pytest.mark.parametrize("kinds", [LABEL_MAP, STYLE, SEGMENT], ids=lambda kinds: kinds[0])
@pytest.mark.parametrize("kind", ["cut", "text", "empty", "bomb", "claims", "circle"])
def test_a_damaged_upload_is_refused_in_one_line(served: Served, kind: str, kinds: list[str]) -> None:
    tiff = io.BytesIO()
    with tifffile.TiffWriter(tiff) as writer:
        for side in (64, 32):
            writer.write(np.zeros((side, side, 3), np.uint8), tile=(16, 16), photometric="rgb", metadata=None)
    whole = png(served.bench.patch_px)
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    content = {
        "cut": whole[:40],
        "text": b"not an image",
        "empty": b"",
        "bomb": png(8000, mode="1"),
        "claims": with_checksums(whole[:16] + header + whole[29:]),
        "circle": chained(tiff.getvalue(), 0),
    }[kind]
    given = uploaded(served, "damaged.tif" if kind == "circle" else "damaged.png", content)
    went_well, said = event(served, kinds, with_file(kinds, served, given))
    if kind == "circle" and kinds == LABEL_MAP:  # whose first image is whole
        assert went_well
        return
    assert not went_well and "damaged." in said and "Traceback" not in said and str(served.bench.scratch) not in said
    assert ask(served.url)[0] == 200


@pytest.mark.parametrize("kinds", [LABEL_MAP, SEGMENT, STYLE, SEED], ids=lambda kinds: kinds[0])
def test_what_was_not_uploaded_is_neither_fetched_nor_read(served: Served, tmp_path: Path, kinds: list[str]) -> None:
    Image.new("L", (served.bench.patch_px,) * 2).save(tmp_path / "mine.png")
    uploads = served.bench.scratch / "uploads"
    climbing = f"http://elsewhere.example{'/..' * 30}{uploads}/x.png"  # a path into the folder, if it were a path
    for path in ("http://192.0.2.1/x.png", "https://elsewhere.example/x.png", climbing, tmp_path / "mine.png"):
        went_well, said = event(served, kinds, with_file(kinds, served, file_data(path)))
        assert not went_well and "not uploaded" in said, path
        assert served.strangers == [], path


@pytest.mark.parametrize("where", ["file=", "file/", "proxy="])
def test_no_address_makes_it_fetch_another(served: Served, where: str) -> None:
    for url in ("https://elsewhere.example/x.png", "http://192.0.2.1/x.png", "https%3A%2F%2Felsewhere.example/x.png"):
        assert ask(f"{served.url}gradio_api/{where}{url}")[0] == 403
    assert served.strangers == []


def test_nothing_of_it_is_an_api(served: Served) -> None:
    with urllib.request.urlopen(f"{served.url}gradio_api/info", timeout=60) as answer:
        assert json.load(answer)["named_endpoints"] == {}


def test_a_port_that_is_taken_is_named(served: Served) -> None:
    port = int(served.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"--port {port}"):
        start(served.bench, port=port)


# The page


def test_a_run_without_a_generator_has_its_other_tabs(smallest_run: Path, tmp_path: Path) -> None:
    from stedm.studio.page import build_page

    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "data", "segmentation", "evaluation"):
        (tmp_path / "run" / name).symlink_to(smallest_run / name)
    page = build_page(Workbench(tmp_path / "run", scratch=tmp_path))
    shown = json.dumps(page.get_config_file())
    assert f"`stedm train diffusion {tmp_path / 'run'}` trains it" in shown
    assert "arms-table" in shown and "layout-canvas" not in shown


def test_the_style_preview_follows_its_source_and_resolution(visit: Visit, served: Served, tmp_path: Path) -> None:
    side, mpp = served.bench.patch_px, served.bench.styles.mpp
    pixels = np.random.default_rng(0).integers(0, 255, (4 * side, 4 * side, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    look = "[...document.querySelectorAll('figure img[alt=\"style image 1\"]')].find((e) => e.checkVisibility())?.src"
    visit.page.wait_for_function(look)
    visit.page.get_by_label("own images").first.check()
    visit.page.wait_for_function(f"!{look}")  # nobody's images until one is given
    visit.give(visit.page.locator("input[type=file][multiple]").first, tmp_path / "mine.png")
    visit.page.wait_for_function(look)
    before = visit.page.evaluate(look)
    field = visit.page.get_by_label("Microns per pixel").first
    field.fill(str(mpp / 2))
    field.press("Tab")
    visit.page.wait_for_function(f"{look} !== {json.dumps(before)}")


def test_paint_draw_compare_download(visit: Visit, served: Served) -> None:
    side = served.bench.patch_px
    visit.tool("epithelium").click()
    visit.tool("Clear").click()
    visit.tool("stroma").click()
    visit.cell(0.25, 0.75)
    visit.button("Draw").click()
    visit.drawn(2 + served.bench.set_size())  # layout, image, style set
    names, mask, said = contents(visit.download("#download-drawing"))
    assert names == ["image.png", "mask.png", "drawing.json"]
    assert mask.shape == (side, side)
    assert mask[side * 3 // 4, side // 4] == 1 and mask[0, 0] == 2
    assert (mask == 2).mean() > 0.8
    assert said["steps"] == served.bench.settings().steps
    visit.cell(0.75, 0.25)  # the canvas still works after it was read
    visit.button("Draw in six styles").click()
    visit.drawn(1 + len(served.bench.styles.spread(6)))
    names, mask, said = contents(visit.download("#download-drawing"))
    assert mask[side // 4, side * 3 // 4] == 1
    assert list(said["styles"].values()) == served.bench.styles.spread(6)


def test_shapes_fill_and_undo_paint_classes(visit: Visit, served: Served) -> None:
    side, page = served.bench.patch_px, visit.page
    visit.tool("background").click()
    visit.tool("Clear").click()
    visit.tool("stroma").click()
    visit.tool("Rectangle").click()
    area = page.locator("canvas").bounding_box()
    page.mouse.move(area["x"] + 1, area["y"] + 1)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] / 2 - 1, area["y"] + area["height"] / 2 - 1, steps=4)
    page.mouse.up()
    visit.tool("unknown").click()
    visit.tool("Fill").click()
    visit.cell(0.9, 0.9)
    visit.tool("epithelium").click()
    visit.cell(0.25, 0.25)
    visit.tool("Undo").click()
    visit.button("Draw").click()
    visit.drawn(2 + served.bench.set_size())
    mask = contents(visit.download("#download-drawing"))[1]
    expected = np.full((side, side), 255)
    expected[: side // 2, : side // 2] = 1
    assert (mask == expected).all()


def test_interpolation_and_prior_sample(visit: Visit, served: Served) -> None:
    before = visit.page.locator("canvas").screenshot()
    visit.button("Prior sample").click()
    visit.page.wait_for_function("document.querySelector('#layout-seed input').value === '1'")
    visit.page.wait_for_timeout(300)
    assert visit.page.locator("canvas").screenshot() != before
    visit.button("Interpolate to the second style").click()
    visit.drawn(1 + 7)
    names, mask, said = contents(visit.download("#download-drawing"))
    assert (mask == served.bench.layouts.prior(0)).all()
    assert len([name for name in names if name.startswith("image_")]) == 7
    assert said["styles"]["image_0"].startswith("100% ")


def test_everything_can_be_reached_and_done_with_the_keyboard(visit: Visit, served: Served) -> None:
    page, side = visit.page, served.bench.patch_px
    where = "(e => (e.getAttribute('aria-label') || e.innerText || e.tagName).trim())(document.activeElement)"

    def tab_to(name: str) -> None:
        for _ in range(120):
            page.keyboard.press("Tab")
            if page.evaluate(where) == name:
                return
        raise AssertionError(f"{name} cannot be reached with the Tab key")

    tab_to("Generate")
    tab_to("epithelium")
    page.keyboard.press("Enter")
    tab_to("Clear")
    page.keyboard.press("Enter")
    tab_to("Layout, paint here")
    page.keyboard.press("2")
    for _ in range(3 * side):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Space")
    assert "column 1," in page.locator(".lc-said").inner_text()
    for name in ("Annotated, warped", "Prior sample", "Draw"):
        tab_to(name)
    page.keyboard.press("Enter")
    visit.drawn(2 + served.bench.set_size())
    tab_to("Download image + mask (ZIP)")
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")
    mask = contents(Path(waiting.value.path()))[1]
    assert mask[side // 2, 0] == 1 and mask[side // 2, -1] == 2


def test_own_images_lend_a_style_and_wrong_files_are_named(visit: Visit, served: Served, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (served.bench.patch_px,) * 2 + (3,), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    (tmp_path / "notes.png").write_text("not an image")
    visit.page.get_by_label("own images").first.check()
    visit.give(visit.page.locator("input[type=file][multiple]").first, tmp_path / "mine.png")
    visit.button("Draw").click()
    visit.page.wait_for_function("document.querySelector('#drawn h3')?.innerText.includes('mine.png')")
    visit.page.get_by_label("Remove this file").or_(visit.page.get_by_label("Clear", exact=True)).first.click()
    visit.page.locator("input[type=file][multiple]").first.set_input_files(tmp_path / "notes.png")
    visit.page.wait_for_function("document.body.innerText.includes('notes.png: not a readable image')")


def test_explore_filters_and_shows_what_a_pair_came_from(visit: Visit, served: Served) -> None:
    visit.open("Explore")
    tiles = visit.page.locator("#explore-grid .tile")
    total, kept = len(served.bench.synthetic.manifest), len(served.bench.synthetic.select(fate="kept"))
    tiles.first.wait_for()
    assert tiles.count() == total
    visit.page.get_by_label("kept").check()
    visit.page.wait_for_function(f"document.querySelector('#explore-count').innerText.startsWith('{kept} of {total}')")
    tiles.first.focus()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function("document.querySelectorAll('#explore-detail figure').length >= 5")
    assert "nearest real" in visit.page.locator("#explore-detail").inner_text()
    visit.open("second-round")
    again = visit.page.locator("#explore-grid-second-round .tile")
    again.first.wait_for()
    assert again.count() == len(served.bench.synthetic_sets["second-round"].manifest)
    again.nth(1).click()
    visit.page.wait_for_function("document.querySelectorAll('#explore-detail-second-round figure').length >= 5")


def test_results_show_arms_patients_and_outlines(visit: Visit, served: Served) -> None:
    visit.open("Results")
    rows = visit.page.locator("#patients-table tbody tr")
    rows.first.wait_for()
    assert rows.count() == len(served.bench.results.patients())
    assert visit.page.locator("#arms-table tbody th").all_inner_texts() == served.bench.results.names
    visit.button("Show outlines").click()
    visit.page.wait_for_function("document.querySelectorAll('#overlays figure').length >= 4")


def test_an_image_is_segmented_and_its_outlines_downloaded(visit: Visit, served: Served, tmp_path: Path) -> None:
    tissue = sorted((served.bench.run.data / "phantom" / "images").glob("test*.png"))[0]
    visit.open("Segment")
    visit.page.get_by_label("Or the path of a slide on this machine").fill(str(tmp_path / "absent.svs"))
    visit.button("Segment").click()
    visit.page.wait_for_function("document.body.innerText.includes('absent.svs: image not found')")
    visit.page.get_by_label("Or the path of a slide on this machine").fill("")
    visit.page.get_by_label("Glass too, not only tissue").check()
    visit.give(visit.page.locator("input[type=file]:not([multiple])").last, tissue)
    visit.button("Segment").click()
    visit.page.wait_for_function("document.querySelectorAll('#segmented figure').length === 2")
    visit.page.wait_for_function("!document.querySelector('#download-geojson').disabled")
    outlines = json.loads(visit.download("#download-geojson").read_text())
    assert outlines["type"] == "FeatureCollection"
    assert outlines["features"]


@pytest.mark.parametrize("width", [1280, 400])
def test_it_is_readable_at_any_width(served: Served, chromium: Any, width: int, tmp_path: Path) -> None:
    visitor = Visit(chromium, served.url, width=width)
    smallest = """() => Math.min(...[...document.querySelectorAll("p, td, th, label, button, figcaption, span, li")]
        .filter((e) => e.innerText?.trim() && e.checkVisibility())
        .map((e) => parseFloat(getComputedStyle(e).fontSize)))"""
    for tab in ("Generate", "Explore", "Results", "Segment"):
        visitor.open(tab)
        visitor.page.wait_for_timeout(500)
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width, tab
        assert visitor.page.evaluate(smallest) >= 11, tab
        visitor.page.screenshot(path=tmp_path / f"{tab}.png", full_page=True)
        assert np.asarray(Image.open(tmp_path / f"{tab}.png").convert("L")).std() > 5, tab
    visitor.page.close()
    assert visitor.errors == [] and visitor.strangers == []


def test_the_command_serves_until_it_is_ended_and_leaves_nothing(smallest_run: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "stedm.cli", "studio", str(smallest_run), "--no-browser", "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert f"http://{HOST}:{port}" in process.stdout.readline()
            assert ask(f"http://{HOST}:{port}/")[0] == 200
            assert any(tmp_path.glob("stedm-studio-*"))
            process.terminate()
            assert process.wait(240) == 0  # a second, but for a machine with much else to do
        finally:
            process.kill()
    assert not any(tmp_path.glob("stedm-studio-*"))

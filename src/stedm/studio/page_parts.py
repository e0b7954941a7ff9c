"""Parts that the tabs share: handlers that say what went wrong, the canvas, the choice of a style."""

import functools
import html
import inspect
import json
import traceback
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import gradio as gr

from stedm.config import IGNORE
from stedm.errors import UserError
from stedm.progress import Listener
from stedm.stages.report_pictures import UNKNOWN_COLOUR
from stedm.studio.figures import figures
from stedm.studio.styles import Style
from stedm.studio.workbench import Workbench, in_page_words

PROGRESS = gr.Progress()
"""Default of the handlers' last argument, which gradio recognises."""
ONE_MODEL_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
AT_ONCE = {"api_visibility": "private"}
"""Options of events: nothing here is an API."""
IMAGE_TYPES = [".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"]
SOURCES = ("patient of the run", "slide on this machine", "own images")
_ANY_SLIDE = "all slides"


def assets(name: str) -> str:
    """Text of a file of the page."""
    return (files("stedm.studio") / "assets" / name).read_text(encoding="utf-8")


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler, with mistakes shown on the page; anything unexpected also goes to the terminal in full."""

    @functools.wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except UserError as error:
            raise gr.Error(in_page_words(str(error)), duration=None, print_exception=False, title="Not done") from None
        except gr.Error:
            raise
        except Exception as error:
            traceback.print_exc()
            raise gr.Error(
                f"{type(error).__name__}: {error}; the terminal says more", duration=None, print_exception=False
            ) from None

    # functools.wraps hides nothing from gradio, which looks for PROGRESS and for event types in the signature.
    wrapped.__signature__ = inspect.signature(handler)  # type: ignore[attr-defined]
    return wrapped


def reporter(progress: gr.Progress) -> Listener:
    """What a workbench reports to."""

    def report(done: float, total: float, what: str) -> None:
        progress(min(1.0, done / total) if total else 0.0, desc=what)

    return report


def layout_canvas(bench: Workbench) -> gr.HTML:
    """The canvas; its value is what `Workbench.painted` reads."""
    brush = max(2, bench.patch_px // 10)
    classes = [(k, name, colour) for k, (name, colour) in enumerate(bench.colours.items())]
    classes.append((IGNORE, "unknown", UNKNOWN_COLOUR))
    buttons = "".join(
        f'<button type="button" data-label="{label}" aria-pressed="{str(label == 0).lower()}">'
        f'<span class="lc-swatch" style="background:{colour}"></span>{_in_template(name)}</button>'
        for label, name, colour in classes
    )
    template = assets("canvas.html")
    for word, text in {
        "COLOURS": _in_template(json.dumps(list(bench.colours.values()))),
        "NAMES": _in_template(json.dumps(list(bench.colours))),
        "CLASSES": buttons,
        "MOST_BRUSH": str(max(4, bench.patch_px // 2)),
        "BRUSH": str(brush),
    }.items():
        template = template.replace(word, text)
    return gr.HTML(
        bench.layout("annotated") if bench.has_annotated else bench.blank_layout(),
        html_template=template,
        css_template=assets("canvas.css"),
        js_on_load=assets("canvas.js"),
        apply_default_css=False,
        elem_id="layout-canvas",
    )


def _in_template(text: str) -> str:
    """Text that neither HTML nor gradio's templates take for their own."""
    text = html.escape(text)
    return text.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


class StylePanel:
    """Where a style comes from, and a look at it; `inputs` are what `style` is called with."""

    def __init__(self, bench: Workbench, *, patient: str) -> None:
        """patient: the one that is picked at first."""
        self._bench = bench
        self._patients = {found.name: found for found in bench.patients()}
        choices = [(found.label, found.name) for found in self._patients.values()]
        self.source = gr.Radio(list(SOURCES), value=SOURCES[0], label="Style from")
        with gr.Group() as of_run:
            self.patient = gr.Dropdown(choices, value=patient, label="Patient", filterable=True)
            self.slide = gr.Dropdown(self._slides(patient), value=_ANY_SLIDE, label="Slide")
        with gr.Group(visible=False) as of_disk:
            self.path = gr.Textbox(label="Path of the slide on this machine", placeholder="slides/NEW.svs", max_lines=1)
        self.files = gr.File(label="Images", file_count="multiple", file_types=IMAGE_TYPES, visible=False, height=140)
        self.mpp = gr.Number(0, label="Microns per pixel", info="0: what the file says", minimum=0, visible=False)
        with gr.Row():
            self.size = gr.Slider(1, 8, bench.set_size(), step=1, label="Style images", min_width=140)
            self.draw = gr.Number(0, label="Which ones (seed)", precision=0, minimum=0, min_width=140)
        self.shown = gr.HTML(self._look(bench.styles.of_patient(patient, size=bench.set_size())))
        self.inputs = [self.source, self.patient, self.slide, self.path, self.files, self.mpp, self.size, self.draw]
        self.source.change(
            lambda source: [gr.update(visible=shown) for shown in _visible(source)],
            self.source,
            [of_run, of_disk, self.files, self.mpp],
            **AT_ONCE,
        ).then(told(self.preview), self.inputs, self.shown, **AT_ONCE)
        self.patient.input(
            lambda name: gr.update(choices=self._slides(name), value=_ANY_SLIDE), self.patient, self.slide, **AT_ONCE
        ).then(told(self.preview), self.inputs, self.shown, **AT_ONCE)
        changed = (self.path.submit, self.mpp.submit, self.mpp.blur, self.files.change, self.draw.change)
        for part in (self.slide.input, self.size.release, *changed):
            part(told(self.preview), self.inputs, self.shown, **AT_ONCE)

    def style(
        self,
        source: str,
        patient: str,
        slide: str,
        path: str | None,
        images: list[str] | None,
        mpp: float | None,
        size: float,
        seed: float,
    ) -> Style:
        """The style set that is chosen. Raises UserError."""
        options = {"size": self._bench.generator.set_size or int(size), "seed": int(seed or 0)}
        if source == SOURCES[0]:
            one = None if slide == _ANY_SLIDE else slide
            return self._bench.styles.of_patient(patient, slide=one, **options)
        if source == SOURCES[1]:
            if not (path or "").strip():
                raise UserError("no slide; type the path of one on this machine")
            return self._bench.styles.of_slide(str(path).strip(), mpp=mpp or None, **options)
        return self._bench.styles.of_images(images or [], mpp=mpp or None, **options)

    def preview(self, *chosen: Any) -> str:
        """HTML of the style set; nothing while no file is there yet."""
        waiting = {SOURCES[1]: not (chosen[3] or "").strip(), SOURCES[2]: not chosen[4]}
        return "" if waiting.get(chosen[0]) else self._look(self.style(*chosen))

    def _look(self, style: Style) -> str:
        return figures([(image, f"style image {k + 1}") for k, image in enumerate(style.images)])

    def _slides(self, patient: str) -> list[str]:
        return [_ANY_SLIDE, *self._patients[patient].slides]


def _visible(source: str) -> list[bool]:
    """Whether run, path, files and microns per pixel are asked for."""
    return [source == SOURCES[0], source == SOURCES[1], source == SOURCES[2], source != SOURCES[0]]

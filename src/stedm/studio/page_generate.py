"""Tab Generate: a layout, a style, an image."""

from typing import Any

import gradio as gr
import numpy as np

from stedm.errors import UserError
from stedm.studio.drawing import MOST_STEPS, Drawing, Settings
from stedm.studio.figures import figures, note
from stedm.studio.page_parts import AT_ONCE, ONE_MODEL_AT_A_TIME, PROGRESS, StylePanel, layout_canvas, reporter, told
from stedm.studio.workbench import STYLES, Workbench


def add_generate(bench: Workbench) -> None:
    """Build the tab and say what its buttons do; a run without a generator says what to do."""
    try:
        _ = bench.generator
    except UserError as error:
        gr.HTML(note(str(error)))
        return
    _add_tab(bench)


def _add_tab(bench: Workbench) -> None:
    spread = bench.styles.spread(STYLES)
    with gr.Row():
        with gr.Column(min_width=300):
            gr.Markdown("### Layout")
            canvas = layout_canvas(bench)
            _add_layout_buttons(bench, canvas)
        with gr.Column(min_width=300):
            gr.Markdown("### Style")
            first = StylePanel(bench, patient=spread[0])
            with gr.Accordion("Second style, to interpolate to", open=False):
                second = StylePanel(bench, patient=spread[-1])
        with gr.Column(min_width=260):
            gr.Markdown("### Settings")
            settings = _add_settings(bench)
            several = gr.Dropdown(
                [(found.label, found.name) for found in bench.patients()],
                value=spread,
                multiselect=True,
                max_choices=STYLES,
                label="Patients for “in six styles”",
            )
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", min_width=140)
        side_by_side = gr.Button("Draw in six styles", min_width=140)
        way = gr.Button("Interpolate to the second style", min_width=140)
    result = gr.HTML("", elem_id="drawn", min_height=80)
    saved = gr.DownloadButton("Download image + mask (ZIP)", interactive=False, elem_id="download-drawing")
    tab = _Generate(bench, first, second)
    canvas_and_settings = [canvas, *settings]
    draw.click(told(tab.draw), [*canvas_and_settings, *first.inputs], [result, saved], **ONE_MODEL_AT_A_TIME)
    side_by_side.click(
        told(tab.side_by_side), [*canvas_and_settings, several, first.size], [result, saved], **ONE_MODEL_AT_A_TIME
    )
    way.click(
        told(tab.interpolate),
        [*canvas_and_settings, *first.inputs, *second.inputs],
        [result, saved],
        **ONE_MODEL_AT_A_TIME,
    )


def _add_layout_buttons(bench: Workbench, canvas: gr.HTML) -> None:
    with gr.Row():
        seed = gr.Number(0, label="Layout seed", precision=0, minimum=0, min_width=100, elem_id="layout-seed")
        annotated = gr.Button("Annotated, warped", min_width=130, interactive=bench.has_annotated)
        prior = gr.Button("Prior sample", min_width=130, interactive=bench.has_annotated)
    label_map = gr.UploadButton("Open a label map", file_types=[".png", ".tif", ".tiff", ".bmp"])

    def fill(kind: str, number: float) -> tuple[str, int]:
        return bench.layout(kind, seed=int(number or 0)), int(number or 0) + 1

    def from_annotated(number: float) -> tuple[str, int]:
        return fill("annotated", number)

    def from_prior(number: float, progress: gr.Progress = PROGRESS) -> tuple[str, int]:
        progress(0.5, desc="measuring the annotated layouts: seconds, once")
        return fill("prior", number)

    def from_file(path: str | None) -> Any:
        return bench.layout("file", path=path) if path else gr.skip()

    annotated.click(told(from_annotated), seed, [canvas, seed], **AT_ONCE)
    prior.click(told(from_prior), seed, [canvas, seed], **ONE_MODEL_AT_A_TIME)
    label_map.upload(told(from_file), label_map, canvas, **AT_ONCE)


def _add_settings(bench: Workbench) -> list[Any]:
    own, fixed = bench.settings(), bench.generator.keeps_guidance
    note = "fixed: a few-step generator has its guidance trained in" if fixed else "1: none"
    return [
        gr.Slider(0, 5, own.layout_guidance, step=0.05, label="Layout guidance", info=note, interactive=not fixed),
        gr.Slider(0, 5, own.style_guidance, step=0.05, label="Style guidance", info=note, interactive=not fixed),
        gr.Slider(1, min(50, MOST_STEPS), own.steps, step=1, label="Steps", info="network evaluations per image"),
        gr.Number(0, label="Seed", precision=0, minimum=0),
    ]


class _Generate:
    """What the buttons do: (result as HTML, file to download)."""

    def __init__(self, bench: Workbench, first: StylePanel, second: StylePanel) -> None:
        self._bench, self._first, self._second = bench, first, second

    def draw(
        self, layout: str, layout_guidance: float, style_guidance: float, steps: float, seed: float, *style: Any,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[str, Any]:  # fmt: skip
        """One image beside its layout and style set."""
        settings = _settings(layout_guidance, style_guidance, steps, seed)
        chosen = self._first.style(*style)
        drawing = self._bench.generate(self._bench.painted(layout), [chosen], settings, progress=reporter(progress))
        title = f"Drawn in the style of {chosen.name}"
        return self._finished(
            drawing, title, beside=[(image, f"style image {k + 1}") for k, image in enumerate(chosen.images)]
        )

    def side_by_side(
        self, layout: str, layout_guidance: float, style_guidance: float, steps: float, seed: float,
        patients: list[str], size: float, progress: gr.Progress = PROGRESS,
    ) -> tuple[str, Any]:  # fmt: skip
        """The layout in the styles of several patients."""
        if not patients:
            raise UserError("no patient; pick up to six under “in six styles”")
        size = self._bench.generator.set_size or int(size)
        styles = [self._bench.styles.of_patient(name, size=int(size)) for name in patients]
        settings = _settings(layout_guidance, style_guidance, steps, seed)
        drawing = self._bench.generate(self._bench.painted(layout), styles, settings, progress=reporter(progress))
        return self._finished(drawing, f"The same layout in {len(styles)} styles")

    def interpolate(
        self, layout: str, layout_guidance: float, style_guidance: float, steps: float, seed: float, *styles: Any,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[str, Any]:  # fmt: skip
        """From the first style to the second."""
        half = len(styles) // 2
        ends = self._first.style(*styles[:half]), self._second.style(*styles[half:])
        settings = _settings(layout_guidance, style_guidance, steps, seed)
        drawing = self._bench.interpolate(self._bench.painted(layout), *ends, settings, progress=reporter(progress))
        return self._finished(drawing, f"From {ends[0].name} to {ends[1].name}")

    def _finished(
        self, drawing: Drawing, title: str, *, beside: list[tuple[np.ndarray, str]] | None = None
    ) -> tuple[str, Any]:
        pictures = [
            (drawing.layout, "layout"),
            *zip(drawing.images, (f"drawn: {name}" for name in drawing.names), strict=True),
            *(beside or []),
        ]
        path = str(self._bench.saved(drawing))
        return figures(pictures, title=title), gr.update(value=path, interactive=True)


def _settings(layout_guidance: float, style_guidance: float, steps: float, seed: float | None) -> Settings:
    return Settings(float(layout_guidance), float(style_guidance), int(steps), int(seed or 0))

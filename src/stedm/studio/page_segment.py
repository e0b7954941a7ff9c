"""Tab Segment: an image or slide, its overlay, its outlines."""

from typing import Any

import gradio as gr

from stedm.errors import UserError
from stedm.studio.figures import figures, legend, note
from stedm.studio.page_parts import IMAGE_TYPES, ONE_MODEL_AT_A_TIME, PROGRESS, reporter, told
from stedm.studio.styles import refuse_oversized
from stedm.studio.workbench import Workbench


def add_segment(bench: Workbench) -> None:
    """Build the tab; a run without a segmenter says what to do."""
    try:
        arm = bench.segmenter.arm
    except UserError as error:
        gr.HTML(note(str(error)))
        return
    gr.HTML(note(f"Segmenters of the arm {arm}, chosen as for stedm segment; several seeds are averaged."))
    with gr.Row():
        with gr.Column(min_width=280):
            dropped = gr.File(label="An image", file_types=IMAGE_TYPES, height=140)
        with gr.Column(min_width=280):
            path = gr.Textbox(label="Or the path of a slide on this machine", placeholder="slides/NEW.svs", max_lines=1)
            mpp = gr.Number(0, label="Microns per pixel", info="0: what the file says", minimum=0)
            everywhere = gr.Checkbox(False, label="Glass too, not only tissue")
    start = gr.Button("Segment", variant="primary")
    result = gr.HTML("", elem_id="segmented", min_height=80)
    with gr.Row():
        geojson = gr.DownloadButton(
            "Download outlines (GeoJSON, QuPath)", interactive=False, elem_id="download-geojson"
        )
        label_map = gr.DownloadButton("Download label map (TIFF)", interactive=False)

    def segment(
        uploaded: str | None, name: str, microns: float | None, glass: bool, progress: gr.Progress = PROGRESS
    ) -> tuple[str, Any, Any]:
        if not uploaded and not name.strip():
            raise UserError("nothing to segment; drop an image, or type the path of a slide on this machine")
        if uploaded and name.strip():
            raise UserError("an image and a path: take one of them away")
        if uploaded:
            refuse_oversized(uploaded)
        progress(0.0, desc="opening")
        found = bench.segment(
            uploaded or name.strip(), mpp=microns or None, everywhere=glass, progress=reporter(progress)
        )
        total = sum(found.area_mm2.values()) or 1.0
        areas = {label: f"{area:.4g} mm² ({area / total:.0%})" for label, area in found.area_mm2.items()}
        pictures = [(found.image, "as it is"), (found.overlay, "segmented")]
        shown = (
            figures(pictures, wide=True)
            + legend(bench.colours, shares=areas)
            + (note(found.note) if found.note else "")
        )
        return shown, *(gr.update(value=str(file), interactive=True) for file in (found.geojson, found.label_map))

    start.click(told(segment), [dropped, path, mpp, everywhere], [result, geojson, label_map], **ONE_MODEL_AT_A_TIME)

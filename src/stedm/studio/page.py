"""The studio's page: its four tabs, what it takes, and how it looks."""

import os
from pathlib import Path
from typing import Any

import gradio as gr

from stedm.studio.page_explore import add_explore
from stedm.studio.page_generate import add_generate
from stedm.studio.page_parts import assets
from stedm.studio.page_results import add_results
from stedm.studio.page_segment import add_segment
from stedm.studio.workbench import Workbench


class Page(gr.Blocks):
    """A page that takes a file only where it was uploaded. Gradio alone would fetch one that is named by a URL."""

    def __init__(self, uploads: Path, **options: Any) -> None:
        """uploads: the folder where gradio keeps what is uploaded."""
        super().__init__(**options)
        self._uploads = uploads.absolute()

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> Any:
        """What gradio does with the inputs of an event before it looks at them. Raises gr.Error: not uploaded."""
        self._refuse_others(inputs)
        return await super().preprocess_data(block_fn, inputs, *rest, **options)

    def _refuse_others(self, given: Any) -> None:
        """Look for files at any depth: gradio does, in the inputs of every component."""
        if isinstance(given, dict):
            path = given.get("path")
            if isinstance(path, str) and not self._is_upload(path):
                name = path.rpartition("/")[2]
                raise gr.Error(f"{name}: not uploaded; drop the file on the page", duration=None, print_exception=False)
        for part in given.values() if isinstance(given, dict) else given if isinstance(given, list) else ():
            self._refuse_others(part)

    def _is_upload(self, path: str) -> bool:
        # Absolute, so no URL: one that climbs would lead into the folder if it were taken for a path.
        return os.path.isabs(path) and Path(os.path.normpath(path)).is_relative_to(self._uploads)


def build_page(bench: Workbench) -> Page:
    """The page over a workbench."""
    with Page(bench.uploads, title=f"stedm studio: {bench.name}", analytics_enabled=False) as page:
        gr.Markdown(f"# stedm studio: {bench.name}\nNothing leaves this machine. Not a medical device.")
        with gr.Tab("Generate"):
            add_generate(bench)
        with gr.Tab("Explore"):
            add_explore(bench)
        with gr.Tab("Results"):
            add_results(bench)
        with gr.Tab("Segment"):
            add_segment(bench)
    return page


def appearance() -> dict[str, Any]:
    """Options of `launch` for the looks: fonts of the system, none fetched."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(  # gradio's greys are too faint to read
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color_dark="*neutral_200",
        body_text_color_subdued_dark="*neutral_300",
    )
    return {"theme": theme, "css": assets("page.css")}

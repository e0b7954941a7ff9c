"""The studio's page: its four tabs, and how it looks."""

from typing import Any

import gradio as gr

from stedm.studio.page_explore import add_explore
from stedm.studio.page_generate import add_generate
from stedm.studio.page_parts import assets
from stedm.studio.page_results import add_results
from stedm.studio.page_segment import add_segment
from stedm.studio.workbench import Workbench


def build_page(bench: Workbench) -> gr.Blocks:
    """The page over a workbench."""
    with gr.Blocks(title=f"stedm studio: {bench.name}", analytics_enabled=False) as page:
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

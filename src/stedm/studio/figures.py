"""Pictures and tables as HTML that the page shows: self-contained, with a text beside each picture."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from PIL import Image

from stedm.config import IGNORE
from stedm.stages.report_pictures import UNKNOWN_COLOUR, colour_layout

SHOWN_PX = 512
"""Longer side of a picture, at most; what is downloaded has all its pixels."""


def data_uri(pixels: np.ndarray, *, longest_px: int = SHOWN_PX) -> str:
    """An image (H, W, 3) or a layout (H, W), uint8, as a PNG inside a URI."""
    image = colour_layout(pixels) if pixels.ndim == 2 else Image.fromarray(pixels)
    shrink = longest_px / max(image.size)
    if shrink < 1:
        resampling = Image.Resampling.NEAREST if pixels.ndim == 2 else Image.Resampling.BOX
        image = image.resize((max(1, round(image.width * shrink)), max(1, round(image.height * shrink))), resampling)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def figure(pixels: np.ndarray, caption: str, *, longest_px: int = SHOWN_PX) -> str:
    """A picture with its caption."""
    text = html.escape(caption)
    return (
        f'<figure><img src="{data_uri(pixels, longest_px=longest_px)}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def figures(pictures: Sequence[tuple[np.ndarray, str]], *, title: str = "", wide: bool = False) -> str:
    """Pictures side by side as far as the window allows; wide: large ones."""
    heading = f"<h3>{html.escape(title)}</h3>" if title else ""
    body = "".join(
        figure(pixels, caption, longest_px=2 * SHOWN_PX if wide else SHOWN_PX) for pixels, caption in pictures
    )
    return f'{heading}<div class="figures{" wide" if wide else ""}">{body}</div>'


def tiles(pictures: Sequence[tuple[np.ndarray, str, str]], *, empty: str) -> str:
    """Pictures to choose from: pixels, key and caption; `empty` is said when there is none."""
    if not pictures:
        return note(empty)
    body = "".join(
        f'<button type="button" class="tile" data-key="{html.escape(key)}">'
        f'<img src="{data_uri(pixels, longest_px=160)}" alt=""><span>{html.escape(caption)}</span></button>'
        for pixels, key, caption in pictures
    )
    return f'<div class="tiles">{body}</div>'


def table(rows: pd.DataFrame, *, caption: str) -> str:
    """A table whose first column names its rows; numbers with three decimals, unknown ones as a dash."""
    head = "".join(f'<th scope="col">{html.escape(str(column))}</th>' for column in rows)
    lines = []
    for values in rows.itertuples(index=False):
        first, *others = map(_cell, values)
        lines.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>")
    return (
        f'<p class="note"><strong>{html.escape(caption)}</strong></p>'
        f'<div class="scrolled" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f'<table class="figures-table" aria-label="{html.escape(caption)}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def legend(colours: Mapping[str, str], *, shares: Mapping[str, str] | None = None) -> str:
    """Classes with their colours; shares: what to say beside each."""
    said = shares or {}
    entries = [(name, colour, said.get(name, "")) for name, colour in colours.items()]
    entries += [] if shares else [(f"unknown ({IGNORE})", UNKNOWN_COLOUR, "")]
    return '<ul class="legend">' + "".join(_entry(*entry) for entry in entries) + "</ul>"


def note(text: str) -> str:
    """A paragraph."""
    return f'<p class="note">{html.escape(text)}</p>'


def _entry(name: str, colour: str, said: str) -> str:
    return f'<li><span class="swatch" style="background:{colour}"></span>{html.escape(f"{name} {said}".strip())}</li>'


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return html.escape(str(value))

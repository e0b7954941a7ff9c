"""Tab Explore: the synthetic sets, filtered, and single pairs beside what they came from."""

import math

import gradio as gr

from stedm.errors import UserError
from stedm.studio.figures import figures, note, tiles
from stedm.studio.page_parts import AT_ONCE, told
from stedm.studio.synthetic_view import ORDERS, Fate, Pair, SyntheticView
from stedm.studio.workbench import Workbench

PER_PAGE = 24
_EVERYONE = "all patients"
_CHOOSE = """
element.addEventListener("click", (event) => {
  const tile = event.target.closest("[data-key]");
  if (tile) trigger("click", { key: tile.dataset.key });
});
"""


def add_explore(bench: Workbench) -> None:
    """Build the tab, with one of its own for each set; a run without a synthetic set says what to do."""
    try:
        sets = bench.synthetic_sets
    except UserError as error:
        gr.HTML(note(str(error)))
        return
    if len(sets) == 1:
        _add_set(bench.synthetic)
        return
    with gr.Tabs():
        for name, view in sets.items():
            with gr.Tab(name):
                _add_set(view, suffix="" if view is bench.synthetic else f"-{name}")


def _add_set(view: SyntheticView, *, suffix: str = "") -> None:
    """suffix: what sets the names of its parts apart from those of another set."""
    with gr.Row():
        patient = gr.Dropdown([_EVERYONE, *view.patients()], value=_EVERYONE, label="Style patient", min_width=160)
        fate = gr.Radio(["all", "kept", "dropped"], value="all", label="Filter", interactive=view.judged, min_width=200)
        order = gr.Dropdown(list(ORDERS), value="as drawn", label="Order", min_width=160)
    with gr.Row():
        least = gr.Slider(0, 1, 0, step=0.01, label="Agreement from", interactive=view.judged, min_width=160)
        most = gr.Slider(0, 1, 1, step=0.01, label="Agreement to", interactive=view.judged, min_width=160)
        number = gr.Number(1, label="Page", precision=0, minimum=1, min_width=100)
    explore = _Explore(view)
    count = gr.HTML(elem_id=f"explore-count{suffix}")
    grid = gr.HTML(js_on_load=_CHOOSE, elem_id=f"explore-grid{suffix}")
    detail = gr.HTML(note("Choose a picture to see what it came from."), elem_id=f"explore-detail{suffix}")
    filters = [patient, fate, least, most, order]
    for part in (patient.input, fate.input, least.release, most.release, order.input):
        part(told(explore.first_page), filters, [count, grid, number], **AT_ONCE)
    number.input(told(explore.page), [*filters, number], [count, grid], **AT_ONCE)
    grid.click(told(explore.choose), None, detail, **AT_ONCE)
    count.value, grid.value = explore.page(_EVERYONE, "all", 0, 1, "as drawn", 1)


class _Explore:
    """What the filters and the pictures do."""

    def __init__(self, view: SyntheticView) -> None:
        self._view = view

    def first_page(self, *filters: object) -> tuple[str, str, int]:
        """(count, pictures, page number) after a filter has changed."""
        return *self.page(*filters, 1), 1  # type: ignore[arg-type]

    def page(
        self, patient: str, fate: Fate, least: float, most: float, order: str, number: float | None
    ) -> tuple[str, str]:
        """How many there are, and PER_PAGE of them."""
        one = None if patient == _EVERYONE else patient
        rows = self._view.select(patient=one, fate=fate, agreement=(float(least), float(most)), order=order)
        pages = max(1, math.ceil(len(rows) / PER_PAGE))
        at = min(max(1, int(number or 1)), pages)
        shown = rows.iloc[(at - 1) * PER_PAGE : at * PER_PAGE]
        captions = [_caption(row) for _, row in shown.iterrows()]
        pictures = list(zip(self._view.images(shown), map(str, shown["id"]), captions, strict=True))
        said = f"{len(rows)} of {len(self._view.manifest)} pairs; page {at} of {pages}"
        return note(said), tiles(pictures, empty="No pair is left: widen the filters.")

    def choose(self, event: gr.EventData) -> str:
        """A pair beside what it came from."""
        return _detail(self._view.pair(str(event.key)))


def _caption(row: object) -> str:
    agreement = row.get("agreement")  # type: ignore[attr-defined]
    judged = "" if agreement is None else f" · {agreement:.2f}" + ("" if row["keep"] else " · dropped")  # type: ignore[index]
    return f"{row['id']}{judged}"  # type: ignore[index]


def _detail(pair: Pair) -> str:
    pictures = [(pair.image, f"synthetic {pair.id}")]
    if pair.nearest is not None:
        pictures.append((pair.nearest, f"nearest real: {pair.nearest_name}, distance {pair.distance:.3f}"))
    pictures += [(pair.layout, "layout as drawn"), (pair.mask, "mask after the filter, white: ignored")]
    pictures += [(image, f"style image {k + 1} of {pair.style_patient}") for k, image in enumerate(pair.style_images)]
    judged = (
        ""
        if math.isnan(pair.agreement)
        else f", agreement {pair.agreement:.2f}, " + ("kept" if pair.keep else "dropped")
    )
    return figures(pictures, title=f"{pair.id}{judged}")

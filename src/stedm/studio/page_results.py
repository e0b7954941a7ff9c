"""Tab Results: arms, patients, and outlines on a patient's images."""

import gradio as gr

from stedm.errors import UserError
from stedm.studio.figures import figures, legend, note, table
from stedm.studio.page_parts import ONE_MODEL_AT_A_TIME, PROGRESS, told
from stedm.studio.workbench import Workbench


def add_results(bench: Workbench) -> None:
    """Build the tab; a run that was not evaluated says what to do."""
    try:
        results = bench.results
    except UserError as error:
        gr.HTML(note(str(error)))
        return
    count = results.summary["n_test_patients"]
    gr.HTML(table(results.arms(), caption=f"Arms, over {count} test patients, means over seeds"), elem_id="arms-table")
    patients = results.patients()
    with gr.Row():
        patient = gr.Dropdown(list(map(str, patients["patient"])), label="Test patient", min_width=160)
        arms = gr.CheckboxGroup(results.names, value=results.names[-2:], label="Arms", min_width=240)
        show = gr.Button("Show outlines", variant="primary", min_width=140)
    gr.HTML(legend(bench.colours))
    overlays = gr.HTML(note("Outlines: the border of each class, in its colour."), elem_id="overlays", min_height=60)
    gr.HTML(table(patients, caption="IoU of each test patient, mean over seeds"), elem_id="patients-table")

    def outlined(name: str | None, chosen: list[str], progress: gr.Progress = PROGRESS) -> str:
        if not name:
            raise UserError("no patient; pick one")
        progress(0.2, desc=f"segmenting {name}")
        found = results.overlays(name, chosen or None)
        return "".join(
            figures([(pictures[k], what) for what, pictures in found.items()], title=f"{name}, image {k + 1}")
            for k in range(len(found["image"]))
        )

    show.click(told(outlined), [patient, arms], overlays, **ONE_MODEL_AT_A_TIME)

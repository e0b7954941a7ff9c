"""Is a learned layout generator better than random fields? The diffusion code itself, trained on one-hot label maps.

    python benchmarks/learned_layouts.py --out runs/layouts
    python benchmarks/learned_layouts.py --out runs/layouts_ebhi --config configs/ebhi.yaml --table PATH

Trains on warped label maps of the annotated patients only, on the latent grid, without any condition; draws layouts
with three seeds, and compares them, the prior's and the warped real ones with the label maps of validation patients,
who took no part. Writes OUT/layouts.json and OUT/layouts.png, and prints a table. One core, minutes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stedm.config_file import load_config
from stedm.data.layout_statistics import compare, measure
from stedm.data.layout_structure import fill_ignored
from stedm.data.layouts import PriorLayouts, RealLayouts
from stedm.device import autocast
from stedm.diffusion.flow import flow_matching_loss, sample_times
from stedm.diffusion.sampling import multistep, noise_from_seeds
from stedm.files import atomic_path, write_json
from stedm.models.unet import UNet
from stedm.stages.prepare import prepare
from stedm.stages.report_pictures import colour_layout
from stedm.stages.run_folder import RunFolder, train_patches
from stedm.training.muon import Muon
from stedm.training.tasks import warmup_cosine

FACTOR = 4
POOL = 2048
NFE = 20


class LearnedLayouts:
    """The velocity network on label maps: class shares on the latent grid, scaled to -1 ... 1."""

    def __init__(self, num_classes: int, size_px: int) -> None:
        torch.manual_seed(0)
        self.num_classes, self.size_px = num_classes, size_px
        self.unet = UNet(
            latent_channels=num_classes,
            num_classes=num_classes,
            factor=FACTOR,
            channels=32,
            multipliers=[1, 2, 2],
            style_dim=8,
        ).to(memory_format=torch.channels_last)

    def velocity(self, z_t: Tensor, t: Tensor) -> Tensor:
        """v(z_t (B, C, h, w), t (B,)) without layout and style."""
        none = torch.zeros(len(z_t), dtype=torch.bool)
        layout = torch.zeros(len(z_t), self.size_px, self.size_px, dtype=torch.uint8)
        style = torch.zeros(len(z_t), 8)
        with autocast(torch.device("cpu")):
            v = self.unet(z_t, t, layout=layout, layout_given=none, style=style, style_given=none)
        return v.float()

    def fit(self, maps: np.ndarray, *, steps: int, batch_size: int = 16) -> None:
        """Train on label maps (N, H, H), and keep the moving average of the weights."""
        z = latents(maps, self.num_classes)
        optimiser = Muon(self.unet.parameters(), lr=2e-3, weight_decay=0.01, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmup_cosine(step, steps))
        average = torch.optim.swa_utils.AveragedModel(
            self.unet, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
        )
        generator = torch.Generator().manual_seed(0)
        for step in range(steps):
            batch = z[torch.randint(len(z), (batch_size,), generator=generator)]
            noise = torch.randn(batch.shape, generator=generator)
            loss = flow_matching_loss(self.velocity, batch, t=sample_times(batch_size, generator=generator), e=noise)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            average.update_parameters(self.unet)
            if (step + 1) % 250 == 0:
                print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
        self.unet.load_state_dict(average.module.state_dict())

    @torch.no_grad()
    def draw(self, seeds: range) -> np.ndarray:
        """Label maps (len(seeds), H, H) uint8: drawn on the latent grid, enlarged, the largest share wins."""
        shape = (self.num_classes, self.size_px // FACTOR, self.size_px // FACTOR)
        z = torch.cat([multistep(self.velocity, noise_from_seeds(part, shape), NFE) for part in _parts(seeds, 64)])
        shares = F.interpolate(z, size=(self.size_px, self.size_px), mode="bilinear")
        return shares.argmax(1).numpy().astype(np.uint8)


def _parts(seeds: range, size: int) -> list[range]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def latents(maps: np.ndarray, num_classes: int) -> Tensor:
    """Class shares (N, C, h, w) of label maps (N, H, H) on the latent grid, scaled to -1 ... 1."""
    onehot = np.stack([maps == c for c in range(num_classes)], axis=1).astype(np.float32)
    return 2 * F.avg_pool2d(torch.from_numpy(onehot), FACTOR) - 1


def nearest_agreement(maps: np.ndarray, pool: np.ndarray, num_classes: int) -> float:
    """Median over maps of the agreement (0 to 1, cells of the latent grid) with the most similar map of the pool.

    The pool holds thousands of warps of the training maps: a generator that has learned them by heart, warps and all,
    agrees with it as fresh warps do; label maps of other patients show what a new map gives.
    """
    a, b = (F.one_hot(latents(m, num_classes).argmax(1), num_classes).flatten(1).float() for m in (maps, pool))
    cells = (maps.shape[1] // FACTOR) ** 2
    return float(((a @ b.T).amax(1) / cells).median())


def figures(kind: str, drawn: list[np.ndarray], context: dict[str, Any]) -> dict[str, Any]:
    """Distances of drawn layouts, one set a seed, from the held-out and from the annotated patients: mean and std."""
    num_classes, rows = context["num_classes"], []
    for maps in drawn:
        row = {"agreement": nearest_agreement(maps, context["pool"], num_classes)}
        for name in ("held_out", "annotated"):
            distance = compare(measure(maps, num_classes), measure(context[name], num_classes))
            row |= {
                f"{name} fraction": distance.fraction_error,
                f"{name} region": distance.region_error,
                f"{name} adjacency": distance.adjacency_distance,
            }
        rows.append(row)
    found = {key: [float(np.mean([r[key] for r in rows])), float(np.std([r[key] for r in rows]))] for key in rows[0]}
    return {"layouts": kind, "sets": len(drawn), "maps": len(drawn[0]), **found}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one row per kind of layouts, mean and standard deviation over the seeds of the draw."""
    keys = [key for key in rows[0] if key not in ("layouts", "sets", "maps")]
    lines = ["| layouts | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for row in rows:
        cells = [f"{row[k][0]:.3f}" + (f" ± {row[k][1]:.3f}" if row["sets"] > 1 else "") for k in keys]
        lines.append(f"| {row['layouts']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save_picture(kinds: dict[str, np.ndarray], path: Path, *, columns: int = 12, rows: int = 2) -> None:
    """Blocks of layouts one below the other, in the order of `kinds`."""
    size, gap = next(iter(kinds.values())).shape[1], 4
    height = rows * (size + gap) + 3 * gap
    sheet = Image.new("RGB", (columns * (size + gap) - gap, height * len(kinds) - 4 * gap), "white")
    for block, maps in enumerate(kinds.values()):
        for k in range(min(rows * columns, len(maps))):
            place = (k % columns * (size + gap), block * height + k // columns * (size + gap))
            sheet.paste(colour_layout(maps[k]), place)
    with atomic_path(path) as temporary:
        sheet.quantize(16).save(temporary, optimize=True)


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds."""
    started = time.perf_counter()
    return action(), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--table", help="cohort.table, when it lies elsewhere")
    parser.add_argument("--val_patients", type=int, default=24, help="held-out patients")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=256, help="layouts of each kind and seed")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of the draws")
    options = parser.parse_args()
    overrides = [f"{key}.val_patients={options.val_patients}" for key in ("cohort.phantom", "split")]
    config = load_config(options.config, overrides + ([f"cohort.table={options.table}"] if options.table else []))
    run = RunFolder(options.out)
    if not (run.data / "patches.parquet").exists():
        prepare(run.data, config)
    patches, num_classes = run.patches(), len(run.classes())
    annotated = run.label_maps(train_patches(patches, annotated=True))
    held_out = run.label_maps(patches[(patches["split"] == "val") & patches["annotated"]])
    real = RealLayouts(fill_ignored(annotated, num_classes))
    rng = np.random.default_rng(100)
    pool = np.stack([real.draw(rng)[0] for _ in range(POOL)])
    learned, seconds = LearnedLayouts(num_classes, annotated.shape[1]), {}
    _, seconds["learned"] = timed(lambda: learned.fit(pool, steps=options.steps))
    prior, seconds["prior"] = timed(lambda: PriorLayouts.fit(annotated, num_classes))
    drawn: dict[str, list[np.ndarray]] = {"real, warped": [], "prior": [], "learned": []}
    for seed in options.seeds:
        rng = np.random.default_rng([seed, 1])
        drawn["real, warped"].append(np.stack([real.draw(rng)[0] for _ in range(options.draws)]))
        drawn["prior"].append(np.stack([prior.draw(rng) for _ in range(options.draws)]))
        drawn["learned"].append(learned.draw(range(seed * 10**6, seed * 10**6 + options.draws)))
    context = {"held_out": held_out, "annotated": annotated, "pool": pool, "num_classes": num_classes}
    sets = {"held-out patients": [held_out], **drawn}
    rows = [figures(kind, maps, context) for kind, maps in sets.items()]
    write_json(options.out / "layouts.json", {"rows": rows, "fit_seconds": seconds, "steps": options.steps})
    shuffled = annotated[np.random.default_rng(0).permutation(len(annotated))]
    save_picture(
        {"annotated": shuffled, **{kind: maps[0] for kind, maps in drawn.items()}}, options.out / "layouts.png"
    )
    print(f"{len(annotated)} annotated maps, {len(held_out)} held-out; fit: {seconds}")
    print(table(rows))


if __name__ == "__main__":
    main()

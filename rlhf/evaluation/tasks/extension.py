"""Extends centre strips of photographs to the true width, and compares every step with the true rest.

Every contestant extends the centre strip of each photograph to both sides in equal steps, from the same noise. Each
step sees what earlier steps painted, so errors accumulate as in ordinary use. Photographs are painted at their own
size, in the tiles of `tile_painting`.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image
from pydantic import JsonValue

from rlhf.config.run_config import RunConfig
from rlhf.data.prompt_cutting import SkippedPhotograph
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.policy_manifest import locate_policy, read_manifest
from rlhf.errors import UserError
from rlhf.evaluation.tasks.extension_figures import draw_steps, format_table, save_sheet
from rlhf.evaluation.tasks.extension_measures import BandFigures, measure_band, summarise_rows
from rlhf.evaluation.tasks.extension_summary import ExtensionSummary
from rlhf.evaluation.tasks.resplits import AGAIN, Settings, check_settings
from rlhf.progress import progress_bar
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS
from rlhf.reports.records import read_record
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text
from rlhf.storage.images import list_photographs, save_png
from rlhf.storage.tables import write_table
from rlhf.views.extension import LEAST_SIDE_PX, read_photograph
from rlhf.views.growth import Fill, Margins, fill_by_padding, fill_by_policy, grow, plan_bands

LEAST_STEP_PX = 4
"""Smallest width that a step adds at a side."""
SHOWN = 8
"""Number of photographs in `pictures.png`."""
FLOORS = {"edge": "edge", "mirror": "symmetric"}
"""Contestants without a model, as modes of numpy's padding: the outermost pixels repeated, and a mirror image."""
ROWS = pa.schema(
    [("photograph", pa.string()), ("contestant", pa.string()), ("step", pa.int32()), ("side", pa.string())]
    + [(name, pa.int32()) for name in ("band_px", "known_pixels_differ")]
    + [(field.name, pa.float64()) for field in fields(BandFigures)]
)

"""Columns of `extension_study.parquet`."""


@dataclass(frozen=True, kw_only=True)
class BandPlace:
    """Place of a band, and the number of pixels that painting it changed elsewhere."""

    photograph: str
    contestant: str
    step: int
    side: str
    band_px: int
    """Width of the band."""
    known_pixels_differ: int


@dataclass(frozen=True, kw_only=True)
class BandRow(BandFigures, BandPlace):
    """Figures of one band of one contestant: a row of `extension_study.parquet`."""


@dataclass(frozen=True, kw_only=True)
class ExtensionPlan:
    """Photographs to extend, and how far."""

    images: Path
    """Folder of photographs."""
    photographs: int = 24
    """Number of photographs, spread over the folder's names."""
    growth: float = 3.0
    """True width over the strip's."""
    steps_per_side: int = 4
    height_px: int | None = None
    """Photographs are scaled down to this height; None leaves them as they are."""

    def check(self) -> None:
        """Raises UserError if a number is out of range."""
        if not 1 < self.growth <= 100:
            raise UserError(f"extension: --growth {self.growth} is not above 1 and at most 100; 3 keeps a third")
        for option, value, least in (
            ("photographs", self.photographs, LEAST_PHOTOGRAPHS),
            ("steps-per-side", self.steps_per_side, 1),
            ("height-px", LEAST_SIDE_PX if self.height_px is None else self.height_px, LEAST_SIDE_PX),
        ):
            if value < least:
                raise UserError(f"extension: --{option} {value} is too few; give {least} or more")


Contestants = Mapping[str, Callable[[str], Fill]]
"""Contestants by name, the first being the reference; each returns its fill, given a photograph's name."""


def open_contestants(config: RunConfig, run: Path | None) -> Contestants:
    """Opens the base model, `aligned` if there is a run, both with the same noise, and FLOORS."""
    located, adapter = locate_policy(config.model, run)
    policies = {"base": load_policy(config.model if adapter is None else located)}
    if run is not None:
        policies["aligned"] = load_policy(located, adapter)
    steps, seed = config.evaluate.num_inference_steps, config.seed

    def of_policy(policy: Policy) -> Callable[[str], Fill]:
        """Returns the fills of a policy, given a photograph's name."""
        return lambda name: fill_by_policy(policy, num_inference_steps=steps, seed_key=(seed, "extension", name))

    floors = {name: lambda _, mode=mode: fill_by_padding(mode) for name, mode in FLOORS.items()}
    return {name: of_policy(policy) for name, policy in policies.items()} | floors


def describe_contestants(config: RunConfig, run: Path | None) -> dict[str, str | int | None]:
    """Returns models, number of steps and seed. Raises UserError if `run` holds no model."""
    located, adapter = locate_policy(config.model, run)
    aligned = None if run is None else located.path
    if adapter is not None:
        manifest = read_manifest(adapter)
        aligned = f"{adapter.name}, version {manifest['policy_version']}, {manifest['checksum'][:8]}"
    return {
        "base": config.model.path if adapter is None else located.path,
        "aligned": aligned,
        "num_inference_steps": config.evaluate.num_inference_steps,
        "seed": config.seed,
    }


def evaluate_extension(plan: ExtensionPlan, config: RunConfig, run: Path | None, out: Path) -> str:
    """Extends with the base model, the aligned one of `run` and FLOORS; returns the table for the terminal.

    Raises UserError as `study_extension` does.
    """
    plan.check()
    settings = describe_contestants(config, run)
    return format_table(study_extension(plan, lambda: open_contestants(config, run), out, settings))


def study_extension(
    plan: ExtensionPlan, open_all: Callable[[], Contestants], out: Path, settings: Mapping[str, str | int | None]
) -> ExtensionSummary:
    """Extends and judges; every photograph is a folder in `out/photographs`, so that a study can be resumed.

    `open_all` opens the contestants after all checks; `settings` describe them. Writes `extension_study.csv` and
    `.parquet` (a row per photograph, contestant, step and side), `extension_study.png` (curves), `pictures.png`,
    `skipped.json` and, last, `extension_study.json`. Raises UserError if a setting is out of range, too few photographs
    are readable and wide enough, or `out` holds another study.
    """
    plan.check()
    names, skipped = choose_photographs(plan)
    _check_settings(plan, names, settings, out)
    contestants = open_all()
    folders = []
    for number, name in enumerate(progress_bar(names, stage="extension")):
        folders.append(out / "photographs" / f"{number:03d}-{Path(name).stem}")
        if not (folders[-1] / "record.json").is_file():
            measure_photograph(plan, name, contestants, folders[-1])
    rows = [row for folder in folders for row in read_record(list[BandRow], folder / "record.json", AGAIN)]
    summary = _summarise(plan, rows, list(contestants), len(skipped))
    write_table(map(asdict, rows), ROWS, out / "extension_study.parquet")
    atomic_write_text(out / "extension_study.csv", tabulate(rows).to_csv(index=False, lineterminator="\n"))
    atomic_write_json(out / "skipped.json", skipped)
    draw_steps(summary, out / "extension_study.png")
    shown = np.linspace(0, len(folders) - 1, min(SHOWN, len(folders))).astype(int)
    save_sheet([folders[i] for i in shown], ["strip", *contestants, "photograph"], out / "pictures.png")
    atomic_write_json(out / "extension_study.json", dict(settings) | asdict(summary))
    return summary


def tabulate(rows: Sequence[BandRow]) -> pd.DataFrame:
    """Returns the rows as a table with the columns of ROWS; figures that cannot be computed are missing."""
    return pd.DataFrame(map(asdict, rows), columns=ROWS.names)


def _summarise(
    plan: ExtensionPlan, rows: Sequence[BandRow], contestants: Sequence[str], skipped: int
) -> ExtensionSummary:
    return ExtensionSummary(
        **vars(summarise_rows(tabulate(rows))),
        growth=plan.growth,
        steps_per_side=plan.steps_per_side,
        height_px=plan.height_px,
        photographs=len({row.photograph for row in rows}),
        skipped=skipped,
        known_pixels_differ=sum(row.known_pixels_differ for row in rows),
        reference=contestants[0],
    )


def choose_photographs(plan: ExtensionPlan) -> tuple[list[str], list[SkippedPhotograph]]:
    """Returns the photographs that can be judged, and the others with the reason. Raises UserError if too few can."""
    paths = list_photographs(plan.images)
    chosen = np.linspace(0, len(paths) - 1, min(plan.photographs, len(paths))).astype(int)
    names: list[str] = []
    skipped: list[SkippedPhotograph] = []
    for path in (paths[i] for i in chosen):
        name = str(path.relative_to(plan.images))
        try:
            margins_of(read_truth(plan, name), plan, name)
            names.append(name)
        except UserError as error:
            skipped.append({"file": name, "reason": str(error)})
    if len(names) < LEAST_PHOTOGRAPHS:
        why = f"; {skipped[0]['reason']}" if skipped else ""
        raise UserError(
            f"{plan.images}: {len(names)} of {len(chosen)} photographs can be judged{why}: too few for an interval; "
            f"give {LEAST_PHOTOGRAPHS} or more"
        )
    return names, skipped


def read_truth(plan: ExtensionPlan, name: str) -> np.ndarray:
    """Loads a photograph at the height of the plan, uint8 [H, W, 3]. Raises UserError if it is lower."""
    pixels = read_photograph(plan.images / name)
    height, width = pixels.shape[:2]
    if plan.height_px in (None, height):
        return pixels
    if height < plan.height_px:
        raise UserError(f"{plan.images / name}: {height} pixels high, less than --height-px {plan.height_px}")
    size = max(1, round(width * plan.height_px / height)), plan.height_px
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def margins_of(truth: np.ndarray, plan: ExtensionPlan, name: str) -> Margins:
    """Returns the widths hidden beside the strip. Raises UserError if strip or steps are too narrow."""
    width = truth.shape[1]
    strip = round(width / plan.growth)
    left = (width - strip) // 2
    if strip < LEAST_SIDE_PX or left // plan.steps_per_side < LEAST_STEP_PX:
        raise UserError(
            f"{plan.images / name}: {width} pixels wide, too narrow for a strip of {strip} and "
            f"{plan.steps_per_side} steps of {left // plan.steps_per_side} pixels at each side; take wider photographs"
        )
    return Margins(left=left, right=width - strip - left)


def _check_settings(
    plan: ExtensionPlan, names: Sequence[str], settings: Mapping[str, str | int | None], out: Path
) -> None:
    files: dict[str, JsonValue] = {name: f"{zlib.crc32((plan.images / name).read_bytes()):08x}" for name in names}
    known: Settings = {
        **settings,
        "growth": plan.growth,
        "steps_per_side": plan.steps_per_side,
        "height_px": plan.height_px,
        "photographs": files,
    }
    check_settings(out, known)


def measure_photograph(plan: ExtensionPlan, name: str, contestants: Contestants, folder: Path) -> None:
    """Extends one photograph by all contestants; writes the pictures and, last, its rows in `record.json`."""
    truth = read_truth(plan, name)
    margins = margins_of(truth, plan, name)
    height, width = truth.shape[:2]
    strip = truth[:, margins.left : width - margins.right]
    bands = plan_bands((strip.shape[1], height), margins, plan.steps_per_side)
    rows = []
    for contestant, fill_for in contestants.items():
        for painted in grow(strip, margins, bands, fill_for(name)):
            band = painted.band
            row = BandRow(
                photograph=name,
                contestant=contestant,
                step=band.step,
                side=band.side,
                band_px=band.box[2] - band.box[0],
                known_pixels_differ=painted.known_pixels_differ,
                **vars(measure_band(painted.extended, truth, band)),
            )
            rows.append(row)
        save_png(painted.extended, folder / f"{contestant}.png")
    grey = np.full_like(truth, 128)
    grey[:, margins.left : width - margins.right] = strip
    save_png(grey, folder / "strip.png")
    save_png(truth, folder / "photograph.png")
    atomic_write_json(folder / "record.json", list(map(asdict, rows)))

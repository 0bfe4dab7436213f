"""Measures rollouts and training at full size on one GPU: `python -m benchmarks.gpu --out DIR [--only PART ...]`.

It runs stable-diffusion-inpainting and SDXL inpainting with random weights (nothing is downloaded), in one process
without Ray, with the settings of `rlhf align` for 512x512 in bf16. Further variants change one switch each. The
figures of each variant are in DIR/gpu.json as soon as it is measured, so the same command resumes an interrupted part.
After --limit-s seconds a part starts no further variant. A variant that needs too much memory is reported as such. If
the first variant of a part misses the target, DIR/profile-PART.txt and .json hold its operators. Without a GPU a tiny
configuration runs as a test of the code; its figures mean nothing.

Utilisation is the FLOPs of the UNet's passes over the whole time, as a share of the rate of matrix products. FLOPs are
counted once per architecture, without recomputation by checkpointing. The rate is measured on the same device in the
same precision, on a CPU always in float32. By PyTorch's defaults for fp32 on a GPU, convolutions use TF32 and matrix
products do not.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_measures import attempt, describe_device, product_rate
from benchmarks.gpu.measuring import MEASURES, PLAIN, Job, is_available
from benchmarks.gpu.variants import PARTS, SCALES, Part, Scale
from benchmarks.measure import Figures, show
from benchmarks.training_loops import process_group
from rlhf.config.devices import resolve_device
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write_json

LIMIT_S = 400.0
"""Time after which a part starts no further variant, in seconds. A variant takes up to a minute, a part up to 8."""
COLUMNS = ("images_per_s", "transitions_per_s", "utilisation", "utilisation_in_unet", "share_in_unet")


def open_results(file: Path, size: str, device: torch.device) -> Figures:
    """Reads earlier results, or starts new ones. Raises UserError if they are those of another machine or size."""
    found: Figures = {"size": size, "machine": describe_device(device), "products_per_s": {}, "parts": {}}
    if not file.is_file():
        return found
    results = json.loads(file.read_text())
    if results["size"] != size or results["machine"] != json.loads(json.dumps(found["machine"])):
        raise UserError(f"{file}: holds figures of another machine, PyTorch or --size; choose another --out")
    return results


def measure_part(
    name: str, part: Part, scale: Scale, results: Figures, file: Path, device: torch.device, limit_s: float
) -> None:
    """Measures the missing variants of a part, and writes each; after `limit_s` seconds it starts no further one."""

    def rate(precision: str) -> float:
        rates = results["products_per_s"]
        if precision not in rates:
            rates[precision] = product_rate(device, precision, scale.product_side)
            atomic_write_json(file, results)
        return rates[precision]

    done = results["parts"].setdefault(name, {})
    missing = [title for title in part.variants if "failed" in done.get(title, {"failed": ""})]
    variants = {title: part.variants[title] for title in missing if is_available(part.variants[title], device)}
    until = time.monotonic() + limit_s
    for number, (title, variant) in enumerate(progress_bar(variants.items(), stage=name, total=len(variants))):
        if number and time.monotonic() > until:
            print(f"{name}: {len(variants) - number} variants are left after {limit_s:g} s; run the same command again")
            break
        profile = file.parent / f"profile-{name}.txt" if title == part.base else None
        job = Job(part=part, variant=variant, scale=scale, device=device, rate=rate, profile=profile)
        done[title] = attempt(partial(MEASURES[part.use], job), device)
        atomic_write_json(file, results)


def format_figure(figures: Mapping[str, Any], column: str) -> str:
    """Formats median and quartiles, shares in percent; a dash if there is no figure."""
    if column not in figures:
        return "-"
    if column.endswith("_per_s"):
        return show(figures[column], ".3g")
    return show({key: 100 * value for key, value in figures[column].items()}, ".1f") + " %"


def format_table(results: Figures) -> str:
    """Formats a line per variant."""
    rows = [("part", "variant", *COLUMNS, "peak GB")]
    for name, variants in results["parts"].items():
        for title, figures in variants.items():
            peak = format(figures["peak_gb"], ".1f") if "peak_gb" in figures else "-"
            cells = [format_figure(figures, column) for column in COLUMNS]
            reason = next((key.replace("_", " ") for key in ("out_of_memory", "failed") if key in figures), peak)
            is_plain = figures.get("loop") == PLAIN and PLAIN not in title
            rows.append((name, f"{title}, without DeepSpeed: {PLAIN}" if is_plain else title, *cells, reason))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rates = ", ".join(f"{precision} {rate / 1e12:.4g}" for precision, rate in results["products_per_s"].items())
    return "\n".join([*lines, f"matrix products, TFLOP/s: {rates}; machine: {results['machine']}"])


def run(out: Path, names: list[str], size: str | None, device: torch.device, limit_s: float = LIMIT_S) -> None:
    """Measures the missing variants, and prints all. Raises UserError at the end if a variant failed."""
    size = size or ("full" if device.type == "cuda" else "tiny")
    if size == "full" and device.type != "cuda":
        raise UserError("--size full: needs a CUDA GPU, and PyTorch sees none; use --size tiny")
    file = out / "gpu.json"
    results = open_results(file, size, device)
    trains = any(PARTS[name].use == "training" for name in names)
    # All parts share one group, since DeepSpeed keeps the first that it sees.
    with process_group(device) if trains else nullcontext():
        for name in names:
            measure_part(name, PARTS[name], SCALES[size], results, file, device, limit_s)
    for name in names:
        for title, variant in PARTS[name].variants.items():
            if not is_available(variant, device):
                print(f"{name}, {title}: left out: needs a GPU and xformers")
    print(format_table(results))
    failed = {
        f"{name}, {title}": f["failed"]
        for name in names
        for title, f in results["parts"][name].items()
        if "failed" in f
    }
    if failed:
        lines = "\n".join(f"  {title}: {reason}" for title, reason in failed.items())
        raise UserError(f"{file}: these failed, and are tried again by the same command:\n{lines}")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--size", choices=[*SCALES], help="default: full on a GPU, otherwise tiny")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds per part; default: %(default)g")
    given = parser.parse_args(arguments)
    try:
        run(given.out, given.only, given.size, resolve_device(given.device), given.limit_s)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

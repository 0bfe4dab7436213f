"""One self-contained HTML page about a run, and the last lines on the screen."""

import base64
import io
import json
import math
import os
import platform
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import rlhf
from rlhf.errors import UserError
from rlhf.images import decode_image, decode_mask, encode_png
from rlhf.metrics_log import read_metrics
from rlhf.stages import read_stages
from rlhf.statistics import cluster_bootstrap, wins
from rlhf.storage import atomic_write_text
from rlhf.tables import EVALUATION, PROMPTS, read_table

GALLERY_PROMPTS = 20
FEW_PHOTOGRAPHS = 30
"""Below it, intervals over photographs are rough, and the report says so."""
MAX_PICTURE_PX = 256
"""Larger pictures are scaled down for the page."""
REWARD, GOLD, GREY = "#4080e0", "#c98a1b", "#8a8f98"
INK, FAINT = "#010203", "#040506"
"""Stand-ins in charts for colours that depend on the page's theme."""
THEMES = {"light": {INK: "#3c4149", FAINT: "#e3e4e8"}, "dark": {INK: "#b9bec7", FAINT: "#343840"}}
Series = dict[str, tuple[str, list[float]]]
"""Curves of a chart: name to colour and values."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One prompt and initial noise, filled by both models: two rows of `samples.parquet`."""

    base: dict[str, Any]
    aligned: dict[str, Any]

    @property
    def gain(self) -> float:
        """Gold mark of the aligned minus that of the base model."""
        return self.aligned["gold"] - self.base["gold"]


def write_report(run: Path) -> Path:
    """Write `run/report.html`, a page that loads nothing from elsewhere; returns its path.

    Raises UserError naming the file, and the stage to run, where one is missing or unreadable.
    """
    summary = _read_json(run / "evaluation" / "summary.json", "evaluate")
    reward = _read_json(run / "reward" / "report.json", "reward")
    pairs = pair_samples(read_table(run / "evaluation" / "samples.parquet", EVALUATION))
    environment = Environment(loader=PackageLoader("rlhf"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"show": lambda v, spec: show(v, spec).replace("-", "−"), "duration": show_duration}
    page = environment.get_template("report.html").render(
        name=run.resolve().name,
        written=date.today(),
        summary=summary,
        reward=reward,
        few=FEW_PHOTOGRAPHS,
        pair_count=len(pairs),
        gallery=_gallery(run, pairs),
        charts=_training_charts(read_metrics(run / "align"), summary["curve"]) | _judged_charts(summary, reward, pairs),
        grids={path.stem: _data_uri(path.read_bytes(), "png") for path in sorted(run.glob("align/grids/*.png"))[-4:]},
        stages=read_stages(run),
        configurations={path.parent.name: path.read_text() for path in sorted(run.glob("*/config.yaml"))},
        machine=describe_machine(),
        skipped=[s for path in sorted(run.glob("*prompts/skipped.json")) for s in _read_json(path, "prompts")],
    )
    # A file name may hold bytes that are no UTF-8; they arrive as surrogates, which cannot be written.
    atomic_write_text(run / "report.html", page.encode("utf-8", "replace").decode())
    return run / "report.html"


def summarise(run: Path, report: Path, duration_s: float) -> list[str]:
    """The last lines on the screen: what was found, how far to trust it, and how to go on."""
    summary = _read_json(run / "evaluation" / "summary.json", "evaluate")
    reward = _read_json(run / "reward" / "report.json", "reward")

    def figure(estimate: dict[str, float], spec: str) -> str:
        return "{} [{}, {}]".format(*(show(estimate[key], spec) for key in ("value", "low", "high")))

    rests_on = f"{summary['prompts']} prompts of {summary['photographs']} held-out photographs"
    if summary["photographs"] < FEW_PHOTOGRAPHS:
        rests_on += f": few (below {FEW_PHOTOGRAPHS}), so the intervals are rough"
    lines = {
        "WinRate over base": figure(summary["win_rate"], ".1%") + ", 50% is no difference",
        "gold gain": figure(summary["gold_gain"], "+.3f") + " on a scale of 0 to 1",
        "sharpness ratio": figure(summary["sharpness_ratio"], ".2f") + " aligned / base",
        "diversity ratio": figure(summary["diversity_ratio"], ".2f") + " aligned / base",
        "coverage measured": figure(reward["coverage_measured"], ".1%") + f", stated {reward['coverage_stated']:.0%}",
        "effective rank": f"{reward['effective_rank']:.1f} of {reward['feature_dim']} features",
        "rests on": rests_on,
        "judged by": f"{'simulated annotators' if reward['is_simulated'] else 'people'}, then a simulated gold judge",
        "total time": show_duration(duration_s),
        "report": str(report),
        "go on with": f"rlhf serve {shlex.quote(str(run))}",
        "or": "rlhf demo --images YOUR_PHOTOS --eval-images OTHER_PHOTOS --out runs/mine",
    }
    return ["", *(f"{label:<18} {text}" for label, text in lines.items())]


def show(value: float | None, spec: str) -> str:
    """A figure as text; "n/a" where it could not be measured."""
    return "n/a" if value is None or not math.isfinite(value) else format(value, spec)


def show_duration(duration_s: float) -> str:
    """Seconds as people say them."""
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"


def _read_json(path: Path, stage: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is not readable ({error})"
        raise UserError(f"{path} {reason}; run `rlhf {stage}`, or `rlhf demo`, which runs what is left") from error


def pair_samples(rows: list[dict[str, Any]]) -> list[Pair]:
    """Samples that both models drew from the same prompt and noise, largest gold gain first; UserError if none."""
    sides: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        sides.setdefault((row["prompt_id"], row["sample_index"]), {})[row["policy"]] = row
    pairs = [Pair(base=s["base"], aligned=s["aligned"]) for s in sides.values() if {"base", "aligned"} <= s.keys()]
    if not pairs:
        raise UserError("evaluation: samples of base and aligned model do not pair up; run `rlhf evaluate` again")
    return sorted(pairs, key=lambda pair: -pair.gain)


def choose_spread(pairs: list[Pair], count: int) -> list[int]:
    """Places of up to `count` of `pairs` (sorted by gain): the best, the worst, one per equal band between.

    Within a band, the photographs and hole families shown least come first; no prompt comes twice.
    """
    bands = np.array_split(np.arange(len(pairs)), min(count, len(pairs)))
    shown: Counter[tuple[str, str]] = Counter()
    chosen = set()
    for band in [bands[0][:1], bands[-1][-1:], *bands[1:-1]]:
        rows = {int(place): pairs[place].base for place in band}
        fresh = [place for place, row in rows.items() if not shown["prompt_id", row["prompt_id"]]]
        if fresh:
            place = min(fresh, key=lambda i: sum(shown[k, rows[i][k]] for k in ("photograph", "hole")))
            chosen.add(place)
            shown.update((key, rows[place][key]) for key in ("prompt_id", "photograph", "hole"))
    return sorted(chosen)


def _gallery(run: Path, pairs: list[Pair]) -> Iterator[dict[str, Any]]:
    """What the template shows of each chosen pair; the hole is transparent in the masked photograph."""
    prompts = {row["prompt_id"]: row for row in read_table(run / "held_out_prompts", PROMPTS)}
    for place in choose_spread(pairs, GALLERY_PROMPTS):
        pair = pairs[place]
        prompt = prompts.get(pair.base["prompt_id"])
        if prompt is None:
            raise UserError(f"{run}: held-out prompt {pair.base['prompt_id']} is gone; run `rlhf evaluate` again")
        original, base, aligned = (decode_image(row["image"]["bytes"]) for row in (prompt, pair.base, pair.aligned))
        mask = decode_mask(prompt["mask"]["bytes"], size=original.size, name=f"mask of {prompt['prompt_id']}")
        masked = original.copy()
        masked.putalpha(Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)))
        pictures = {"masked": masked, "base": base, "aligned": aligned, "original": original}
        uris = {title: picture_uri(picture) for title, picture in pictures.items()}
        yield {"pair": pair, "rank": place + 1, "is_small": original.width <= MAX_PICTURE_PX // 2, "pictures": uris}


def picture_uri(picture: Image.Image) -> str:
    """A picture as a PNG data URI, scaled down to `MAX_PICTURE_PX`."""
    picture.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX), Image.Resampling.LANCZOS)
    return _data_uri(encode_png(picture), "png")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _chart(draw: Callable[[Axes], Any], xlabel: str, ylabel: str, height: float = 2.6) -> dict[str, str]:
    """An SVG as data URIs by theme; `height` in inches. Text stays text, in the page's own font."""
    with rc_context({"svg.fonttype": "none", "text.color": INK, "axes.labelcolor": INK, "legend.frameon": False}):
        figure = Figure(figsize=(4.4, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
        axes.tick_params(length=0, colors=INK)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.spines[:].set_visible(False)
        if "(share)" in xlabel:
            axes.set_xlim(-0.03, 1.03)
        if "(share)" in ylabel:
            axes.set_ylim(-0.03, 1.03)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue().replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Helvetica, Arial")
    themed = {theme: svg.replace(INK, c[INK]).replace(FAINT, c[FAINT]) for theme, c in THEMES.items()}
    return {theme: _data_uri(text.encode(), "svg+xml") for theme, text in themed.items()}


def _lines(
    x: list[float], series: Series, xlabel: str, ylabel: str, *, band: Any = None, reference: float | None = None
) -> dict[str, str]:
    """Curves by name (colour, values), intervals [N, 2] as a band, a dashed line at `reference`."""

    def draw(axes: Axes) -> None:
        for name, (colour, values) in series.items():
            axes.plot(x, values, ".-", color=colour, label=name, linewidth=1.6, markersize=8 if len(x) < 10 else 4)
        if band is not None:
            axes.fill_between(x, *np.transpose(band), color=GREY, alpha=0.25, linewidth=0)
        if reference is not None:
            axes.axhline(reference, color=GREY, linestyle="--", linewidth=1)
        if len(series) > 1:
            axes.legend(fontsize=9)

    return _chart(draw, xlabel, ylabel)


def _forest(estimates: dict[str, dict[str, float]], label: str, reference: float) -> dict[str, str]:
    """One row per estimate, with its interval, and a dashed line at `reference`."""

    def draw(axes: Axes) -> None:
        axes.axvline(reference, color=GREY, linestyle="--", linewidth=1)
        for row, e in enumerate(estimates.values()):
            axes.plot([e["low"], e["value"], e["high"]], [row] * 3, "o-", color=GOLD, markevery=[1], linewidth=2)
        names = [f"{name.replace('_', ' ')}  {show(e['value'], '.2f')}" for name, e in estimates.items()]
        axes.set_yticks(range(len(estimates)), names)
        axes.set_ylim(len(estimates) - 0.5, -0.5)

    return _chart(draw, label, "", 0.8 + 0.34 * len(estimates))


def _training_charts(metrics: list[dict[str, Any]], curve: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Training by update, held-out prompts by policy version; titles and captions are the template's."""
    updates, versions = [line["update"] for line in metrics], [p["policy_version"] for p in curve]

    def track(name: str, key: str, colour: str = REWARD) -> Series:
        return {name: (colour, [line.get(key, math.nan) for line in metrics])}

    rates = {"": (GOLD, [p["win_rate"]["value"] for p in curve])}
    band = [(p["win_rate"]["low"], p["win_rate"]["high"]) for p in curve]
    trust = track("sd (mean is 1)", "trust_weight_std") | track("effective share", "effective_sample_share", GREY)
    by_version, sd = "policy version (updates; 0 is the base model)", "reward (sd of scores)"
    return {
        "reward": _lines(updates, track("", "reward"), "update", sd),
        "kl": _lines(updates, track("", "kl_to_base"), "update", "KL (nats per latent element)"),
        "trust": _lines(updates, trust, "update", "trust weights (no unit)"),
        "held_out_reward": _lines(versions, {"": (REWARD, [p["reward"] for p in curve])}, by_version, sd),
        "held_out_gold": _lines(versions, {"": (GOLD, [p["gold"] for p in curve])}, by_version, "gold mark (0 to 1)"),
        "held_out_wins": _lines(versions, rates, by_version, "WinRate (share)", band=band, reference=0.5),
    }


def _judged_charts(summary: dict[str, Any], reward: dict[str, Any], pairs: list[Pair]) -> dict[str, dict[str, str]]:
    """WinRate by hole family, ratios, and the bound by fifths of the uncertainty."""
    rates = {"all holes": summary["win_rate"]}
    for hole in sorted({pair.base["hole"] for pair in pairs}):
        own = [pair for pair in pairs if pair.base["hole"] == hole]
        won = wins(np.array([pair.gain for pair in own]), np.zeros(len(own)))
        rates[hole] = asdict(cluster_bootstrap(won, [pair.base["photograph"] for pair in own]))
    ratios = {name: summary[f"{name}_ratio"] for name in ("sharpness", "diversity")}
    fifths = {key: [row[key] for row in reward["reliability"]] for key in ("uncertainty", "error", "bound", "coverage")}
    errors = {"bound": (GREY, fifths["bound"]), "mean |error|": (REWARD, fifths["error"])}
    x, label, stated = fifths["uncertainty"], "mean uncertainty of the fifth (no unit)", reward["coverage_stated"]
    return {
        "win_rates": _forest(rates, "WinRate over base (share)", 0.5),
        "ratios": _forest(ratios, "aligned / base (ratio)", 1.0),
        "errors": _lines(x, errors, label, "score (sd)"),
        "coverage": _lines(x, {"": (REWARD, fifths["coverage"])}, label, "covered (share)", reference=stated),
    }


def describe_machine() -> dict[str, str]:
    """Processor, accelerators and the versions of what matters."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return {
        "processor": models[0] if models else platform.machine(),
        "CPUs": str(os.cpu_count()),
        "GPUs": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
        "prefpaint-ray": rlhf.__version__,
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "ray", "diffusers", "deepspeed", "transformers", "peft")}

import base64
import io
import json
import re
import shutil
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlhf.data.holes import FAMILIES
from rlhf.errors import UserError
from rlhf.rewards.learned.reward_model import Calibration
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.images import encode_png
from rlhf.storage.tables import EVALUATION, PROMPTS, image_cell, write_table
from rlhf.workflows.run_report import (
    FEW_PHOTOGRAPHS,
    GALLERY_PROMPTS,
    summarise,
    write_report,
)

MALICIOUS = '<script>alert("x")</script>'
STAGES = ("prompts", "held-out prompts", "candidates", "annotations", "reward", "align", "evaluate")
FOLDERS = ("prompts", "held_out_prompts", "candidates", "annotations", "reward", "align", "evaluation")


def estimate(value, width):
    return {"value": value, "low": value - width, "high": value + width, "clusters": 6}


def picture(rng, grid=8, size=64):
    """Smooth random colours."""
    pixels = rng.integers(0, 255, size=(grid, grid, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def make_run(run, photographs=6, crops=5):
    """A run folder with made-up figures and pictures; one photograph's name is an attack."""
    rng = np.random.default_rng(0)
    names = [f"{MALICIOUS}{i}.png" if i == 0 else f"photograph {i}.png" for i in range(photographs)]
    prompts, samples = [], []
    for name in names:
        for index in range(crops):
            original, mask = picture(rng), np.zeros((64, 64), dtype=np.uint8)
            mask[10 : 30 + 4 * index, 12 : 50 - 3 * index] = 255
            prompt = {"prompt_id": f"{name}-{index}", "hole": list(FAMILIES)[index % 5], "photograph": name}
            cells = {"image": image_cell(encode_png(original), "i"), "mask": None}
            cells["mask"] = image_cell(encode_png(Image.fromarray(mask)), "m")
            prompts.append(prompt | cells | {"source": "made up", "split": "test", "caption": ""})
            for sample in range(2):
                for policy, mean in (("base", 0.60), ("aligned", 0.63)):
                    filled = Image.composite(picture(rng), original, Image.fromarray(mask))
                    marks = {
                        key: float(rng.normal(mean, 0.06)) for key in ("reward", "uncertainty", "gold", "sharpness")
                    }
                    cell = image_cell(encode_png(filled), "f")
                    samples.append(prompt | marks | {"sample_index": sample, "policy": policy, "image": cell})
    write_table(prompts, PROMPTS, run / "held_out_prompts" / "prompts.parquet")
    write_table(samples, EVALUATION, run / "evaluation" / "samples.parquet")
    write_records(run, len(prompts), photographs)
    return run


def write_records(run, prompts, photographs):
    curve = [
        {"policy_version": v, "gold": 0.6 + v / 1000, "reward": v / 40, "win_rate": estimate(0.5 + v / 200, v / 500)}
        for v in (0, 10, 20, 30)
    ]
    summary = {
        "win_rate": estimate(0.65, 0.08),
        "win_rate_reward": estimate(0.81, 0.05),
        "gold_base": 0.601,
        "gold_aligned": 0.632,
        "gold_gain": estimate(0.031, 0.012),
        "reward_gain": estimate(0.74, 0.1),
        "sharpness_ratio": estimate(0.97, 0.04),
        "diversity_ratio": {"value": float("nan"), "low": float("nan"), "high": float("nan"), "clusters": 6},
        "known_pixels_differ": 0,
        "win_rate_by_hole": {},
        "curve": curve,
        "prompts": prompts,
        "photographs": photographs,
        "samples_per_prompt": 2,
        "num_inference_steps": 10,
    }
    atomic_write_json(run / "evaluation" / "summary.json", summary)
    calibration = Calibration(
        coverage=0.9,
        conformal=9.4,
        theorem=13.2,
        noise=0.61,
        delta=0.05,
        ridge=1.0,
        parameter_norm=3.0,
        median_uncertainty=0.17,
        trust_k=0.05,
        trust_b=0.7,
    )
    reward = {
        "calibration": asdict(calibration),
        "coverage_stated": 0.9,
        "coverage_measured": estimate(0.884, 0.04),
        "mean_width": 3.1,
        "mean_theorem_width": 4.4,
        "rank_correlation_error_uncertainty": estimate(0.18, 0.1),
        "rank_correlation_reward_score": estimate(0.52, 0.1),
        "pair_accuracy": None,
        "reliability": [
            {"uncertainty": u, "error": 0.5 + u, "bound": 9.4 * u, "coverage": 0.86 + u / 5}
            for u in (0.12, 0.15, 0.17, 0.2, 0.26)
        ],
        "error": estimate(0.7, 0.1),
        "effective_rank": 17.3,
        "spectrum": [0.5, 0.3, 0.2],
        "is_noise_measured": True,
        "feature_dim": 49,
        "is_simulated": True,
        "annotations_per_part": [400, 160, 120, 120],
        "photographs_per_part": [100, 40, 30, 30],
        "parts": [["a"], ["b"], ["c"], ["d"]],
    }
    atomic_write_json(run / "reward" / "report.json", reward)
    durations = (4.2, 1.3, 61.0, 2.1, 93.4, 241.7, 48.8)
    commands = {
        s: {"command": f"rlhf {s.split()[-1]} --out '{s}'", "duration_s": d}
        for s, d in zip(STAGES, durations, strict=True)
    }
    atomic_write_json(run / "stages.json", commands)
    for folder in FOLDERS:
        (run / folder).mkdir(exist_ok=True)
        (run / folder / "config.yaml").write_text("seed: 0\nalign:\n  algorithm: grpo\n")
    atomic_write_json(
        run / "held_out_prompts" / "skipped.json", [{"file": f"{MALICIOUS}.jpg", "reason": "not readable"}]
    )
    lines = [
        {
            "update": u,
            "reward": 0.7 * (1 - np.exp(-u / 12)) + 0.05 * np.sin(u),
            "kl_to_base": 0.0004 * u,
            "trust_weight_std": 0.21,
            "effective_sample_share": 0.95,
        }
        for u in range(1, 31)
    ]
    (run / "align" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "align" / "grids").mkdir()
    (run / "align" / "grids" / "update-000010.png").write_bytes(encode_png(picture(np.random.default_rng(1))))


class Page(HTMLParser):
    """Tags and the values of attributes that make a browser load something."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [value for key, value in attributes if key in ("src", "srcset", "href", "data", "poster")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("report") / "run one")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def text(run):
    return (run / "report.html").read_text(encoding="utf-8")


def test_report_loads_nothing_from_elsewhere(text):
    page = Page(text)
    assert all(value.startswith("data:") for value in page.loaded)
    assert "script" not in page.tags
    assert not re.search(r"@import|url\(", text)


def test_every_picture_and_chart_decodes(text):
    kinds = {"png": 0, "svg+xml": 0}
    for value in set(Page(text).loaded) - {"data:,"}:
        kind, data = re.fullmatch(r"data:image/(png|svg\+xml);base64,(.+)", value).groups()
        content = base64.b64decode(data, validate=True)
        if kind == "png":
            Image.open(io.BytesIO(content)).load()
        else:
            assert content.rstrip().endswith(b"</svg>")
            assert b"#010203" not in content
        kinds[kind] += 1
    assert kinds == {"png": 4 * GALLERY_PROMPTS + 1, "svg+xml": 2 * 10}


def test_the_page_opens_with_sliders_between_base_and_aligned(text):
    top = text[: text.index("Annotators and gold judge are simulated.")]
    assert top.count('<input type="range"') == 3
    assert all(word in top for word in ("Most improved", "Middle", "Least improved", "of 255 in the hole"))


def test_win_rates_stand_beside_the_change_in_the_hole_and_the_marks_of_classical_fills(tmp_path):
    run = make_run(tmp_path / "run")
    path = run / "evaluation" / "summary.json"
    more = {"hole_change": estimate(3.83, 0.2), "win_rate_independent": estimate(0.578, 0.03)}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    figures = {"gold": estimate(0.2371, 0.01), "judge_held_out_network": estimate(0.2926, 0.01)}
    own = {"spec": "biharmonic", "samples_per_prompt": 1, "follows_noise": False, "known_pixels_differ": 0}
    own |= {"figures": {"all": figures}, "monitors": {}}
    report = {"schema_version": 1, "base": "base", "prompts": 30, "photographs": 6, "families": {}}
    report |= {"contestants": {"biharmonic": own}, "measures": {}}
    report |= {name: [] for name in ("comparisons", "alarms", "notes", "left_out")}
    atomic_write_json(run / "evaluation" / "comparison.json", report)
    text = write_report(run).read_text()
    assert "57.8% of the comparisons with\nindependent noise" in text
    assert "differ by 3.8 of 255 levels" in text
    assert re.search(r"biharmonic</th><td><b>0\.237</b>.*<td><b>0\.293</b>", text)


def test_all_commands_timings_and_configurations_are_there(text):
    for stage in STAGES:
        assert f"rlhf {stage.split()[-1]} --out &#39;{stage}&#39;" in text
    assert "4 min 02 s" in text
    assert "algorithm: grpo" in text
    for folder in FOLDERS:
        assert folder.replace("_", " ") in text


def test_names_are_escaped(text):
    assert MALICIOUS not in text
    assert "&lt;script&gt;" in text


def test_report_says_that_judges_are_simulated_and_photographs_few(text):
    assert "Annotators and gold judge are simulated." in text
    assert "6 photographs are few." in text
    assert "they are rough" in text


@pytest.mark.parametrize("is_old", [True, False])
def test_of_fewer_than_six_photographs_the_page_and_the_screen_say_that_there_is_no_interval(tmp_path, is_old):
    run = make_run(tmp_path / "run", photographs=5)
    path = run / "evaluation" / "summary.json"
    # Files of earlier versions hold intervals of fewer than six, which are not shown.
    none = {"low": 0.51, "high": 0.52, "clusters": 5} if is_old else {"low": None, "high": None, "clusters": 5}
    summary = json.loads(path.read_text())
    for key, value in summary.items():
        summary[key] = value | none if isinstance(value, dict) and "low" in value else value
    for point in summary["curve"]:
        point["win_rate"] |= none
    path.write_text(json.dumps(summary))
    text = write_report(run).read_text()
    assert "of fewer than 6 there are none" in text
    assert "so few photographs cannot show" in text
    assert "None" not in text
    assert "51.0%" not in text
    screen = "\n".join(summarise(run, run / "report.html", 1.0))
    assert "65.0% (no interval)" in screen
    assert "too few (below 6) for intervals" in screen


def test_best_and_worst_pair_are_in_the_gallery(text):
    assert "Best of 60" in text
    assert "Worst of 60" in text


def test_what_could_not_be_measured_is_no_number(text):
    assert "n/a" in text
    assert not re.search(r"\bnan\b", re.sub(r'"data:[^"]*"', "", text))


def test_missing_summary_names_file_and_stage(tmp_path):
    with pytest.raises(UserError, match=r"evaluation.summary\.json is missing; run `rlhf evaluate`"):
        write_report(tmp_path)


def test_damaged_summary_is_a_user_error(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text('{"win_rate": ')
    with pytest.raises(UserError, match="not readable"):
        summarise(tmp_path, Path("report.html"), 1.0)


def test_a_report_of_the_reward_that_lacks_a_figure_is_refused_by_name(run, tmp_path):
    for name in ("evaluation", "held_out_prompts", "reward"):
        shutil.copytree(run / name, tmp_path / name)
    file = tmp_path / "reward" / "report.json"
    file.write_text(file.read_text().replace('"coverage_measured"', '"coverage_mesured"'))
    with pytest.raises(UserError, match=r"report\.json: damaged \(coverage_measured: .*run `rlhf reward` again"):
        write_report(tmp_path)


def test_last_lines_say_what_was_found_and_how_to_go_on(run):
    lines = summarise(run, run / "report.html", 463.0)
    screen = "\n".join(lines)
    assert "65.0% [57.0%, 73.0%]" in screen
    assert "88.4% [84.4%, 92.4%], stated 90%" in screen
    assert "17.3 of 49" in screen
    assert f"few (below {FEW_PHOTOGRAPHS})" in screen
    assert "simulated annotators" in screen
    assert "7 min 43 s" in screen
    assert f"rlhf serve '{run}'" in screen
    assert "rlhf demo --images YOUR_PHOTOS --eval-images OTHER_PHOTOS --out runs/mine" in screen

"""Tests of `rlhf evaluate` with several contestants: who takes part, what is left out, what is written."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_comparison import evaluate, make_prompts, prepare, write_images
from small_parts import prompts_of_three_sizes, small_prompts, write_prompts

from rlhf.errors import UserError
from rlhf.evaluation.comparison_page import MAX_PROMPTS, choose_prompts, compare_marks
from rlhf.evaluation.comparison_tables import show_p
from rlhf.evaluation.contestants import parse_contestants
from rlhf.evaluation.judging import Judged
from rlhf.evaluation.tasks import extension, views
from rlhf.reports.significance import SIGNIFICANT, TEST_NAME
from rlhf.storage.tables import parquet_file

JUDGES = "judges=[{kind: seam}, {kind: clip_score, name: clip, text: a photograph, path: nowhere}]"


@pytest.fixture(scope="module", autouse=True)
def without_network() -> Iterator[None]:
    """The held-out network, which takes 40 ms a picture, has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf.data.networks.package_weights.find_spec", lambda name: None)
        yield


@pytest.fixture(scope="module")
def parts(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepare(tmp_path_factory.mktemp("parts"), small_pipeline)


@pytest.fixture(scope="module")
def comparison(parts: dict[str, Path], small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of a run with a fill and images, by a further judge; one judge has no weights."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    contestants = ["--contestant", "smooth=biharmonic", "--contestant", f"mirror=images:{parts['images']}"]
    samples = ["--set", "evaluate.samples_per_prompt=4", "--set", JUDGES]
    done = evaluate(parts, small_pipeline, out, "--run", str(parts["run"]), *contestants, *samples)
    assert done.exit_code == 0, done.output
    (out / "stdout.txt").write_text(done.output)
    return out


def read(folder: Path) -> dict:
    return json.loads((folder / "comparison.json").read_text())


def test_everyone_is_measured_by_family_with_the_training_reward_apart(comparison: Path) -> None:
    found = read(comparison)
    assert list(found["contestants"]) == ["base", "aligned", "smooth", "mirror"]
    assert (found["prompts"], found["photographs"]) == (16, 8)
    aligned = found["contestants"]["aligned"]["figures"]
    assert aligned.keys() == {"all", "boundary_band", "boundary_square", "box", "brush", "warp"}
    assert {m["group"] for n, m in found["measures"].items() if n.startswith("reward")} == {"training reward"}
    assert found["measures"]["gold"]["group"] == found["measures"]["judge_seam"]["group"] == "held-out judges"
    base = found["contestants"]["base"]["figures"]["all"]
    assert [base[f"reward_win_{size}"]["value"] for size in (1, 3)] == pytest.approx([0.5, 0.75])
    assert base["reward_win_10"] is None
    assert aligned["all"]["gold"]["low"] <= aligned["all"]["gold"]["value"] <= aligned["all"]["gold"]["high"]
    assert aligned["box"]["gold"]["low"] is None, "of too few photographs for an interval"
    smooth = found["contestants"]["smooth"]
    assert (smooth["samples_per_prompt"], smooth["figures"]["all"]["variance"]) == (1, None)
    assert found["contestants"]["mirror"]["samples_per_prompt"] == 2
    assert {record["known_pixels_differ"] for record in found["contestants"].values()} == {0}


def test_what_could_not_be_measured_is_said_and_is_no_zero(comparison: Path) -> None:
    found = read(comparison)
    left_out = {gone["measure"]: gone["reason"] for gone in found["left_out"]}
    assert "takes 11 samples" in left_out["WinRate(10)"]
    assert "nowhere" in left_out["clip"]
    assert "`kind: image_reward`" in left_out["ImageReward"]
    assert "judge_clip" not in found["measures"]
    assert any("too few for an interval" in note for note in found["notes"])
    shown = (comparison / "stdout.txt").read_text()
    assert "left out: clip: " in shown
    assert "known pixels changed: base 0, aligned 0, smooth 0, mirror 0" in shown


def test_pairs_are_tested_and_corrected_as_one_family(comparison: Path) -> None:
    pairs = read(comparison)["comparisons"]
    judged = {"reward", "gold", "judge_seam"}
    original = {"psnr_db", "ssim", "psnr_seam_db", "ssim_seam", "likeness", "seam"}
    tested = {*judged, *(f"{judge}_win_1" for judge in judged), *original}
    assert {pair["measure"] for pair in pairs} == tested
    assert len(pairs) == 6 * len(tested), "of four contestants there are six pairs"
    assert all(pair["p"] <= pair["p_holm"] <= 1 for pair in pairs)
    assert min(pair["p"] for pair in pairs) >= 2 / 2**8
    (ssim,) = [p for p in pairs if (p["measure"], p["first"], p["second"]) == ("ssim", "aligned", "smooth")]
    figures = {name: read(comparison)["contestants"][name]["figures"]["all"]["ssim"] for name in ("aligned", "smooth")}
    assert ssim["difference"]["value"] == pytest.approx(figures["smooth"]["value"] - figures["aligned"]["value"])


def test_a_win_rate_is_tested_against_that_of_the_base_which_is_half(comparison: Path) -> None:
    found = read(comparison)
    key = ("gold_win_1", "base", "smooth")
    (pair,) = [p for p in found["comparisons"] if (p["measure"], p["first"], p["second"]) == key]
    rates = {name: found["contestants"][name]["figures"]["all"]["gold_win_1"]["value"] for name in ("base", "smooth")}
    assert rates["base"] == pytest.approx(0.5)
    assert pair["difference"]["value"] == pytest.approx(rates["smooth"] - 0.5)


def test_the_terminal_shows_pairs_with_p_after_holm(comparison: Path) -> None:
    found, shown = read(comparison), (comparison / "stdout.txt").read_text()
    key = ("ssim", "aligned", "smooth")
    (pair,) = [p for p in found["comparisons"] if (p["measure"], p["first"], p["second"]) == key]
    cell = f"{pair['difference']['value']:+.3f} ({show_p(pair['p_holm'])})"
    block = shown.split("the original, pairs")[1].split("\n\n")[0]
    (line,) = [line for line in block.splitlines() if "smooth less aligned" in line]
    assert cell in line
    assert shown.count("smooth less aligned") == 3, "one block for the reward, the judges, the original"
    assert [show_p(p) for p in (1.0, 0.0471, 5e-5)] == ["1.000", "0.047", "<0.001"]


def test_terminal_and_page_name_the_test_and_its_level(comparison: Path) -> None:
    page = (comparison / "comparison.html").read_text()
    assert f"pairs (p by {TEST_NAME}, after Holm)" in (comparison / "stdout.txt").read_text()
    assert f"p comes from {TEST_NAME}" in page
    assert f"corrected values below {SIGNIFICANT} are bold" in page


def test_tables_hold_what_the_record_holds(comparison: Path) -> None:
    found = read(comparison)
    rows = list(csv.DictReader(io.StringIO((comparison / "contestants.csv").read_text())))
    (row,) = [r for r in rows if (r["contestant"], r["family"], r["measure"]) == ("aligned", "all", "gold")]
    assert float(row["value"]) == found["contestants"]["aligned"]["figures"]["all"]["gold"]["value"]
    assert row["judged_by"] == "held-out judges"
    (single,) = [r for r in rows if (r["contestant"], r["family"], r["measure"]) == ("aligned", "box", "gold")]
    assert (single["low"], single["high"]) == ("", "")
    pairs = list(csv.DictReader(io.StringIO((comparison / "comparisons.csv").read_text())))
    assert [float(pair["p_holm"]) for pair in pairs] == [pair["p_holm"] for pair in found["comparisons"]]
    with parquet_file(comparison / "contestants" / "mirror.parquet") as file:
        assert (file.metadata.num_rows, "judge_seam" in file.schema_arrow.names) == (32, True)


def test_the_run_has_its_curve_with_figures_that_raise_alarms(comparison: Path) -> None:
    summary = json.loads((comparison / "summary.json").read_text())
    assert [point["policy_version"] for point in summary["curve"]] == [0, 10, 20]
    assert summary["curve"][2]["monitors"]["distance"]["value"] > 0
    assert summary["curve"][2]["monitors"]["sharpness"].keys() >= {"value", "low", "high", "range", "is_outside"}


def test_a_comparison_goes_on_and_what_changed_is_judged_anew(
    comparison: Path, parts: dict[str, Path], small_pipeline: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(comparison, tmp_path / "out")
    images = shutil.copytree(parts["images"], tmp_path / "images")
    Image.new("RGB", (32, 32), "red").save(images / "p3_0.png")
    before = {path.name: path.stat().st_mtime_ns for path in (out / "contestants").glob("*.parquet")}
    contestants = ["--contestant", "smooth=biharmonic", "--contestant", f"mirror=images:{images}"]
    samples = ["--set", "evaluate.samples_per_prompt=4", "--set", JUDGES]
    done = evaluate(parts, small_pipeline, out, "--run", str(parts["run"]), *contestants, *samples)
    assert done.exit_code == 0, done.output
    after = {path.name: path.stat().st_mtime_ns for path in (out / "contestants").glob("*.parquet")}
    assert {name for name in after if after[name] != before[name]} == {"mirror.parquet"}
    old, new = read(comparison), read(out)
    for name in ("base", "aligned", "smooth"):
        assert new["contestants"][name]["figures"] == old["contestants"][name]["figures"]
        assert new["contestants"][name]["monitors"] == old["contestants"][name]["monitors"]
    assert new["contestants"]["mirror"]["known_pixels_differ"] > 0
    assert "mirror changed" in done.output


def test_missing_images_cut_everyone_down_to_the_common_prompts(
    parts: dict[str, Path], small_pipeline: Path, tmp_path: Path
) -> None:
    images = write_images(make_prompts()[:12], tmp_path / "images")
    option = ["--contestant", f"mirror=images:{images}", "--contestant", f"moved={parts['run'] / 'policy-000010'}"]
    done = evaluate(parts, small_pipeline, tmp_path / "out", *option)
    assert done.exit_code == 0, done.output
    assert "mirror lacks 4 of 16 prompts (p12, p13, p14 ...); all contestants are compared on the 12" in done.output
    found = read(tmp_path / "out")
    assert found["prompts"] == 12
    assert list(found["contestants"]) == ["base", "mirror", "moved"]
    for path in sorted(images.glob("p*"))[:12]:
        path.unlink()
    done = evaluate(parts, small_pipeline, tmp_path / "out", *option)
    assert done.exit_code != 0
    assert "too few common prompts" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "parts_of_message"),
    [
        ([], ["nobody to compare", "--contestant NAME=SPEC"]),
        (["--contestant", "telea"], ["'telea'", "NAME=SPEC"]),
        (["--contestant", "a=telea", "--contestant", "a=biharmonic"], ["given twice"]),
        (["--contestant", "../a=biharmonic"], ["NAME=SPEC"]),
        (["--contestant", "x=images:/nowhere"], ["/nowhere", "no such folder"]),
        (["--contestant", "x=/nowhere"], ["/nowhere", "no such folder"]),
        (["--contestant", "x=biharmonic", "--base", "y"], ["--base y", "there are x"]),
        (["--contestant", "x=biharmonic", "--extension", "/nowhere"], ["/nowhere", "no such folder"]),
        (["--contestant", "x=biharmonic", "--views"], ["--views", "--run RUN"]),
        (["--contestant", "x=biharmonic", "--workers", "2"], ["--workers", "--run", "contestants are painted here"]),
    ],
)
def test_contestants_that_make_no_sense_are_refused(
    parts: dict[str, Path], small_pipeline: Path, tmp_path: Path, options: list[str], parts_of_message: list[str]
) -> None:
    done = evaluate(parts, small_pipeline, tmp_path / "out", *options)
    assert isinstance(done.exception, UserError)
    assert all(part in str(done.exception) for part in parts_of_message), done.exception


def test_images_of_another_size_are_refused_before_anyone_paints(
    parts: dict[str, Path], small_pipeline: Path, tmp_path: Path
) -> None:
    images = shutil.copytree(parts["images"], tmp_path / "images")
    Image.new("RGB", (64, 64)).save(images / "p3_1.png")
    option = ["--contestant", "smooth=biharmonic", "--contestant", f"x=images:{images}", "--run", str(parts["run"])]
    done = evaluate(parts, small_pipeline, tmp_path / "out", *option)
    assert "p3_1.png: is 64x64, its prompt 32x32" in str(done.exception)
    assert "evaluate: x" in done.output
    assert not any(f"evaluate: {painted}" in done.output for painted in ("smooth", "base", "policy"))


def test_prompts_of_several_sizes_are_judged_as_each_size_alone(
    parts: dict[str, Path], small_pipeline: Path, tmp_path: Path
) -> None:
    prompts = [replace(prompt, split="test") for prompt in prompts_of_three_sizes(6)]
    for name, own in (("all", prompts), ("low", prompts[1::3])):
        changed = parts | {"prompts": write_prompts(own, tmp_path / name / "prompts")}
        done = evaluate(changed, small_pipeline, tmp_path / name / "out", "--contestant", "smooth=biharmonic")
        assert done.exit_code == 0, done.exception
    for contestant in ("base.parquet", "smooth.parquet"):
        paths = [tmp_path / name / "out" / "contestants" / contestant for name in ("all", "low")]
        everyone, low = (parquet_file(path).read().to_pylist() for path in paths)
        assert list(dict.fromkeys(row["prompt_id"] for row in everyone)) == [prompt.prompt_id for prompt in prompts]
        assert [row for row in everyone if row["prompt_id"] in ("p1", "p4")] == low


def test_a_size_that_the_model_cannot_paint_is_refused_before_anyone_paints(
    parts: dict[str, Path], small_pipeline: Path, tmp_path: Path
) -> None:
    odd = [replace(p, split="test", image=p.image[:, 1:], mask=p.mask[:, 1:]) for p in small_prompts(2)]
    changed = parts | {"prompts": write_prompts(odd, tmp_path / "prompts")}
    done = evaluate(changed, small_pipeline, tmp_path / "out", "--run", str(parts["run"]))
    assert "prompt p0: is 32x31 px, and" in str(done.exception)
    assert "paints multiples of 4 px" in str(done.exception)
    assert "evaluate:" not in done.output


def test_the_same_command_goes_on_to_extension_and_views(
    parts: dict[str, Path], small_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, tuple] = {}
    monkeypatch.setattr(extension, "evaluate_extension", lambda *given: asked.update(extension=given))
    monkeypatch.setattr(views, "evaluate_views", lambda *given: asked.update(views=given))
    for number in range(6):
        Image.new("RGB", (192, 96)).save(tmp_path / f"{number}.png")
    options = ["--run", str(parts["run"]), "--extension", str(tmp_path), "--views"]
    done = evaluate(parts, small_pipeline, tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    assert asked["extension"][0].images == tmp_path
    for name, (*_, config, run, out) in asked.items():
        assert (run, out) == (parts["run"], tmp_path / "out" / name)
        assert config.model.path == str(small_pipeline)


def test_specs_may_hold_signs_of_equality() -> None:
    assert parse_contestants(["a=images:x=y", "b=telea"]) == {"a": "images:x=y", "b": "telea"}


def test_the_gallery_has_the_best_the_worst_and_the_most_disputed_of_everyone() -> None:
    rng = np.random.default_rng(0)
    gains = {name: {judge: rng.normal(size=500) for judge in ("reward", "gold")} for name in ("a", "b")}
    disagreements = {name: rng.random(500) for name in gains}
    chosen = choose_prompts(gains, disagreements, 500)
    assert len(chosen) == len(set(chosen)) == MAX_PROMPTS
    extremes = [
        extreme(values) for by in gains.values() for values in by.values() for extreme in (np.argmax, np.argmin)
    ]
    assert {*extremes, *(np.argmax(values) for values in disagreements.values())} <= set(chosen)
    assert sorted(choose_prompts({"a": {"gold": np.arange(3.0)}}, {"a": np.zeros(3)}, 3)) == [0, 1, 2]


def test_disagreement_is_how_far_ranks_lie_apart() -> None:
    """Three prompts, two contestants: judges agree but on the last prompt, where they contradict each other."""
    marks = {"a": {"reward": [5, 6, 9], "gold": [0.2, 0.3, 0.1]}, "b": {"reward": [5, 7, 0], "gold": [0.2, 0.4, 0.9]}}
    judged = {
        name: Judged(
            prompt_ids=("p0", "p1", "p2"),
            images=torch.zeros(3, 1, 3, 2, 2, dtype=torch.uint8),
            marks={judge: np.array(values, float)[:, None] for judge, values in by.items()},
            diversity=np.full(3, np.nan),
            hole_share=np.ones(3),
            known_pixels_differ=0,
        )
        for name, by in marks.items()
    }
    gains, disagreements = compare_marks(judged, "a")
    assert gains["b"]["reward"] == pytest.approx([0, 1, -9])
    assert gains["a"]["gold"] == pytest.approx([0, -0.05, -0.4])
    assert disagreements["a"].argmax() == disagreements["b"].argmax() == 2
    assert disagreements["a"][2] == disagreements["b"][2] == 1

"""PrefPaint's released layout: what is read, what is left out and why."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import rlhf
from PIL import Image
from small_prefpaint import PICTURES, SIZE_PX, disc, labels_of, write_labels, write_release

from rlhf.data.annotated_images import join_annotations
from rlhf.data.annotators import load_annotations
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.prefpaint.import_tables import (
    ImportSummary,
    ReleaseImport,
    hole_family,
    import_release,
    resample_mask,
    source_of,
)
from rlhf.data.prompts import load_prompts
from rlhf.errors import UserError
from rlhf.storage.images import image_to_tensor, tensor_to_image
from rlhf.storage.tables import ANNOTATIONS, read_table

DEFAULTS = ReleaseImport()


def left_out(summary: ImportSummary) -> dict[str, int]:
    return {reason: found.count for reason, found in summary.left_out.items()}


@pytest.mark.parametrize("grouped", [False, True])
def test_both_forms_of_labels_give_the_same_three_tables(tmp_path: Path, grouped: bool) -> None:
    folder = write_release(tmp_path / "release", grouped=grouped)
    summary = import_release(folder, tmp_path / "out", DEFAULTS)
    assert summary == ImportSummary(ids=3, prompts=3, candidates=9, annotations=9, left_out={})
    assert json.loads((tmp_path / "out/import.json").read_text()) == asdict(summary)
    prompts = {p.prompt_id: p for p in load_prompts(tmp_path / "out/prompts", split="train")}
    candidates = CandidateTable(tmp_path / "out/candidates", prompts)
    rows = load_annotations(tmp_path / "out/annotations")
    assert [(r["prompt_id"], r["sample_index"]) for r in rows] == list(candidates)
    assert [r["annotation_score"] for r in rows] == pytest.approx([n / 3 for n in range(9)], abs=1e-6)
    assert {r["annotator"] for r in rows} == {"prefpaint-release"}
    assert not any(r["is_simulated"] for r in rows)
    assert len(join_annotations(prompts, candidates, rows).keys) == 9, "`rlhf reward` takes them"


def test_pictures_are_kept_bit_for_bit_and_the_hole_of_a_prompt_is_grey(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release")
    import_release(folder, tmp_path / "out", DEFAULTS)
    prompts = {p.prompt_id: p for p in load_prompts(tmp_path / "out/prompts")}
    for prompt in prompts.values():
        assert np.array_equal(prompt.mask[0].numpy() > 0.5, disc()), "the threshold is 125"
        image = np.asarray(tensor_to_image(prompt.image))
        color = np.asarray(Image.open(folder / "masks_color" / f"{prompt.prompt_id}_mask_color.png"))
        assert np.array_equal(image[~disc()], color[~disc()])
        assert (image[disc()] == 128).all()
    for (prompt_id, k), image in CandidateTable(tmp_path / "out/candidates", prompts).items():
        assert torch.equal(image, image_to_tensor(Image.open(folder / "inpaint" / f"{prompt_id}_{k}.png")))


def test_what_cannot_be_used_is_counted_by_reason_with_names(tmp_path: Path) -> None:
    names = ("good", "nomask", "nohole", "allhole", "size", "torn", "lone", "gone")
    folder = write_release(tmp_path / "release", names)
    (folder / "masks/nomask_mask.png").unlink()
    Image.new("L", (SIZE_PX, SIZE_PX)).save(folder / "masks/nohole_mask.png")
    Image.new("L", (SIZE_PX, SIZE_PX), 255).save(folder / "masks/allhole_mask.png")
    Image.new("RGB", (9, 9)).save(folder / "masks_color/size_mask_color.png")
    whole = (folder / "masks_color/torn_mask_color.png").read_bytes()
    (folder / "masks_color/torn_mask_color.png").write_bytes(whole[:200])
    Image.new("RGB", (9, 9)).save(folder / "inpaint/good_1.png")
    for k in range(PICTURES):
        (folder / f"inpaint/gone_{k}.png").unlink()
    labels = {name: [1.0, 1] for name in labels_of(folder) if not name.startswith("lone")}
    labels |= {"good_2": ["high", 1], "stranger_0": [1.0, 1], "no index": [1.0, 1], "size_2": [7.5, 1]}
    write_labels(folder, labels)
    (folder / "train.txt").write_text("\n".join([*names, "good", "", "../good", "x" * 300]))
    summary = import_release(folder, tmp_path / "out", DEFAULTS)
    assert (summary.ids, summary.prompts, summary.candidates, summary.annotations) == (8, 1, 1, 1)
    assert left_out(summary) == {
        "ids listed twice": 1,
        "ids that cannot be file names": 2,
        "ids without a label": 1,
        "ids without a usable picture": 1,
        "ids whose mask is missing": 1,
        "ids whose mask has no hole": 1,
        "ids whose mask leaves nothing known": 1,
        "ids whose masked picture differs from its mask in size": 1,
        "ids whose masked picture is unreadable": 1,
        "labels of ids that were left out": 14,
        "labels of ids that are not listed": 2,
        "labels whose name is not {id}_{k}": 1,
        "labels whose score is no number": 1,
        "labels whose score is out of range": 1,
        "labels whose picture is missing": 3,
        "labels whose picture differs from its mask in size": 1,
        "pictures without a label": 3,
    }
    assert summary.left_out["ids whose mask is missing"].examples == ["nomask"]


@pytest.mark.parametrize("bad", [None, True, [], ["5", 1], [None, 1], [float("nan"), 1], [float("inf"), 1], {}])
def test_a_label_that_is_no_number_is_left_out(tmp_path: Path, bad: object) -> None:
    folder = write_release(tmp_path / "release", ("a",))
    write_labels(folder, {**labels_of(folder), "a_1": bad})
    summary = import_release(folder, tmp_path / "out", DEFAULTS)
    assert summary.annotations == 2


def test_of_a_label_given_twice_the_first_counts_in_either_form(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release", ("a",))
    text = '{"a_0": [1, 3], "a": {"a_1": [2, 2], "a_2": [3, 1], "a_1": [7, 1]}, "a_0": [7, 1]}'
    (folder / "labels.json").write_text(text)
    summary = import_release(folder, tmp_path / "out", DEFAULTS)
    assert left_out(summary) == {"labels given twice": 2}
    assert [row["overall"] for row in read_table(tmp_path / "out/annotations", ANNOTATIONS)] == [1.0, 2.0, 3.0]


def test_where_nothing_is_left_the_reasons_are_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release")
    write_labels(folder, {name: [-3.0, 1] for name in labels_of(folder)})
    with pytest.raises(
        UserError, match=r"nothing can be imported.*9 labels whose score is out of range.*--score-range"
    ):
        import_release(folder, tmp_path / "out", DEFAULTS)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_scores_of_another_range_are_mapped_onto_0_to_7(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release", ("a",))
    write_labels(folder, {"a_0": [-2.0, 3], "a_1": [0.0, 2], "a_2": [2.0, 1]})
    import_release(folder, tmp_path / "out", ReleaseImport(score_range=(-2.0, 2.0)))
    assert [row["overall"] for row in read_table(tmp_path / "out/annotations", ANNOTATIONS)] == [0.0, 3.5, 7.0]


def test_ids_and_labels_are_found_or_must_be_named(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release")
    (folder / "README.txt").write_text("about")
    import_release(folder, tmp_path / "out", DEFAULTS)
    (folder / "test.txt").write_text("c\n")
    with pytest.raises(UserError, match=r"2 files could be meant \(test\.txt, train\.txt\); choose one by --ids"):
        import_release(folder, tmp_path / "out", DEFAULTS)
    assert import_release(folder, tmp_path / "out", ReleaseImport(ids="test.txt", split="test")).prompts == 1
    assert [p.split for p in load_prompts(tmp_path / "out/prompts")] == ["test"]
    with pytest.raises(UserError, match=r"absent\.txt: no such file; --ids"):
        import_release(folder, tmp_path / "out", ReleaseImport(ids="absent.txt"))
    (folder / "labels.json").write_text("[1, 2")
    with pytest.raises(UserError, match=r"labels\.json: not a readable JSON file"):
        import_release(folder, tmp_path / "out", ReleaseImport(ids="test.txt"))
    (folder / "labels.json").unlink()
    with pytest.raises(UserError, match=r"holds no \.json file; name one by --labels"):
        import_release(folder, tmp_path / "out", ReleaseImport(ids="test.txt"))
    with pytest.raises(UserError, match="no such folder"):
        import_release(tmp_path / "absent", tmp_path / "out", DEFAULTS)


def test_resampled_pictures_take_nothing_from_the_painted_hole(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release", ("a",))
    flat = np.where(disc()[:, :, None], np.uint8(255), np.full((SIZE_PX, SIZE_PX, 3), 40, np.uint8))
    Image.fromarray(flat).save(folder / "masks_color/a_mask_color.png")
    import_release(folder, tmp_path / "out", ReleaseImport(size_px=10))
    (prompt,) = load_prompts(tmp_path / "out/prompts")
    assert prompt.image.shape == (3, 10, 10)
    known = np.asarray(tensor_to_image(prompt.image))[prompt.mask[0].numpy() < 0.5]
    assert (known == 40).all()
    candidates = CandidateTable(tmp_path / "out/candidates", {"a": prompt})
    assert len(candidates) == PICTURES


def test_a_single_hole_pixel_survives_resampling() -> None:
    mask = np.zeros((512, 512), bool)
    mask[300, 17] = True
    assert np.argwhere(resample_mask(mask, 64)).tolist() == [[37, 2]]


def test_hole_family_and_source_are_known_from_shape_and_name_or_unknown() -> None:
    band, square, speckled = np.ones((3, 20, 20), bool)
    band[:, 3:10] = square[5:12, 3:10] = False
    speckled[[2, 9, 15], [3, 3, 8]] = False
    assert [hole_family(m, "x") for m in (band, square, speckled)] == ["boundary_band", "boundary_square", "unknown"]
    assert hole_family(speckled, "kitti_Warp_3") == "warp"
    names = (
        "ADE_train_00000001",
        "ILSVRC2012_val_1",
        "n01440764_18",
        "KITTI-3",
        "2011_09_26_drive",
        "DIV2K_7",
        "cascade",
    )
    assert [source_of(n) for n in names] == ["ade20k", "imagenet", "imagenet", "kitti", "kitti", "div2k", "unknown"]


def test_the_command_prints_the_counts(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release")
    (folder / "inpaint/c_0.png").unlink()
    words = ["import-prefpaint", folder, "--out", tmp_path / "out"]
    done = rlhf(*words)
    assert done.returncode == 0, done.stderr
    assert "3 ids, 3 prompts, 8 candidates, 8 annotations" in done.stdout
    assert "left out: 1 labels whose picture is missing (c_0)" in done.stdout
    done = rlhf(*words, "--labels", "x.json")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr

"""The released layout written from this project's tables, and read back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_parts import small_prompts, write_prompts
from small_prefpaint import labels_of, write_release

from rlhf.data.annotators import load_annotations
from rlhf.data.prefpaint_export import export_release, mean_scores, rank_scores
from rlhf.data.prefpaint_import import ReleaseImport, import_release
from rlhf.data.prompts import Prompt, load_prompts
from rlhf.diffusion.candidates import load_candidates
from rlhf.errors import UserError
from rlhf.storage.images import encode_png, tensor_to_image
from rlhf.storage.tables import ANNOTATIONS, CANDIDATES, image_cell, write_table


def write_samples(prompts: list[Prompt], folder: Path) -> None:
    """Four random samples a prompt, each scored by two annotators."""
    rng = np.random.default_rng(3)
    candidates, annotations = [], []
    for prompt in prompts:
        for k in range(4):
            fill = torch.from_numpy(rng.uniform(-1, 1, prompt.image.shape)).float()
            image = tensor_to_image(torch.where(prompt.mask > 0.5, fill, prompt.image))
            key = {"prompt_id": prompt.prompt_id, "sample_index": k}
            candidates.append(dict.fromkeys(CANDIDATES.names) | key | {"image": image_cell(encode_png(image), "i.png")})
            for annotator in ("ann", "bob"):
                marks = dict(zip(("structure", "texture", "overall"), rng.integers(0, 8, 3).tolist(), strict=True))
                known = key | marks | {"annotator": annotator, "is_simulated": False}
                annotations.append(dict.fromkeys(ANNOTATIONS.names) | known)
    write_table(candidates, CANDIDATES, folder / "candidates/c.parquet")
    write_table(annotations, ANNOTATIONS, folder / "annotations/a.parquet")


def export(folder: Path, out: Path) -> dict:
    return export_release(folder / "prompts", folder / "candidates", folder / "annotations", out)


def test_export_then_import_gives_the_same_scores_masks_and_samples(tmp_path: Path) -> None:
    write_prompts(small_prompts(5), tmp_path / "own/prompts")
    write_samples(load_prompts(tmp_path / "own/prompts"), tmp_path / "own")
    assert export(tmp_path / "own", tmp_path / "layout") == {"ids": 5, "pictures": 20, "left_out": {}}
    assert import_release(tmp_path / "layout", tmp_path / "back", ReleaseImport())["left_out"] == {}
    before, after = ({p.prompt_id: p for p in load_prompts(tmp_path / d / "prompts")} for d in ("own", "back"))
    assert list(before) == list(after)
    for name, prompt in before.items():
        assert torch.equal(prompt.mask, after[name].mask)
        known = (prompt.mask < 0.5).expand(3, -1, -1)
        assert torch.equal(prompt.image[known], after[name].image[known])
    ours, theirs = (load_candidates(tmp_path / d / "candidates", before) for d in ("own", "back"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    wanted, got = (mean_scores(load_annotations(tmp_path / d / "annotations")) for d in ("own", "back"))
    assert got == pytest.approx(wanted, abs=1e-6)
    assert np.float32(list(got.values())).tolist() == np.float32([wanted[key] for key in got]).tolist()


def test_import_then_export_gives_back_labels_and_pictures(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release")
    import_release(folder, tmp_path / "own", ReleaseImport())
    export(tmp_path / "own", tmp_path / "layout")
    before, after = labels_of(folder), labels_of(tmp_path / "layout")
    assert after.keys() == before.keys()
    for name, (score, rank) in before.items():
        assert after[name] == [pytest.approx(score, abs=1e-6), rank]
        old, new = (np.asarray(Image.open(d / "inpaint" / f"{name}.png")) for d in (folder, tmp_path / "layout"))
        assert np.array_equal(old, new)


def test_rank_1_is_the_best_of_each_id_and_ties_go_by_number() -> None:
    scores = {("a", 0): 1.0, ("a", 1): 5.0, ("a", 2): 5.0, ("b", 7): 0.0}
    assert rank_scores(scores) == {"a_0": [1.0, 3], "a_1": [5.0, 1], "a_2": [5.0, 2], "b_7": [0.0, 1]}


def test_what_has_no_score_or_no_picture_is_left_out_and_counted(tmp_path: Path) -> None:
    write_prompts(small_prompts(4), tmp_path / "own/prompts")
    prompts = load_prompts(tmp_path / "own/prompts")
    write_samples(prompts, tmp_path / "own")
    rows = [r for r in load_annotations(tmp_path / "own/annotations") if r["prompt_id"] != "p1"]
    rows = [
        {name: r[name] for name in ANNOTATIONS.names} for r in rows if (r["prompt_id"], r["sample_index"]) != ("p0", 2)
    ]
    rows += [rows[0] | {"prompt_id": "p2", "sample_index": 9}]
    write_table(rows, ANNOTATIONS, tmp_path / "own/annotations/a.parquet")
    summary = export(tmp_path / "own", tmp_path / "layout")
    assert (summary["ids"], summary["pictures"]) == (3, 11)
    assert {reason: found["count"] for reason, found in summary["left_out"].items()} == {
        "prompts without a scored picture": 1,
        "pictures without a prompt or a score": 4,
        "pictures without a score": 1,
        "scores without a picture": 1,
    }
    assert (tmp_path / "layout/ids.txt").read_text() == "p0\np2\np3\n"
    assert not (tmp_path / "layout/masks/p1_mask.png").exists()


def test_an_existing_export_and_an_id_that_leads_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release")
    import_release(folder, tmp_path / "own", ReleaseImport())
    with pytest.raises(UserError, match="already holds masks; choose another --out"):
        export(tmp_path / "own", folder)
    (prompt,) = small_prompts(1)
    odd = Prompt(**{**vars(prompt), "prompt_id": "../up"})
    write_prompts([odd], tmp_path / "odd/prompts")
    write_samples([odd], tmp_path / "odd")
    with pytest.raises(UserError, match="prompt_id cannot be part of a file name"):
        export(tmp_path / "odd", tmp_path / "layout")

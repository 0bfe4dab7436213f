"""Import of PrefPaint's released preference data as prompts, candidates and annotations.

The release has no originals. The image of a prompt is its painted-over picture with the hole blanked to mid-grey, so
neither simulated annotators nor the gold judge may use it. Its single score per picture becomes all three
marks (structure, texture, overall), whose weighted total is then that score; these rows have the annotator
`prefpaint-release`, no time, and `is_simulated` false. The release does not name photographs: each id counts
as its own.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rlhf.data.prefpaint.layout import (
    MASK_THRESHOLD,
    LeftOut,
    LeftOutItems,
    color_path,
    describe_left_out,
    find_file,
    inpaint_path,
    mask_path,
    read_ids,
    read_labels,
)
from rlhf.data.rows import AnnotationRow, PromptRow
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.images import decode_image, encode_png
from rlhf.storage.tables import ANNOTATIONS, CANDIDATES, PROMPTS, image_cell, open_table

ANNOTATOR = "prefpaint-release"
MAX_MARK = 7.0
BLANK = 128
"""The hole's value in a prompt's image: mid-grey, 0 in [-1, 1] to within the 8-bit grid."""
SOURCES = (
    ("ade20k", re.compile(r"(^|_)ade(20k|_|$)", re.IGNORECASE)),
    ("imagenet", re.compile(r"imagenet|ilsvrc|(^|_)n\d{8}(_|$)", re.IGNORECASE)),
    ("kitti", re.compile(r"kitti|2011_\d\d_\d\d", re.IGNORECASE)),
    ("div2k", re.compile(r"div2k", re.IGNORECASE)),
)
"""Names of the four data sets of the release, and patterns of their file names."""

Append = Callable[[Mapping[str, Any]], None]
"""Appends a row to a table."""


@dataclass(frozen=True, kw_only=True)
class ReleaseImport:
    """Options of the import."""

    ids: str | None = None
    """Name of the file of ids, relative to the folder; None takes its only .txt file."""
    labels: str | None = None
    """Name of the file of labels, relative to the folder; None takes its only .json file."""
    split: str = "train"
    """Split of all prompts."""
    size_px: int | None = None
    """Side that pictures are resampled to; None keeps them, and their pixels, as they are."""
    score_range: tuple[float, float] = (0.0, MAX_MARK)
    """Lowest and highest possible score; mapped linearly onto the marks 0-7."""


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    image_id: str
    file_size: tuple[int, int]
    """Width and height of the released pictures."""
    color: Image.Image
    """Picture, resampled like the mask if `size_px` is given."""
    mask: np.ndarray
    """bool [H, W], True = hole."""


class _LeaveOutError(Exception):
    """A picture cannot be used; the message is the reason that is counted."""


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """Content of `import.json`: numbers of listed ids, of written rows, and of left-out items by reason."""

    ids: int
    prompts: int
    candidates: int
    annotations: int
    left_out: dict[str, LeftOut]


def import_release(folder: Path, out: Path, options: ReleaseImport) -> ImportSummary:
    """Imports the release in `folder` into `out/prompts`, `out/candidates`, `out/annotations` and `out/import.json`.

    Pictures are read one prompt at a time; the tables appear at the end. Raises UserError if ids or labels are missing
    or ambiguous, or if nothing is left.
    """
    low, high = options.score_range
    if not low < high:
        raise UserError(f"--score-range {low} {high}: the lower end comes first")
    left_out = LeftOutItems()
    ids = read_ids(find_file(folder, options.ids, ".txt", "--ids"), left_out)
    labels_file = find_file(folder, options.labels, ".json", "--labels")
    labels, label_names = read_labels(labels_file, left_out, options.score_range)
    _count_unlisted(folder, set(ids), label_names, left_out)
    prompts = pictures = 0
    with ExitStack() as tables:
        append = {
            schema_name: tables.enter_context(open_table(schema, out / schema_name / f"{schema_name}.parquet"))
            for schema_name, schema in (("prompts", PROMPTS), ("candidates", CANDIDATES), ("annotations", ANNOTATIONS))
        }
        for image_id in progress_bar(ids, stage="import"):
            kept = _import_prompt(folder, image_id, labels.get(image_id, {}), options, append, left_out)
            prompts += kept > 0
            pictures += kept
        if not prompts:
            raise UserError(
                f"{folder}: nothing can be imported with {labels_file.name}; left out: {left_out}. Check the folder, "
                "--ids and --labels; scores that are not on 0-7 need --score-range"
            )
    summary = ImportSummary(
        ids=len(ids), prompts=prompts, candidates=pictures, annotations=pictures, left_out=left_out.by_reason()
    )
    atomic_write_json(out / "import.json", asdict(summary))
    return summary


def _count_unlisted(folder: Path, ids: set[str], label_names: set[str], left_out: LeftOutItems) -> None:
    """Counts labels of unlisted ids, and pictures of listed ids without a label."""
    for name in sorted(label_names):
        if name.rpartition("_")[0] not in ids:
            left_out.add("labels of ids that are not listed", name[:80])
    for path in sorted((folder / "inpaint").glob("*.png")):
        if path.stem not in label_names and path.stem.rpartition("_")[0] in ids:
            left_out.add("pictures without a label", path.name)


def _import_prompt(
    folder: Path,
    image_id: str,
    scores: dict[int, float],
    options: ReleaseImport,
    append: dict[str, Append],
    left_out: LeftOutItems,
) -> int:
    """Appends one id's rows and returns the number of inpaintings kept; at 0 the prompt is left out too."""
    if not scores:
        left_out.add("ids without a label", image_id)
        return 0
    try:
        prompt = _read_prompt(folder, image_id, options.size_px)
    except _LeaveOutError as reason:
        left_out.add(f"ids whose {reason}", image_id)
        for k in scores:
            left_out.add("labels of ids that were left out", f"{image_id}_{k}")
        return 0
    kept = 0
    for k, score in sorted(scores.items()):
        try:
            picture = _read_picture(inpaint_path(folder, image_id, k), "picture")
            if picture.size != prompt.file_size:
                raise _LeaveOutError("picture differs from its mask in size")
        except _LeaveOutError as reason:
            left_out.add(f"labels whose {reason}", f"{image_id}_{k}")
            continue
        append["candidates"](_candidate_row(folder, image_id, k, picture, options.size_px))
        append["annotations"](_annotation_row(image_id, k, score, options.score_range))
        kept += 1
    if kept:
        append["prompts"](_prompt_row(prompt, options.split))
    else:
        left_out.add("ids without a usable picture", image_id)
    return kept


def _read_prompt(folder: Path, image_id: str, size_px: int | None) -> _Prompt:
    mask = np.asarray(_read_picture(mask_path(folder, image_id), "mask").convert("L")) >= MASK_THRESHOLD
    color = _read_picture(color_path(folder, image_id), "masked picture")
    file_size = color.size
    if mask.shape != (color.height, color.width):
        raise _LeaveOutError("masked picture differs from its mask in size")
    if size_px is not None and color.width != color.height:
        raise _LeaveOutError("picture is not square, as --size-px needs it")
    if size_px is not None:
        mask = resample_mask(mask, size_px)
    if not mask.any():
        raise _LeaveOutError("mask has no hole")
    if mask.all():
        raise _LeaveOutError("mask leaves nothing known")
    return _Prompt(image_id=image_id, file_size=file_size, color=_resample(color, size_px), mask=mask)


def _read_picture(path: Path, what: str) -> Image.Image:
    if not path.is_file():
        raise _LeaveOutError(f"{what} is missing")
    try:
        return decode_image(path)
    except UserError as error:
        raise _LeaveOutError(f"{what} is unreadable") from error


def _resample(picture: Image.Image, size_px: int | None) -> Image.Image:
    """Returns the mean over each new pixel's own area, so no known pixel mixes with the painted hole."""
    return picture if size_px is None else picture.resize((size_px, size_px), Image.Resampling.BOX)


def resample_mask(mask: np.ndarray, size_px: int) -> np.ndarray:
    """Returns bool [size_px, size_px]: a pixel is hole if it covers any part of the hole [H, W]."""
    covered = Image.fromarray(mask.astype(np.float32)).resize((size_px, size_px), Image.Resampling.BOX)
    return np.asarray(covered) > 1e-6


def _prompt_row(prompt: _Prompt, split: str) -> PromptRow:
    mask, name = prompt.mask, prompt.image_id
    pixels = np.where(mask[:, :, None], np.uint8(BLANK), np.asarray(prompt.color))
    return {
        "prompt_id": name,
        "image": image_cell(encode_png(Image.fromarray(pixels)), f"{name}.png"),
        "mask": image_cell(encode_png(Image.fromarray(mask.astype(np.uint8) * 255)), f"{name}_mask.png"),
        "hole": hole_family(mask, name),
        "source": source_of(name),
        "photograph": name,
        "split": split,
        "caption": "",
    }


def _candidate_row(folder: Path, image_id: str, k: int, picture: Image.Image, size_px: int | None) -> dict[str, Any]:
    """Returns a row without seed, policy and sampler, which are unknown. A picture of the same size keeps its bytes."""
    path = inpaint_path(folder, image_id, k)
    data = path.read_bytes() if size_px is None else encode_png(_resample(picture, size_px))
    known = {"prompt_id": image_id, "sample_index": k, "image": image_cell(data, path.name)}
    return dict.fromkeys(CANDIDATES.names) | known


def _annotation_row(image_id: str, k: int, score: float, score_range: tuple[float, float]) -> AnnotationRow:
    low, high = score_range
    mark = score if (low, high) == (0.0, MAX_MARK) else min(MAX_MARK * (score - low) / (high - low), MAX_MARK)
    return {
        "prompt_id": image_id,
        "sample_index": k,
        "annotator": ANNOTATOR,
        "annotated_at": None,
        "structure": mark,
        "texture": mark,
        "overall": mark,
        "is_simulated": False,
    }


def source_of(image_id: str) -> str:
    """Returns the data set in an id's name, else `unknown`."""
    return next((name for name, pattern in SOURCES if pattern.search(image_id)), "unknown")


def hole_family(mask: np.ndarray, image_id: str) -> str:
    """Returns `warp` if the id says so, `boundary_band` or `boundary_square` if the known pixels are a rectangle.

    A band is as high as the image. Everything else is `unknown`. Shapes: mask bool [H, W], True = hole.
    """
    if "warp" in image_id.lower():
        return "warp"
    rows, columns = np.flatnonzero(~mask.all(1)), np.flatnonzero(~mask.all(0))
    if len(rows) and not mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].any():
        return "boundary_band" if len(rows) == len(mask) else "boundary_square"
    return "unknown"


def describe(summary: ImportSummary) -> Iterator[str]:
    """Yields the summary as lines of text."""
    yield (
        f"{summary.ids} ids, {summary.prompts} prompts, {summary.candidates} candidates, "
        f"{summary.annotations} annotations"
    )
    yield from describe_left_out(summary.left_out)

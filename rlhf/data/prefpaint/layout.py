"""Layout of PrefPaint's released preference data: names of files, ids and labels.

    ids.txt                              one image id per line
    masks/{id}_mask.png                  white = hole, threshold 125
    masks_color/{id}_mask_color.png      the image with its hole painted over
    inpaint/{id}_{k}.png                 the inpaintings
    labels.json                          {"{id}_{k}": [score, rank]}, or grouped {id: {"{id}_{k}": [score, rank]}}

Rank 1 is the best of an id's inpaintings. Released: PrefPaint (arXiv:2410.21966), section 4, and its code.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

MASK_THRESHOLD = 125
"""Least value of the hole in a mask."""
NOT_DATA = {"readme", "license", "licence", "requirements", "import"}
"""Names, without suffix, of files that never hold ids or labels."""
MAX_ID_BYTES = 200
"""Longest id; file systems allow 255 bytes, of which the endings need some."""
EXAMPLES = 5
"""Number of names kept for each reason."""


class _Pairs(list):
    """Pairs of a JSON object; unlike a dict, it keeps repeated names."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Items that an import leaves out for one reason."""

    count: int
    examples: list[str]
    """The first few names."""


class LeftOutItems:
    """Counts the items that an import leaves out, by reason, with the first few names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        """Counts one item of this name for this reason."""
        self.counts[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append(name)

    def by_reason(self) -> dict[str, LeftOut]:
        """Returns the counts and examples by reason, the most frequent first."""
        return {r: LeftOut(count=n, examples=self.examples[r]) for r, n in self.counts.most_common()}

    def __str__(self) -> str:
        return "; ".join(f"{count} {reason}" for reason, count in self.counts.most_common()) or "nothing"


def describe_left_out(by_reason: Mapping[str, LeftOut]) -> Iterator[str]:
    """Yields a line of text for each reason."""
    for reason, found in by_reason.items():
        more = ", ..." if found.count > len(found.examples) else ""
        yield f"left out: {found.count} {reason} ({', '.join(found.examples)}{more})"


def mask_path(folder: Path, image_id: str) -> Path:
    """Returns the path of an id's mask."""
    return folder / "masks" / f"{image_id}_mask.png"


def color_path(folder: Path, image_id: str) -> Path:
    """Returns the path of an id's image with its hole painted over."""
    return folder / "masks_color" / f"{image_id}_mask_color.png"


def inpaint_path(folder: Path, image_id: str, k: int) -> Path:
    """Returns the path of an id's k-th inpainting."""
    return folder / "inpaint" / f"{image_id}_{k}.png"


def is_file_name(image_id: str) -> bool:
    """Returns whether an id can be part of a file name on every system and leads out of no folder."""
    is_plain = image_id.isprintable() and not set(image_id) & set('/\\:*?"<>|')
    return is_plain and 0 < len(image_id.encode()) <= MAX_ID_BYTES and image_id[0] != "."


def find_file(folder: Path, name: str | None, suffix: str, option: str) -> Path:
    """Returns the named file in `folder`, or its only file with that suffix.

    Raises UserError if it is missing, or if several fit; `option` then selects one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder that holds masks, masks_color and inpaint")
    if name is not None:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: no such file; {option} names a {suffix} file relative to {folder}")
        return path
    found = sorted(p for p in folder.glob(f"*{suffix}") if p.is_file() and p.stem.lower() not in NOT_DATA)
    if not found:
        raise UserError(f"{folder}: holds no {suffix} file; name one by {option}")
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:6])
        raise UserError(f"{folder}: {len(found)} files could be meant ({names}); choose one by {option}")
    return found[0]


def read_ids(path: Path, left_out: LeftOutItems) -> list[str]:
    """Reads the ids of a text file in order; leaves out repeated ids and ids that cannot be file names."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable text file ({error}); it must hold one id per line") from error
    ids: dict[str, None] = {}
    for image_id in filter(None, map(str.strip, lines)):
        if image_id in ids:
            left_out.add("ids listed twice", image_id)
        elif not is_file_name(image_id):
            left_out.add("ids that cannot be file names", image_id[:80])
        else:
            ids[image_id] = None
    if not ids:
        raise UserError(f"{path}: holds no id; it must hold one per line")
    return list(ids)


def read_labels(
    path: Path, left_out: LeftOutItems, score_range: tuple[float, float]
) -> tuple[dict[str, dict[int, float]], set[str]]:
    """Reads scores by id and k from both forms, and the names of all labels, usable or not.

    Labels without a score within `score_range` (ends included) are left out; the first of a repeated name counts.
    Raises UserError if the file is no JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(record, _Pairs):
        raise UserError(f'{path}: must be an object such as {{"ID_0": [score, rank]}}')
    scores: defaultdict[str, dict[int, float]] = defaultdict(dict)
    names: set[str] = set()
    for name, value in record:
        for key, label in value if isinstance(value, _Pairs) else [(name, value)]:
            image_id, _, k = key.rpartition("_")
            score = _score(label)
            names.add(key)
            if not image_id or not _is_index(k):
                left_out.add("labels whose name is not {id}_{k}", key[:80])
            elif score is None:
                left_out.add("labels whose score is no number", key)
            elif not score_range[0] <= score <= score_range[1]:
                left_out.add("labels whose score is out of range", key)
            elif int(k) in scores[image_id]:
                left_out.add("labels given twice", key)
            else:
                scores[image_id][int(k)] = score
    return dict(scores), names


def _is_index(text: str) -> bool:
    """Returns whether `text` is a non-negative 32-bit number in the form of `str`."""
    return text.isascii() and text.isdigit() and text == str(int(text[:10])) and int(text) < 2**31


def _score(label: Any) -> float | None:
    if isinstance(label, list) and label:
        label = label[0]
    if isinstance(label, bool) or not isinstance(label, int | float):
        return None
    return float(label) if math.isfinite(label) else None

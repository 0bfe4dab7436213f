"""A small candidates folder with its prompts, as people annotate it, and an evaluation, as they compare it."""

import subprocess
import sys
from pathlib import Path

from small_parts import small_prompts, write_prompts

from rlhf.data.annotation.export import open_study
from rlhf.data.annotation.items import AnnotationItems, load_items
from rlhf.data.annotation.store import AnnotationStore, Assignment
from rlhf.evaluation.blind_choices import PAINTED
from rlhf.storage.images import encode_png, tensor_to_image
from rlhf.storage.tables import CANDIDATES, image_cell, write_table


def write_study(folder: Path, *, prompts: int = 4, samples: int = 3, shade: float = 0.0) -> Path:
    """A candidates folder whose sample k fills the hole with the grey `shade` + k / 10."""
    made = small_prompts(prompts)
    rows = []
    for prompt in made:
        for index in range(samples):
            image = prompt.image * (1 - prompt.mask) + prompt.mask * (shade + index / 10)
            row = dict.fromkeys(CANDIDATES.names, 0)
            row |= {"prompt_id": prompt.prompt_id, "sample_index": index}
            rows.append(row | {"image": image_cell(encode_png(tensor_to_image(image)), "c.png")})
    write_table(rows, CANDIDATES, folder / "candidates.parquet")
    write_prompts(made, folder / "prompts")
    return folder


GREY = {"aligned": 0.5, "base": -0.5}
"""What the contestants fill their holes with."""


def write_evaluation(folder: Path, prompts: int = 3, missing: int = 0) -> Path:
    """The contestants `aligned` and `base`, two samples each; the latter without the first `missing` prompts."""
    made = small_prompts(prompts)
    for name, grey in GREY.items():
        rows = []
        for prompt in made[missing if name == "base" else 0 :]:
            for sample in (0, 1):
                image = tensor_to_image(prompt.image * (1 - prompt.mask) + prompt.mask * (grey + 0.1 * sample))
                place = {"prompt_id": prompt.prompt_id, "sample_index": sample}
                place |= {"photograph": prompt.photograph, "hole": prompt.hole}
                rows.append(place | {"image": image_cell(encode_png(image), "c.png")})
        write_table(rows, PAINTED, folder / "contestants" / f"{name}.parquet")
    write_prompts(made, folder / "prompts")
    return folder


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def open_small_study(folder: Path, **assignment: object) -> tuple[AnnotationStore, AnnotationItems, Clock]:
    """A store in `folder/annotations` of the candidates in `folder/candidates`, written where they are not there."""
    candidates = folder / "candidates"
    if not candidates.exists():
        write_study(candidates)
    items = load_items(candidates, candidates / "prompts")
    settings = {"order": tuple(items.prompt_ids), "repeat": 0.0} | assignment
    store = open_study(items, Assignment(**settings), folder / "annotations", None)
    clock = Clock()
    store.clock = clock
    return store, items, clock


def marks(value: float) -> dict[str, float]:
    """The same mark three times."""
    return {"structure": value, "texture": value, "overall": value}


def judge(store: AnnotationStore, annotator: str, value: float = 4.0) -> str:
    """Judge the person's next prompt, all pictures alike; returns its id."""
    task = store.next_task(annotator)
    assert task is not None, f"nothing left for {annotator}"
    store.save_marks(task.key, {position: marks(value) for position in range(len(task.sample_order))})
    store.finish(task.key)
    return task.prompt_id


def start_server(folder: Path, *options: object, port: int = 0) -> tuple[subprocess.Popen, str]:
    """`rlhf annotate` of `folder/candidates` into `folder/out`, and its address."""
    return start_command("annotate", folder / "candidates", "--out", folder / "out", *options, port=port)


def start_command(*words: object, port: int = 0) -> tuple[subprocess.Popen, str]:
    """An `rlhf` command that serves a page, and its address."""
    arguments = list(map(str, [sys.executable, "-m", "rlhf", *words, "--port", port]))
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, next(word for word in line.split() if word.startswith("http")).rstrip("/")

"""Captions of photographs: from a file of JSON lines, or from text files beside the photographs."""

import json
from collections.abc import Collection
from pathlib import Path

from rlhf.errors import UserError

TEXT_KEYS = ("text", "caption")
"""Keys of a line's caption: Hugging Face's image folders have the first."""


def read_captions(images: Path, photographs: Collection[str], file: Path | None) -> dict[str, str]:
    """Captions by photograph, named relative to the folder `images`; photographs without one are left out.

    A line of `file` is {"file_name": "cats/1.png", "text": "..."}. A photograph that it does not name has the text of
    the file beside it with the suffix .txt, if there is one. Raises UserError with the place of what is not readable,
    or names no photograph.
    """
    captions = {} if file is None else _read_lines(file, photographs)
    for name in photographs:
        beside = (images / name).with_suffix(".txt")
        if name not in captions and beside.is_file():
            captions[name] = _in_one_line(_read_text(beside))
    return {name: caption for name, caption in captions.items() if caption}


def _read_lines(file: Path, photographs: Collection[str]) -> dict[str, str]:
    known, captions = set(photographs), {}
    for number, line in enumerate(_read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        place = f"{file}: line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place}: no JSON ({error}); write one object per line") from error
        name, caption = _entry_of(entry, place)
        if name not in known:
            raise UserError(f"{place}: {name!r} is no photograph below --images; remove the line, or correct the name")
        if name in captions:
            raise UserError(f"{place}: {name!r} has a caption already; keep one")
        captions[name] = caption
    return captions


def _entry_of(entry: object, place: str) -> tuple[str, str]:
    if isinstance(entry, dict):
        name, texts = entry.get("file_name"), [entry[key] for key in TEXT_KEYS if key in entry]
        if isinstance(name, str) and len(texts) == 1 and isinstance(texts[0], str):
            return name, _in_one_line(texts[0])
    raise UserError(f'{place}: needs two texts, {{"file_name": "a.png", "text": "..."}}; correct the line')


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: no readable UTF-8 text ({error}); correct or remove it") from error


def _in_one_line(text: str) -> str:
    return " ".join(text.split())

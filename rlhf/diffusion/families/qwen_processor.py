"""Qwen2-VL's processor of texts and pictures, without its part for videos, which needs torchvision.

transformers 5 cannot make its own class without torchvision, though nothing here reads videos. Pillow resizes pictures,
where transformers would use torchvision.
"""

from pathlib import Path
from typing import Any

from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rlhf.errors import UserError


class PictureProcessor(Qwen2VLProcessor):
    """Made from the folder `processor` of a pipeline, whose files it saves again as they are."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer, self.chat_template = image_processor, tokenizer, None
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        self.files: dict[str, bytes] = {}

    def save_pretrained(self, save_directory: Any, *_: Any, **__: Any) -> None:
        """Writes the files that it was made from."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


# diffusers writes module and name of a part's class into the index of a saved pipeline.
PictureProcessor.__module__, PictureProcessor.__name__ = Qwen2VLProcessor.__module__, Qwen2VLProcessor.__name__


def open_processor(folder: Path) -> PictureProcessor:
    """The processor of a local folder. Raises UserError if it is incomplete or damaged."""
    try:
        made = PictureProcessor(
            Qwen2VLImageProcessorPil.from_pretrained(folder), Qwen2Tokenizer.from_pretrained(folder)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder}: no whole Qwen2VLProcessor ({reason}); fetch the model again") from error
    made.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    return made

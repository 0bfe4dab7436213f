"""What a client is answered: image files, records of images, and the events of a stream."""

import base64
import io
import json
import math
import time
from collections.abc import Iterator
from typing import Any

from PIL import Image

from rlhf.diffusion.tiles import Box, Canvas, put_back
from rlhf.storage.images import encode_png
from serve.api.edit_request import EditRequest
from serve.api.image_store import ImageStore
from serve.api.painting import Estimate, Painted

Record = dict[str, Any]
NO_TOKENS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
"""OpenAI's clients look for it; nothing here is counted in tokens."""


class Answers:
    """How one request is answered."""

    def __init__(
        self, asked: EditRequest, upload: Canvas, region: Box, store: ImageStore | None, files_url: str
    ) -> None:
        self._asked, self._upload, self._region = asked, upload, region
        self._store, self._files_url = store, files_url
        width, height = asked.answer_size(upload.hole.shape[1], upload.hole.shape[0])
        self.size = width, height
        self.shape = {"size": f"{width}x{height}", "output_format": asked.output_format}
        """What every answer says of its images."""

    def records(self, painted: Painted) -> list[Record]:
        """The images that were asked for, with reward and bound, the best first where samples are ranked."""
        scores = painted.scores or [{}] * len(painted.samples)
        order = list(range(len(painted.samples)))
        if self._asked.best_of is not None:
            order.sort(key=lambda i: rank_of(scores[i]), reverse=True)
        return [self._record(painted.samples[i]) | scores[i] for i in order[: self._asked.n]]

    def body(self, painted: Painted) -> Record:
        """The JSON of an answer that is not streamed."""
        return {"created": int(time.time()), **self.shape, "data": self.records(painted), "usage": NO_TOKENS}

    def events(self, told: Estimate | Painted) -> list[bytes]:
        """Server-sent events, named as OpenAI's."""
        return list(self._events(told))

    def _events(self, told: Estimate | Painted) -> Iterator[bytes]:
        common = {"created_at": int(time.time()), "background": "opaque", "quality": "auto", **self.shape}
        if isinstance(told, Estimate):
            for sample_index, sample in enumerate(told.samples[: self._asked.n]):
                place = {"partial_image_index": told.index, "sample_index": sample_index}
                yield to_event("image_edit.partial_image", {**self._record(sample), **place, **common})
        else:
            for record in self.records(told):
                yield to_event("image_edit.completed", {**record, **common, "usage": NO_TOKENS})

    def _record(self, sample: Canvas) -> Record:
        data = self._encode(put_back(self._upload, self._region, sample))
        if self._asked.response_format == "url" and self._store is not None:
            return {"url": self._files_url + self._store.put(data, self._asked.output_format)}
        return {"b64_json": base64.b64encode(data).decode()}

    def _encode(self, image: Image.Image) -> bytes:
        if image.size != self.size:
            image = image.resize(self.size, Image.Resampling.LANCZOS)
        if self._asked.output_format == "png":
            return encode_png(image)
        buffer = io.BytesIO()
        if self._asked.output_format == "jpeg" and image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        image.save(buffer, format=self._asked.output_format, quality=self._asked.output_compression)
        return buffer.getvalue()


def to_event(kind: str, record: Record) -> bytes:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **record})}\n\n".encode()


def rank_of(score: dict[str, float | None]) -> float:
    """Returns the lower end of the bound, and the reward itself if it has no finite bound."""
    known = [value for value in (score["lower"], score["reward"]) if value is not None]
    return known[0] if known else -math.inf

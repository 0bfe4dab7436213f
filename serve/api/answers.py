"""The answers to an edit: image files, their records, and the events of a stream."""

import base64
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from rlhf.diffusion.tiles import Canvas, put_back
from rlhf.storage.png import encode_png
from serve.api.image_store import ImageStore
from serve.api.painting import Edit, EditProgress, PaintedEdit
from serve.engine.jobs import SampleScore

Record = dict[str, Any]
"""An object of the JSON of an answer."""
NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "total_tokens": 0,
}
"""OpenAI's clients, and gateways that bill by it, expect this record whole; this service counts no tokens."""


class Answers:
    """The form in which one edit is answered."""

    def __init__(self, edit: Edit, store: ImageStore | None, files_url: str) -> None:
        """Raises ApiError if the size that was asked for does not fit the photograph or the file format."""
        self._edit, self._store, self._files_url = edit, store, files_url
        self.size = edit.asked.answer_size(edit.canvas.hole.shape[1], edit.canvas.hole.shape[0])
        self._common = {"size": "{}x{}".format(*self.size), "output_format": edit.asked.output_format}
        self.headers = {
            "x-policy-version": edit.policy.version,
            "x-seed": str(edit.seed),
            "x-model": edit.model,
            "cache-control": "no-store",
        }

    def body(self, painted: PaintedEdit) -> Record:
        """Returns the JSON of an answer that is not streamed."""
        return {"created": int(time.time()), **self._common, "data": self.records(painted), "usage": NO_TOKENS}

    def records(self, painted: PaintedEdit) -> list[Record]:
        """Returns the images that were asked for, with reward and bound; best first if samples are ranked."""
        scores: Sequence[SampleScore | None] = painted.scores or [None] * len(painted.samples)
        samples = list(zip(painted.samples, scores, strict=True))
        if self._edit.asked.best_of is not None:
            samples.sort(key=lambda sample: -math.inf if sample[1] is None else rank_of(sample[1]), reverse=True)
        chosen = samples[: self._edit.asked.n]
        return [self._record(sample) | ({} if score is None else score._asdict()) for sample, score in chosen]

    def events(self, painted: EditProgress | PaintedEdit) -> list[bytes]:
        """Returns server-sent events under OpenAI's names."""
        return list(self._events(painted))

    def _events(self, painted: EditProgress | PaintedEdit) -> Iterator[bytes]:
        common = {"created_at": int(time.time()), "background": "opaque", "quality": "auto", **self._common}
        if isinstance(painted, EditProgress):
            for sample_index, sample in enumerate(painted.samples[: self._edit.asked.n]):
                place = {"partial_image_index": painted.index, "sample_index": sample_index}
                yield to_event("image_edit.partial_image", {**self._record(sample), **place, **common})
        else:
            for record in self.records(painted):
                yield to_event("image_edit.completed", {**record, **common, "usage": NO_TOKENS})

    def _record(self, sample: Canvas) -> Record:
        asked = self._edit.asked
        data = self._encode(put_back(self._edit.canvas, self._edit.region, sample))
        if asked.response_format == "url" and self._store is not None:
            return {"url": self._files_url + self._store.put(data, asked.output_format)}
        return {"b64_json": base64.b64encode(data).decode()}

    def _encode(self, image: Image.Image) -> bytes:
        asked = self._edit.asked
        if image.size != self.size:
            image = image.resize(self.size, Image.Resampling.LANCZOS)
        if asked.output_format == "png":
            return encode_png(image)
        buffer = io.BytesIO()
        if asked.output_format == "jpeg" and image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        image.save(buffer, format=asked.output_format, quality=asked.output_compression)
        return buffer.getvalue()


def to_event(kind: str, record: Record) -> bytes:
    """Returns one server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **record})}\n\n".encode()


def rank_of(score: SampleScore) -> float:
    """Returns the lower end of the bound, or the reward itself if it has no finite bound."""
    known = [value for value in (score.lower, score.reward) if value is not None]
    return known[0] if known else -math.inf


def to_timing(painted: PaintedEdit) -> str:
    """Returns the header `server-timing`; tiles that were painted at the same time are added up."""
    queued, denoised = (sum(getattr(job, name) for job in painted.jobs) for name in ("queued_s", "denoised_s"))
    return f"queue;dur={1000 * queued:.1f}, denoise;dur={1000 * denoised:.1f}"

"""One edit between its request and its answer: what was asked, checked, by whom it is painted, what is told of it."""

import logging
import random

from rlhf.diffusion.tiles import Box, Canvas, plan_passes, surround
from rlhf.promotion.catalogue import ServedName, ServedPolicy
from serve.api.api_errors import ApiError
from serve.api.edit_request import EditRequest, ReceivedEdit
from serve.api.painting import Painted
from serve.api.uploads import read_upload
from serve.engine.jobs import Job, Served

logger = logging.getLogger("ray.serve")
Chosen = tuple[str, ServedName, ServedPolicy]
"""A model's name, what is served under it, and the policy that answers."""


class Edit:
    """One request that was read and found sound: what is to be painted, by whom, and how it is answered."""

    def __init__(self, asked: EditRequest, upload: Canvas, chosen: Chosen, served: Served) -> None:
        self.asked, self.upload, self.served = asked, upload, served
        self.name, self.base, self.policy = chosen[0], chosen[1].base, chosen[2]
        self.seed = random.randrange(2**31) if asked.seed is None else asked.seed
        self.passes: list[list[Box]] = plan_passes(upload.hole, served.native_px)
        self.region = surround([box for boxes in self.passes for box in boxes])
        self.headers = {
            "x-policy-version": self.policy.version,
            "x-seed": str(self.seed),
            "x-model": self.name,
            "cache-control": "no-store",
        }

    def job(self) -> Job:
        """What is wanted of the whole; its squares are put in one by one."""
        asked = self.asked
        return Job(
            policy=self.policy,
            image=self.upload.rgb[:0],
            hole=self.upload.hole[:0],
            sample_indices=tuple(range(asked.best_of or asked.n)),
            seed=self.seed,
            num_inference_steps=asked.num_inference_steps,
            prompt=asked.prompt,
            guidance_scale=asked.guidance_scale,
            partial_images=asked.partial_images if asked.stream else 0,
        )


def read_edit(received: ReceivedEdit, chosen: Chosen, served: Served) -> Edit:
    """Decode the pictures; ApiError where they or the size of the answer do not do."""
    asked = received.request
    upload = read_upload(received.image, received.mask, convention=asked.mask_convention, expand=asked.expand)
    asked.answer_size(upload.hole.shape[1], upload.hole.shape[0])
    return Edit(asked, upload, chosen, served)


def refuse_unsafe(painted: Painted) -> None:
    """ApiError where the safety checker flagged a sample."""
    if any(painted.unsafe):
        message = "the model's safety checker refused what was painted; use another seed or hole"
        raise ApiError(message, code="moderation_blocked", status=400)


def to_timing(painted: Painted) -> str:
    """Where the time went, as browsers show it; squares that were painted at once count each."""
    queued, denoised = (sum(getattr(job, name) for job in painted.jobs) for name in ("queued_s", "denoised_s"))
    return f"queue;dur={1000 * queued:.1f}, denoise;dur={1000 * denoised:.1f}"


def log_answer(edit: Edit, painted: Painted, client: str, seconds: float) -> None:
    """One structured line per answered request; Ray Serve adds the request's id."""
    height, width = edit.upload.hole.shape
    fields = {
        "client": client,
        "model": edit.name,
        "policy_version": edit.policy.version,
        "seed": edit.seed,
        "size": f"{width}x{height}",
        "squares": sum(map(len, edit.passes)),
        "samples": len(painted.samples),
        "steps": edit.asked.num_inference_steps,
        "seconds": round(seconds, 4),
        "queued_s": round(sum(job.queued_s for job in painted.jobs), 4),
        "batch_images": round(sum(job.batch_images for job in painted.jobs) / len(painted.jobs), 2),
    }
    logger.info("edit", extra=fields)

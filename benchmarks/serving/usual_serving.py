"""Baseline of the service: a diffusers pipeline behind Ray Serve, one request at a time."""

import asyncio
import io
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from PIL import Image
from ray import serve as ray_serve
from starlette.requests import Request
from starlette.responses import Response


def open_usual_pipeline(folder: str) -> Any:
    """Opens the same model and sampler as ours."""
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call_usual_pipeline(pipeline: Any, image: Image.Image, mask: Image.Image, steps: int, seed: int) -> Image.Image:
    """Paints one image, without the second pass for guidance: the same work as ours."""
    generator = torch.Generator().manual_seed(seed)
    sides = {"height": image.height, "width": image.width}
    options = {"guidance_scale": 1.0, "num_inference_steps": steps, "generator": generator, **sides}
    return pipeline(prompt="", image=image, mask_image=mask, **options).images[0]


@ray_serve.deployment(max_ongoing_requests=64)
class UsualService:
    """One pipeline behind one endpoint."""

    def __init__(self, folder: str) -> None:
        self.pipeline = open_usual_pipeline(folder)
        self.lock = asyncio.Lock()

    async def __call__(self, http: Request) -> Response:
        """Answers a form of image, mask, num_inference_steps and seed with a PNG."""
        async with http.form() as form:
            image = Image.open(io.BytesIO(await form["image"].read())).convert("RGB")  # type: ignore[union-attr]
            alpha = Image.open(io.BytesIO(await form["mask"].read())).getchannel("A")  # type: ignore[union-attr]
            steps, seed = int(str(form["num_inference_steps"])), int(str(form["seed"]))
        mask = alpha.point(lambda level: 255 if level < 128 else 0)
        async with self.lock:
            painted = await asyncio.to_thread(call_usual_pipeline, self.pipeline, image, mask, steps, seed)
        buffer = io.BytesIO()
        Image.composite(painted, image, mask).save(buffer, format="PNG")
        return Response(buffer.getvalue(), media_type="image/png")

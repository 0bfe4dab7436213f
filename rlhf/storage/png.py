"""Images as PNG; PyTorch is not needed."""

import io

from PIL import Image


def encode_png(image: Image.Image) -> bytes:
    """Returns the image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()

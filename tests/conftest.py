"""Settings before any import, and the folder of real photographs."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of photographs and models that do not come with the package."""
    value = os.environ.get("PREFPAINT_TEST_DATA")
    if not value:
        pytest.skip("PREFPAINT_TEST_DATA is not set: name the folder of test data")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"PREFPAINT_TEST_DATA={value} is no folder")
    return folder


@pytest.fixture(scope="session")
def small_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random StableDiffusionInpaintPipeline folder for 32x32."""
    from small_parts import save_small_pipeline

    return save_small_pipeline(tmp_path_factory.mktemp("small") / "pipeline")


@pytest.fixture(scope="session")
def small_xl_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random StableDiffusionXLInpaintPipeline folder for 32x32."""
    from small_parts import save_small_xl_pipeline

    return save_small_xl_pipeline(tmp_path_factory.mktemp("small_xl") / "pipeline")

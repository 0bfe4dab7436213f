"""Settings before any import, and the folder of real photographs."""

import os
import random
import shutil
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# For the commands that tests start: both halves of `make test` run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    """A test that draws without a seed draws the same in every run and in every order of the tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


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
def _process_group_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for the whole session: DeepSpeed holds on to the first."""
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def process_group(_process_group_of_all: None) -> Iterator[None]:
    """This process is the only rank; what DeepSpeed writes into the environment is gone afterwards."""
    yield
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, of this machine or Playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
        path = next((p for p in found if p), playwright.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("no browser: python -m playwright install --with-deps chromium")
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose own errors fail the test."""
    from playwright.sync_api import expect

    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    failures: list[str] = []
    opened.on("pageerror", lambda error: failures.append(str(error)))
    opened.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    yield opened
    context.close()
    assert failures == []


@pytest.fixture
def service() -> Iterator[Any]:
    """A service of image edits without a model, with its page."""
    from small_edit_service import run_small_service

    with run_small_service() as running:
        yield running

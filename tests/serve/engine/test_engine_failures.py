"""The engine when a policy is broken or a step fails."""

import asyncio
from pathlib import Path

import pytest
from small_engine import answer, job_of, new_engine
from small_parts import save_moved_policy

from rlhf.errors import UserError
from rlhf.promotion.catalogue import describe_policy
from serve.engine.jobs import Inpainted


def test_truncated_adapter_weights_are_named(small_pipeline: Path, tmp_path: Path):
    folder = save_moved_policy(small_pipeline, tmp_path / "policy", version=1)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="policy: does not load"):
        asyncio.run(answer(new_engine(small_pipeline), job_of(policy=describe_policy(folder))))


def test_a_step_that_fails_fails_its_batch_and_the_engine_goes_on(
    small_pipeline: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = new_engine(small_pipeline)

    async def fail_then_work() -> tuple[object, Inpainted]:
        with monkeypatch.context() as patch:
            patch.setattr("serve.engine.engine.advance", lambda shelf, running: 1 / 0)
            failed = (await asyncio.gather(answer(engine, job_of()), return_exceptions=True))[0]
        return failed, await answer(engine, job_of())

    failed, done = asyncio.run(fail_then_work())
    assert isinstance(failed, ZeroDivisionError)
    assert isinstance(done, Inpainted)

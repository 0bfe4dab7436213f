from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fake_gpu import fake_gpu, on_host, start_on_fake_gpu
from small_learner import align_config, batches, sampler_policy

from rlhf.alignment.collectives import any_over_ranks, max_over_ranks, process_ranks
from rlhf.errors import UserError


@pytest.mark.ray
def test_two_ranks_train_in_a_group_that_serves_the_gpu_alone(small_pipeline: Path, tmp_path: Path) -> None:
    mp.spawn(_train_a_rank, args=(str(small_pipeline), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _train_a_rank(rank: int, pipeline: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = align_config(Path(pipeline))
    learner = start_on_fake_gpu(Path(pipeline), config)
    share = batches(sampler_policy(Path(pipeline), config, learner.weights()), config, update=rank)
    with fake_gpu():
        learner.train([on_host(batch) for batch in share])
        assert any_over_ranks(rank == 1)
        assert max_over_ranks([float(rank), -float(rank)]) == [1.0, 0.0]
        with pytest.raises(UserError, match="disk: rank 1 has no room"):
            _fail_together(rank)
    torch.save(learner.weights(), Path(folder) / f"rank-{rank}.pt")


def _fail_together(rank: int) -> None:
    with process_ranks().agreed():
        if rank == 1:
            raise UserError("disk: rank 1 has no room")

"""The frozen network in bfloat16 gives the numbers of autocast in half the memory; what is trained is float32."""

from pathlib import Path

import pytest
import torch
from small_families import small_fill_pipeline, small_sd3_pipeline
from small_learner import align_config, batches
from small_parts import save_moved_policy, small_config

from rlhf.alignment.learner import Learner
from rlhf.config.devices import resolve_precision
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.pipeline_folder import Part
from rlhf.diffusion.policy import Policy, export_policy, keeps_merged, load_policy, make_trainable
from rlhf.diffusion.precision import error_bound, hold_frozen
from rlhf.diffusion.probe import probe_log_prob
from rlhf.diffusion.trained_weights import load_trainable_state
from rlhf.errors import UserError

FAMILIES = ["stable_diffusion", "flux", "stable_diffusion_3"]


@pytest.fixture(scope="module")
def folders(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    small_fill_pipeline().save_pretrained(root / "flux")
    small_sd3_pipeline(in_channels=33).save_pretrained(root / "sd3")
    return {"stable_diffusion": small_pipeline, "flux": root / "flux", "stable_diffusion_3": root / "sd3"}


def bf16(path: Path) -> ModelConfig:
    return ModelConfig(path=str(path), precision="bf16")


def predict(policy: Policy) -> torch.Tensor:
    family, generator = policy.family, torch.Generator().manual_seed(0)
    shape = (2, *family.latent_shape(8, 8))
    latents, masked = (torch.randn(shape, generator=generator) for _ in range(2))
    condition = family.join_condition(torch.ones(2, 1, 8, 8), masked)
    with torch.no_grad():
        return policy.predict(latents, torch.tensor([500.0, 30.0]), condition)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_held_in_bf16_predicts_to_the_bit_what_autocast_predicts(folders: dict[str, Path], name: str) -> None:
    rounded = load_policy(bf16(folders[name]))
    as_float = load_policy(bf16(folders[name]), is_trained_whole=True)
    assert all(p.dtype == torch.float32 for p in as_float.network.parameters())
    sizes = [sum(p.nbytes for p in policy.network.parameters()) for policy in (rounded, as_float)]
    assert sizes[0] < 0.55 * sizes[1]
    output = predict(rounded)
    assert output.dtype == torch.float32
    assert torch.equal(output, predict(as_float))
    assert not torch.equal(output, predict(load_policy(ModelConfig(path=str(folders[name]), precision="fp32"))))


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("name", "algorithm"), [*((name, "grpo") for name in FAMILIES), ("stable_diffusion", "nft")])
def test_in_bf16_ratios_begin_at_one_and_trained_tensors_are_float32(
    folders: dict[str, Path], name: str, algorithm: str
) -> None:
    changes = {"algorithm": algorithm, "lora_targets": None if name != "stable_diffusion" else ("to_q", "conv1")}
    config = align_config(folders[name], **changes)
    learner = Learner(load_policy(bf16(folders[name])), config, micro_batches=4, seed=0)
    sampler = load_policy(bf16(folders[name]))
    make_trainable(sampler, "lora", rank=config.lora_rank, targets=config.lora_targets, seed=99)
    for update in range(2):
        load_trainable_state(sampler.network, learner.acting_weights())
        with learner.acting() as acting:
            assert probe_log_prob(acting, config) == probe_log_prob(sampler, config)
        metrics = learner.train(batches(sampler, config, update))
        assert metrics["ratio_error" if algorithm == "grpo" else "prediction_error"] == 0.0
    assert metrics["kl_to_base"] > 0, "the first update has moved the policy"
    trained = [p for p in learner.policy.network.parameters() if p.requires_grad]
    moments = [m for state in learner.engine.optimizer.state.values() for m in state.values() if m.dim() > 0]
    assert {t.dtype for t in (*trained, *moments, *learner.averaged.values())} == {torch.float32}
    frozen = [p for p in learner.policy.network.parameters() if not p.requires_grad and p.dim() > 1]
    assert {p.dtype for p in frozen} <= {torch.bfloat16, torch.float32}
    assert sum(p.numel() for p in frozen if p.dtype == torch.bfloat16) > 0.9 * sum(p.numel() for p in frozen)


def test_bf16_is_the_default_on_a_gpu_alone() -> None:
    assert [resolve_precision("auto", torch.device(kind)) for kind in ("cuda", "cpu")] == ["bf16", "fp32"]
    assert [resolve_precision(choice, torch.device("cuda")) for choice in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_each_precision_has_its_bound_unless_one_is_set(small_pipeline: Path) -> None:
    config = align_config(small_pipeline)
    assert error_bound(config, "fp32") < error_bound(config, "bf16") < config.clip_range
    assert error_bound(config, "bf16", "prediction_error") > error_bound(config, "bf16")
    assert error_bound(align_config(small_pipeline, max_ratio_error=0.5), "bf16") == 0.5


def test_a_policy_is_merged_in_float32_before_it_is_rounded_and_exported_unrounded(
    small_pipeline: Path, tmp_path: Path
) -> None:
    adapter = save_moved_policy(small_pipeline, tmp_path / "policy", version=1)
    exact = load_policy(ModelConfig(path=str(small_pipeline)), adapter)
    hold_frozen(exact.network, "bf16")
    merged = load_policy(bf16(small_pipeline), adapter).network.state_dict()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in exact.network.state_dict().items())
    exported = load_policy(ModelConfig(path=str(export_policy(bf16(small_pipeline), adapter, tmp_path / "whole"))))
    assert all(p.dtype == torch.float32 for p in exported.network.parameters())
    plain = load_policy(ModelConfig(path=str(small_pipeline)), adapter)
    assert torch.equal(predict(exported), predict(plain))


def test_no_merged_copy_is_kept_in_bf16_or_where_it_does_not_fit(
    small_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, rounded = load_policy(small_config(small_pipeline).model), load_policy(bf16(small_pipeline))
    size = sum(p.nbytes for p in policy.network.parameters())
    for free, fits in ((4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr("rlhf.diffusion.policy.free_bytes", lambda _device, free=free: free)
        assert keeps_merged(policy, "auto") is fits
        assert keeps_merged(policy, True)
        assert not keeps_merged(policy, False)
    assert not keeps_merged(rounded, "auto")
    with pytest.raises(UserError, match=r"merged_sampling: in bf16 .*; use auto or false"):
        keeps_merged(rounded, True)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_role_holds_the_parts_that_it_asks_for_and_no_byte_more(folders: dict[str, Path], name: str) -> None:
    config = ModelConfig(path=str(folders[name]))
    whole = load_policy(config)
    network, vae = bytes_of(whole.network), bytes_of(whole.family.pipeline.vae)
    for parts, expected in (({Part.NETWORK}, network), ({Part.NETWORK, Part.VAE}, network + vae)):
        policy = load_policy(config, parts=parts)
        components = policy.family.pipeline.components.values()
        assert sum(bytes_of(part) for part in components if isinstance(part, torch.nn.Module)) == expected
        assert torch.equal(policy.text.embedding, whole.text.embedding)
        assert policy.native_px == whole.native_px
        assert torch.equal(predict(policy), predict(whole))


def bytes_of(network: torch.nn.Module) -> int:
    """Bytes of a network's tensors, those on the meta device left out."""
    tensors = (*network.parameters(), *network.buffers())
    return sum(t.nbytes for t in tensors if t.device.type != "meta")

"""Helpers that several tests share, of study_config."""

from rlhf.config.run_config import RewardConfig

CONFIG = RewardConfig(feature_dim=12, epochs=4, micro_batch_size=64, decorrelation=1.0)

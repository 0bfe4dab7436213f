"""What a newer version of the program wrote is refused, with the file's name; what an older one wrote is read."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_parts import save_small_reward, small_prompts, write_prompts

from rlhf.config.config_files import dump_config, load_config
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import load_prompts
from rlhf.diffusion.policy_manifest import read_manifest
from rlhf.errors import UserError
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.workflows.run_report import write_report


def test_a_table_says_its_version_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    path = write_prompts(small_prompts(2), tmp_path) / "prompts.parquet"
    table = pq.read_table(path)
    assert table.schema.metadata[b"prefpaint_schema_version"] == b"1"
    pq.write_table(table.replace_schema_metadata({"prefpaint_schema_version": "2"}), path)
    with pytest.raises(UserError, match=r"prompts.parquet: has schema 2, but this version reads up to 1; install"):
        load_prompts(tmp_path)
    pq.write_table(table.replace_schema_metadata(None), path)
    assert len(load_prompts(tmp_path)) == 2


def test_a_saved_configuration_says_its_version_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(RunConfig(seed=3)))
    assert path.read_text().startswith("schema_version: 1\n")
    assert load_config(path).seed == 3
    path.write_text("schema_version: 2\nseed: 3\n")
    with pytest.raises(UserError, match=r"config.yaml: has schema 2"):
        load_config(path)


def test_a_newer_policy_reward_or_evaluation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(UserError, match=r"manifest.json: has schema 2"):
        read_manifest(tmp_path)
    record = json.loads((save_small_reward(tmp_path / "reward") / "reward.json").read_text())
    (tmp_path / "reward" / "reward.json").write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(UserError, match=r"reward.json: has schema 99"):
        load_reward(tmp_path / "reward")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(UserError, match=r"summary.json: has schema 2"):
        write_report(tmp_path)

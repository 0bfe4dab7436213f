import os
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from s3_server import refuse_everyone, run_s3_server
from small_annotations import make_world, write_world
from small_parts import save_small_reward, small_prompts, write_prompts

from rlhf.config.run_config import ModelConfig
from rlhf.data.augmentation import PLAIN
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.descriptions import DescriptionCache, describe
from rlhf.data.pictures import Pictures
from rlhf.data.prompts import PromptTable, load_prompts
from rlhf.diffusion.families.family import TextEmbedding
from rlhf.diffusion.families.text_cache import TextCache, key_of
from rlhf.diffusion.policy import load_policy, make_trainable
from rlhf.diffusion.policy_manifest import drop_policies, list_policies
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.errors import UserError
from rlhf.reports.metrics_log import MetricsLog, read_metrics
from rlhf.rewards.learned.feature_network import SmallBackbone
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.storage.atomic_files import atomic_path, atomic_write_text, remove_folder
from rlhf.storage.tables import PROMPTS, stream_table
from rlhf.storage.url_path import UrlPath, as_path, local_copy


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with run_s3_server() as address:
        yield address


@pytest.fixture
def folder(s3: str, request: pytest.FixtureRequest) -> Path:
    return as_path(f"s3://runs/{request.node.name}")


def test_a_url_is_a_path_that_keeps_its_options_and_crosses_processes() -> None:
    run = as_path("s3://bucket/runs/one?endpoint_override=http://127.0.0.1:9&region=eu-west-1")
    policy = run / "align" / "policy-000001"
    assert (
        str(policy) == "s3://bucket/runs/one/align/policy-000001?endpoint_override=http://127.0.0.1:9&region=eu-west-1"
    )
    assert isinstance(policy, Path)
    assert policy.parent.parent == run == as_path(str(run)) == pickle.loads(pickle.dumps(run))
    assert str(policy.relative_to(run)) == "align/policy-000001"
    assert policy.filesystem.region == "eu-west-1"
    assert policy.key == "bucket/runs/one/align/policy-000001"


def test_local_paths_stay_plain_paths() -> None:
    for text, meant in (("runs/a", "runs/a"), ("/nfs/runs", "/nfs/runs"), ("file:///nfs/a%20b", "/nfs/a b")):
        assert as_path(text) == Path(meant)
        assert not isinstance(as_path(text), UrlPath)


def test_a_library_that_wants_a_file_of_this_machine_fails_at_once() -> None:
    with pytest.raises(TypeError, match="local_copy"):
        torch.load(as_path("s3://bucket/training.pt"))


def test_a_file_is_written_whole_or_not_at_all(folder: Path) -> None:
    atomic_write_text(folder / "a.json", "first")

    def break_off() -> None:
        with atomic_path(folder / "a.json") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert (folder / "a.json").read_text() == "first"
    assert [path.name for path in folder.iterdir()] == ["a.json"]


def test_folders_are_listed_part_by_part(folder: Path) -> None:
    for name in ("policy-1/manifest.json", "policy-2/unet/config.json", "grids/a.png", "b.png"):
        atomic_write_text(folder / name, "x")
    assert sorted(p.name for p in folder.glob("policy-*")) == ["policy-1", "policy-2"]
    assert [p.name for p in folder.glob("*.png")] == ["b.png"]
    assert list(folder.glob("*/*.png")) == [folder / "grids" / "a.png"]
    assert (folder / "grids").is_dir()
    assert not (folder / "grids").is_file()
    assert not (folder / "nowhere").exists()
    assert list((folder / "nowhere").glob("*")) == []
    with local_copy(folder) as local:
        assert (local / "policy-2" / "unet" / "config.json").read_text() == "x"
    assert not local.exists()
    remove_folder(folder / "policy-1")
    assert not (folder / "policy-1").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "nowhere").read_text()


def test_prompts_come_back_from_a_url_as_from_a_folder(folder: Path, tmp_path: Path) -> None:
    write_prompts(small_prompts(4), folder)
    write_prompts(small_prompts(4), tmp_path)
    for ours, theirs in zip(load_prompts(folder), load_prompts(tmp_path), strict=True):
        assert ours.prompt_id == theirs.prompt_id
        assert torch.equal(ours.image, theirs.image)


def test_pictures_at_a_url_are_described_as_local_ones_and_found_again(folder: Path, tmp_path: Path) -> None:
    found = []
    for place in (folder, tmp_path):
        world = make_world(3)
        write_world(place, *world)
        prompts = PromptTable(place / "prompts")
        pictures, backbone = Pictures(prompts, CandidateTable(place / "candidates", prompts)), SmallBackbone()
        keys = list(world[1])
        for _ in range(2):  # The second time from the cache, which is at the URL, too.
            cache = DescriptionCache(place / "pictures", backbone)
            found.append(describe(backbone, pictures, {PLAIN: keys}, cache=cache).of(keys))
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert len(list((folder / "pictures").glob("*.safetensors"))) == 1


def test_embeddings_of_captions_at_a_url_are_those_of_a_local_cache(folder: Path, tmp_path: Path) -> None:
    text = TextEmbedding(embedding=torch.rand(1, 3, 4), pooled=torch.rand(1, 4), mask=torch.ones(1, 3).bool())
    for place in (folder, tmp_path):
        cache = TextCache.open(place / "texts", "model", {"files": "some"})
        assert cache.keys() == set()
        cache.write(key_of("a cat"), text)
        assert cache.keys() == {key_of("a cat")}
        found = cache.read("a cat")
        assert all(torch.equal(tensor, text.tensors()[name]) for name, tensor in found.tensors().items())
        with pytest.raises(UserError, match="no embedding of ''"):
            cache.read("")


def test_a_table_at_a_url_is_read_a_row_group_at_a_time(folder: Path) -> None:
    write_prompts(small_prompts(250), folder)
    rows = stream_table(folder, PROMPTS)
    assert next(rows)["prompt_id"] == "p0"
    assert len(list(rows)) == 249


def test_a_reward_scores_the_same_from_a_url(folder: Path, tmp_path: Path) -> None:
    save_small_reward(folder)
    prompts = small_prompts(3)
    images, masks = torch.stack([p.image for p in prompts]), torch.stack([p.mask for p in prompts])
    ours, theirs = (load_reward(place).score(images, masks) for place in (folder, save_small_reward(tmp_path)))
    assert torch.equal(ours.reward, theirs.reward)


def test_policies_at_a_url_load_and_older_ones_are_dropped(folder: Path, small_pipeline: Path) -> None:
    config = ModelConfig(path=str(small_pipeline))
    policy = load_policy(config)
    make_trainable(policy, "lora", rank=2, targets=("to_q",), seed=0)
    state = {name: tensor + 0.1 for name, tensor in trainable_state(policy.network).items()}
    for version in (1, 2, 3):
        place = folder / f"policy-{version:06d}"
        save_policy(policy.family, state, place, version=version, trainable="lora", base=config.path)
    drop_policies(folder, None)
    assert len(list_policies(folder)) == 3
    drop_policies(folder, 1)
    assert [path.name for path in list_policies(folder)] == ["policy-000003"]
    assert load_policy(config, folder / "policy-000003").version == 3
    (folder / "policy-000003" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no complete policy"):
        list_policies(folder)


def test_metrics_and_events_go_on_at_a_url(folder: Path) -> None:
    log = MetricsLog(folder, first_update=0)
    for update in (1, 2, 3):
        log.write({"update": update, "reward": 0.5})
    MetricsLog(folder, first_update=2).write({"update": 3, "reward": 0.7})
    assert [line["reward"] for line in read_metrics(folder)] == [0.5, 0.5, 0.7]
    assert len(list(folder.glob("tensorboard/events*"))) == 2


def test_what_fsspec_opens_is_a_place_too() -> None:
    folder = as_path("memory://place/folder")
    atomic_write_text(folder / "a.json", "text")
    assert (folder / "a.json").read_text() == "text"
    assert [path.name for path in folder.glob("*")] == ["a.json"]
    assert fsspec.filesystem("memory").exists("/place/folder/a.json")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/a", "keep keys out of URLs"),
        ("s3:///a", "names no place"),
        ("nonsense://bucket/a", "s3://, gs://"),
        ("s3://bucket/a?regoin=x", "regoin"),
        ("s3://no-such-bucket/a", "no such bucket"),
    ],
)
def test_urls_that_cannot_be_used_are_explained(s3: str, url: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        atomic_write_text(as_path(url) / "a.json", "x")


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_not_there_or_silent_is_told(answers: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()
        url = f"s3://bucket/a?region=x&scheme=http&endpoint_override=http://127.0.0.1:{server.getsockname()[1]}"
        told: list[UserError] = []

        def look() -> None:
            try:
                as_path(url).is_file()
            except UserError as error:
                told.append(error)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(timeout=60)
        assert ["does not answer" in str(error) for error in told] == [True]


def test_a_bucket_without_permission_is_told_with_the_remedy() -> None:
    with run_s3_server() as address:
        place = as_path(f"s3://runs/a?endpoint_override={address}&scheme=http")
        atomic_write_text(place / "config.yaml", "x")
        refuse_everyone(address)
        for attempt in (
            lambda: (place / "config.yaml").read_text(),
            lambda: atomic_write_text(place / "config.yaml", "y"),
            lambda: list(place.glob("*")),
            lambda: load_reward(place),
        ):
            with pytest.raises(UserError, match=r"s3://runs/a.*permission denied.*AWS_ACCESS_KEY_ID"):
                attempt()
    assert "AWS_ENDPOINT_URL" not in os.environ or os.environ["AWS_ENDPOINT_URL"] != address

"""The run configuration: files, overrides, and messages that say what to change."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from actors.session.ray_session import check_address
from rlhf.commands.options import resolve_config
from rlhf.config.config_files import dump_config, find_run_file, find_unused, load_config
from rlhf.config.run_config import AlignConfig, RunConfig
from rlhf.errors import UserError

RUNS = Path(__file__).parents[3] / "cluster" / "runs"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_no_file_and_no_override_is_the_default() -> None:
    assert load_config() == RunConfig()


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "seed: 7\nalign:\n  updates: 3\n  lora_targets: [to_q]\n"))
    assert (config.seed, config.align.updates, config.align.lora_targets) == (7, 3, ("to_q",))
    assert config.align.model_copy(update={"updates": 30, "lora_targets": None}) == AlignConfig()
    assert config.reward == RunConfig().reward


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == RunConfig()


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "align:\n  updates: 3\n  epochs_per_update: 2\n")
    config = load_config(file, ("align.updates=5", "align.learning_rate=3e-4", "model.path=some/folder", "seed=1"))
    assert (config.align.updates, config.align.epochs_per_update) == (5, 2)
    assert config.align.learning_rate == 3e-4
    assert (config.model.path, config.seed) == ("some/folder", 1)
    assert load_config(None, ("candidates.eta=[0.0, 0.5]", "align.trust=false")).candidates.eta == (0.0, 0.5)
    assert load_config(None, ("align.updates=2", "align.updates=9")).align.updates == 9


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("align.learning_rat", "align.learning_rate"),
        ("align.prompts_per_updates", "align.prompts_per_update"),
        ("aligns", "align"),
        ("reward.lambda_ridge", "reward.ridge"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(key: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, (f"{key}=1",))
    assert f"{key}: unknown key; did you mean {nearest}?" in str(caught.value)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.yaml:2: align\.udpates: unknown key; did you mean align\.updates\?"):
        load_config(write(tmp_path, "align:\n  udpates: 3\n"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seed: 1\nalign:\n  updates: 3\n  eta: 7\n", "run.yaml:4: align.eta: "),
        ("align: {updates: 3,\n  learning_rate: fast}\n", "run.yaml:2: align.learning_rate: "),
        ("rewards:\n- {kind: seam}\n- kind: seam\n  weight: heavy\n", "run.yaml:4: rewards.1.weight: "),
        ("seed: 1\n\nalign: 3\n", "run.yaml:3: align: "),
        ("seed: 1\nalign: [\n", "run.yaml:3: not a readable YAML file"),
        ("seed: 1\nalign: {a: *b}\n", "run.yaml:2: not a readable YAML file"),
    ],
)
def test_a_wrong_value_in_a_file_is_told_with_its_line(text: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text))
    assert f"{tmp_path}/{place}" in str(caught.value)


def test_a_wrong_override_is_told_in_place_of_the_files_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^--set align.eta=7: align.eta: "):
        load_config(write(tmp_path, "align:\n  eta: 0.5\n"), ("align.eta=0.2", "align.eta=7"))


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, ("align.updates=0", "model.device=tpu", "seeed=1"))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.updates", "write section.key=value"),
        ("seed.x=1", "seed"),
        ("align.updates=[1", "not YAML"),
        ("align=3", "align: "),
        ("align.updates=0", "align.updates: .*greater than or equal to 1"),
        ("align.updates=many", "align.updates: .*integer"),
        ("align.eta=0", "align.eta: .*greater than 0"),
        ("align.zero_stage=4", "align.zero_stage: .*less than or equal to 3"),
        ("model.device=tpu", "model.device: .*'auto', 'cpu' or 'cuda'"),
        ("reward.coverage=1", "reward.coverage: .*less than 1"),
        ("prompts.holes=[round]", r"prompts\.holes"),
    ],
)
def test_a_bad_override_is_a_user_error_that_names_it(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, (override,))


@pytest.mark.parametrize("value", [".nan", "nan", ".inf", "-.inf"])
def test_numbers_that_are_not_finite_are_refused(value: str) -> None:
    for key in ("align.learning_rate", "align.kl_weight", "reward.trust_b"):
        with pytest.raises(UserError, match=key):
            load_config(None, (f"{key}={value}",))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("align.micro_batch_size=12",), "micro_batch_size 12 is not a multiple of samples_per_prompt 8"),
        (("align.prompts_per_update=3",), "prompts_per_update x samples_per_prompt = 24 .*micro_batch_size 16"),
        (("cluster.learners=3",), "an update has 4 micro-batches, which 3 learners cannot share evenly"),
        (("align.window_range=11",), "window_size <= window_range <= num_inference_steps"),
        (("align.window_size=7",), "window_size <= window_range <= num_inference_steps"),
        (
            ("align.algorithm=prefpaint", "align.trained_steps=10"),
            "trained_steps must be less than num_inference_steps",
        ),
        (("align.algorithm=nft", "align.num_inference_steps=4"), "trained_steps exceeds num_inference_steps"),
        (("align.algorithm=awm", "align.trained_range=4"), "trained_steps <= trained_range <= num_inference_steps"),
        (("align.algorithm=dpo", "align.trained_range=11"), "trained_steps <= trained_range <= num_inference_steps"),
        (("align.algorithm=mixgrpo", "align.num_inference_steps=4"), "window_size <= window_range"),
        (("align.samples_per_prompt=1", "align.micro_batch_size=8"), "samples_per_prompt must be 2 or more"),
    ],
)
def test_batch_arithmetic_is_checked_with_the_numbers(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize("file", sorted(RUNS.glob("*.yaml")), ids=lambda file: file.stem)
def test_run_files_take_fewer_steps_whatever_other_algorithms_would_need(file: Path) -> None:
    own = {"prefpaint": "align.trained_steps=2", "nft": "align.trained_steps=3", "awm": "align.trained_steps=3"}
    algorithm = load_config(file).align.algorithm
    config = load_config(file, ("align.num_inference_steps=3", own.get(algorithm, "align.window_range=2")))
    assert config.align.num_inference_steps == 3


@pytest.mark.parametrize(
    ("algorithm", "unused"),
    [
        ("grpo", {"steps_share", "trained_steps", "trained_range", "nft_beta", "old_decay_rate", "old_decay_max"}),
        ("guard", {"steps_share", "trained_steps", "trained_range", "nft_beta", "old_decay_rate", "old_decay_max"}),
        ("awm", {"window_size", "window_range", "steps_share", "nft_beta", "old_decay_rate", "old_decay_max"}),
        ("mixgrpo", {"trained_steps", "trained_range", "nft_beta", "old_decay_rate", "old_decay_max"}),
        (
            "prefpaint",
            {
                "window_size",
                "window_range",
                "steps_share",
                "trained_range",
                "nft_beta",
                "old_decay_rate",
                "old_decay_max",
            },
        ),
        ("nft", {"window_size", "window_range", "steps_share", "clip_range"}),
    ],
)
def test_an_override_that_the_algorithm_does_not_use_is_told(algorithm: str, unused: set[str]) -> None:
    config = load_config(None, (f"align.algorithm={algorithm}",))
    overrides = [f"align.{name}=1" for name in AlignConfig.model_fields] + ["seed=1", "evaluate.micro_batch_size=2"]
    found = find_unused(config, overrides)
    assert {sentence.split("=")[0].removeprefix("--set align.") for sentence in found} == unused | {"dpo_beta"}
    assert all(f"since {algorithm} does not use it" in sentence for sentence in found)


def test_the_command_line_tells_of_an_override_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["align.algorithm=prefpaint", "align.window_range=2"]
    assert resolve_config(None, overrides).align.window_range == 2
    told = capsys.readouterr().err
    assert told == (
        "warning: --set align.window_range=2: changes nothing, since prefpaint does not use it; "
        "grpo, guard, mixgrpo would\n"
    )


def test_batch_arithmetic_that_fits_is_taken() -> None:
    config = load_config(None, ("align.prompts_per_update=6", "cluster.learners=3"))
    assert (config.align.prompts_per_update, config.cluster.learners) == (6, 3)


UNUSABLE = ("prompts.crop_scale=[0.5, 1.5]", "prompts.crop_scale=[0.9, 0.4]", "prompts.holes=[]", "candidates.eta=[]")


@pytest.mark.parametrize("override", [*UNUSABLE, "candidates.num_inference_steps=[]", "seed=-1"])
def test_values_that_no_stage_can_use_are_refused(override: str) -> None:
    with pytest.raises(UserError, match=override.split("=")[0].replace(".", r"\.")):
        load_config(None, (override,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("align: [", "not a readable YAML file"),
        ("- a\n- b\n", "must hold sections"),
        ("just words", "must hold sections"),
        ("align:\n\tupdates: 3\n", "not a readable YAML file"),
    ],
)
def test_files_that_are_no_configuration_are_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"run\.yaml(:\d+)?: {message}"):
        load_config(write(tmp_path, text))


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.yaml"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="binary.yaml"):
        load_config(tmp_path / "binary.yaml")


def test_a_dumped_configuration_loads_as_the_same(tmp_path: Path) -> None:
    config = load_config(None, ("align.learning_rate=1e-5", "candidates.num_inference_steps=[5, 10]", "model.path=x"))
    assert load_config(write(tmp_path, dump_config(config))) == config
    assert config != RunConfig()


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().align.updates = 3  # type: ignore[misc]


def test_every_field_says_what_it_is() -> None:
    for name, field in RunConfig.model_fields.items():
        assert field.description, name
        for key, own in getattr(field.annotation, "model_fields", {}).items():
            assert own.description, f"{name}.{key}"


def test_an_address_where_nothing_answers_is_told_within_seconds() -> None:
    with pytest.raises(UserError, match=r"--address 127\.0\.0\.1:1: nothing answers there"):
        check_address("127.0.0.1:1")
    check_address("auto")
    check_address(None)


def test_a_file_that_says_canary_sets_the_probe(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "cluster:\n  canary_every: 3\n")).cluster.probe_every == 3
    assert "canary" not in dump_config(load_config(None, ("cluster.probe_every=2",)))


def test_a_run_file_is_found_by_name() -> None:
    assert find_run_file("demo").samefile(RUNS / "demo.yaml")
    with pytest.raises(UserError, match="nothing_here"):
        find_run_file("nothing_here")

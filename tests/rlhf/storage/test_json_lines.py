"""Logs of one JSON object per line: a cut end is no damage, everything else names its line."""

import json
import random
from pathlib import Path

import pytest

from actors.telemetry.incidents import Incidents, read_incidents
from rlhf.config.config_files import dump_config, load_config
from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy_manifest import read_manifest
from rlhf.errors import UserError
from rlhf.reports.metrics_log import MetricsLog, read_metrics
from rlhf.storage.atomic_files import read_json_lines


def write_metrics(folder: Path) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"update": n, "reward": 0.5}) + "\n" for n in (1, 2, 3)))
    return path


def test_a_line_that_a_crash_cut_off_is_ignored(tmp_path: Path) -> None:
    path = write_metrics(tmp_path)
    for torn in (b'{"update": 4, "rew', b"\xff", b"\0" * 64):
        path.write_bytes(path.read_bytes() + torn)
        assert [line["update"] for line in read_metrics(tmp_path)] == [1, 2, 3]
        write_metrics(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 64,
        b"\xff\xfe",
        b"[1]",
        b"3",
        b"",
        b'{"update": 2',
        b'{"reward": 0.5}',
        b'{"update": "2"}',
        b'{"update": null}',
        b'{"update": true}',
        b'{"update": 1.5}',
        b"[" * 100_000,
    ],
    ids=lambda line: line[:12].hex(),
)
def test_any_other_damage_is_told_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = write_metrics(tmp_path)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: .*; restore the file, or remove the line"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="line 2"):
        MetricsLog(tmp_path, first_update=2)


def test_a_damaged_incident_is_told_with_its_line(tmp_path: Path) -> None:
    for damaged in ('{"role":\n', '{"role": "sampler"}\n', '{"role": 1, "cause": "died", "detail": ""}\n'):
        (tmp_path / "incidents.jsonl").write_text(damaged)
        with pytest.raises(UserError, match=r"incidents\.jsonl, line 1: "):
            Incidents(tmp_path)


def test_an_incident_after_a_cut_line_does_not_spoil_the_log(tmp_path: Path) -> None:
    Incidents(tmp_path).add("sampler", "died")
    with (tmp_path / "incidents.jsonl").open("a") as file:
        file.write('{"at": 1.0, "ro')
    Incidents(tmp_path).add("scorer", "died")
    assert [line["role"] for line in read_incidents(tmp_path)] == ["sampler", "scorer"]


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "none.jsonl", {}, "") == []


@pytest.mark.parametrize(
    "change",
    [{"policy_version": "3"}, {"policy_version": 1.5}, {"checksum": None}, {"base_model": 3}, {"trainable": ["lora"]}],
)
def test_a_manifest_of_other_types_is_refused_with_the_key(tmp_path: Path, change: dict) -> None:
    good = {"policy_version": 3, "trainable": "lora", "base_model": "tiny", "checksum": "0" * 64}
    (tmp_path / "manifest.json").write_text(json.dumps(good))
    assert read_manifest(tmp_path) == good
    (tmp_path / "manifest.json").write_text(json.dumps(good | change))
    (key,) = change
    with pytest.raises(UserError, match=rf"manifest\.json: lacks a valid {key}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text", ["seed: 2026-13-45", "a: " + "[" * 5000, "? [1]\n: 2", "1: 2", "align: {1: 2}", "a: !!x"]
)
def test_a_configuration_that_yaml_itself_stumbles_over_is_a_user_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml(:\d+)?: "):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("value", ["2026-13-45", "[" * 5000])
def test_an_override_that_yaml_itself_stumbles_over_is_a_user_error(value: str) -> None:
    with pytest.raises(UserError, match="value is not YAML"):
        load_config(None, (f"seed={value}",))


def test_damaged_files_of_a_run_are_read_or_refused_and_never_break(tmp_path: Path) -> None:
    whole = dump_config(RunConfig()).encode()
    manifest = json.dumps(
        {"policy_version": 3, "trainable": "lora", "base_model": "tiny", "checksum": "0" * 64}
    ).encode()
    rng = random.Random(0)  # noqa: S311
    refused = []
    for name, content, read in (
        ("config.yaml", whole, lambda: load_config(tmp_path / "config.yaml")),
        ("manifest.json", manifest, lambda: read_manifest(tmp_path)),
        ("metrics.jsonl", write_metrics(tmp_path).read_bytes(), lambda: read_metrics(tmp_path)),
    ):
        for _ in range(40):
            damaged = bytearray(content)
            for _ in range(rng.randint(1, 6)):
                place = rng.randrange(len(damaged))
                damaged[place : place + rng.choice((0, 1, 40))] = rng.choice(
                    (b"\0" * 20, b"\xff", b"[", b"{", b": ", b"")
                )
            (tmp_path / name).write_bytes(damaged)
            try:
                read()
            except UserError as error:
                refused.append(name in str(error))
    assert len(refused) > 60
    assert all(refused), "every message names its file"

"""The names of a service: which policy answers, and what a damaged file says."""

import json
from pathlib import Path

import pytest

from rlhf.catalogue import Catalogue, ServedName, ServedPolicy, read_catalogue, write_catalogue
from rlhf.errors import UserError

OLD, NEW = (
    ServedPolicy(folder=Path("/a"), version="10-aaaaaaaa"),
    ServedPolicy(folder=Path("/b"), version="20-bbbbbbbb"),
)


def test_a_catalogue_read_again_is_the_one_that_was_written(tmp_path: Path):
    name = ServedName(base="tiny", current=OLD, canary=NEW, canary_share=0.25)
    write_catalogue(Catalogue(models={"aligned": name}), tmp_path / "names.json")
    assert read_catalogue(tmp_path / "names.json").models == {"aligned": name}


def test_the_canary_answers_its_share_and_no_more():
    name = ServedName(base="tiny", current=OLD, canary=NEW, canary_share=0.25)
    assert [name.choose(draw).version for draw in (0.0, 0.2499, 0.25, 0.999)] == [NEW.version] * 2 + [OLD.version] * 2
    assert ServedName(base="tiny", current=OLD, canary=NEW).choose(0.0) == OLD


def test_a_version_is_found_whole_or_by_its_generation():
    name = ServedName(base="tiny", current=NEW, previous=OLD)
    assert (name.find("10-aaaaaaaa"), name.find("20"), name.find("2"), name.find("10-b")) == (OLD, NEW, None, None)


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ("{", "damaged"),
        ([], "models|catalogue|dictionary"),
        ({"schema_version": 9}, "schema 9"),
        ({"models": {"a/b": {"base": "tiny"}}}, "models.a/b"),
        ({"models": {"a": {"base": "tiny", "canary_share": 2}}}, "canary_share"),
    ],
)
def test_a_damaged_catalogue_is_refused_by_name(tmp_path: Path, record: object, named: str):
    file = tmp_path / "names.json"
    file.write_text(record if isinstance(record, str) else json.dumps(record))
    with pytest.raises(UserError, match=rf"names\.json: .*({named})"):
        read_catalogue(file)

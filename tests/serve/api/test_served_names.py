"""The names of a running service: what changes, when, and what does not."""

import asyncio
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.promotion.catalogue import Catalogue, ServedName, ServedPolicy, write_catalogue
from serve.api import served_names
from serve.api.api_errors import ApiError
from serve.api.served_names import ServedNames, choose_policy, find_policy

OLD = ServedPolicy(folder=Path("/old"), version="1-aaaaaaaa")
NEW = ServedPolicy(folder=Path("/new"), version="2-bbbbbbbb")
FIXED = Catalogue(models={"tiny": ServedName(base="tiny")})


def names_of(file: Path | None, *, broken: frozenset[str] = frozenset(), prepared: list[str] | None = None):  # noqa: ANN201
    async def prepare(base: str, policy: ServedPolicy) -> None:
        if prepared is not None:
            prepared.append(policy.version)
        if policy.version in broken:
            raise UserError("does not load")

    return ServedNames(FIXED, file, {"tiny"}, prepare)


def write(file: Path, name: str = "aligned", base: str = "tiny", **fields: object) -> None:
    write_catalogue(Catalogue(models={name: ServedName(base=base, **fields)}), file)


def test_the_canary_answers_its_share_and_no_more():
    name = ServedName(base="tiny", current=OLD, canary=NEW, canary_share=0.25)
    answers = [choose_policy(name, draw) for draw in (0.0, 0.2499, 0.25, 0.999)]
    assert answers == [NEW, NEW, OLD, OLD]
    assert choose_policy(ServedName(base="tiny", current=OLD, canary=NEW), 0.0) == OLD


def test_a_version_is_found_whole_or_by_its_generation():
    old, new = (ServedPolicy(folder=Path("/a"), version=version) for version in ("10-aaaaaaaa", "20-bbbbbbbb"))
    name = ServedName(base="tiny", current=new, previous=old)
    found = [find_policy(name, version) for version in ("10-aaaaaaaa", "20", "2", "10-b")]
    assert found == [old, new, None, None]


async def look_again(names: ServedNames) -> None:
    names._checked = -served_names.REFRESH_S
    await names.refresh()


def test_the_first_look_waits_and_catalogued_names_come_before_those_of_the_start(tmp_path: Path):
    file = tmp_path / "names.json"
    write(file, current=OLD)
    names, prepared = None, []
    names = names_of(file, prepared=prepared)
    asyncio.run(names.refresh())
    assert list(names.names) == ["aligned", "tiny"]
    assert names.choose(None, None)[2] == OLD
    assert prepared == [OLD.version]


def test_a_policy_is_loaded_before_it_answers_and_once(tmp_path: Path):
    file, prepared = tmp_path / "names.json", []
    write(file, current=OLD)
    names = names_of(file, prepared=prepared)
    asyncio.run(look_again(names))
    write(file, current=NEW, previous=OLD)
    asyncio.run(look_again(names))
    write(file, current=OLD)
    asyncio.run(look_again(names))
    assert prepared == [OLD.version, NEW.version]
    assert names.choose("aligned", None)[2] == OLD


@pytest.mark.parametrize("change", ["broken policy", "broken file", "no file", "another base"])
def test_what_cannot_be_taken_up_changes_nothing_and_is_logged_once(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
):
    file = tmp_path / "names.json"
    write(file, current=OLD)
    names = names_of(file, broken=frozenset({NEW.version}))
    asyncio.run(look_again(names))
    if change == "broken policy":
        write(file, current=NEW)
    elif change == "broken file":
        file.write_text("{")
    elif change == "no file":
        file.unlink()
    else:
        write(file, current=NEW, base="other")
    with caplog.at_level("ERROR"):
        asyncio.run(look_again(names))
        asyncio.run(look_again(names))
    assert names.choose("aligned", None)[2] == OLD
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


def test_other_names_go_on_beside_a_broken_one(tmp_path: Path):
    file = tmp_path / "names.json"
    models = {"good": ServedName(base="tiny", current=OLD), "bad": ServedName(base="tiny", current=NEW)}
    write_catalogue(Catalogue(models=models), file)
    names = names_of(file, broken=frozenset({NEW.version}))
    asyncio.run(look_again(names))
    assert list(names.names) == ["good", "tiny"]


def test_a_name_that_is_gone_from_the_catalogue_is_no_longer_served(tmp_path: Path):
    file = tmp_path / "names.json"
    write(file, current=OLD)
    names = names_of(file)
    asyncio.run(look_again(names))
    write(file, name="renamed", current=OLD)
    asyncio.run(look_again(names))
    with pytest.raises(ApiError, match="'renamed', 'tiny'"):
        names.choose("aligned", None)


def test_looks_are_at_most_one_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, looks = tmp_path / "names.json", []
    write(file, current=OLD)
    monkeypatch.setattr(served_names, "read_catalogue", lambda path: looks.append(path) or Catalogue())
    names = names_of(file)

    async def ask_often() -> None:
        for _ in range(100):
            await names.refresh()

    asyncio.run(ask_often())
    assert len(looks) == 1


def test_the_request_after_a_rollback_gets_the_old_policy_and_none_waits_until_a_new_one_is_loaded(tmp_path: Path):
    file = tmp_path / "names.json"
    write(file, current=NEW, previous=OLD)

    async def load(base: str, policy: ServedPolicy) -> None:
        if policy == OLD:
            await asyncio.Event().wait()

    async def ask() -> list[ServedPolicy]:
        names, answers = ServedNames(FIXED, file, {"tiny"}, load), []
        for change in ({"current": NEW}, {"current": ServedPolicy()}, {"current": OLD}):
            write(file, **change)
            names._checked = min(names._checked, 0.0)
            await names.refresh()
            answers.append(names.choose("aligned", None)[2])
        return answers

    assert asyncio.run(ask()) == [NEW, ServedPolicy(), ServedPolicy()]


def test_the_base_of_a_policy_is_found_under_whatever_name_it_is_served():
    """Folders of two models may have one last name, so a base model may be served under a name of the user's."""
    models = {
        "model": ServedName(base="/a/model"),
        "aligned": ServedName(base="/b/model", current=OLD),
        "plain": ServedName(base="/b/model"),
        "alone": ServedName(base="/c/model", current=NEW),
    }
    names = ServedNames(Catalogue(models=models), None, set(), lambda base, policy: None)
    assert {name: names.find_base(model) for name, model in models.items()} == {
        "model": None,
        "aligned": "plain",
        "plain": None,
        "alone": None,
    }

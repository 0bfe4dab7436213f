"""The advice of the driver after a run: the role that needs more workers."""

from actors.telemetry.run_progress import describe_incident, find_role_to_grow


def lines(*, rollout_s: float, train_s: float, sampler: float, scorer: float) -> list[dict[str, float]]:
    """A first update that would mislead, then two of these seconds and busy shares."""
    line = {"rollout_s": rollout_s, "train_s": train_s, "update_s": rollout_s + train_s}
    line |= {"sampler_idle_share": 1 - sampler, "scorer_idle_share": 1 - scorer}
    start = {"rollout_s": 500.0, "train_s": 1.0, "update_s": 501.0, "sampler_idle_share": 0.0, "scorer_idle_share": 0.9}
    return [start, line, line]


def test_busy_samplers_or_scorers_that_the_learner_waits_for_should_be_more() -> None:
    hint = find_role_to_grow(lines(rollout_s=8, train_s=2, sampler=0.97, scorer=0.1))
    assert hint == (
        "samplers were busy 97% of the rollouts while the learner was idle 80% of the time: "
        "more cluster.samplers would pay"
    )
    assert "cluster.scorers" in (find_role_to_grow(lines(rollout_s=8, train_s=2, sampler=0.3, scorer=0.9)) or "")


def test_a_busy_learner_that_the_others_wait_for_should_have_more_ranks() -> None:
    hint = find_role_to_grow(lines(rollout_s=1, train_s=9, sampler=0.9, scorer=0.2))
    assert hint == "the learner was busy 90% of the time while samplers were idle 91%: more cluster.learners would pay"


def test_balanced_runs_and_runs_of_one_update_give_no_hint() -> None:
    assert find_role_to_grow(lines(rollout_s=4, train_s=6, sampler=0.9, scorer=0.5)) is None
    assert find_role_to_grow(lines(rollout_s=8, train_s=2, sampler=0.5, scorer=0.5)) is None
    assert find_role_to_grow(lines(rollout_s=8, train_s=2, sampler=0.9, scorer=0.5)[:1]) is None
    assert find_role_to_grow([]) is None
    replay = {"rollout_s": 1.0, "train_s": 9.0, "update_s": 10.0}
    assert find_role_to_grow([replay] * 3) is None


def test_an_incident_is_told_in_a_line() -> None:
    died = {"role": "sampler", "cause": "died", "detail": "The actor died.\n\tpid: 17\n"}
    assert describe_incident(died) == "align: sampler died and was replaced (The actor died.); see incidents.jsonl"
    assert "no reason is known" in describe_incident(died | {"detail": ""})

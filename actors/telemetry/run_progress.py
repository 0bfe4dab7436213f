"""Shows a run that other processes carry out: a progress bar and warnings."""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from actors.telemetry.incidents import read_incidents
from rlhf.config.run_config import AlignConfig, RunConfig
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.reports.metrics_log import read_metrics
from rlhf.reports.trackers import start_trackers
from rlhf.storage.url_path import UrlPath

POLL_S, POLL_URL_S = 0.5, 5.0
"""Seconds between readings on disk and at a URL, where each reading is a paid request."""
TRACK_S = 5.0
"""Seconds between checks for new metrics to send."""
LAST_SEND_S = 60.0
"""Longest time that the end of a run waits for a service."""
PHRASES = {
    "died": "died and was replaced",
    "raised": "failed and was replaced",
    "weights": "could not prove its weights and was replaced",
    "timeout": "did not answer and was replaced",
    "restarted": "was started again",
    "waiting": "is waited for",
}
"""Causes of incidents in words."""
IDLE = 0.5
BUSY = 0.8
"""Smallest shares of the time for which a role counts as idle or busy."""


@contextmanager
def follow_metrics(out: Path, config: AlignConfig) -> Iterator[None]:
    """Shows a bar that follows `metrics.jsonl`, which the learner writes in another process, and its alarms."""
    is_done = threading.Event()
    thread = threading.Thread(target=_follow, args=(out, config, is_done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


@contextmanager
def track_metrics(out: Path, config: RunConfig) -> Iterator[None]:
    """Sends metrics to the configured services, from the driver, which has the user's keys and terminal.

    The learner never waits for a service, and a service's failure does not reach it.
    """
    trackers = start_trackers(config.logging, out, config.model_dump(mode="json"))
    is_done = threading.Event()

    def track() -> None:
        """Sends new lines every TRACK_S seconds, and once more at the end."""
        is_last = False
        while not is_last:
            is_last = is_done.wait(TRACK_S)
            try:
                lines = read_metrics(out)
            except UserError:  # As in _follow.
                continue
            for tracker in trackers:
                _warn(tracker.send(lines))
        for tracker in trackers:
            _warn(tracker.finish())

    thread = threading.Thread(target=track, daemon=True)
    if trackers:
        thread.start()
    try:
        yield
    finally:
        is_done.set()
        if trackers:
            thread.join(LAST_SEND_S)


def _warn(warning: str | None) -> None:
    if warning is not None:
        print(warning, file=sys.stderr)


def _follow(out: Path, config: AlignConfig, is_done: threading.Event) -> None:
    with progress_bar(stage="align", total=config.updates, initial=len(read_metrics(out))) as bar:
        is_last, seen = False, len(read_incidents(out))
        while not is_last:
            is_last = is_done.wait(POLL_URL_S if isinstance(out, UrlPath) else POLL_S)
            try:
                lines, found = read_metrics(out), read_incidents(out)
            except UserError:  # The storage is out of reach for now; the run itself reports it if that lasts.
                continue
            incidents = [describe_incident(line) for line in found[seen:]]
            for warning in [*incidents, *ood_warnings(lines, bar.n, config.ood_alarm)]:
                bar.write(warning, file=sys.stderr)
            seen = len(found)
            if len(lines) > bar.n:
                figures = lines[-1]
                bar.set_postfix(
                    **{name: f"{figures[name]:.3f}" for name in ("reward", "pair_accuracy") if name in figures},
                    kl=f"{figures['kl_to_base']:.4f}",
                    bottleneck=name_bottleneck(figures),
                    refresh=False,
                )
                bar.update(len(lines) - bar.n)


def describe_incident(line: Mapping[str, str]) -> str:
    """Returns a line of `incidents.jsonl` for the terminal; only the first line of its detail is shown."""
    reason = (line["detail"].strip() or "no reason is known").splitlines()[0]
    cause = PHRASES.get(line["cause"], line["cause"])
    return f"align: {line['role']} {cause} ({reason}); see incidents.jsonl"


def name_bottleneck(figures: Mapping[str, float]) -> str:
    """Returns the bottleneck of an update: the role that was idle least."""
    idle = {"learner": 1 - figures["train_s"] / figures["update_s"]}
    roles = ("sampler", "scorer") if "sampler_idle_share" in figures else ()  # a replay has none
    idle |= {f"{role}s": figures[f"{role}_idle_share"] for role in roles}
    return min(idle, key=lambda role: idle[role])


def find_role_to_grow(lines: Sequence[Mapping[str, float]]) -> str | None:
    """Returns advice on the role that needs more workers; None if none was the bottleneck for most of the time.

    The first update, in which actors start, is left out. The busy share of samplers and scorers refers to rollouts,
    as in the metrics; the learner's refers to whole updates.
    """
    lines = [line for line in lines[1:] if "sampler_idle_share" in line]  # a replay has none
    rollout_s, update_s = (sum(line[name] for line in lines) for name in ("rollout_s", "update_s"))
    if not rollout_s or not update_s:
        return None
    learner = sum(line["train_s"] for line in lines) / update_s
    busy = {
        f"{role}s": sum((1 - line[f"{role}_idle_share"]) * line["rollout_s"] for line in lines) / rollout_s
        for role in ("sampler", "scorer")
    }
    role = max(busy, key=lambda name: busy[name])
    if busy[role] >= BUSY and learner <= 1 - IDLE:
        return (
            f"{role} were busy {busy[role]:.0%} of the rollouts while the learner was idle {1 - learner:.0%} of the "
            f"time: more cluster.{role} would pay"
        )
    idle = 1 - max(busy.values()) * min(1.0, rollout_s / update_s)
    if learner >= BUSY and idle >= IDLE:
        return (
            f"the learner was busy {learner:.0%} of the time while {role} were idle {idle:.0%}: "
            "more cluster.learners would pay"
        )
    return None


def ood_warnings(lines: Sequence[Mapping[str, float]], start: int, alarm: float) -> list[str]:
    """Returns warnings for the lines of metrics from `start` on whose share out of distribution crosses `alarm`.

    A share that stays above it gives one warning. The first line gives one if no such share can be known.
    """
    warnings = []
    if start == 0 and lines and "uncertainty" in lines[0] and "ood_share" not in lines[0]:
        warnings.append("align: the reward folder holds no calibrated quantile; run `rlhf reward` again for ood_share")
    for index in range(start, len(lines)):
        share = lines[index].get("ood_share", 0.0)
        before = lines[index - 1].get("ood_share", 0.0) if index else 0.0
        if share > alarm >= before:
            warnings.append(
                f"align: warning: update {lines[index]['update']}: {share:.0%} of the rewards are out of distribution, "
                f"less certain than 95 % of those calibrated (align.ood_alarm is {alarm:.0%}); the policy makes images "
                "that the reward was not taught on: raise align.kl_weight, or score candidates of this policy"
            )
    return warnings

"""What the driver shows of a run that other processes carry out: a bar, and warnings."""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.config import AlignConfig
from rlhf.metrics_log import read_metrics
from rlhf.progress import progress_bar


@contextmanager
def follow_metrics(out: Path, config: AlignConfig) -> Iterator[None]:
    """A bar that follows `metrics.jsonl`, which the learner writes in another process, and the alarms in it."""
    is_done = threading.Event()
    thread = threading.Thread(target=_follow, args=(out, config, is_done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def _follow(out: Path, config: AlignConfig, is_done: threading.Event) -> None:
    with progress_bar(stage="align", total=config.updates, initial=len(read_metrics(out))) as bar:
        is_last = False
        while not is_last:
            is_last = is_done.wait(0.5)
            lines = read_metrics(out)
            for warning in ood_warnings(lines, bar.n, config.ood_alarm):
                bar.write(warning, file=sys.stderr)
            if len(lines) > bar.n:
                figures = lines[-1]
                bar.set_postfix(
                    reward=f"{figures['reward']:.3f}",
                    kl=f"{figures['kl_to_base']:.4f}",
                    bottleneck=name_bottleneck(figures),
                    refresh=False,
                )
                bar.update(len(lines) - bar.n)


def name_bottleneck(figures: Mapping[str, float]) -> str:
    """The role that the others waited for in an update: the one that was idle least."""
    idle = {"learner": 1 - figures["train_s"] / figures["update_s"]}
    roles = ("sampler", "scorer") if "sampler_idle_share" in figures else ()  # a replay has none
    idle |= {f"{role}s": figures[f"{role}_idle_share"] for role in roles}
    return min(idle, key=lambda role: idle[role])


def ood_warnings(lines: Sequence[dict[str, Any]], start: int, alarm: float) -> list[str]:
    """What lines of metrics from `start` on give reason to warn of: a share out of distribution that crosses `alarm`.

    A share that stays above is told once. The first line also tells where no such share can be known.
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

"""Kill a random role of a run every few seconds, and report what that cost.

Run it as `python -m tests.support.chaos --minutes 5`.

A run of the built-in classes with random weights is disturbed for so long, then left alone until it ends;
its figures are compared with those of an undisturbed run of the same seed.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psutil  # noqa: E402
from small_parts import save_small_pipeline, save_small_reward, small_config, small_prompts, write_prompts  # noqa: E402

from actors.align import align  # noqa: E402
from actors.telemetry.incidents import read_incidents  # noqa: E402
from rlhf.config.run_config import RunConfig  # noqa: E402
from rlhf.reports.metrics_log import read_metrics  # noqa: E402

ROLES = ("RolloutSampler", "RewardScorer", "RayTrainWorker")
COMPARED = ("reward", "loss", "kl_to_base", "uncertainty")


def kill_at_random(every_s: float, until: float, killed: Counter[str], rng: random.Random) -> None:
    """SIGKILL to a process of a random role of this driver's Ray, again and again."""
    while time.monotonic() < until:
        time.sleep(rng.uniform(0.5, 1.5) * every_s)
        role = rng.choice(ROLES)
        for process in rng.sample(found := psutil.Process().children(recursive=True), len(found)):
            with contextlib.suppress(psutil.Error):
                if f"ray::{role}" in " ".join(process.cmdline()):
                    process.kill()
                    killed[role] += 1
                    break


def run(config: RunConfig, folder: Path, name: str) -> list[dict]:
    """One run; its metrics."""
    inputs = write_prompts(small_prompts(16), folder / "prompts"), save_small_reward(folder / "reward")
    align(config, *inputs, folder / name)
    return read_metrics(folder / name)


def main() -> None:
    """Disturb a run, and print a report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--every-s", type=float, default=15.0, help="mean time between two kills")
    parser.add_argument("--updates", type=int, help="of the run; by default 30 a minute, so that it lasts longer")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    updates = arguments.updates or max(1, round(30 * arguments.minutes))
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    config = small_config(save_small_pipeline(folder / "pipeline"), updates=updates, checkpoint_every=2)
    cluster = config.cluster.model_copy(update={"samplers": 3, "scorers": 2, "learner_failures": -1})
    config = config.model_copy(update={"cluster": cluster})
    undisturbed = run(config, folder, "undisturbed")
    killed: Counter[str] = Counter()
    until = time.monotonic() + 60 * arguments.minutes
    arguments_of_thread = (arguments.every_s, until, killed, random.Random(arguments.seed))
    threading.Thread(target=kill_at_random, args=arguments_of_thread, daemon=True).start()
    disturbed = run(config, folder, "disturbed")
    incidents = read_incidents(folder / "disturbed")
    restarts = [line["detail"] for line in incidents if line["role"] == "learner"]
    report = {
        "kills": dict(killed),
        "faults_survived": len(incidents),
        "updates": len(disturbed),
        "updates_lost_and_repeated": sum(int(detail.split(";")[1].split()[0]) for detail in restarts),
        "tasks_repeated": sum(line["tasks_repeated"] for line in disturbed),
        "seconds": [round(sum(line["update_s"] for line in lines), 1) for lines in (undisturbed, disturbed)],
        "largest_difference": {
            name: max(abs(a[name] - b[name]) for a, b in zip(undisturbed, disturbed, strict=True)) for name in COMPARED
        },
        "run": str(folder),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

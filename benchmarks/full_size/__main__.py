"""Runs the whole method at full size on a CPU: `python -m benchmarks.full_size --out DIR [--model tiny]`.

The pipeline has the architecture of runwayml/stable-diffusion-inpainting and the reward that of CLIP ViT-L/14, both
with random weights, which are written down in benchmarks/gpu/full_size_models.py; nothing is downloaded. Every stage is
the command that a user types, at 512 px. DIR/full_size.json holds time and peak memory of each process as soon as a
stage is done; the same command goes on with the next one, and prints the table. DIR takes up to 50 GB.
"""

import argparse
import datetime
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import requests
import yaml
from PIL import Image

from benchmarks.full_size.process_memory import ProcessMemory, watching
from benchmarks.full_size.stages import PORT, SIZES, STEPS, make_models, settings, stage_commands
from benchmarks.measure import Figures, describe_machine
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text
from rlhf.storage.images import encode_png
from rlhf.workflows.stages import die_with_parent

LEAST_FREE_GB = 1.0
"""Memory of the machine below which a stage is stopped, before the kernel stops other processes."""
SHOWN_GB = 0.05
"""Peaks below this are left out of the table."""
START_S = 1800.0
"""Longest time until the service is ready."""


def measure_stage(words: list[str], log: Path, *, is_service: bool, px: int) -> Figures:
    """Runs a command; returns its seconds, and memory and processor time of all its processes.

    Raises UserError if it fails, or if the machine runs out of memory.
    """
    started, load = time.perf_counter(), os.getloadavg()[0]
    with log.open("w") as file:
        process = subprocess.Popen(
            words,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Otherwise Ray runs its actors at a lower priority than all else.
            env={"RAY_worker_niceness": "0"} | os.environ,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        with watching(process.pid) as memory:
            try:
                figures = edit_once(process, px) if is_service else {}
                if is_service:
                    process.send_signal(signal.SIGINT)
                while process.poll() is None:
                    require_memory()
                    time.sleep(0.5)
            finally:
                end(process)
    if process.returncode and not is_service:
        raise UserError(f"{log}: ended with exit code {process.returncode}:\n{log.read_text()[-3000:]}")
    return figures | describe(memory, time.perf_counter() - started, load)


def describe(memory: ProcessMemory, seconds: float, load: float) -> Figures:
    """Returns the figures of a finished stage."""
    return {
        "s": round(seconds, 1),
        "cpu_s": round(sum(memory.cpu_s.values()), 1),
        "together_gb": round(memory.together_gb, 2),
        "peak_gb": {title: round(peak, 2) for title, peak in memory.by_title().items()},
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "measured": datetime.datetime.now().isoformat(timespec="minutes"),
    }


def require_memory() -> None:
    """Raises UserError if the machine has too little memory left."""
    free = psutil.virtual_memory().available / 1e9
    if free < LEAST_FREE_GB:
        raise UserError(
            f"full_size: {free:.1f} GB of memory are left, so the stage was stopped; end other processes, "
            "then run the same command again"
        )


def end(process: subprocess.Popen) -> None:
    """Ends a command and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def edit_once(process: subprocess.Popen, px: int) -> Figures:
    """Waits for the service, sends one photograph with a hole, and checks the answer; returns its seconds."""
    url, until = f"http://127.0.0.1:{PORT}", time.monotonic() + START_S
    started = time.perf_counter()
    while True:
        require_memory()
        if process.poll() is not None or time.monotonic() > until:
            raise UserError(f"full_size: the service did not start within {START_S:g} s; see its log")
        try:
            if requests.get(f"{url}/readyz", timeout=10).ok:
                break
        except requests.RequestException:
            pass
        time.sleep(1)
    ready_s = time.perf_counter() - started
    image, mask = Image.new("RGB", (px, px), (90, 120, 150)), Image.new("L", (px, px), 0)
    mask.paste(255, (px // 4, px // 4, 3 * px // 4, 3 * px // 4))
    fields = {"num_inference_steps": str(STEPS), "seed": "1", "mask_convention": "white"}
    files = {"image": ("i.png", encode_png(image)), "mask": ("m.png", encode_png(mask))}
    asked = time.perf_counter()
    answer = requests.post(f"{url}/v1/images/edits", data=fields, files=files, timeout=7200)
    if not answer.ok:
        raise UserError(f"full_size: the edit failed with {answer.status_code}: {answer.text[:500]}")
    painted = Image.open(io.BytesIO(_first_image(answer.json())))
    if painted.size != image.size:
        raise UserError(f"full_size: the edit is {painted.size[0]} px wide, not {px}")
    return {"ready_s": round(ready_s, 1), "edit_s": round(time.perf_counter() - asked, 1)}


def _first_image(answer: dict) -> bytes:
    from base64 import b64decode

    return b64decode(answer["data"][0]["b64_json"])


def format_table(results: Figures) -> str:
    """Formats the table of docs/results/full_size.md."""
    rows = ["| stage | seconds | processor seconds | all together, GB | peak of each process, GB |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for name, stage in results["stages"].items():
        peaks = ", ".join(f"{title} {peak:.1f}" for title, peak in stage["peak_gb"].items() if peak >= SHOWN_GB)
        edit = f" (ready after {stage['ready_s']:.0f}, edit {stage['edit_s']:.0f})" if "edit_s" in stage else ""
        rows.append(
            f"| {name} | {stage['s']:.0f}{edit} | {stage['cpu_s']:.0f} | {stage['together_gb']:.1f} | {peaks} |"
        )
    return "\n".join(rows)


def run(out: Path, model: str) -> None:
    """Runs the stages that are not done yet, and prints the table. Raises UserError if one fails."""
    out, size, file = out.resolve(), SIZES[model], out / "full_size.json"
    out.mkdir(parents=True, exist_ok=True)
    results: Figures = {"model": model, "machine": describe_machine(), "stages": {}}
    if file.is_file():
        results = json.loads(file.read_text())
        if results["model"] != model:
            raise UserError(f"{file}: holds figures of --model {results['model']}; choose another --out")
    atomic_write_text(out / "run.yaml", yaml.safe_dump(settings(size, out), sort_keys=False))
    (out / "logs").mkdir(exist_ok=True)
    making = ["benchmarks.full_size", "--out", str(out), "--model", model, "--make"]
    commands = {"random weights": making} | {n: ["rlhf", *words] for n, words in stage_commands(out).items()}
    for name, words in commands.items():
        if name in results["stages"]:
            continue
        print(f"full_size: {name}: python -m {' '.join(words)}", file=sys.stderr, flush=True)
        _clear(out, words)
        log = out / "logs" / f"{name.replace(' ', '_').replace(',', '').replace(':', '')}.log"
        is_service = words[1] == "serve"
        command = [sys.executable, "-m", *words]
        results["stages"][name] = measure_stage(command, log, is_service=is_service, px=size.px)
        atomic_write_json(file, results)
    print(format_table(results))


def _clear(out: Path, words: list[str]) -> None:
    """Removes what an interrupted stage left, unless its command goes on with it."""
    for option in ("--out", "--dump-rollouts"):
        if option in words and words[1] not in ("--out", "candidates", "reward"):
            folder = Path(words[words.index(option) + 1])
            assert folder.parent == out
            shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=[*SIZES], default="full")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        if given.make:
            make_models(SIZES[given.model], given.out)
        else:
            run(given.out, given.model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

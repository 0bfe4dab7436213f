"""The commands of docs/tour.md, typed in order on three machines, print what the page says."""

import re
from pathlib import Path

import pytest
from lab_hosts import ROOT, run_hosts

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PAGE = ROOT / "docs" / "tour.md"


def read_steps(page: Path) -> list[tuple[str, list[str]]]:
    """The indented commands of a page, each with the lines after `#` that it prints."""
    steps: list[tuple[str, list[str]]] = []
    text = re.sub(r"\\\n\s*", "", page.read_text())
    for line in text.splitlines():
        if line.startswith("    # "):
            steps[-1][1].append(line.strip("# "))
        elif line.startswith("    "):
            steps.append((line.strip(), []))
    return steps


def as_script(steps: list[tuple[str, list[str]]]) -> str:
    """All commands in one shell; after each come its number, exit code and the seconds until then."""
    lines = [f'{command}\necho "@@ {number} $? $SECONDS"' for number, (command, _) in enumerate(steps)]
    return "\n".join(["exec 2>&1", *lines, ""])


def test_the_tour_prints_what_the_page_says(tmp_path: Path) -> None:
    steps = read_steps(PAGE)
    with run_hosts(3, tmp_path) as hosts:
        (hosts.shared / "tour.sh").write_text(as_script(steps))
        printed = hosts.run(1, "bash /shared/tour.sh", timeout_s=700)
    print(printed)
    parts = re.split(r"@@ (\d+) (\d+) (\d+)\n", printed)
    for (command, expected), output, code in zip(steps, parts[0::4], parts[2::4], strict=False):
        assert code == "0", f"{command}: exit code {code}\n{output}"
        assert [line for line in expected if line not in output] == [], f"{command}\n{output}"
    assert len(parts[0::4]) == len(steps) + 1

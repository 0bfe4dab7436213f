"""kill -9 of the service's processes: what clients see, and what takes the place of the dead."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psutil
import pytest
import requests
from small_service import post, running_service

from serve.application import _stop
from serve.settings import ServiceSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A service of the built-in model with two replicas, on a cluster of 4 CPUs."""
    with running_service({"replicas": 2, "num_cpus": 1}, num_cpus=4) as found:
        yield found


def replicas(kind: str) -> set[int]:
    """Processes of replicas that this test's Ray started, by the titles that Ray gives them."""
    family = psutil.Process().children(recursive=True)
    titles = {p.pid: " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]) if p in family}
    return {pid for pid, title in titles.items() if title.startswith(f"ray::ServeReplica:prefpaint:{kind}")}


def wait_until(is_true: Callable[[], bool], limit_s: float = 120) -> None:
    for _ in range(int(limit_s / 0.1)):
        if is_true():
            return
        time.sleep(0.1)
    raise AssertionError("did not happen in time")


def copies_answering(address: str, requests_to_send: int) -> set[str]:
    """Names of the interface's copies that answered, from the label of their metrics."""
    texts = [requests.get(f"{address}/metrics", timeout=60).text for _ in range(requests_to_send)]
    return set(re.findall(r'prefpaint_requests_in_work{copy="(\w+)"}', "".join(texts)))


def edits_in_work(address: str, requests_to_send: int) -> dict[str, float]:
    """Edits in work by copy, of the copies that answered."""
    texts = [requests.get(f"{address}/metrics", timeout=60).text for _ in range(requests_to_send)]
    found = re.findall(r'prefpaint_requests_in_work{copy="(\w+)"} ([\d.]+)', "".join(texts))
    return {name: float(count) for name, count in found}


def test_requests_during_the_death_of_a_replica_are_all_answered(address: str) -> None:
    wait_until(lambda: len(replicas("Inpainter")) == 2)
    with ThreadPoolExecutor(6) as clients:
        answers = [clients.submit(post, address, seed=number, num_inference_steps=20) for number in range(24)]
        wait_until(lambda: sum(answer.done() for answer in answers) >= 4)
        os.kill(min(replicas("Inpainter")), signal.SIGKILL)
        assert [answer.result().status_code for answer in answers] == [200] * 24


def test_the_other_copy_of_the_interface_answers_when_one_dies(address: str) -> None:
    wait_until(lambda: len(copies_answering(address, 8)) == 2)
    before = copies_answering(address, 8)
    dead = min(replicas("Api"))
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: dead not in replicas("Api"))
    answered = [requests.get(f"{address}/metrics", timeout=60) for _ in range(4)]
    assert sum(answer.status_code != 200 for answer in answered) <= 1, "one may have been sent to the dead copy"
    texts = [answer.text for answer in answered if answer.status_code == 200]
    (survivor,) = {name for text in texts[:1] for name in re.findall(r'in_work{copy="(\w+)"}', text)}
    assert survivor in before, "nothing waits for the successor"
    wait_until(lambda: len(copies_answering(address, 8) - before) == 1)


def test_stopping_finishes_the_requests_of_both_copies(address: str) -> None:
    wait_until(lambda: len(copies_answering(address, 8)) == 2)
    answers: list[Future[requests.Response]] = []

    def unfinished() -> int:
        return sum(not answer.done() for answer in answers)

    def both_copies_have_what_was_sent() -> bool:
        """Sends another edit if not: chance may give many in a row to one copy, but not all."""
        before = unfinished()
        in_work = edits_in_work(address, 6)
        if len(in_work) == 2 and min(in_work.values()) > 0 and sum(in_work.values()) == before == unfinished():
            return True
        if before < 16:
            answers.append(clients.submit(post, address, seed=len(answers), num_inference_steps=40))
        return False

    with ThreadPoolExecutor(16) as clients:
        wait_until(both_copies_have_what_was_sent)
        _stop(ServiceSettings())
        assert {answer.result().status_code for answer in answers} == {200}

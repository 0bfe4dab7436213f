"""What the start of the service says of its faults."""

import pytest
import ray
from ray import serve as ray_serve
from ray.exceptions import ActorDiedError

from rlhf.errors import UserError
from serve.application import start
from serve.settings import ServiceSettings


@pytest.mark.parametrize("step", ["start", "run"])
def test_processes_of_ray_serve_that_die_at_the_start_are_told_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*_: object, **__: object) -> None:
        raise ActorDiedError

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray_serve, "start", lambda **_: None)
    monkeypatch.setattr(ray_serve, step, die)
    with pytest.raises(UserError, match="died at the start .ActorDiedError.*RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"):
        start(ServiceSettings(), "127.0.0.1", 8000)

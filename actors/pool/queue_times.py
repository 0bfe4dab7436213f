"""Queue times: how long the tasks of an update wait for samplers and scorers."""

import time


class QueueTimes:
    """Starts when the weights are published; tests pass the clock's time as `now`, in seconds."""

    def __init__(self, now: float | None = None) -> None:
        self._started = self._last = time.perf_counter() if now is None else now
        self._synced: float | None = None
        self._to_sample = self._to_score = 0.0

    def note(self, *, is_synced: bool, to_sample: int, to_score: int, now: float | None = None) -> None:
        """Notes the numbers of tasks that have waited since the last note.

        `is_synced` says whether every sampler has proved the weights.
        """
        now = time.perf_counter() if now is None else now
        self._to_sample += to_sample * (now - self._last)
        self._to_score += to_score * (now - self._last)
        self._last = now
        if is_synced and self._synced is None:
            self._synced = now - self._started

    def metrics(self) -> dict[str, float]:
        """Returns `weights_sync_s` and the mean numbers of tasks that waited to be sampled and to be scored.

        If a sampler had not proved the weights when the last task was finished, `weights_sync_s` is the whole time.
        """
        duration = self._last - self._started
        return {
            "weights_sync_s": duration if self._synced is None else self._synced,
            "queue_to_sample": self._to_sample / duration if duration else 0.0,
            "queue_to_score": self._to_score / duration if duration else 0.0,
        }

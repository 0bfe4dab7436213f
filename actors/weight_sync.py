"""How new weights travel to samplers, and the proof that they arrived; importing this imports no torch."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import ray

from rlhf.storage.checksum import quick_checksum

if TYPE_CHECKING:
    import numpy as np
    import torch

CHUNK_BYTES = 2**28
"""Size of the objects in which weights travel; a larger tensor is one by itself."""


@dataclass(frozen=True, kw_only=True)
class WeightsNotice:
    """A published policy version. Every rollout call carries one, so a restarted sampler catches up."""

    version: int
    weights: list[ray.ObjectRef]
    """References to chunks of the trained tensors by name, as NumPy arrays in shared memory for all samplers of a node;
    bfloat16 as its bits in uint16."""
    checksum: str
    size_bytes: int
    """Size of the arrays as they travel."""
    probe: float | None = None
    """The learner's log-prob of the probe under these weights, in nats; None if samplers need not compute theirs."""

    @classmethod
    def publish(cls, weights: "Mapping[str, torch.Tensor]", version: int, probe: float | None = None) -> Self:
        """Puts weights [on the CPU] into the object store once, and hashes them; samplers fetch from one another."""
        from rlhf.diffusion.trained_weights import as_array

        arrays = {name: as_array(tensor) for name, tensor in weights.items()}
        with ThreadPoolExecutor(1) as thread:
            hashing = thread.submit(quick_checksum, arrays, lambda array: array)
            references = [ray.put(chunk) for chunk in in_chunks(arrays)]
        size_bytes = sum(array.nbytes for array in arrays.values())
        return cls(version=version, weights=references, checksum=hashing.result(), size_bytes=size_bytes, probe=probe)


def in_chunks(arrays: "Mapping[str, np.ndarray]") -> "Iterator[dict[str, np.ndarray]]":
    """Yields all arrays in their order, as many together as fit into `CHUNK_BYTES`; none if there are none."""
    chunk: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if chunk and sum(other.nbytes for other in chunk.values()) + array.nbytes > CHUNK_BYTES:
            yield chunk
            chunk = {}
        chunk[name] = array
    if chunk:
        yield chunk


@dataclass(frozen=True, kw_only=True)
class WeightsAck:
    """A sampler's proof of the weights that its network holds."""

    version: int
    checksum: str
    """Checksum of the network's tensors, not copied from the notice."""
    probe: float | None
    """The sampler's log-prob of the probe, in nats; None if the notice has none."""


def find_fault(ack: WeightsAck, notice: WeightsNotice, tolerance: float) -> str | None:
    """Returns the fault of a sampler's acknowledgement; None if it proves the published weights."""
    if (ack.version, ack.checksum) != (notice.version, notice.checksum):
        return f"acknowledged version {ack.version} ({ack.checksum[:8]}), not {notice.version} ({notice.checksum[:8]})"
    if notice.probe is None:
        return None
    # Relative: a log-prob of some hundred nats is rounded more coarsely than one of a few.
    allowed = tolerance * max(1.0, abs(notice.probe))
    if ack.probe is None or not abs(ack.probe - notice.probe) <= allowed:
        return f"log-prob of the probe is {ack.probe}, the learner's {notice.probe}"
    return None

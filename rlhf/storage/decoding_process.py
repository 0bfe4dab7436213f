"""The process that decodes pictures: it forks for each, and the fork has limits of time and memory.

Run as `python -m rlhf.storage.decoding_process DESCRIPTOR`; `rlhf/storage/bounded_decoding.py` starts it and is its
only client. It imports Pillow and numpy alone, so a fork takes milliseconds and shares its memory. On each connection
it sends the number of the fork (8 bytes), gets a Task and the file, and answers a Reply and the pixels.
"""

import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image
from typing_extensions import Buffer

from rlhf.errors import UserError
from rlhf.storage.decoding import decode_layers, read_header

NUMBER_BYTES = 8
"""Length of a process number and of a record's length."""


def main(descriptor: int) -> None:
    """Forks for each connection that comes through the descriptor, until its other end is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel then buries the forks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's; it closes the descriptor.
    Image.init()
    with socket.socket(fileno=descriptor) as control:
        while True:
            message, descriptors, *_ = socket.recv_fds(control, 1, 1)
            if not message:
                return
            with socket.socket(fileno=descriptors[0]) as connection:
                number = os.fork()
                if number == 0:
                    control.close()
                    _answer_and_end(connection)
                with suppress(OSError):
                    connection.sendall(number.to_bytes(NUMBER_BYTES))


def _answer_and_end(connection: socket.socket) -> None:
    try:
        _answer(connection)
    except OSError:  # The client is gone.
        pass
    finally:
        os._exit(0)


def _answer(connection: socket.socket) -> None:
    task = json.loads(receive(connection, int.from_bytes(receive(connection, NUMBER_BYTES))))
    data = bytes(receive(connection, task["file_bytes"]))
    os.nice(task["politeness"])
    _limit(task["cpu_s"], task["memory_bytes"])
    layers = np.empty(0, np.uint8)
    reply: dict[str, Any] = {"refusal": None, "header": None, "shape": None}
    options = {"name": task["name"], "max_pixels": task["max_pixels"]}
    try:
        if task["is_header_only"]:
            found = read_header(data, **options)
            reply["header"] = {"width": found.width, "height": found.height, "scans": found.scans}
        else:
            layers = decode_layers(data, **options)
            reply["shape"] = layers.shape
    except UserError as error:
        reply["refusal"] = str(error)
    send(connection, reply, layers.data)


def _limit(cpu_s: float, memory_bytes: int) -> None:
    """Ends this process after `cpu_s` more seconds of all its threads' work, and refuses more memory than that."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def send(connection: socket.socket, record: dict[str, Any], data: Buffer) -> None:
    """Sends a record with its length, and the bytes behind it."""
    text = json.dumps(record).encode()
    connection.sendall(len(text).to_bytes(NUMBER_BYTES) + text)
    connection.sendall(data)


def receive(connection: socket.socket, size: int) -> bytearray:
    """Reads so many bytes. Raises ConnectionError if the other end closes before."""
    data = bytearray(size)
    receive_into(connection, memoryview(data))
    return data


def receive_into(connection: socket.socket, place: memoryview) -> None:
    """Fills a place with bytes. Raises ConnectionError if the other end closes before."""
    while place:
        count = connection.recv_into(place)
        if count == 0:
            raise ConnectionError("the other end is closed")
        place = place[count:]


if __name__ == "__main__":
    main(int(sys.argv[1]))

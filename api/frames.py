"""Values over a socket between two processes of one service: a length, then the value as Python's pickle writes it."""

from __future__ import annotations

import pickle
import socket
import struct
from asyncio import StreamReader
from types import TracebackType
from typing import Any

_LENGTH = struct.Struct("!Q")


def frame(value: object) -> bytes:
    """The value as it goes over the socket."""
    text = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(text)) + text


async def read_frame(reader: StreamReader) -> Any:
    """The next value; raises IncompleteReadError where the other side has gone."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))


class Frames:
    """The side that waits for one value after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")

    def receive(self) -> Any:
        """The next value; None where the other side has gone."""
        try:
            head = self._file.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                return None
            (length,) = _LENGTH.unpack(head)
            text = self._file.read(length)
        except ConnectionError:
            return None
        return pickle.loads(text) if len(text) == length else None

    def send(self, value: object) -> bool:
        """Whether the other side is still there."""
        try:
            self._connection.sendall(frame(value))
        except ConnectionError:
            return False
        return True

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

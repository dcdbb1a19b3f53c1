"""The smallest client that works: standard library only, one frame, one answer.

Shape: `tiny_client.py SOCKET FRAME`. Source: RFC 6455, sections 4.1 and 5.
"""

import base64
import os
import socket
import struct
import sys


def main(path: str, frame: str) -> None:
    """Send one text message and print the one that answers it."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    stream = connection.makefile("rb")
    assert b"101" in stream.readline()
    while stream.readline().strip():
        pass
    payload = frame.encode()
    length = (
        bytes([0x80 | len(payload)])
        if len(payload) < 126
        else bytes([0x80 | 126]) + struct.pack("!H", len(payload))
    )
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    connection.sendall(b"\x81" + length + mask + masked)
    assert stream.read(1) == b"\x81"
    size = stream.read(1)[0]
    if size == 126:
        (size,) = struct.unpack("!H", stream.read(2))
    elif size == 127:
        (size,) = struct.unpack("!Q", stream.read(8))
    print(stream.read(size).decode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

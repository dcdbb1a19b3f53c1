"""The floor of a warm request: evaluates what arrives and answers with its output.

Args: the path to listen on.
"""

import io
import socket
import sys

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
print("ready", flush=True)
connection, _ = listener.accept()
real, namespace = sys.stdout, {}
while source := connection.recv(65536):
    sys.stdout = capture = io.StringIO()
    try:
        value = eval(compile(source, "<cell>", "eval"), namespace)
        if value is not None:
            print(repr(value))
    finally:
        sys.stdout = real
    connection.send(capture.getvalue().encode())

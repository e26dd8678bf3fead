#!/usr/bin/python3 -IS
"""A hook tool as a charm calls it: sends its words to the runner, and prints what that answers.

It runs on the machines, under the name of each tool, and needs nothing but Python. It runs often:
without `site` (-S), `socket`, `json` and what else takes long to import it is there in a third of
the time. So what goes either way are strings with a NUL between them, which no word holds.
"""

import _socket
import os
import sys


def expand(word: str) -> str:
    """Return ``key#file=PATH`` as ``key=CONTENT``; other words as they are."""
    key, equals, path = word.partition("=")
    if equals and key.endswith("#file"):
        with open(path, encoding="utf-8") as file:
            return f"{key.removesuffix('#file')}={file.read()}"
    return word


def main() -> int:
    """Send one request and take its answer."""
    tool = os.path.basename(sys.argv[0])
    words = [expand(word) if tool.startswith("secret-") else word for word in sys.argv[1:]]
    if "--file=-" in words:
        at = words.index("--file=-")
        words[at : at + 1] = ["--file", "-"]
    takes_input = any(words[at : at + 2] == ["--file", "-"] for at in range(len(words)))
    given = sys.stdin.read() if takes_input else ""
    request = "\0".join((os.environ["JUJU_CONTEXT_ID"], tool, given, *words))
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.connect(os.environ["JUJU_AGENT_SOCKET_ADDRESS"])
    connection.sendall(request.encode(errors="surrogateescape"))
    connection.shutdown(_socket.SHUT_WR)
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    code, error, output = answer.decode(errors="surrogateescape").split("\0", 2)
    sys.stdout.write(output)
    sys.stderr.write(error)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/python3 -IS
"""A hook tool as a charm calls it: sends its words to the runner, and prints what that answers.

It runs on the machines, under the name of each tool, and needs nothing but Python. It runs often:
without `site` (-S), and what else takes long to import, it is there in half the time.
"""

import json
import os
import socket
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
    request = {
        "context": os.environ["JUJU_CONTEXT_ID"],
        "tool": tool,
        "words": words,
        "input": sys.stdin.read() if takes_input else "",
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["JUJU_AGENT_SOCKET_ADDRESS"])
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as answers:
            answer = json.loads(answers.readline())
    sys.stdout.write(answer["output"])
    sys.stderr.write(answer["error"])
    return int(answer["code"])


if __name__ == "__main__":
    sys.exit(main())

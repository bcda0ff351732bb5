"""An S3 server for tests, in a process of its own: threads, forks and patches of the test's process can't stop it."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@contextmanager
def s3_server(faults=None):
    """Run an empty server that AWS's variables lead to.

    Args:
        faults: part of a path -> what goes wrong, one after the other, each time that something with this part in its
            path is asked for. The first part that fits counts. See ``Unreliable``.
    """
    pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    forget = s3fs.S3FileSystem.clear_instance_cache  # s3fs keeps its clients, and would go on asking another server
    command = [sys.executable, __file__, json.dumps(faults or {})]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), "moto's server did not start"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AWS_ENDPOINT_URL", url)
                patch.setenv("AWS_ACCESS_KEY_ID", "key")
                patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
                patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
                forget()
                yield
        finally:
            forget()
            process.terminate()


class Unreliable:
    """A WSGI application that goes wrong at first, whenever it is asked something new.

    - ``"busy"``: status 503, and nothing is done.
    - ``"lost"``: what was asked is done, but the connection ends before the answer.
    - ``"cut"``: the connection ends after half the answer's body.
    - ``"slow"``: the body comes in twenty pieces over a second.
    """

    def __init__(self, app, faults):
        self.app, self.faults, self.asked, self.lock = app, faults, Counter(), threading.Lock()

    def __call__(self, environ, start_response):
        fault = self._fault(environ)
        if fault == "busy":
            start_response("503 Slow Down", [("Content-Type", "text/xml"), ("Content-Length", str(len(BUSY)))])
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else BUSY]
        answer = self.app(environ, start_response)
        return answer if fault is None else self._spoilt(b"".join(answer), fault, environ["werkzeug.socket"])

    def _fault(self, environ):
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING")
        faults = next((faults for part, faults in self.faults.items() if part in path), [])
        with self.lock:
            question = environ["REQUEST_METHOD"], path, query, environ.get("HTTP_RANGE")
            self.asked[question] += 1
            return faults[self.asked[question] - 1] if self.asked[question] <= len(faults) else None

    @staticmethod
    def _spoilt(body, fault, connection):
        if fault == "slow":
            step = max(1, len(body) // 20)
            for start in range(0, len(body), step):
                time.sleep(0.05)
                yield body[start : start + step]
            return
        if fault == "cut":
            yield body[: len(body) // 2]
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError


def serve(faults):
    """Serve until standard input ends: at the latest when the process that started this one does."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    app = Unreliable(DomainDispatcherApplication(create_backend_app), faults)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))

"""An S3 server for tests, in a process of its own: threads, forks and patches of the test's process can't stop it."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

# It ends at the latest when the process that started it does.
COMMAND = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_server():
    """Run an empty server that AWS's variables lead to."""
    pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    command = [sys.executable, "-c", COMMAND]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), "moto's server did not start"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AWS_ENDPOINT_URL", url)
                patch.setenv("AWS_ACCESS_KEY_ID", "key")
                patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
                patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
                yield
        finally:
            # s3fs keeps its clients, and would ask this server after the next one has started.
            s3fs.S3FileSystem.clear_instance_cache()
            process.terminate()

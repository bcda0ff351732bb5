"""``kithkin serve``."""

from typing import TYPE_CHECKING

import typer

from kithkin.cli._command import say
from kithkin.cli._options import DEVICE, flag
from kithkin.errors import InputError, KithkinError
from kithkin.messages import missing_extra

if TYPE_CHECKING:
    import socket

EPILOG = """\
Examples:

`kithkin serve --open` opens the page in the browser.

`curl -F picture=@photo.jpg -o photo-restored.png http://127.0.0.1:8000/restore` uses the running server.
"""


def serve(
    host: str = typer.Option(
        "127.0.0.1",
        "--host",
        metavar="HOST",
        help="Address to listen on. 127.0.0.1 lets only this computer in.",
    ),
    port: int = typer.Option(8000, "--port", metavar="0..65535", help="Port to listen on. 0 chooses a free one."),
    model: list[str] = typer.Option(
        [],
        "--model",
        "-m",
        metavar="MODEL",
        help="A name from `kithkin models`, or anything else that `kithkin restore` takes; may be repeated. "
        "Default: one for each task.",
    ),
    allow_host: list[str] = typer.Option(
        [],
        "--allow-host",
        metavar="HOST",
        help="Also answer to this host name, such as that of a proxy. IP addresses and localhost always work.",
    ),
    max_mb: float = typer.Option(64, "--max-mb", metavar="MB", help="Largest upload, in MB."),
    max_megapixels: float = typer.Option(
        32, "--max-megapixels", metavar="MEGAPIXELS", help="Largest picture, in megapixels."
    ),
    queue: int = typer.Option(
        32, "--queue", metavar="N", help="How many pictures may wait. Others are told when to try again."
    ),
    max_seconds: float = typer.Option(
        900, "--max-seconds", metavar="SECONDS", help="Longest time for one picture, in seconds."
    ),
    device: str = DEVICE,
    precision: str = typer.Option(
        "auto",
        "--precision",
        metavar="auto|float32|bfloat16",
        help="Number format of the networks, as in `kithkin restore`.",
    ),
    open_page: bool = flag("--open", "Open the page in the browser."),
) -> None:
    """Restore photographs in the browser, and for other programs over HTTP.

    Pictures stay on this computer, and nothing is stored. Ctrl-C stops the server. Needs the extra `web`.
    """
    _need_packages()
    from kithkin.cli._device import choose_device
    from kithkin.precision import slowness
    from kithkin.restore_options import RestoreOptions
    from kithkin.web import Limits, create_app, served_models
    from kithkin.web.server import serve_on

    limits = Limits(megabytes=max_mb, megapixels=max_megapixels, queue=queue, work_seconds=max_seconds)
    RestoreOptions(precision=precision)  # Refused before anything is loaded.
    listening = _listen(host, port)
    device = choose_device(device)
    models = served_models(model, device=device, precision=precision)
    app = create_app(models, limits=limits, host_names=[host, *allow_host])
    address = _address(listening)
    _announce(address, host)
    if slow := slowness(precision, device):
        say(slow)
    if open_page:
        import webbrowser

        webbrowser.open(address)
    serve_on(app, listening, limits)


def _need_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise KithkinError(missing_extra("serve: the page", str(error.name), "web")) from error


def _listen(host: str, port: int) -> "socket.socket":
    import socket

    if not 0 <= port <= 65535:
        raise InputError(f"serve: --port must be from 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)  # A browser that comes before the server is ready waits instead of failing.
    except OSError as error:
        raise InputError(
            f"serve: can't listen on {host}, port {port} ({error.strerror}); choose another one with --port or --host"
        ) from error
    return listening


def _address(listening: "socket.socket") -> str:
    name, port = listening.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _announce(address: str, host: str) -> None:
    import ipaddress

    try:
        private = ipaddress.ip_address(host).is_loopback
    except ValueError:
        private = host == "localhost"
    typer.echo(f"kithkin: {address} (Ctrl-C stops it)")
    if not private:
        say(
            f"warning: listening on {host}: everyone who reaches this computer can use it, without a "
            "password or encryption. Put a proxy with both before it, or leave --host out"
        )

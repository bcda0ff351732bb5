"""``kithkin serve``."""

from typing import TYPE_CHECKING, Annotated

import typer

from kithkin.errors import InputError, KithkinError

if TYPE_CHECKING:
    import socket

EPILOG = """\
Examples:

`kithkin serve --open` shows the page in the browser.

`curl -F picture=@photo.jpg -o photo-restored.png http://127.0.0.1:8000/restore` restores a picture while it runs.
"""

Host = Annotated[str, typer.Option(help="The address to listen on; 127.0.0.1 is this computer alone.")]
Port = Annotated[int, typer.Option(metavar="0..65535", help="0 takes a free one.")]
Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="A name from `kithkin models`, or a checkpoint's path. May be repeated; without it, one of each task.",
        show_default=False,
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Also answer to this host name, as behind a proxy; IP addresses and localhost are answered to anyway.",
        show_default=False,
    ),
]
Megabytes = Annotated[float, typer.Option("--max-mb", metavar="MB", help="Of one upload.")]
Megapixels = Annotated[float, typer.Option("--max-megapixels", metavar="MP", help="Of one picture.")]
Queue = Annotated[int, typer.Option(metavar="N", help="Pictures that may wait; more are asked to come again.")]
Seconds = Annotated[float, typer.Option("--max-seconds", metavar="S", help="Of work on one picture.")]
Device = Annotated[
    str | None,
    typer.Option(help="Such as cpu or cuda; without it, the GPU where there is one.", show_default=False),
]
Open = Annotated[bool, typer.Option("--open", help="Show the page in the browser.")]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Model = None,
    allow_host: AllowHost = None,
    max_mb: Megabytes = 64,
    max_megapixels: Megapixels = 32,
    queue: Queue = 32,
    max_seconds: Seconds = 900,
    device: Device = None,
    open_page: Open = False,
) -> None:
    """Restore pictures in the browser, and for other programs over HTTP.

    Everything stays on this computer, and nothing is kept after an answer. Ctrl-C stops it. Needs the extra `web`.
    """
    _need_packages()
    from kithkin.cli._device import choose_device
    from kithkin.web import Limits, create_app, served_models
    from kithkin.web._server import serve_on

    limits = Limits(megabytes=max_mb, megapixels=max_megapixels, queue=queue, work_seconds=max_seconds)
    listening = _listen(host, port)
    app = create_app(
        served_models(model or (), device=choose_device(device)), limits=limits, host_names=[host, *(allow_host or ())]
    )
    address = _address(listening)
    _announce(address, host)
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
        raise KithkinError(
            f'serve: the page needs {error.name}; install it with: python3 -m pip install "kithkin[web]"'
        ) from error


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
        typer.echo(
            f"kithkin: warning: listening on {host}: everyone who reaches this computer can use it, without a "
            "password or encryption. Put a proxy with both before it, or leave --host out",
            err=True,
        )

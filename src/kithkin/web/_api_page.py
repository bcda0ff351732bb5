"""The description of the HTTP interface as one plain page, which needs no network."""

from html import escape
from typing import Any

_FROM_FASTAPI = ("Successful Response", "Validation Error")  # What it writes where a route says nothing.


def api_page(schema: dict[str, Any]) -> str:
    """HTML that lists the routes of an OpenAPI description, their fields and answers."""
    routes = [
        _route(method, path, operation, schema)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page/page.css">
<title>kithkin: the HTTP interface</title>
</head>
<body class="text">
<main>
<h1>The HTTP interface</h1>
<p><a href="/">The page</a> · <a href="/openapi.json">OpenAPI</a> · kithkin {escape(schema["info"]["version"])}</p>
<pre><code>curl -F picture=@photo.jpg -F model=denoise -o photo-restored.png http://127.0.0.1:8000/restore</code></pre>
<p>Every refusal is JSON: <code>{{"detail": "a sentence that says what was wrong and what to do"}}</code>.</p>
{"".join(routes)}
</main>
</body>
</html>
"""


def _route(method: str, path: str, operation: dict[str, Any], schema: dict[str, Any]) -> str:
    fields = "".join(_field(*field) for field in _fields(operation, schema))
    answers = "".join(
        f"<dt>{escape(status)}</dt><dd>{escape(answer.get('description', ''))}</dd>"
        for status, answer in operation["responses"].items()
        if answer.get("description") not in _FROM_FASTAPI
    )
    return (
        f"<section><h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
        + (f"<dl>{fields}</dl>" if fields else "")
        + (f"<h3>Refusals</h3><dl>{answers}</dl>" if answers else "")
        + "</section>"
    )


def _fields(operation: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, default or "required", description) of the form's fields."""
    content = operation.get("requestBody", {}).get("content", {})
    found = []
    for kind in content.values():
        body = schema["components"]["schemas"][kind["schema"]["$ref"].rpartition("/")[2]]
        for name, about in body["properties"].items():
            default = "required" if name in body.get("required", ()) else f"default {about.get('default')!r}"
            found.append((name, default, about.get("description", "")))
    return found


def _field(name: str, default: str, about: str) -> str:
    return f"<dt><code>{escape(name)}</code> <small>{escape(default)}</small></dt><dd>{escape(about)}</dd>"

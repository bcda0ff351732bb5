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
    gives = "".join(_field(*field) for field in _answer(operation, schema))
    answers = "".join(
        f"<dt>{escape(status)}</dt><dd>{escape(answer.get('description', ''))}</dd>"
        for status, answer in operation["responses"].items()
        if answer.get("description") not in _FROM_FASTAPI
    )
    return (
        f"<section><h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
        + (f"<dl>{fields}</dl>" if fields else "")
        + (f"<h3>Answer</h3><dl>{gives}</dl>" if gives else "")
        + (f"<h3>Refusals</h3><dl>{answers}</dl>" if answers else "")
        + "</section>"
    )


def _fields(operation: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, type and default, description) of the form's fields."""
    content = operation.get("requestBody", {}).get("content", {})
    fields = []
    for kind in content.values():
        body = schema["components"]["schemas"][kind["schema"]["$ref"].rpartition("/")[2]]
        for name, about in body["properties"].items():
            default = "required" if name in body.get("required", ()) else f"default {about.get('default')!r}"
            fields.append((name, f"{_type(about)}, {default}", about.get("description", "")))
    return fields


def _type(about: dict[str, Any]) -> str:
    """file, string, number, integer; of several, all."""
    if about.get("format") == "binary" or "contentMediaType" in about:
        return "file"
    kinds = [_type(one) for one in about.get("anyOf", ())]
    return " or ".join(kinds) if kinds else str(about.get("type", "any"))


def _answer(operation: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, type, description) of the fields of the JSON that a route gives; none where they are
    not described."""
    fields = []
    for status, answer in operation["responses"].items():
        name = (
            answer.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
        )
        if status < "300" and name:
            for field, about in schema["components"]["schemas"][name]["properties"].items():
                fields.append((field, _type(about), about.get("description", "")))
    return fields


def _field(name: str, default: str, about: str) -> str:
    return f"<dt><code>{escape(name)}</code> <small>{escape(default)}</small></dt><dd>{escape(about)}</dd>"

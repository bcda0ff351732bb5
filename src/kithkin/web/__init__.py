"""The page and the HTTP interface of ``kithkin serve``. Needs the extra ``web``."""

from kithkin.web._app import create_app
from kithkin.web._limits import Limits
from kithkin.web._service import served_models

__all__ = ["Limits", "create_app", "served_models"]

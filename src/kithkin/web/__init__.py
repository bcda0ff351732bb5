"""The page and the HTTP interface of ``kithkin serve``. Needs the extra ``web``."""

from kithkin.web._app import create_app, served_models
from kithkin.web._limits import Limits

__all__ = ["Limits", "create_app", "served_models"]

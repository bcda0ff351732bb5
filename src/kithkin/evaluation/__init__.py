"""Methods on data sets: named protocols, rows, published tables."""

from kithkin.evaluation.protocols import GAUSSIAN_SIGMAS, PROTOCOLS, Protocol
from kithkin.evaluation.rows import Report, Row, means_table
from kithkin.evaluation.run import Pictures, Watch, evaluate, submit
from kithkin.evaluation.tables import FilledTable, PublishedTable, fill_table, list_tables, load_table, over_k_and_h

__all__ = [
    "GAUSSIAN_SIGMAS",
    "PROTOCOLS",
    "FilledTable",
    "Pictures",
    "Protocol",
    "PublishedTable",
    "Report",
    "Row",
    "Watch",
    "evaluate",
    "fill_table",
    "list_tables",
    "load_table",
    "means_table",
    "over_k_and_h",
    "submit",
]

"""``kithkin eval``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from kithkin.cli._command import say
from kithkin.cli._options import CSV, DEVICE, LIMIT, flag, tile_side

if TYPE_CHECKING:
    from rich.table import Column

    from kithkin.data import Card, Samples
    from kithkin.evaluation import FilledTable, Pictures, PublishedTable, Report, Row, Watch
    from kithkin.methods import Method

Format = Literal["text", "markdown", "csv", "json"]


def evaluate(
    folder: Path = typer.Argument(
        ...,
        metavar="FOLDER",
        help="Clean pictures, pairs in `input` and `target`, or a published data set. With --table: a folder of sets.",
    ),
    model: list[str] = typer.Option(
        [],
        "--model",
        "-m",
        metavar="MODEL",
        help="A model, a checkpoint, bm3d, nlm, input, an .onnx or TorchScript file; may be "
        "repeated. NAME\\[k=8,h=2] sets k and h, NAME+8 averages 8 passes. Default: by the set.",
    ),
    protocol: str = typer.Option(
        None,
        "--protocol",
        "-p",
        metavar="NAME",
        help="How to measure: gaussian or noises (clean pictures), rgb, float, rain or realblur (pairs), dnd. "
        "Default: what fits the data.",
    ),
    sigma: list[float] = typer.Option(
        [15.0, 25.0, 50.0],
        "--sigma",
        metavar="0..255",
        help="Noise level of protocol gaussian; may be repeated.",
    ),
    dataset: str = typer.Option(
        None,
        "--dataset",
        metavar="NAME",
        help="Name of the data set, from `kithkin data list`, if the folder does not show it.",
    ),
    table: str = typer.Option(
        None,
        "--table",
        metavar="TABLE",
        help="Fill a published table with the sets in FOLDER: 1 to 5 of the paper, or gaussian.",
    ),
    data: list[str] = typer.Option(
        [], "--data", metavar="NAME=FOLDER", help="Where a set of the table is, if not in FOLDER."
    ),
    csv: Path = CSV,
    report: Path = typer.Option(
        None, "--report", metavar="FOLDER", help="Write an HTML report with pictures, and the CSV file, to this folder."
    ),
    submission: Path = typer.Option(
        None,
        "--submission",
        metavar="PATH",
        help="Write results for the server: SIDD's file `Idenoised.mat`, or DND's folder of 50 files.",
    ),
    tile: str = typer.Option(
        "off",
        "--tile",
        metavar="auto|N|off",
        help="Tiles, as in `kithkin restore`. Published values are made with off.",
    ),
    precision: str = typer.Option(
        "float32",
        "--precision",
        metavar="float32|bfloat16|auto",
        help="Number format of kithkin's networks. auto measures what `kithkin restore` does.",
    ),
    limit: int = LIMIT,
    device: str = DEVICE,
    per_image: bool = flag("--per-image", "Also print a row for every picture."),
    form: Format = typer.Option(
        "text", "--format", metavar="text|markdown|csv|json", help="Format of what is printed."
    ),
    as_json: bool = flag("--json", "The same as --format json."),
) -> None:
    """Measure models by PSNR and SSIM under a named protocol.

    kithkin eval CBSD68 --sigma 25 -m denoise-gaussian -m bm3d
    kithkin eval pairs --model run/mine.safetensors --protocol rain --csv scores.csv
    kithkin eval datasets --table 3 --report rain-report
    """
    from kithkin.cli._device import choose_device

    run = _Evaluation(
        methods=model,
        device=choose_device(device),
        tile=tile_side(tile),
        precision=precision,
        sigmas=tuple(sigma),
        limit=limit,
        csv=csv or (report / "scores.csv" if report else None),
        report=report,
        quiet=as_json or form != "text",
    )
    form = "json" if as_json else form
    if table is not None:
        _refuse(protocol=protocol, dataset=dataset, submission=submission)
        filled = run.table(table, folder, data)
        _print_table(filled, form)
        return
    _refuse(data=data or None)
    if submission:
        _refuse(protocol=protocol, csv=csv, limit=limit)
        reports = run.submit(folder, dataset, submission)
    else:
        reports = run.measure(folder, dataset, protocol)
    _print_reports(reports, form, per_image, str(tile))


def _refuse(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter("does not go with this use; see kithkin eval --help", param_hint=f"--{name}")


class _Evaluation:
    """What the evaluations of one call share."""

    def __init__(
        self,
        *,
        methods: list[str],
        device: str,
        tile: str | int,
        precision: str,
        sigmas: tuple[float, ...],
        limit: int | None,
        csv: Path | None,
        report: Path | None,
        quiet: bool,
    ) -> None:
        self.methods, self.quiet = methods, quiet
        self.model_options: dict[str, Any] = {"device": device, "tile": tile, "precision": precision, "note": say}
        self.options: dict[str, Any] = {"sigmas": sigmas, "limit": limit, "csv": csv}
        self.builder = None
        if report:
            from kithkin.report import ReportBuilder

            self.builder = ReportBuilder(report, title="kithkin evaluation")

    def table(self, name: str, root: Path, places: list[str]) -> "FilledTable":
        """Evaluate what is there of a table's data sets."""
        from kithkin.data import open_samples
        from kithkin.evaluation import fill_table, load_table, over_k_and_h
        from kithkin.zoo import find_model

        published = load_table(name)
        sets = _find_sets(published, root, places)
        opened = {name: open_samples(folder, card.name) for name, (folder, card) in sets.items()}
        named = self._open(self.methods or ([published.task] if find_model(published.task) else ["input"]))
        methods = over_k_and_h(published, named)
        protocols = {column.dataset: column.protocol for column in published.columns}
        reports = {name: self._evaluate(samples, protocols[name], methods) for name, samples in opened.items()}
        expected = {name: card.parts["test"].counts for name, (_, card) in sets.items()}
        filled = fill_table(published, reports, expected)
        self._write_report([r for of_set in reports.values() for r in of_set], [filled])
        return filled

    def measure(self, folder: Path, dataset: str | None, protocol: str | None) -> list["Report"]:
        """Evaluate one data set."""
        from kithkin.data import find_card, open_samples

        samples = open_samples(folder, dataset)
        protocol = protocol or (find_card(dataset).protocol if dataset else None)
        reports = self._evaluate(samples, protocol, self._open(self.methods or [self._default(dataset)]))
        self._write_report(reports, [])
        return reports

    def submit(self, folder: Path, dataset: str | None, path: Path) -> list["Report"]:
        """Evaluate one data set as far as its targets are public, and write what its server takes."""
        from kithkin.data import open_samples
        from kithkin.evaluation import submit
        from kithkin.methods import open_method

        if len(self.methods) > 1:
            raise typer.BadParameter("a submission holds the pictures of one model", param_hint="--model")
        samples = open_samples(folder, dataset)
        method = open_method(*(self.methods or [self._default(dataset)]), **self.model_options)
        with self._watching(samples.title, method.name) as watch:
            reports = [submit(method, samples, path, watch=watch)]
        self._write_report(reports, [])
        return reports

    def _default(self, dataset: str | None) -> str:
        """The method where none is named: the model that ships for the data set's task."""
        from kithkin.data import find_card
        from kithkin.zoo import find_model

        task = find_card(dataset).task if dataset else None
        return task if task and find_model(task) else "denoise"

    def _open(self, specs: list[str]) -> list["Method"]:
        """All methods at once, so that a name that is none is refused before hours are spent on the others."""
        from kithkin.errors import InputError
        from kithkin.methods import open_method

        methods = [open_method(spec, **self.model_options) for spec in specs]
        names = [method.name for method in methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(
                f"evaluate: several methods are called {', '.join(twice)}, and tables and reports tell them apart by "
                "name; rename a file, or measure them one by one"
            )
        return methods

    def _evaluate(self, samples: "Samples", protocol: str | None, methods: list["Method"]) -> list["Report"]:
        from kithkin.evaluation import evaluate as run

        reports = []
        for method in methods:
            with self._watching(samples.title, method.name) as watch:
                reports.append(run(method, samples, protocol, watch=watch, **self.options))
        return reports

    @contextmanager
    def _watching(self, dataset: str, method: str) -> "Iterator[Watch]":
        """A progress bar, and pictures for the report."""
        from kithkin.cli._progress import progress_bar

        with progress_bar(quiet=self.quiet) as bar:
            task = bar.add_task(f"{dataset} {method}", total=None)

            def watch(row: "Row", total: int, pictures: "Pictures | None") -> None:
                bar.update(task, advance=1, total=total)
                if self.builder and pictures:
                    labels = {"method": method, "dataset": dataset, **vars(row)}
                    self.builder.add_picture(labels, pictures.degraded, pictures.restored, pictures.target)

            yield watch

    def _write_report(self, reports: list["Report"], tables: list["FilledTable"]) -> None:
        if self.builder is None:
            return
        page = self.builder.write([r.to_dict() for r in reports], tables=[_plain(table) for table in tables])
        typer.echo(f"report: {page}", err=True)


def _find_sets(table: "PublishedTable", root: Path, places: list[str]) -> dict[str, tuple[Path, "Card"]]:
    """Data set -> its folder and card, for those that are there."""
    from kithkin.data import find_card, find_within
    from kithkin.errors import InputError

    cards = {c.dataset: find_card(c.card or c.dataset) for c in table.columns if c.dataset != "mean"}
    folders: dict[str, Path] = {}
    for place in places:
        name, equals, where = place.partition("=")
        if not equals or name not in cards:
            raise InputError(f"--data {place}: expected NAME=FOLDER with a name of {', '.join(cards)}")
        folders[name] = Path(where)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; --table takes the folder that holds the data sets")
    sets = {}
    for name, card in cards.items():
        inside = find_within(root, card, "test")
        if folder := folders.get(name) or (inside and inside.folder):
            sets[name] = (folder, card)
    return sets


def _plain(table: "FilledTable") -> dict[str, Any]:
    rows = [[name, *cells] for _, name, cells in table.rows()]
    columns = ["method", *(column.heading for column in table.table.columns)]
    return {"title": table.table.title, "columns": columns, "rows": rows, "source": " ".join(table.footnotes())}


def _print_table(table: "FilledTable", form: Format) -> None:
    import json

    if form == "json":
        typer.echo(json.dumps(table.to_dict(), indent=1))
    elif form == "csv":
        typer.echo(table.to_csv(), nl=False)
        for remark in table.remarks():  # The other formats hold them.
            say(remark)
    else:
        typer.echo(table.to_markdown(), nl=False)


def _print_reports(reports: list["Report"], form: Format, per_image: bool, tile: str) -> None:
    import json

    if form == "json":
        typer.echo(json.dumps({"tile": tile, "evaluations": [r.to_dict() for r in reports]}, indent=1))
    elif form == "text":
        _print_text(reports, per_image)
    else:
        from kithkin.evaluation import means_table

        typer.echo(means_table(reports, form), nl=False)


def _print_text(reports: list["Report"], per_image: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)  # a picture may be called a[1].png
    first = reports[0]
    if per_image:
        rows = Table(*map(_folding, ("picture", "condition", "method")), "PSNR in", "PSNR", "SSIM in", "SSIM")
        for report in reports:
            for r in report.rows:
                values = [_number(r.psnr_input, 2), _number(r.psnr, 2), _number(r.ssim_input, 4), _number(r.ssim, 4)]
                rows.add_row(r.image, r.condition, report.method, *values)
        console.print(rows)
    title = f"{first.dataset}: {first.protocol.summary}"
    values_of = ("PSNR in", "PSNR", "SSIM in", "SSIM", "pictures", "s/MP")
    table = Table(_folding("condition"), _folding("method"), *values_of, title=title)
    for report in reports:
        for condition, m in report.means().items():
            values = [_number(m["psnr_input"], 2), _number(m["psnr"], 2), _number(m["ssim_input"], 4)]
            values += [_number(m["ssim"], 4), str(m["images"]), _number(m["seconds_per_megapixel"], 2)]
            table.add_row(condition, report.method, *values)
    console.print(table)
    console.print(f"PSNR {first.protocol.psnr}, SSIM {first.protocol.window}", highlight=False)


def _folding(title: str) -> "Column":
    """A column whose names go on in the next line where the terminal is narrow: cut off, two of them may look alike."""
    from rich.table import Column

    return Column(title, overflow="fold")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"

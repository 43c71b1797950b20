"""The judge's commands: `coatref check`, `cases` and `selftest`.

The command line finds this module by its name, and imports it when it starts; so it imports little itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coatref.conformance.command_options import (
    Accumulate,
    AnySpec,
    Dialect,
    Dtype,
    HtmlFile,
    Jit,
    JsonFile,
    Layout,
    Level,
    Mapping,
    Names,
    Quiet,
    Seed,
    SpecOfCases,
    SpecOption,
    Target,
    Timeout,
    Weights,
)
from coatref.conformance.judging import judged
from coatref.conformance.progress import progress_bar
from coatref.errors import CoatrefError, InputError

if TYPE_CHECKING:
    from coatref.conformance.report.results import Report

CHECK_EXAMPLES = """Examples:

coatref check timm:coatnet_0_rw_224 --level quick

coatref check onnx:model.onnx --spec timm/coatnet_0_rw_224 --html report.html

coatref check "cmd:./mine {params} {input} {output}" --spec coatnet_0 --dtype float16

coatref check op:relative_attention=package.module:function"""
CASES_EXAMPLES = """Examples:

coatref cases cases --spec coatnet_0

coatref check results:cases --spec coatnet_0"""
SELFTEST_EXAMPLES = """Examples:

coatref selftest

coatref selftest --level full --write docs/kill-matrix.md"""

STDOUT = Path("-")


def check(
    target: Target = None,
    spec: SpecOption = None,
    weights: Weights = None,
    dtype: Dtype = "float32",
    accumulate: Accumulate = None,
    level: Level = "default",
    seed: Seed = 0,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
    quiet: Quiet = False,
    dialect: Dialect = None,
    mapping: Mapping = None,
    names: Names = None,
    layout: Layout = None,
    timeout: Timeout = None,
    jit: Jit = None,
    any_spec: AnySpec = None,
) -> None:
    """Judge an implementation: whether it computes its spec, where it goes wrong, and what it computes instead.

    Kinds of target: backend, timm, torch, python, jax, onnx, cmd, results, and op for a single primitive.

    Exit codes: 0 it conforms, 1 it does not, 2 it could not be judged.
    """
    given_options = {
        "dialect": dialect,
        "mapping": mapping,
        "names": names,
        "layout": layout,
        "timeout": timeout,
        "jit": jit,
        "any_spec": any_spec,
    }
    options = {name: str(value) for name, value in given_options.items() if value is not None}
    given: dict[str, Any] = {"spec": spec, "dtype": dtype, "accumulate": accumulate, "level": level, "seed": seed}
    given["weights"] = weights
    refuse_lost(json_file, html_file)
    if target is None:
        if html_file is not None or options:
            surplus = "--html" if html_file is not None else f"--{next(iter(options)).replace('_', '-')}"
            raise InputError(
                f"{surplus} needs a TARGET; without one the array libraries that are installed are judged."
            )
        raise typer.Exit(check_backends(given, json_file, quiet=quiet))
    with progress_bar(quiet) as progress:
        report = judged(target, **given, progress=progress, options=options)
    show(report, quiet=quiet or json_file == STDOUT, to_stdout=json_file != STDOUT)
    deliver(report, json_file, html_file)
    raise typer.Exit(report.exit_code)


def check_backends(given: dict[str, Any], json_file: Path | None, *, quiet: bool) -> int:
    """Judge every array library that is installed, with a line for each.

    Returns:
        The exit code: 1 if some library does not conform, else 2 if some could not be judged, else 0.
    """
    from coatref.cli.info import describe, library_names
    from coatref.cli.output import console, one_line
    from coatref.conformance.report.as_json import to_json

    present = [name for name in library_names() if name != "array_api_strict" and not describe(name)["unavailable"]]
    out, reports, codes = console(stderr=json_file == STDOUT), [], []
    for name in present:
        target = f"backend:{name}"
        try:
            with progress_bar(quiet, f"judging {name}") as progress:
                report = judged(target, **given, progress=progress)
        except CoatrefError as error:
            out.print(f"CANNOT BE JUDGED  {target}: {one_line(str(error))}", soft_wrap=True)
            codes.append(2)
            continue
        reports.append(to_json(report))
        codes.append(report.exit_code)
        show(report, quiet=True, to_stdout=json_file != STDOUT)
    if json_file is not None:
        write_text(json.dumps(reports, indent=1, allow_nan=False) + "\n", json_file)
    return 1 if 1 in codes else max(codes, default=2)


def show(report: Report, *, quiet: bool, to_stdout: bool) -> None:
    """Print a report, on stderr where stdout is for JSON."""
    from coatref.cli.output import console
    from coatref.conformance.report.text import render

    render(report, console(stderr=not to_stdout), quiet=quiet)


def deliver(report: Report, json_file: Path | None, html_file: Path | None) -> None:
    """Write a report where it was asked for."""
    from coatref.conformance.report.as_json import dumps
    from coatref.conformance.report.save import save_html, save_json

    if json_file == STDOUT:
        write_text(dumps(report), json_file)
    elif json_file is not None:
        save_json(report, json_file)
    if html_file is not None:
        save_html(report, html_file)


def refuse_lost(*files: Path | None) -> None:
    """Refuse files in folders that are not there, before minutes of work would be lost.

    Raises:
        FileNotFoundError: names the folder.
    """
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {file.parent} to write {file.name} to; make it first.")


def write_text(text: str, file: Path) -> None:
    """Write a text to a file, or to stdout."""
    if file == STDOUT:
        typer.echo(text, nl=False)
    else:
        file.write_text(text, encoding="utf-8")


def cases(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if it is not there.")],
    spec: SpecOfCases = "coatnet_0",
    dtype: Dtype = "float32",
    accumulate: Accumulate = None,
    level: Level = "default",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Write the cases of a judgement as files, to be computed elsewhere and judged later as results:DIR."""
    from coatref.cli.output import console
    from coatref.conformance.case_files import write_cases
    from coatref.conformance.given import refuse_level, spec_of
    from coatref.conformance.judge import cases as cases_of
    from coatref.conformance.precision import declared

    made = cases_of(spec_of(spec) or spec, dtype=dtype, accumulate=accumulate, level=refuse_level(level), seed=seed)
    index = write_cases(folder, made, declared(dtype, accumulate))
    if not quiet:
        console().print(f"The cases are listed in {index}.", soft_wrap=True)


def selftest(
    level: Annotated[str, typer.Option("--level", metavar="LEVEL", help="sample or full.")] = "sample",
    json_file: JsonFile = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Write the kill matrix as Markdown there.")
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Judge the judge: which of the known mistakes it finds, and how often it blames a right implementation.

    Exit codes: 0 it is as good as it must be, 1 it is not, 2 it could not be run.
    """
    from coatref.cli.output import console
    from coatref.conformance.given import refuse_level
    from coatref.conformance.selftest import run

    refuse_level(level, ("sample", "full"))
    refuse_lost(json_file, write)
    with progress_bar(quiet, "selftest") as progress:
        result = run(level, seed, progress)
    if json_file is not None:
        write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n", json_file)
    if write is not None:
        write_text(result.markdown(), write)
    elif json_file != STDOUT and not quiet:
        console().print(result.markdown(), soft_wrap=True)
    raise typer.Exit(0 if result.ok else 1)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog=CHECK_EXAMPLES)(check)
    app.command(epilog=CASES_EXAMPLES)(cases)
    app.command(epilog=SELFTEST_EXAMPLES)(selftest)

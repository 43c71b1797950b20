"""The pytest plugin: judges targets named on the command line or in pytest's configuration, as tests of the run.

    pytest --coatref-target timm:coatnet_0_rw_224 --coatref-level quick

Every target gives one test for each kind of check, such as `coatref::timm:coatnet_0_rw_224::wiring`, with the marker
`coatref` (`-m coatref` runs these tests alone), and the summary ends with the verdicts. The fixture `coatref_check` is
`coatref.check` with the run's options as defaults.

pytest loads this module in every run wherever coatref is installed, so nothing that it needs is imported before use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from coatref.conformance.report.results import Report

OPTIONS = {  # name -> (metavar, help)
    "spec": ("SPEC", "what the targets claim to compute: a spec's name, or a JSON file of one"),
    "weights": ("FILE", "their weights: any file that coatref.load reads"),
    "dtype": ("TYPE", "float64, float32 (the default), float16 or bfloat16"),
    "accumulate": ("TYPE", "the type of their sums; by default what their kind of target does"),
    "level": ("LEVEL", "quick, default or deep"),
    "seed": ("N", "of everything that is drawn at random; 0"),
    "json": ("FILE", "write the report as JSON; of several targets to FILE-1, FILE-2, ..."),
    "html": ("FILE", "write the report as an HTML page; of several targets likewise"),
}
PROPERTY = "coatref"  # of a test's report: the verdict in one line, which also comes from another process so
REPORTS = pytest.StashKey[dict[str, Any]]()  # target -> its report, or the error that kept it from being judged


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the command line, and of the configuration: coatref_targets, coatref_spec, ..."""
    group = parser.getgroup("coatref", "conformance of CoAtNet implementations")
    group.addoption(
        "--coatref-target",
        action="append",
        metavar="TARGET",
        dest="coatref_targets",
        help="judge TARGET, as `coatref check TARGET` does; may be given several times",
    )
    parser.addini("coatref_targets", "targets that coatref judges, one in each line", type="linelist")
    for name, (metavar, help_text) in OPTIONS.items():
        group.addoption(f"--coatref-{name}", metavar=metavar, dest=f"coatref_{name}", help=help_text)
        parser.addini(f"coatref_{name}", f"coatref: {help_text}", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "coatref: a kind of check of a target, given with --coatref-target.")


def targets(config: pytest.Config) -> list[str]:
    """The targets that a run judges: those of the command line, else those of the configuration."""
    found = config.getoption("coatref_targets") or config.getini("coatref_targets")
    return list(dict.fromkeys(found))


def option(config: pytest.Config, name: str) -> str | None:
    """An option of the command line, else of the configuration, else None."""
    return config.getoption(f"coatref_{name}") or config.getini(f"coatref_{name}") or None


def arguments(config: pytest.Config) -> dict[str, Any]:
    """What `coatref.check` gets besides target, spec and weights.

    Raises:
        InputError: the seed or the level is none.
    """
    from coatref.conformance.given import refuse_level, seed_of

    return {
        "dtype": option(config, "dtype") or "float32",
        "accumulate": option(config, "accumulate"),
        "level": refuse_level(option(config, "level") or "default"),
        "seed": seed_of(option(config, "seed") or "0"),
    }


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among the tests
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the tests of the targets."""
    for target in targets(session.config):
        node = TargetNode.from_parent(session, name=target, nodeid=f"coatref::{target}")
        added = list(node.collect())
        items.extend(added)
        counted = pytest.CollectReport(nodeid=node.nodeid, outcome="passed", longrepr=None, result=[*added])
        node.ihook.pytest_collectreport(report=counted)


class TargetNode(pytest.Collector):
    """A target, which has one test for each kind of check."""

    def collect(self) -> Iterable[CheckItem]:
        """The tests, none of which judges before it runs."""
        from coatref.conformance.per_check import CHECKS, id_of

        return [CheckItem.from_parent(self, name=id_of(check), check=check) for check in CHECKS]


class CheckItem(pytest.Item):
    """One kind of check of a target."""

    def __init__(self, *, check: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check
        self.add_marker("coatref")
        if self.config.pluginmanager.hasplugin("xdist"):  # with --dist loadgroup, one process judges a target
            self.add_marker(pytest.mark.xdist_group(f"coatref::{self.target}"))

    @property
    def target(self) -> str:
        """The target as the user wrote it."""
        assert self.parent is not None
        return self.parent.name

    def runtest(self) -> None:
        """Fail where the kind of check finds something, skip where there is no case of it."""
        from coatref.conformance.per_check import kind_result, verdict_line
        from coatref.errors import CoatrefError

        try:
            report = report_on(self.config, self.target)
        except (CoatrefError, OSError) as error:
            self.user_properties.append((PROPERTY, f"CANNOT BE JUDGED  {self.target}: {error}"))
            pytest.fail(f"{self.target} could not be judged: {error}", pytrace=False)
        self.user_properties.append((PROPERTY, verdict_line(report)))
        found = kind_result(report, self.check, {})
        if found.status == "fail":
            pytest.fail(found.message, pytrace=False)
        if found.status == "skip":
            pytest.skip(found.message)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the test is said to be: nowhere in a file."""
        return self.config.rootpath / "coatref", None, f"{self.target}::{self.name}"


def report_on(config: pytest.Config, target: str) -> Report:
    """The report on a target, which is judged once in a run; its files are written then.

    Raises:
        CoatrefError, OSError: it could not be judged, or a file could not be written.
    """
    from coatref.conformance.per_check import judged_once

    return judged_once(config.stash.setdefault(REPORTS, {}), target, lambda: judge(config, target))


def judge(config: pytest.Config, target: str) -> Report:
    """Judge a target as the options say, and write its report where they say."""
    from coatref.conformance.judging import judged
    from coatref.conformance.report.save import save_html, save_json

    report = judged(target, spec=option(config, "spec"), weights=option(config, "weights"), **arguments(config))
    for name, save in (("json", save_json), ("html", save_html)):
        if (file := option(config, name)) is not None:
            save(report, file_for(Path(file), targets(config), target))
    return report


def file_for(file: Path, targets: list[str], target: str) -> Path:
    """The file for one of several targets: with its number in the name, unless it is the only one.

    >>> file_for(Path("report.json"), ["numpy", "torch"], "torch").name
    'report-2.json'
    """
    if len(targets) == 1:
        return file
    return file.with_name(f"{file.stem}-{targets.index(target) + 1}{file.suffix}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The verdicts, each on one line, in the order of the tests."""
    lines: dict[str, None] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY:
                    lines[str(value)] = None
    if lines:
        terminalreporter.section("coatref")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def coatref_check(pytestconfig: pytest.Config) -> Callable[..., Report]:
    """`coatref.check`, with the dtype, accumulation, level and seed of the run's options as defaults."""
    import coatref

    return functools.partial(coatref.check, **arguments(pytestconfig))

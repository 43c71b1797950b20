"""How a report is shown: JSON and back, text for a terminal and for a pipe, and the page's markup."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import json
import math
import os
import re
import sys
import typing
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from example_reports import HOSTILE, all_verdicts, failing, hostile, passing, unjudged
from rich.console import Console

from coatref import CoatrefError, InputError
from coatref.conformance.report import as_json, results, words
from coatref.conformance.report.html import page
from coatref.conformance.report.results import CaseResult, HeatMap, Report, Scatter, Stage
from coatref.conformance.report.save import save_html, save_json
from coatref.conformance.report.text import render
from coatref.errors import MissingDependencyError

KINDS = ("fail", "pass", "cannot judge", "hostile")


@pytest.fixture(params=KINDS)
def report(request: pytest.FixtureRequest) -> Report:
    return all_verdicts()[request.param]


def shown(report: Report, *, quiet: bool = False, width: int = 80, **options: Any) -> str:
    """What a console prints; by default as to a pipe."""
    file = io.StringIO()
    render(report, Console(file=file, width=width, **options), quiet=quiet)
    return file.getvalue()


def flat(text: str) -> str:
    """A text with single spaces only, since a console breaks lines."""
    return " ".join(text.split())


# --- JSON ---


def test_json_gives_back_an_equal_report(report: Report) -> None:
    text = as_json.dumps(report)
    again = as_json.from_json(json.loads(text))
    assert as_json.dumps(again) == text
    assert type(again.results) is tuple and type(again.precision) is dict
    if not any(case.margin is not None and math.isnan(case.margin) for case in report.results):
        assert again == report  # NaN equals nothing, itself included


def test_json_is_strict_and_says_what_it_is(report: Report) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(as_json.dumps(report), parse_constant=refuse)
    assert (read["format"], read["version"]) == ("coatref-report", 1)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.1, -0.0, 5e-324, 1.7976931348623157e308])
def test_every_number_survives(value: float) -> None:
    again = as_json.from_json(json.loads(as_json.dumps(dataclasses.replace(passing(), seconds=value))))
    assert repr(again.seconds) == repr(value)


def test_numbers_of_numpy_are_written() -> None:
    import numpy as np

    strange: Any = {"seconds": np.float32(0.5), "seed": np.int64(3)}
    again = as_json.from_json(json.loads(as_json.dumps(dataclasses.replace(passing(), **strange))))
    assert (again.seconds, again.seed) == (0.5, 3)


def test_json_fits_the_published_schema(report: Report) -> None:
    pytest.importorskip("jsonschema", reason="needs jsonschema, which is not installed")
    as_json.validate(json.loads(as_json.dumps(report)))


def test_the_schema_is_a_valid_one_of_its_draft() -> None:
    jsonschema: Any = pytest.importorskip("jsonschema", reason="needs jsonschema, which is not installed")
    schema = as_json.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].endswith(f":{as_json.VERSION}")


def test_the_schema_names_exactly_the_fields_and_describes_each() -> None:
    schema = as_json.schema()
    kinds = {name.lower(): shape for name, shape in schema["$defs"].items()} | {"report": schema}
    names = {"CaseResult": "case", "HeatMap": "heat_map"}
    records = [value for value in vars(results).values() if dataclasses.is_dataclass(value)]
    assert len(records) == 8
    for record in records:
        shape = kinds[names.get(typing.cast(type, record).__name__, typing.cast(type, record).__name__.lower())]
        fields = [field.name for field in dataclasses.fields(record)]
        if record is Report:
            fields = ["format", "version", *fields]
        assert list(shape["properties"]) == shape["required"] == fields
        assert shape["additionalProperties"] is False
        assert all(entry["description"] for entry in shape["properties"].values())


def test_the_schema_knows_every_choice() -> None:
    schema = as_json.schema()
    assert schema["$defs"]["verdict"]["enum"] == list(typing.get_args(results.Verdict))
    assert schema["$defs"]["case"]["properties"]["check"]["enum"] == list(typing.get_args(results.Check))


def _without(name: str) -> Callable[[Any], None]:
    return lambda value: value.pop(name)


def _with(*path: Any) -> Callable[[Any], None]:
    """A change that puts the last argument at the place that the others lead to."""
    *steps, last, new = path

    def change(value: Any) -> None:
        for step in steps:
            value = value[step]
        value[last] = new

    return change


DAMAGE = {
    "not a report": _with("format", "something else"),
    "a later version": _with("version", 2),
    "a version that is no number": _with("version", True),
    "a field missing": _without("seed"),
    "a surplus field": _with("colour", "red"),
    "an unknown verdict": _with("verdict", "maybe"),
    "a text for a number": _with("seconds", "fast"),
    "a bool for a number": _with("seconds", True),
    "a number for a text": _with("target", 3),
    "a fraction for a whole number": _with("seed", 0.5),
    "an image of two numbers": _with("results", 0, "image", [2, 3]),
    "an unknown check": _with("results", 0, "check", "guess"),
    "a surplus field inside": _with("results", 0, "comparisons", 0, "note", ""),
    "a number in a map of texts": _with("versions", {"torch": 2}),
    "null for a list": _with("findings", None),
    "a text for a list": _with("excludes", "none"),
    "a list for a record": _with("counterexample", []),
    "null in a heat map": _with("findings", 1, "heat_map", "found", [[None]]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_json_that_is_no_report_is_refused_by_reader_and_schema(damage: str) -> None:
    pytest.importorskip("jsonschema", reason="needs jsonschema, which is not installed")
    value = copy.deepcopy(as_json.to_json(failing()))
    DAMAGE[damage](value)
    for check in (as_json.from_json, as_json.validate):
        with pytest.raises(InputError) as error:
            check(value)
        assert "\n" not in str(error.value)
        assert "to_json" in str(error.value) or "version" in str(error.value)


def test_a_refusal_names_the_place() -> None:
    value = as_json.to_json(failing())
    value["results"][2]["comparisons"][0]["margin"] = "big"
    with pytest.raises(InputError, match=r"report\.results\[2\]\.comparisons\[0\]\.margin must be a number"):
        as_json.from_json(value)


def test_a_missing_jsonschema_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingDependencyError, match=r"coatref\[report\]"):
        as_json.validate({})


# --- files ---


@pytest.mark.parametrize("save", [save_json, save_html])
def test_files_are_whole_or_not_there(save: Callable[[Report, Path], None], tmp_path: Path, report: Report) -> None:
    path = tmp_path / "report"
    save(report, path)
    written = path.read_text(encoding="utf-8")
    assert written == (as_json.dumps(report) if save is save_json else page(report))
    nothing: Any = None
    broken = dataclasses.replace(report, results=(nothing,))
    with pytest.raises((AttributeError, TypeError)):
        save(broken, path)
    assert path.read_text(encoding="utf-8") == written
    assert os.listdir(tmp_path) == ["report"]


def test_a_failed_move_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        save_json(passing(), tmp_path / "taken")
    assert os.listdir(tmp_path) == ["taken"]
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        save_json(passing(), tmp_path / "nowhere" / "report.json")


# --- text ---


@pytest.mark.parametrize(("kind", "code"), [("pass", 0), ("fail", 1), ("cannot judge", 2)])
def test_exit_codes(kind: str, code: int) -> None:
    assert all_verdicts()[kind].exit_code == code
    assert all_verdicts()[kind].conforms is (code == 0)


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("fail", "FAILS  torch:mypkg.models:coatnet0 does not compute coatnet_0 in float32: scales the attention"),
        ("pass", "CONFORMS  timm:coatnet_0_rw_224 computes coatnet_0 in float32"),
        ("cannot judge", "CANNOT BE JUDGED  onnx:model.onnx gives no logits"),
    ],
)
def test_the_verdict_comes_first_and_alone_when_quiet(kind: str, start: str) -> None:
    quiet = shown(all_verdicts()[kind], quiet=True, width=30)
    assert quiet.startswith(start) and quiet.count("\n") == 1
    assert flat(shown(all_verdicts()[kind])).startswith(flat(quiet))


def test_a_summary_without_the_target_is_completed() -> None:
    bare = dataclasses.replace(failing(), summary="scales the logits wrongly.")
    assert words.headline(bare) == (
        "torch:mypkg.models:coatnet0 does not compute coatnet_0 in float32: scales the logits wrongly."
    )
    assert words.headline(dataclasses.replace(bare, summary="")).endswith("coatnet_0 in float32.")


def test_the_failing_report_tells_what_where_and_how() -> None:
    text = shown(failing())
    parts = (
        "error/bound",
        "Diagnosis",
        "Attention logits are scaled by 1/sqrt(heads*d), not 1/sqrt(d) (paper, section 2.1).",
        "where: s3.0, s3.1, s3.2",
        "spec field: Attention.scale = 1/sqrt(heads*d)",
        "tensors: s4.1.attn.relative_bias.table",
        "Failing cases (3 of 5)",
        "s3.2[1, 4]: expected 0.125, found 0.1289, error 0.0039, bound 1e-6",
        "logits holds NaN at [1, 4]",
        "one 2x3 grid, two heads, batch 1",
        "saved in coatref-case-3f2a.safetensors",
        "Not covered",
        "Reproduce coatref check torch:mypkg.models:coatnet0 --spec coatnet_0",
    )
    places = [flat(text).find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)
    assert failing().reproduce in text  # on one line, to be copied


def test_stages_show_their_margin_and_verdict() -> None:
    rows = {
        row.split()[0]: row for row in shown(failing(), width=120).splitlines() if re.match(r"s\d|head|logits", row)
    }
    assert "41.2" in rows["s3.0"] and "FAIL" in rows["s3.0"] and "amplifier: attention scale" in rows["s3.0"]
    assert "not looked at" in rows["s1.1"] and "█" not in rows["s1.1"]
    assert all(("FAIL" in row) == (name in ("s3.0", "s3.1", "s3.2", "s4.1")) for name, row in rows.items())
    for name, row in rows.items():  # the bar passes the mark exactly where the bound is broken
        assert ("│█" in row) == (name in ("s3.0", "s3.1", "s3.2", "s4.1")), name


@pytest.mark.parametrize(("margin", "beyond"), [(0.0, False), (1.0, False), (1.0001, True), (math.nan, True)])
def test_the_bar_passes_its_mark_where_the_margin_passes_one(margin: float, beyond: bool) -> None:
    stage = Stage("s0", "stem", "fail" if beyond else "pass", margin)
    assert ("│█" in shown(dataclasses.replace(passing(), stages=(stage,)))) is beyond


def test_an_unsaved_counterexample_is_printed() -> None:
    smallest = failing().counterexample
    assert smallest is not None
    text = shown(dataclasses.replace(failing(), counterexample=dataclasses.replace(smallest, file="")))
    assert all(row.rstrip() in text for row in smallest.script.splitlines())


@pytest.mark.parametrize("markup", [False, True])
def test_a_pipe_gets_plain_text_and_nothing_is_markup(report: Report, markup: bool) -> None:
    text = shown(report, markup=markup)
    assert "\x1b" not in text and "\u202e" not in text
    if report.target == HOSTILE:
        assert text.startswith("FAILS  [red]x</title><script")
        assert "[red]x" in shown(report, quiet=True, markup=markup)
        assert text.count("[red]x</title>") == text.count("x</title>") > 20


def test_a_terminal_gets_colour_and_no_foreign_codes() -> None:
    text = shown(hostile(), force_terminal=True, color_system="standard")
    codes = set(re.findall(r"\x1b\[([\d;]*)m", text))
    assert "1;31" in codes
    assert "\x1b[31m\u202e" not in text and text.count("\x1b") == len(re.findall(r"\x1b\[[\d;]*m", text))
    assert "\ufffd[31m" in flat(text)


def test_an_ascii_terminal_gets_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render(failing(), Console(file=file, width=80))  # UnicodeEncodeError where a character is not ASCII
    file.flush()


def test_another_spec_that_fits_is_told_of() -> None:
    other = dataclasses.replace(failing(), conforms_to="timm/coatnet_0_rw_224")
    sentence = "It conforms to timm/coatnet_0_rw_224, not to coatnet_0."
    assert sentence in flat(shown(other))
    assert sentence in re.sub("<[^>]*>", "", page(other))


def test_what_a_pass_excludes() -> None:
    assert "What this pass excludes - A wrong LayerNorm epsilon" in flat(shown(passing()))
    assert "What this pass excludes" in page(passing()) and "What was not covered" in page(unjudged())


# --- the page ---


class Elements(HTMLParser):
    """Collects the elements of a page and checks that they are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str, class_: str = "") -> list[dict[str, str | None]]:
        """Attributes of the elements with that tag and class."""
        wanted = set(class_.split())
        return [a for t, a in self.found if t == tag and wanted <= set((a.get("class") or "").split())]


def test_the_page_is_balanced_and_loads_nothing(report: Report) -> None:
    elements = Elements(page(report))
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "video", "use", "image"}
    for tag, attributes in elements.found:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")}
        assert tag != "a" or (attributes["href"] or "").startswith("#finding-")
    style = page(report).partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style and "<" not in style and "://" not in style


def test_the_page_escapes_every_text() -> None:
    text = page(hostile())
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
    assert "[red]x&lt;/title&gt;&lt;script src=&quot;http://evil.example/x.js&quot;&gt;" in text
    elements = Elements(text)
    assert sum("[red]x</title><script src=" in data for data in elements.texts) > 20


def test_half_a_surrogate_pair_can_be_saved(tmp_path: Path) -> None:
    odd = dataclasses.replace(failing(), target="x\ud800", summary="x\ud800 fails")
    save_html(odd, tmp_path / "report.html")
    save_json(odd, tmp_path / "report.json")
    assert as_json.from_json(json.loads((tmp_path / "report.json").read_text())).target == odd.target


def test_the_page_is_for_phones_and_readers() -> None:
    elements = Elements(page(failing()))
    assert elements.named("html")[0]["lang"] == "en"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in elements.named("meta")
    assert "prefers-color-scheme: dark" in page(failing())
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in elements.named("svg"))
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in elements.found:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in names


def test_the_page_draws_every_stage_with_colour_mark_and_figure() -> None:
    elements = Elements(page(failing()))
    boxes = elements.named("li", "block")
    assert len(boxes) == len(failing().stages) == 15
    assert [box["class"] for box in boxes if "failed" in (box["class"] or "")] == [
        "block m5 failed",
        "block m6 failed",
        "block m7 failed",
        "block m4 failed",
    ]
    assert len(elements.named("li", "none")) == 1
    assert [link["href"] for link in elements.named("a", "number")] == ["#finding-1"] * 3 + ["#finding-2"]
    assert {"41.2", "3.9e3", "2.2e6", "1.4"} <= set(elements.texts)


def test_a_stage_that_fails_without_a_margin_is_not_green() -> None:
    bad = dataclasses.replace(failing(), stages=(Stage("s0", "", "fail"), Stage("s1.0", "", "fail", 0.2)))
    assert len(Elements(page(bad)).named("li", "m7 failed")) == 2


def test_the_page_holds_heat_maps_script_command_and_versions() -> None:
    text, elements = page(failing()), Elements(page(failing()))
    assert len(elements.named("rect")) >= 2 * 35
    assert "expected, row 0, column 1: 0.56464" in text and "29 of 35 entries differ" in text
    joined = "".join(elements.texts)
    smallest = failing().counterexample
    assert smallest is not None and smallest.script in joined
    assert failing().reproduce in joined and '"image_size": [' in joined and "2.13.0" in joined


def test_few_entries_that_differ_are_framed() -> None:
    finding = dataclasses.replace(
        failing().findings[1], heat_map=HeatMap("t", ((1.0, 2.0), (3.0, 4.0)), ((1.0, 2.0), (3.0, 5.0)))
    )
    text = page(dataclasses.replace(failing(), findings=(finding,)))
    assert "1 of 4 entries differ; they are framed" in text and 'class="frame"' in text


def test_plots_count_what_is_beyond_the_bound() -> None:
    scatter = Scatter((1.0, 0.0, 2.0, 3.0, 1.0), (0.5, 0.0, 3.0, math.nan, 1.0), (1.0, 0.0, 1.0, 1.0, 0.0))
    case = dataclasses.replace(failing().results[1], scatter=scatter)
    text = page(dataclasses.replace(failing(), results=(case,)))
    assert "Error versus magnitude of 5 elements; 3 beyond their bound." in text
    assert "Error over bound of 5 elements; 3 beyond 1." in text
    assert "nan" not in re.sub("<title>.*?</title>", "", text.partition("<svg")[2].partition("</svg>")[0])
    assert text.count('class="beyond-bar"') == 2  # 3 bounds, and what is infinite or no number


@pytest.mark.parametrize(
    "scatter",
    [
        Scatter((0.0,), (0.0,), (0.0,)),
        Scatter((math.inf,), (math.inf,), (math.nan,)),
        Scatter((1.0, 1.0), (1.0,), (1.0,)),
        Scatter((5e-324, 1.7e308), (5e-324, 1.7e308), (5e-324, 1.7e308)),
    ],
)
def test_plots_take_any_numbers(scatter: Scatter) -> None:
    Elements(
        page(dataclasses.replace(passing(), results=(dataclasses.replace(passing().results[0], scatter=scatter),)))
    )


def test_an_empty_report_is_shown() -> None:
    bare = Report("t", "s", "not JSON", {}, "quick", 0, "fail", "")
    assert "t does not compute s in an undeclared precision." in flat(shown(bare))
    assert "No mistake could be named" in page(bare) and "not JSON" in page(bare)
    Elements(page(bare))
    assert as_json.from_json(as_json.to_json(bare)) == bare


def test_big_reports_stay_small_pages() -> None:
    case = failing().results[1]
    many = CaseResult(**{**vars(case), "comparisons": case.comparisons * 300, "scatter": Scatter(*[(1.0,) * 5000] * 3)})
    big = dataclasses.replace(
        failing(),
        results=tuple(dataclasses.replace(many, case=f"random: {place}") for place in range(100)),
        findings=(dataclasses.replace(failing().findings[1], heat_map=HeatMap("t", *[((0.5,) * 200,) * 200] * 2)),),
    )
    text = page(big)
    assert len(text) < 5e6
    assert "860 comparisons with smaller margins left out" in text and "Only the first 48 rows" in text


def test_every_error_is_one_of_the_project() -> None:
    values: list[Any] = [None, [], "report", {}, {"format": "coatref-report"}]
    for value in values:
        with pytest.raises(CoatrefError):
            as_json.from_json(value)

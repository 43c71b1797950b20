"""What a judgement consists of, from one compared value to the whole report; plain data that goes to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["pass", "fail", "cannot judge"]
Check = Literal["wiring", "amplifier", "random", "law", "as given", "probe"]

EXIT_CODES: dict[str, int] = {"pass": 0, "fail": 1, "cannot judge": 2}


@dataclass(frozen=True)
class Comparison:
    """One value of a candidate beside the definition's.

    Attributes:
        value: its name in a trace, such as "s3.0.attn.logits" or "logits".
        verdict: of this value alone.
        margin: the largest of the three below; it conforms up to 1. None where nothing was compared.
        element_margin: largest |error| / bound of any element.
        rms_margin: root mean square of error / standard deviation, over its bound.
        bias_margin: |mean of error / standard deviation|, over its bound.
        elements: how many were compared.
        worst: index of the element with the largest margin, with its expected and found value and its bound.
        max_error, rmse: of all elements, in the units of the value.
        reason: why it fails or cannot be judged, in one sentence.
    """

    value: str
    verdict: Verdict
    margin: float | None = None
    element_margin: float | None = None
    rms_margin: float | None = None
    bias_margin: float | None = None
    elements: int = 0
    worst: tuple[int, ...] = ()
    expected: float | None = None
    found: float | None = None
    bound: float | None = None
    max_error: float | None = None
    rmse: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Scatter:
    """Some elements of a compared value: |expected|, |error| and bound of each, for drawing."""

    magnitude: tuple[float, ...] = ()
    error: tuple[float, ...] = ()
    bound: tuple[float, ...] = ()


@dataclass(frozen=True)
class CaseResult:
    """One case: parameters and images given to the candidate, and what came of it.

    Attributes:
        case: its name, unique within a report, such as "amplifier: epsilon".
        check: the kind of check it belongs to.
        about: what it would show, in one sentence.
        spec: name of the spec it was run with.
        image: (N, H, W) of its images.
        verdict: "fail" if any comparison fails, "cannot judge" if none passes or fails, else "pass".
        comparisons: every compared value in order of computation.
        problem: what kept the values from being compared: an exception, a missing output, NaN, a wrong shape or type.
        scatter: of the logits, for drawing.
        seconds: that it took.
    """

    case: str
    check: Check
    about: str
    spec: str
    image: tuple[int, int, int]
    verdict: Verdict
    comparisons: tuple[Comparison, ...] = ()
    problem: str = ""
    scatter: Scatter = Scatter()
    seconds: float = 0.0

    @property
    def margin(self) -> float | None:
        """The largest margin of its comparisons."""
        return max((c.margin for c in self.comparisons if c.margin is not None), default=None)


@dataclass(frozen=True)
class Stage:
    """One row of the table of stages: a part of the network, and the worst that any case showed of it.

    Attributes:
        name: "s0", "s1.0", "s3.2", "head" or "logits".
        about: what it is in words, such as "MBConv 96, stride 2".
        margin: largest margin; None where nothing was compared.
        verdict: "cannot judge" also where no case looks at it alone.
        case: that showed the margin.
    """

    name: str
    about: str
    verdict: Verdict
    margin: float | None = None
    case: str = ""


@dataclass(frozen=True)
class HeatMap:
    """A relative-bias table as it should be read and as the candidate reads it: one head's bias of one query."""

    title: str
    expected: tuple[tuple[float, ...], ...]
    found: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Finding:
    """One mistake.

    Attributes:
        primitive: which part of the definition is wrong, such as "attention scale"; "" where not even that is known.
        places: blocks where it shows, such as ("s3.0", "s3.1").
        sentence: what it computes, and what it should compute, with the place in the paper.
        mistake: name in the catalogue; "" where the candidate's output was reproduced by no known change.
        fields: spec fields and the values that reproduce it, such as {"Attention.scale": "1/sqrt(heads*d)"}.
        tensors: parameters that are wrong, where the weights themselves differ.
        cases: names of the cases that show it.
        heat_map: where a relative-bias table is read wrongly.
    """

    primitive: str
    places: tuple[str, ...]
    sentence: str
    mistake: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    heat_map: HeatMap | None = None


@dataclass(frozen=True)
class Counterexample:
    """The smallest failing configuration found, as a script that can be run as it is.

    Attributes:
        sentence: what it is, such as "one 2x3 grid, one head, batch 1".
        case: its name.
        script: Python text that shows the failure.
        file: where its inputs and outputs were saved; "" where they were not.
    """

    sentence: str
    case: str
    script: str
    file: str = ""


@dataclass(frozen=True)
class Report:
    """A whole judgement.

    Attributes:
        target: as the user wrote it.
        spec: name of the claimed spec; `spec_json` is the whole of it.
        precision: storage and accumulation, as declared.
        level, seed: as asked for.
        verdict: "pass" if the candidate conforms.
        summary: the verdict in one sentence.
        excludes: what a pass shows to be absent, one sentence each.
        not_covered: what was not looked at, and why.
        results: every case.
        stages: the network from stem to logits.
        findings: the mistakes.
        conforms_to: another spec under which the candidate is right; "".
        counterexample: where something fails.
        reproduce: the command line that repeats this judgement.
        versions: names and versions of everything that took part.
        seconds: that it took.
    """

    target: str
    spec: str
    spec_json: str
    precision: Mapping[str, str]
    level: str
    seed: int
    verdict: Verdict
    summary: str
    excludes: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    results: tuple[CaseResult, ...] = ()
    stages: tuple[Stage, ...] = ()
    findings: tuple[Finding, ...] = ()
    conforms_to: str = ""
    counterexample: Counterexample | None = None
    reproduce: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def conforms(self) -> bool:
        """Whether the verdict is "pass"."""
        return self.verdict == "pass"

    @property
    def exit_code(self) -> int:
        """Of the command line: 0 conforms, 1 does not, 2 could not be judged."""
        return EXIT_CODES[self.verdict]

"""Reports of each verdict as a judgement would give them, with made-up figures, for the tests of how they are shown."""

from __future__ import annotations

import dataclasses
import math
import random

import coatref
from coatref.conformance.report.results import (
    CaseResult,
    Comparison,
    Counterexample,
    Finding,
    HeatMap,
    Report,
    Scatter,
    Stage,
    Verdict,
)

SPEC = coatref.spec("coatnet_0")
HOSTILE = '[red]x</title><script src="http://evil.example/x.js">alert(1)</script>\x1b[31m\u202e&amp;"\''
WRONG = {"s3.0": 41.2, "s3.1": 3.9e3, "s3.2": 2.2e6, "s4.1": 1.4}


def failing() -> Report:
    """Two mistakes, one of them with a heat map, and a counterexample."""
    return dataclasses.replace(
        _frame("fail", "torch:mypkg.models:coatnet0"),
        summary="torch:mypkg.models:coatnet0 does not compute coatnet_0 in float32: scales the attention logits by "
        "1/sqrt(heads*d), not 1/sqrt(d); reads the relative-bias table with rows and columns swapped.",
        results=(
            _case("wiring: stem", margin=0.0),
            _case("amplifier: attention scale", margin=3.9e3, values=("s3.0", "s3.1", "s3.2")),
            _case("amplifier: bias index order", margin=1.4, values=("s4.1",)),
            dataclasses.replace(
                _case("random: 3 (2 heads, 2x3 grid)", margin=math.nan, values=("logits",)),
                problem="logits holds NaN at [1, 4], the first of 3; the definition gives 0.125 there.",
            ),
            dataclasses.replace(
                _case("law: batch independence", margin=None),
                verdict="cannot judge",
                comparisons=(),
                scatter=Scatter(),
                problem="The candidate takes one image at a time.",
            ),
        ),
        stages=_stages(WRONG),
        findings=(
            Finding(
                primitive="attention scale",
                places=("s3.0", "s3.1", "s3.2"),
                sentence="Attention logits are scaled by 1/sqrt(heads*d), not 1/sqrt(d) (paper, section 2.1).",
                mistake="scale by the width of all heads",
                fields={"Attention.scale": "1/sqrt(heads*d)"},
                cases=("amplifier: attention scale", "random: 3 (2 heads, 2x3 grid)"),
            ),
            Finding(
                primitive="relative bias",
                places=("s4.1",),
                sentence="The relative-bias table is read with rows and columns swapped on a grid of 2x3.",
                tensors=("s4.1.attn.relative_bias.table",),
                cases=("amplifier: bias index order",),
                heat_map=_heat_map(),
            ),
        ),
        counterexample=Counterexample(
            sentence="one 2x3 grid, two heads, batch 1",
            case="random: 3 (2 heads, 2x3 grid)",
            script='import numpy as np\n\nimport coatref\n\nspec = coatref.spec("coatnet_0", image_size=(64, 96))\n'
            'assert np.max(np.abs(error)) < 1e-6, "a long line that must scroll in its own box: " + repr(np.argmax(error))',
            file="coatref-case-3f2a.safetensors",
        ),
        not_covered=("Drop path and dropout: they act in training only.",),
    )


def passing() -> Report:
    """Everything within its bounds."""
    return dataclasses.replace(
        _frame("pass", "timm:coatnet_0_rw_224"),
        summary="timm:coatnet_0_rw_224 computes coatnet_0 in float32; the largest error is 0.41 of its bound.",
        results=tuple(_case(f"random: {place}", margin=0.41 / (place + 1)) for place in range(4)),
        stages=_stages({}),
        excludes=("A wrong LayerNorm epsilon: it would show 210 times over the bound.", "The tanh form of GELU."),
        not_covered=("Images larger than 224x224.",),
    )


def unjudged() -> Report:
    """Nothing could be compared."""
    return dataclasses.replace(
        _frame("cannot judge", "onnx:model.onnx"),
        summary="onnx:model.onnx gives no logits: the graph has no output of shape (N, 1000).",
        stages=tuple(Stage(stage.name, stage.about, "cannot judge") for stage in _stages({})),
        not_covered=("Everything: no output could be read.",),
        conforms_to="",
    )


def hostile() -> Report:
    """The failing report with markup, a terminal's escape codes and a script in every text."""
    report = failing()
    finding = dataclasses.replace(
        report.findings[1],
        primitive=HOSTILE,
        sentence=HOSTILE,
        mistake=HOSTILE,
        fields={HOSTILE: HOSTILE},
        tensors=(HOSTILE,),
        places=(HOSTILE,),
        cases=(HOSTILE,),
        heat_map=HeatMap(HOSTILE, ((1.0,),), ((2.0, math.nan), (math.inf,))),
    )
    bad = Comparison(value=HOSTILE, verdict="fail", margin=2.0, worst=(1,), expected=1.0, found=2.0, reason=HOSTILE)
    case = dataclasses.replace(
        report.results[1], case=HOSTILE, about=HOSTILE, problem=HOSTILE, spec=HOSTILE, comparisons=(bad,)
    )
    return dataclasses.replace(
        report,
        target=HOSTILE,
        spec=HOSTILE,
        spec_json=HOSTILE,
        precision={"storage": HOSTILE, "accumulate": HOSTILE + "2"},
        summary=HOSTILE,
        excludes=(HOSTILE,),
        not_covered=(HOSTILE,),
        results=(case, *report.results[1:]),
        stages=(Stage(HOSTILE, HOSTILE, "fail", 2.0, HOSTILE),),
        findings=(finding,),
        conforms_to=HOSTILE,
        counterexample=Counterexample(HOSTILE, HOSTILE, HOSTILE + "\n", HOSTILE),
        reproduce=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )


def all_verdicts() -> dict[str, Report]:
    """An example of each kind, under its name."""
    return {"fail": failing(), "pass": passing(), "cannot judge": unjudged(), "hostile": hostile()}


def _frame(verdict: Verdict, target: str) -> Report:
    """What every report has."""
    return Report(
        target=target,
        spec="coatnet_0",
        spec_json=SPEC.to_json(),
        precision={"storage": "float32", "accumulate": "float32"},
        level="default",
        seed=7,
        verdict=verdict,
        summary="",
        reproduce=f"coatref check {target} --spec coatnet_0 --dtype float32 --level default --seed 7",
        versions={"coatref": "0.1.0", "numpy": "2.4.0", "python": "3.11.2", "torch": "2.13.0"},
        seconds=23.4,
    )


def _case(name: str, margin: float | None, values: tuple[str, ...] = ("s0", "s1.0", "logits")) -> CaseResult:
    """A case whose last value has the margin, and the others less."""
    wrong = margin is not None and not margin <= 1
    comparisons = tuple(_comparison(value, margin if value == values[-1] else 0.125) for value in values)
    check, _, about = name.partition(": ")
    return CaseResult(
        case=name,
        check=check,  # type: ignore[arg-type]  # the names above begin with a kind of check
        about=f"Shows a wrong {about}.",
        spec="coatnet_0 of 64x96",
        image=(2, 64, 96),
        verdict="fail" if wrong else "pass",
        comparisons=comparisons,
        scatter=_scatter(5.0 if margin is None or math.isnan(margin) else max(margin, 0.01)),
        seconds=0.73,
    )


def _comparison(value: str, margin: float | None) -> Comparison:
    """A comparison with a margin."""
    if margin is None:
        return Comparison(value=value, verdict="cannot judge", reason="The bound is larger than the value.")
    wrong = not margin <= 1
    return Comparison(
        value=value,
        verdict="fail" if wrong else "pass",
        margin=margin,
        element_margin=margin,
        rms_margin=margin / 2,
        bias_margin=margin / 10,
        elements=1400,
        worst=(1, 4),
        expected=0.125,
        found=0.125 + margin * 1e-6,
        bound=1e-6,
        max_error=margin * 1e-6,
        rmse=margin * 3e-7,
        reason="The largest error is beyond its bound." if wrong else "",
    )


def _scatter(margin: float) -> Scatter:
    """Elements whose largest error is about so many bounds; one is exact, one is zero, one is infinitely wrong."""
    draw = random.Random(3)
    magnitude = [10 ** draw.uniform(-3, 1) for _ in range(300)]
    bound = [1e-7 + 3e-7 * size for size in magnitude]
    error = [limit * margin * draw.random() ** 3 for limit in bound]
    error[0] = 0.0
    magnitude[1] = 0.0
    if margin > 1:
        error[2] = math.inf
    return Scatter(tuple(magnitude), tuple(error), tuple(bound))


def _stages(wrong: dict[str, float]) -> tuple[Stage, ...]:
    """The network of `SPEC`, with some margins beyond 1."""
    rows = [("s0", "convolutional stem 64, stride 2")]
    for block in SPEC.blocks():
        kind = "MBConv" if block.run.kind == "mbconv" else "Transformer"
        rows.append(
            (block.name, f"{kind} {block.run.width}" + (f", stride {block.stride}" if block.stride > 1 else ""))
        )
    rows += [("head", "average pooling, LayerNorm, 1000 classes"), ("logits", "the output, end to end")]
    stages = []
    for place, (name, about) in enumerate(rows):
        if name == "s1.1":
            stages.append(Stage(name, about, "cannot judge"))
            continue
        margin = wrong.get(name, 0.008 * 1.4**place)
        case = "amplifier: attention scale" if name in wrong else "random: 0"
        stages.append(Stage(name, about, "fail" if name in wrong else "pass", margin, case))
    return tuple(stages)


def _heat_map() -> HeatMap:
    """A bias of a 5x7 table, and the same read with rows and columns swapped."""
    table = [[math.sin(1.7 * row + 0.6 * column) for column in range(7)] for row in range(5)]
    swapped = [[table[column % 5][row % 7] for column in range(7)] for row in range(5)]
    expected, found = (tuple(tuple(row) for row in rows) for rows in (table, swapped))
    return HeatMap("s4.1, head 0, query (0, 0)", expected, found)

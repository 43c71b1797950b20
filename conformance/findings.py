"""From outcomes and a diagnosis to what a report says: findings, the table of stages, heat maps, the counterexample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from coatref.conformance.diagnosis import Diagnosis, composed
from coatref.conformance.evaluate import OUTPUT
from coatref.conformance.mistakes.changed import Changed, compute
from coatref.conformance.mistakes.mistake import Mistake
from coatref.conformance.report.results import Comparison, Finding, HeatMap, Stage, Verdict
from coatref.conformance.run_case import Outcome
from coatref.specification.grids import grids
from coatref.specification.parts import ConvNeXt, MBConv, Transformer
from coatref.specification.spec import Block, Spec

# The end of a value's name in a trace -> the part of the network that computes it.
PART_OF_VALUE = {
    "pre_norm": "mbconv pre-norm",
    "pre_act": "mbconv pre-activation",
    "pool": "mbconv pool",
    "expand": "expansion",
    "expand_norm": "mbconv norm",
    "expand_act": "mbconv activation",
    "depthwise": "depthwise convolution",
    "depthwise_norm": "mbconv norm",
    "depthwise_act": "mbconv activation",
    "se": "squeeze-excite",
    "shrink": "shrink",
    "shrink_norm": "shrink",
    "layer_scale": "layer scale",
    "shortcut": "shortcut",
    "attn_norm": "attention norm",
    "attn_pool": "attention pool",
    "attn.q": "attention logits",
    "attn.k": "attention logits",
    "attn.v": "attention values",
    "attn.bias": "relative bias",
    "attn.logits": "attention logits",
    "attn.weights": "softmax",
    "attn.heads": "attention values",
    "attn.o": "attention output",
    "attn_scale": "layer scale",
    "attn_sum": "residual",
    "ffn_norm": "ffn norm",
    "ffn.expand": "ffn",
    "ffn.act": "ffn activation",
    "ffn.shrink": "ffn",
    "ffn_scale": "layer scale",
    "norm": "convnext",
}
NOTHING = "gives nothing to compare"  # how the finding for a candidate that raises begins
STEM_AND_HEAD = {
    "s0.conv1": "stem convolution",
    "s0.norm1": "stem norm",
    "s0.act1": "stem activation",
    "s0.conv2": "stem convolution",
    "s0": "stem convolution",
    "head.norm": "head norm",
    "head.pool": "global pool",
    "head.hidden": "head hidden",
    "head.hidden_act": "head hidden",
    OUTPUT: "classifier",
}


def part_of(value: str) -> str:
    """The part of the network that computes a traced value; "" for a whole block or stage."""
    if value in STEM_AND_HEAD:
        return STEM_AND_HEAD[value]
    rest = ".".join(value.split(".")[2:])
    return PART_OF_VALUE.get(rest, "")


def place_of(value: str) -> str:
    """The block, or "s0" or "head", that a traced value is in."""
    first, _, rest = value.partition(".")
    if first in ("s0", "head") or value == OUTPUT:
        return "head" if value == OUTPUT else first
    return f"{first}.{rest.partition('.')[0]}" if rest else first


def findings(outcomes: Sequence[Outcome], diagnosis: Diagnosis) -> list[Finding]:
    """The mistakes: those reproduced exactly, then what is left, by the part where it was located."""
    found = [exact(mistake, outcomes, diagnosis) for mistake in diagnosis.mistakes]
    left = [outcome for outcome in diagnosis.unexplained]
    raised = [outcome for outcome in outcomes if outcome.failed and outcome.answer is None]
    if left and not (found and all(outcome.case.primitive == "" for outcome in left)):
        found.extend(located(left, diagnosis.complete))
    elif left:
        names = ", ".join(outcome.case.name for outcome in left[:3])
        found.append(
            Finding(
                "", (), f"does more that no known change explains, in: {names}", cases=tuple(o.case.name for o in left)
            )
        )
    for outcome in raised[:1]:
        cases = tuple(each.case.name for each in raised)
        found.append(Finding("", (), f"{NOTHING}: {outcome.result.problem}", cases=cases))
    return found


def exact(mistake: Mistake, outcomes: Sequence[Outcome], diagnosis: Diagnosis) -> Finding:
    """A mistake that reproduces the candidate."""
    cases = diagnosis.evidence.get(mistake.name, ())
    places = [o.case.place for o in outcomes if o.case.name in cases and o.case.place not in ("", "s0", "head")]
    return Finding(
        mistake.primitive,
        tuple(dict.fromkeys(places)),
        f"{mistake.sentence} ({mistake.source})",
        mistake.name,
        dict(mistake.fields),
        cases=cases,
        heat_map=heat_map(mistake, outcomes, cases),
    )


def located(left: Sequence[Outcome], complete: bool) -> list[Finding]:
    """Where something is wrong that no known change reproduces: the first probe that fails, and every replayed value."""
    values = [
        comparison
        for outcome in left
        for comparison in outcome.result.comparisons
        if comparison.verdict == "fail" and comparison.value != OUTPUT
    ]
    if values:
        return replayed(values, left)
    first = next((outcome for outcome in left if outcome.case.primitive), left[0])
    search = "no known change of the definition gives what it gives"
    if not complete:
        search = "the time for the diagnosis was over before every known change was tried (a higher level has more)"
    primitive, place = first.case.primitive, first.case.place
    where = f" of {place}" if place else ""
    broken = [c.reason for c in first.result.comparisons if c.verdict == "fail" and c.element_margin is None]
    if broken:  # nothing that has errors: another shape, NaN
        sentence = f"gives an output that cannot be right: {broken[0]}, in the case {first.case.name!r}"
        cases = tuple(each.case.name for each in left)
        return [Finding(primitive, (place,) if place else (), sentence, cases=cases)]
    sentence = (
        f"is wrong in the {primitive}{where}, and {search}; the case {first.case.name!r} is the first that fails"
        if primitive
        else f"differs from the definition, and {search}"
    )
    return [Finding(primitive, (place,) if place else (), sentence, cases=tuple(each.case.name for each in left))]


def replayed(values: Iterable[Comparison], left: Sequence[Outcome]) -> list[Finding]:
    """One finding for each part of the network whose value is wrong although its inputs are the candidate's own."""
    parts: dict[str, list[str]] = {}
    for comparison in values:
        parts.setdefault(part_of(comparison.value) or place_of(comparison.value), []).append(comparison.value)
    result = []
    for part, names in parts.items():
        unique = tuple(dict.fromkeys(names))
        places = tuple(dict.fromkeys(place_of(name) for name in unique))
        sentence = f"gives wrong {', '.join(unique[:4])} from its own, right inputs; no known change reproduces it"
        primitive = part if part_of(unique[0]) else ""
        result.append(Finding(primitive, places, sentence, cases=tuple(each.case.name for each in left)))
    return result


def heat_map(mistake: Mistake, outcomes: Sequence[Outcome], cases: Sequence[str]) -> HeatMap | None:
    """The bias of one query in one head, as it should be and as the mistake has it."""
    if mistake.primitive != "relative bias":
        return None
    outcome = next((o for o in outcomes if o.case.name in cases and ".attn" in " ".join(o.case.params.flatten())), None)
    if outcome is None:
        return None
    case = outcome.case
    blocks = [b for b in case.spec.blocks() if isinstance(b.run, Transformer) and b.run.attention.relative_bias]
    block = next((b for b in blocks if b.name == case.place), blocks[0] if blocks else None)
    if block is None:
        return None
    name, seen = f"{block.name}.attn.bias", []
    for changed in (Changed(case.spec), composed(case, [mistake])):
        values: dict[str, Any] = {}

        def tap(key: str, value: Any, values: dict[str, Any] = values) -> Any:
            values[key] = value
            return value

        try:
            with np.errstate(all="ignore"):
                compute(changed, case.params, case.x, tap)
        except Exception:  # noqa: BLE001 - without a picture the finding stands all the same
            return None
        seen.append(values.get(name))
    if seen[0] is None or seen[1] is None or np.array_equal(seen[0], seen[1]):
        return None
    height, width = grids(case.spec, *case.spec.image_size)[block.name]
    query = (height // 2) * width + width // 2
    expected, found = (rows(value, query, height, width) for value in seen)
    title = (
        f"{block.name}, head 0: bias of query ({height // 2}, {width // 2}) for every key of the {height}x{width} grid"
    )
    return HeatMap(title, expected, found)


def rows(bias: Any, query: int, height: int, width: int) -> tuple[tuple[float, ...], ...]:
    """The biases (heads, Q, K) of head 0 and one query, as a grid of keys."""
    grid = np.broadcast_to(bias, (bias.shape[0], *bias.shape[1:]))[0, query].reshape(height, width)
    return tuple(tuple(float(value) for value in row) for row in grid)


def stages(spec: Spec, outcomes: Sequence[Outcome]) -> list[Stage]:
    """Stem, blocks, head and output with the largest margin that a case showed of each."""
    worst: dict[str, tuple[float | None, Verdict, str]] = {}

    def see(name: str, margin: float | None, verdict: Verdict, case: str) -> None:
        if verdict == "cannot judge" or margin is None:
            return
        known = worst.get(name)
        if known is None or known[0] is None or margin > known[0]:
            worst[name] = (margin, verdict, case)

    for outcome in outcomes:
        compared = outcome.result.comparisons
        for comparison in compared:
            if comparison.value != OUTPUT:
                see(place_of(comparison.value), comparison.margin, comparison.verdict, outcome.case.name)
            elif outcome.case.place:
                see(outcome.case.place, comparison.margin, comparison.verdict, outcome.case.name)
            else:
                see(OUTPUT, comparison.margin, comparison.verdict, outcome.case.name)
    names = [
        ("s0", stem_words(spec)),
        *((block.name, words(block)) for block in spec.blocks()),
        ("head", head_words(spec)),
    ]
    result = []
    for name, about in [*names, (OUTPUT, "output of the whole network")]:
        unseen: tuple[float | None, Verdict, str] = (None, "cannot judge", "")
        margin, verdict, case = worst.get(name, unseen)
        result.append(Stage(name, about, verdict, margin, case))
    return result


def words(block: Block) -> str:
    """A block in words."""
    kind = {MBConv: "MBConv", ConvNeXt: "ConvNeXt", Transformer: "Transformer"}[type(block.run)]
    stride = ", stride 2" if block.stride == 2 else ""
    return (
        f"{kind} {block.input_width} to {block.run.width}{stride}"
        if block.input_width != block.run.width
        else f"{kind} {block.run.width}{stride}"
    )


def stem_words(spec: Spec) -> str:
    """The stem in words."""
    return (
        f"{len(spec.stem.widths)} convolutions"
        if spec.stem.kind == "conv"
        else f"{spec.stem.patch}x{spec.stem.patch} patches"
    )


def head_words(spec: Spec) -> str:
    """The head in words."""
    return f"global pool and classifier of {spec.head.classes}"


def worst_margin(outcomes: Sequence[Outcome]) -> float:
    """The largest margin of all cases that passed."""
    margins = [o.result.margin for o in outcomes if o.result.margin is not None and not math.isinf(o.result.margin)]
    return max(margins, default=0.0)

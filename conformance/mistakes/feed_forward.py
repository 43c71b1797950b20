"""Mistakes in the feed-forward network."""

from __future__ import annotations

from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.edits import blocks_of, by_fields, in_block, reading, require, respec
from coatref.conformance.mistakes.mistake import Mistake
from coatref.specification.parts import Transformer

FFN = "feed-forward network"


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    base = "Sec. 2.2: 4 times the width; chinhsuanwu and its copies take 4 times the input width"

    def last_without(changed: Changed) -> Changed:
        blocks = blocks_of(changed.spec, Transformer)
        require(changed, bool(blocks), "Transformer block")
        return respec(changed, lambda spec: in_block(spec, blocks[-1].name, {"FeedForward.bias": False}))

    def bias(part: str) -> Mistake:
        words = {"expand": "first", "shrink": "second"}[part]
        return Mistake(
            f"ffn-{part}-bias-ignored",
            "ffn",
            f"does not add the bias of the {words} dense layer of the {FFN}",
            "kecam has no biases there; a common slip",
            lambda changed: reading(changed, rf"s\d+\.\d+\.ffn\.{part}\.b", lambda name, b: b * 0.0),
        )

    return (
        *[
            by_fields(
                f"ffn-of-{width}",
                "ffn",
                f"expands to a multiple of the {width} width of a block in the {FFN}, not of the other",
                base,
                {"FeedForward.expansion_from": width},
            )
            for width in ("input", "output")
        ],
        *[
            by_fields(
                f"ffn-expansion-{factor}",
                "ffn",
                f"expands {factor} times in the {FFN}, not as the spec says",
                "Sec. 2.2: 4 times; a first block of chinhsuanwu has 2",
                {"FeedForward.expansion": float(factor)},
            )
            for factor in (1, 2)
        ],
        by_fields(
            "ffn-bias-missing",
            "ffn",
            f"does not add the biases of the {FFN}",
            "kecam has none, the others do",
            {"FeedForward.bias": False},
        ),
        bias("expand"),
        bias("shrink"),
        Mistake(
            "last-ffn-bias-missing",
            "ffn",
            f"does not add the biases of the {FFN} of its last Transformer block",
            "a common slip in one block",
            last_without,
        ),
    )

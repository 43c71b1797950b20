"""The judge judged on a sample, and the document that the whole of it is written to."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from coatref.conformance import selftest
from coatref.conformance.honest.half import leading_bits
from coatref.conformance.kill_matrix import document, requirements
from coatref.conformance.looking import Known
from coatref.conformance.mistakes.catalogue import mistake, mistakes
from coatref.conformance.precision import rounded

DOCUMENT = Path(__file__).parent.parent / "docs" / "kill-matrix.md"


@pytest.fixture(scope="module")
def sample() -> selftest.SelfTest:
    return selftest.run("sample", 0)


@pytest.mark.parametrize("name", ["scale-by-width", "bias-shared-by-heads", "ffn-activation-gelu", "se-hard-sigmoid"])
def test_a_planted_mistake_is_found_in_float64(name: str) -> None:
    spec = selftest.homes()["coatnet_0"]
    assert selftest.first_failure([mistake(name)], spec, "float64", Known(), 0).dead


@pytest.mark.deep
def test_the_sample_reaches_what_the_whole_must_reach(sample: selftest.SelfTest) -> None:
    missed = [(what, value) for what, value, reached in requirements(sample) if not reached]
    assert missed == []
    assert sample.ok


@pytest.mark.deep
def test_the_sample_has_every_part_of_the_network(sample: selftest.SelfTest) -> None:
    parts = {mistake(row.mistakes[0]).primitive for row in sample.rows}
    assert parts == {each.primitive for each in mistakes()}


@pytest.mark.deep
def test_the_sample_is_plain_data(sample: selftest.SelfTest) -> None:
    json.dumps(sample.to_json())
    text = document(sample)
    assert all(f"| {row.mistakes[0]} |" in text for row in sample.rows)


@pytest.mark.deep
def test_a_mistake_that_passes_is_told(sample: selftest.SelfTest) -> None:
    blind = dataclasses.replace(sample.rows[0], killed=(), exact=(False,), located=False)
    worse = dataclasses.replace(sample, rows=(blind, *sample.rows[1:]))
    assert not worse.ok
    assert "**passes**" in document(worse) and "## Mistakes that pass" in document(worse)


@pytest.mark.deep
def test_a_false_alarm_is_told(sample: selftest.SelfTest) -> None:
    alarm = dataclasses.replace(sample.honest[0], verdict="fail")
    assert not dataclasses.replace(sample, honest=(alarm, *sample.honest[1:])).ok


def test_nine_of_ten_mistakes_have_a_network_to_be_planted_into() -> None:
    networks = selftest.homes()
    planted = [each for each in mistakes() if selftest.home(each, networks) is not None]
    assert len(planted) >= 0.9 * len(mistakes())
    assert {each.primitive for each in planted} == {each.primitive for each in mistakes()}


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="needs the checkout: docs is not beside the tests")
def test_the_published_matrix_has_every_mistake_that_can_be_planted() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    networks = selftest.homes()
    planted = [each.name for each in mistakes() if selftest.home(each, networks) is not None]
    assert [name for name in planted if f"| {name} |" not in text] == []


def test_leading_bits_round_as_bfloat16_does() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    values = np.concatenate(
        [bits.view(np.float32), np.array([0.0, -0.0, math.inf, -math.inf, 1e-40, 3.3961776e38], np.float32)]
    )
    values = values[~np.isnan(values)]
    np.testing.assert_array_equal(leading_bits(values), rounded(values, "bfloat16"))

"""`results:DIR`: outputs that were computed elsewhere, for the cases that `coatref cases DIR` wrote before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from coatref.conformance.case_files import DigestIndex, answer_path, case_path, read_answer, read_case
from coatref.conformance.precision import Precision
from coatref.conformance.target import Output, Target
from coatref.conformance.targets.spelling import command, refuse_options, versions
from coatref.errors import InputError
from coatref.params import Params
from coatref.specification.spec import Spec


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """A folder of cases and answers as a target.

    Args:
        argument: the folder, which `coatref cases` wrote and into which the answers were put.
        spec: that is claimed; None: that of the first case.
        weights: those of the check "as given", where cases were written with them.
        precision: that is declared; None: the one that the cases were written with.
        options: none are known.

    Raises:
        InputError: the folder has no index or no cases, or its cases have another precision.
        FileFormatError: the index or the first case is damaged.
    """
    refuse_options("results", options or {})
    index = DigestIndex.read(argument)
    if not index.files:
        raise InputError(f"{index.folder} has no cases; write them anew with: coatref cases {index.folder}")
    if precision is not None and precision != index.precision:
        raise InputError(
            f"The cases in {index.folder} were written for {index.precision}, not for {precision}; "
            f"judge with --dtype {index.precision.storage} --accumulate {index.precision.accumulate}, or write them anew."
        )

    def run(params: Params, x: np.ndarray) -> Output:
        """The answer to the case with these parameters and images."""
        file = index.find(params, x)
        answer = answer_path(index.folder, file)
        if not answer.is_file():
            raise InputError(
                f"There is no answer {answer} to the case {case_path(index.folder, file).name}; "
                "compute it, and write its logits there."
            )
        return read_answer(answer)

    if spec is None:
        spec = read_case(case_path(index.folder, next(iter(index.files.values())))).params.spec
    target = Target(
        name=f"results:{argument}",
        spec=spec,
        run=run,
        precision=index.precision,
        params=weights,
        adaptive=False,
        command=command(f"results:{argument}", spec=spec, precision=index.precision, options={}),
        versions=versions(),
    )
    return dataclasses.replace(target, variant=lambda other: dataclasses.replace(target, spec=other))

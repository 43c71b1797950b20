"""`cmd:"./mine {params} {input} {output}"`: a program in any language, which reads and writes safetensors files.

The text is split into words as a shell would, and run without a shell. In every word these are replaced by paths of files
in a folder that is removed afterwards:

    {params}  the parameters under coatref's dotted names, and in the metadata the spec's JSON under "coatref.spec"
    {input}   the tensor "input" (N, H, W, channels), channels last
    {output}  the file that the program writes: "logits" (N, classes), and optionally values that `coatref.trace` names
    {spec}    the spec's JSON, for a program that computes any network; without it, it computes one network only

All tensors are of the declared storage type, bfloat16 as real bfloat16. The format is described in
`coatref.conformance.tensor_files`.
"""

from __future__ import annotations

import functools
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from coatref.conformance.case_files import read_answer
from coatref.conformance.precision import Precision
from coatref.conformance.target import Output, Target
from coatref.conformance.targets.spelling import command as command_line
from coatref.conformance.targets.spelling import refuse_options, versions
from coatref.conformance.tensor_files import write_tensors
from coatref.errors import FileFormatError, InputError
from coatref.params import Params
from coatref.specification.catalogue import resolve
from coatref.specification.spec import Spec
from coatref.weights.own_file import SPEC_KEY, VERSION, VERSION_KEY

TIMEOUT = 600.0  # seconds for one run; option "timeout"
T = TypeVar("T")

SHOWN_LINES = 12  # of what a failed program wrote to its error output
ANY_NETWORK = "coatnet_0"  # what a program that takes {spec} is judged as where no spec is given


def make(
    argument: str,
    *,
    spec: Spec | None = None,
    weights: Params | None = None,
    precision: Precision | None = None,
    options: Mapping[str, str] | None = None,
) -> Target:
    """A program as a target.

    Args:
        argument: the command with its placeholders.
        spec: that the program computes; needed unless the command contains {spec} or weights are given.
        weights: those that the program is to be judged with as given; needed where the command has no {params}, since the
            program then has weights of its own.
        precision: that is declared; None: float32.
        options: "timeout", seconds that one run may take (600).

    Raises:
        InputError: the command is empty or lacks {input} or {output}, no spec is known, or the timeout is no number.
    """
    words = command_words(argument, ("{input}", "{output}"))
    precision, options = precision or Precision(), dict(options or {})
    refuse_options("cmd", options, ("timeout",))
    timeout = timeout_from(options)
    takes_spec, takes_params = "{spec}" in argument, "{params}" in argument
    if spec is None and weights is not None:
        spec = weights.spec
    if spec is None and takes_spec:
        spec = resolve(ANY_NETWORK)
    if spec is None:
        raise InputError(
            f"cmd:{argument!r:.200} does not say which network it computes; pass --spec, or let the program take {{spec}}."
        )
    if weights is None and not takes_params:
        raise InputError(
            f"cmd:{argument!r:.200} takes no {{params}}, so its weights are its own; pass them with --weights, or let the "
            "program take {params}."
        )
    again = functools.partial(make, argument, precision=precision, options=options)
    return Target(
        name=f"cmd:{argument}",
        spec=spec,
        run=lambda params, x: run(words, params, x, precision, timeout),
        precision=precision,
        params=weights,
        takes_params=takes_params,
        variant=(lambda other: again(spec=other)) if takes_spec and takes_params else None,
        command=command_line(f"cmd:{argument}", spec=spec, precision=precision, options=options),
        versions=versions(),
    )


def command_words(command: str, needed: Sequence[str]) -> list[str]:
    """The words of a command.

    Raises:
        InputError: it has none, has an open quotation, or lacks a placeholder that is needed.
    """
    try:
        words = shlex.split(command)
        if len(words) == 1 and words[0] != command:  # the quotation marks of cmd:"..." came with it
            words = shlex.split(words[0])
    except ValueError as error:
        raise InputError(f"The command {command!r:.200} cannot be split into words: {error}.") from None
    absent = [placeholder for placeholder in needed if not any(placeholder in word for word in words)]
    if not words or absent:
        raise InputError(
            f"The command {command!r:.200} lacks {' and '.join(absent)}; write it as in "
            f'cmd:"./mine {" ".join(needed)}".'
        )
    return words


def timeout_from(options: Mapping[str, str]) -> float:
    """Seconds that one run may take.

    Raises:
        InputError: the option is no number above 0.
    """
    try:
        seconds = float(options.get("timeout", TIMEOUT))
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"The option timeout takes seconds above 0, got {options['timeout']!r:.80}.")
    return seconds


def run(words: Sequence[str], params: Params, x: np.ndarray, precision: Precision, timeout: float) -> Output:
    """Write the inputs, run the program, and read what it wrote.

    Raises:
        InputError: the program cannot be started, fails, takes too long, or writes no answer.
        FileFormatError: what it wrote is no safetensors file.
    """
    with tempfile.TemporaryDirectory(prefix="coatref-") as folder:
        place = Path(folder)
        files = {
            "{params}": place / "params.safetensors",
            "{input}": place / "input.safetensors",
            "{output}": place / "output.safetensors",
            "{spec}": place / "spec.json",
        }
        spec_json = params.spec.to_json()
        arrays = {name: np.asarray(array) for name, array in params.flatten().items()}
        write_tensors(files["{params}"], arrays, precision.storage, {VERSION_KEY: VERSION, SPEC_KEY: spec_json})
        write_tensors(files["{input}"], {"input": x}, precision.storage)
        files["{spec}"].write_text(spec_json, encoding="utf-8")
        log = run_program(words, files, timeout)
        return with_log(log, lambda: read_answer(files["{output}"]), words[0])


def run_program(words: Sequence[str], files: Mapping[str, Path], timeout: float) -> str:
    """Run a command with its placeholders replaced, and give the end of its error output.

    Raises:
        InputError: it cannot be started, fails, takes too long, or leaves no file for {output}.
    """
    filled = [functools.reduce(lambda word, key: word.replace(key, str(files[key])), files, word) for word in words]
    try:
        done = subprocess.run(filled, capture_output=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as stopped:
        raise InputError(
            f"{words[0]} was stopped after {timeout:g} seconds; give it more with the option timeout."
            + said(last_lines(stopped.stderr))
        ) from None
    except OSError as error:
        raise InputError(f"{words[0]} cannot be started: {error.strerror or error}.") from None
    log = last_lines(done.stderr)
    if done.returncode != 0:
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with exit code {done.returncode}"
        raise InputError(f"{words[0]} ended {how}.{said(log)}")
    if not files["{output}"].is_file():
        raise InputError(f"{words[0]} ended well and wrote no {{output}} file.{said(log)}")
    return log


def with_log(log: str, read: Callable[[], T], program: str) -> T:
    """What `read` gives; its errors name the program and what it said."""
    try:
        return read()
    except (FileFormatError, InputError) as error:
        raise type(error)(f"What {program} wrote cannot be used: {error}{said(log)}") from None


def last_lines(output: bytes | None) -> str:
    """The last lines of what a program wrote to its error output."""
    lines = (output or b"").decode(errors="replace").strip().splitlines()
    return "\n".join(line[:300] for line in lines[-SHOWN_LINES:])


def said(log: str) -> str:
    """The end of an error message: what the program said, where it said anything."""
    return f" It said:\n{log}" if log else " It said nothing."

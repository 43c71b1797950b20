"""How the figures of the page were made, and where."""

from __future__ import annotations

from typing import Any

from benchmarks import rounds, weights
from benchmarks.markdown import code, joined
from benchmarks.results import commits, package_versions


def method_section() -> str:
    """The method, the same for every machine."""
    return joined(
        [
            "## How it is measured",
            f"""- Every form is a process of its own. It gets the same weights and images (drawn from a seed, no two channels alike),
  and its logits are compared with the float64 definition's before anything is timed: an error above
  {weights.LARGEST_ERROR} epsilon of the type, relative to the largest logit, and the form is refused. The column *error* is that error.
- All processes of a case are alive at once and are asked in turn for one timed run each, after one untimed run (none where
  a run takes over {rounds.LONG} s; on a GPU, ten timed runs), round after round, each round beginning with another form. A process answers
  when its threads are at rest, so none spins beside the next (after a run, torch's wait for about 10 ms, ONNX Runtime's for 35
  and OpenBLAS's for 130; `spun_s` in the JSON file). So wait policies are the libraries' own, as a user has them.
- A round in which other processes of the machine kept more than {rounds.QUIET} cores busy does not count.
- Times are medians, with quartiles; *ratio* is to timm eager's median in the same case and run. Lower is better.
- Threads: OMP, OpenBLAS, MKL, Numba and `COATREF_NUM_THREADS` by environment variable, torch, ONNX Runtime and OpenVINO
  by their own settings, and every process is kept on as many cores as it has threads (which is XLA's only setting).
  Variables that tune a library (`OPENBLAS_CORETYPE`, `OMP_*`, `KMP_*`, ...) are unset.
- Images are already in the layout that a form takes (NHWC for coatref, NCHW or channels_last for timm). torch runs in
  inference mode; compiled forms in torch.compile's default mode. float32 products are exact: OpenVINO is kept from bfloat16,
  and GPUs from TF32 (`torch.backends.cuda.matmul.allow_tf32` and `torch.backends.cudnn.allow_tf32` both off, torch's defaults
  are off and on; JAX at "highest"), for every form alike.
- Peak memory on a CPU is how far the process's largest resident size (VmHWM, set back beforehand) rises above what is resident
  once library, weights and images are loaded: in the first run, in which libraries also make threads, arenas and generated
  code, and in a later one above what was resident before that. Forms that compile in their first run are compared by the later
  one. On a GPU it is what the library's allocator counts beyond what was allocated before a run.""",
        ]
    ).rstrip()


def surroundings_section(each: dict[str, Any]) -> str:
    """The machine, the versions, and what was set."""
    machine = each["machine"]
    lines = [
        (
            f"- machine: {machine['processor']} ({', '.join(machine['features']) or 'no features known'}), {machine['cores']} cores, "
            f"{machine['memory_gib']} GiB, {machine['system']}"
        )
    ]
    if "gpu" in each:
        gpu = each["gpu"]
        lines.append(f"- GPU: {gpu['name']}, {gpu['memory']}, driver {gpu['driver']}")
    lines.append(f"- measured: {commits(each)}")
    lines.append(f"- versions: {package_versions(each)}")
    core = each["unset"].get("OPENBLAS_CORETYPE")
    lines.append(
        f"- {code('OPENBLAS_CORETYPE')}: "
        + (f"set to {core} here, unset in every worker" if core else "not set, as in every worker")
    )
    return "\n".join(lines)

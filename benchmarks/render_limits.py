"""The machine's limits, and NumPy's stages beside them."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import joined, table


def limits_section(each: dict[str, Any]) -> str:
    """Rates of the machine, and for each network where the time of NumPy's prepared form goes."""
    limits = {threads: found for threads, found in each.get("limits", {}).items() if "unavailable" not in found}
    if not limits:
        return ""
    return joined(["### Limits of the machine", rates(limits), *breakdowns(each, limits)]).rstrip()


def rates(limits: dict[str, dict[str, Any]]) -> str:
    """What the machine can do at best, by number of threads."""
    names = {
        "numpy_float32_gf_s": "NumPy, float32 products of 2048 x 2048, GF/s",
        "numpy_float64_gf_s": "NumPy, float64, GF/s",
        "torch_float32_gf_s": "torch.matmul, float32, GF/s",
        "torch_float64_gf_s": "torch.matmul, float64, GF/s",
        "copy_gb_s": "copying 256 MiB, GB/s read and written",
    }
    rows = [
        (title, *(f"{limits[threads][name]:.0f}" if name in limits[threads] else "" for threads in limits))
        for name, title in names.items()
    ]
    return table(("best of several runs", *(f"{threads} thread{'s' * (threads != '1')}" for threads in limits)), rows)


def breakdowns(each: dict[str, Any], limits: dict[str, dict[str, Any]]) -> list[str]:
    """One table for each network and number of threads."""
    parts = [
        (
            "Stages of one image. *products* is the time of the network's own matrix products (convolutions as products of unfolded "
            "windows), each measured alone in NumPy; *at the best rate* is what their multiply-adds take at the rate above; *copying* is "
            "the time in which every value that the definition computes is written once and read once at the rate above, which tiles "
            "that stay in cache undercut. What is above *products* is depthwise convolution, norms, activations, softmax, pooling and "
            "moving data."
        )
    ]
    for key, found in each.get("breakdown", {}).items():
        model, _, label = key.partition("/")
        threads = label.rpartition("t")[2]
        if "unavailable" in found:
            parts.append(f"{key}: unavailable: {found['unavailable']}")
            continue
        if model not in limits.get(threads, {}):
            continue
        parts += [
            f"{model}, batch 1, {threads} thread{'s' * (threads != '1')}, {found['form']}:",
            stage_table(found, limits[threads], model),
        ]
    return parts if len(parts) > 1 else []


def stage_table(found: dict[str, Any], limits: dict[str, Any], model: str) -> str:
    """Stages down; the last row is the whole network."""
    own, stages = limits[model], list(found["stages_ms"])
    columns = {
        "ms": found["stages_ms"],
        "products ms": own["numpy"],
        "at the best rate ms": {
            stage: 2e-6 * own["multiply_adds"][stage] / limits["numpy_float32_gf_s"] for stage in stages
        },
        "torch's products ms": own.get("torch", {}),
        "copying ms": {stage: 2e-6 * found["bytes"].get(stage, 0) / limits["copy_gb_s"] for stage in stages},
    }
    columns = {title: column for title, column in columns.items() if column}
    rows = [(stage, *(f"{column[stage]:.2f}" for column in columns.values())) for stage in stages]
    total = ("all", *(f"{sum(column[stage] for stage in stages):.1f}" for column in columns.values()))
    return table(("stage", *columns), [*rows, total])

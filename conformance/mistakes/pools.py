"""Mistakes in the pools: of the main branches and of the down-sampling shortcuts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coatref.conformance.mistakes.changed import Changed
from coatref.conformance.mistakes.edits import Change, by_fields, mark, require, where_marked, with_fields
from coatref.conformance.mistakes.effective import with_grids
from coatref.conformance.mistakes.mistake import Mistake
from coatref.ops.window import pad_axis
from coatref.registry import Array
from coatref.specification.grids import padding_amounts
from coatref.specification.parts import Pool, Transformer

# site -> (primitive, fields, words)
SITES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "mbconv-pool": ("mbconv pool", ("MBConv.main_pool", "ConvNeXt.main_pool"), "main branch of MBConv blocks"),
    "attention-pool": ("attention pool", ("Transformer.main_pool",), "main branch of Transformer blocks"),
    "shortcut-pool": (
        "shortcut",
        ("MBConv.shortcut_pool", "ConvNeXt.shortcut_pool", "Transformer.shortcut_pool"),
        "down-sampling shortcuts",
    ),
}
POOLS = (
    "Eq. (4) has a max pool of stride 2 and no window; google and timm average 2x2, kecam and hw666 take the maximum of 2x2, "
    "chinhsuanwu that of 3x3, torchvision averages 3x3 with zeros counted"
)


SAME_3X3 = {"size": 3, "padding": "same"}


def mistakes() -> tuple[Mistake, ...]:
    """All of them."""
    made: list[Mistake] = []
    for site, (primitive, paths, where) in SITES.items():
        for name, clause, values in (
            ("max", "takes the maximum, not the mean,", {"kind": "max"}),
            ("avg", "averages, not takes the maximum,", {"kind": "avg"}),
            ("3x3", "pools windows of 3x3, not the spec's,", {"size": 3, "padding": "symmetric"}),
            ("3x3-same", "pools windows of 3x3 with TensorFlow's SAME padding, not as the spec says,", SAME_3X3),
            ("2x2", "pools windows of 2x2, not the spec's,", {"size": 2, "padding": "same"}),
            ("zeros-counted", "counts padded zeros in the mean", {"padded_zeros": "counted"}),
            ("zeros-excluded", "does not count padded zeros in the mean", {"padded_zeros": "excluded"}),
        ):
            changes = {f"{path}.{field}": value for path in paths for field, value in values.items()}
            made.append(by_fields(f"{site}-{name}", primitive, f"{clause} in the {where}", POOLS, changes))
        made.append(zero_padded(site))
        made.append(subsampled(site))
    return (*made, *everywhere())


def everywhere() -> tuple[Mistake, ...]:
    """What concerns all pools at once, or their place."""
    odd = "the paper has even grids only; torch's pools drop an odd row, TensorFlow's SAME keeps it"
    words = {
        "valid": "drops the odd row of a grid, not keeps it,",
        "same": "keeps the odd row of a grid, not drops it,",
    }

    def rows(name: str, old: str, new: str) -> Mistake:
        paths = [f"Transformer.{pool}_pool.padding" for pool in ("main", "shortcut")]
        changes = {path: lambda now: new if now == old else now for path in paths}
        clause = f"{words[new]} in the pools of Transformer blocks"
        return replace(by_fields(name, "attention pool", clause, odd, changes), fields=dict.fromkeys(paths, new))

    return (
        rows("pools-floor", "same", "valid"),
        rows("pools-ceil", "valid", "same"),
        by_fields(
            "pool-then-norm",
            "attention norm",
            "pools before the norm of a strided Transformer block, not after it",
            "Eq. (4): Attention(Pool(Norm(x))); chinhsuanwu and its copies pool first",
            {"Transformer.norm_pool_order": "pool_then_norm"},
        ),
        by_fields(
            "norm-then-pool",
            "attention norm",
            "pools after the norm of a strided Transformer block, not before it",
            "Eq. (4): Attention(Pool(Norm(x))); chinhsuanwu and its copies pool first",
            {"Transformer.norm_pool_order": "norm_then_pool"},
        ),
    )


def pools_at(changed: Changed, site: str) -> list[tuple[Pool, bool]]:
    """The pools of a site that are used, each with whether a border of its grid is padded before or behind."""
    found = []
    for block, grid, _ in with_grids(changed.spec):
        main = site != "shortcut-pool"
        if block.stride == 1 or (main and isinstance(block.run, Transformer) != (site == "attention-pool")):
            continue
        pool = block.run.main_pool if main else block.run.shortcut_pool
        if pool is not None:
            amounts = [padding_amounts(length, pool.size, 2, pool.padding) for length in grid]
            behind = [(length + sum(pair) - pool.size) % 2 for length, pair in zip(grid, amounts, strict=True)]
            seen = any(before or after > left for (before, after), left in zip(amounts, behind, strict=True))
            found.append((pool, seen))
    return found


def zero_padded(site: str) -> Mistake:
    """A max pool whose padding can win."""
    primitive, paths, where = SITES[site]
    name = f"{site}-padded-with-zeros"

    def change(changed: Changed) -> Changed:
        here = any(pool.kind == "max" and padded for pool, padded in pools_at(changed, site))
        require(changed, here, f"padded max pool in the {where}")
        original = changed.forms.max_pool

        def pool(x: Array, *, size: int = 2, stride: int = 2, padding: Any = "same") -> Array:
            rows, columns = (padding_amounts(x.shape[axis], size, stride, padding) for axis in (1, 2))
            x = pad_axis(pad_axis(x, 1, *rows, 0.0), 2, *columns, 0.0)
            return original(x, size=size, stride=stride, padding="valid")

        form = where_marked(name, "size", original, pool)
        return changed.but(spec=marked(changed, paths, name), forms=replace(changed.forms, max_pool=form))

    return Mistake(
        name,
        primitive,
        f"pads the max pools with 0, not with minus infinity, in the {where}",
        "a common slip: an explicit padding layer before the pool, as kecam's ZeroPadding",
        change,
    )


def marked(changed: Changed, paths: tuple[str, ...], name: str) -> Any:
    """The spec with marks on the sizes of some pools."""
    return with_fields(changed.spec, {f"{path}.size": mark(name) for path in paths})


def subsampled(site: str) -> Mistake:
    """No pool at all, but every second position."""
    primitive, paths, where = SITES[site]
    changes = {f"{path}.{field}": v for path in paths for field, v in (("size", 1), ("padding", "same"))}
    return by_fields(
        f"{site}-subsampled",
        primitive,
        f"takes every second position, not a pool, in the {where}",
        "a common slip: the strided 1x1 convolution of ResNet shortcuts",
        changes,
    )


def unpooled(x: Array, **_: Any) -> Array:
    """The grid as it is."""
    return x


def late_shortcut_pool() -> tuple[str, str, str, Change]:
    """Name, clause, source and change of a shortcut that projects before it pools."""
    name = "shortcut-projected-before-pool"

    def change(changed: Changed) -> Changed:
        spec = changed.spec
        blocks = [b for b in spec.blocks() if b.stride == 2 and b.projected and b.run.shortcut_pool.kind == "max"]
        require(changed, bool(blocks) and spec_alike(changed), "projected shortcut with a max pool")
        pool = blocks[0].run.shortcut_pool
        original = changed.forms.max_pool
        names = {f"{block.name}.shortcut" for block in spec.blocks() if block.stride == 2}

        def make() -> Any:
            def tap(name: str, value: Array) -> Array:
                return original(value, size=pool.size, stride=2, padding=pool.padding) if name in names else value

            return tap

        form = where_marked(name, "size", original, unpooled)
        new = marked(changed, SITES["shortcut-pool"][1], name)
        forms = replace(changed.forms, max_pool=form)
        return changed.but(spec=new, forms=forms, taps=(make, *changed.taps))

    clause = "projects the shortcut before the max pool, not after it"
    return (
        name,
        clause,
        "Eq. (4): Proj(Pool(x)); lucid3 and others project first, or with a strided convolution",
        change,
    )


def spec_alike(changed: Changed) -> bool:
    """Whether all shortcuts have one pool."""
    return len({block.run.shortcut_pool for block in changed.spec.blocks() if block.stride == 2}) == 1

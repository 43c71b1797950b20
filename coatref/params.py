"""The parameters of a network: an immutable tree of arrays that carries its spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coatref.attention import resize_table
from coatref.blocks import convnext_tensors, head_tensors, mbconv_tensors, stem_tensors, transformer_tensors
from coatref.errors import InputError, LibraryError, WeightsError
from coatref.registry import Array, Library, library_of, place, resolve_dtype, resolve_library, sealed
from coatref.specification.grids import grids
from coatref.specification.parts import ConvNeXt, MBConv
from coatref.specification.spec import Spec
from coatref.tensors import Tensor
from coatref.tree import Branch, flatten, map_named, register_node


class Params(Branch):
    """Arrays by name, as `params["s3"][0]["attn"]["q"]["w"]`, with the static `spec` that gives them their meaning.

    A pytree: `jax.jit`, `jax.grad`, `torch.func` and their tree functions take it as it is. The keys are "s0" (stem),
    "s1", "s2", ... (stages, tuples of blocks) and "head". `coatref.init`, `load` and `convert` make one.
    """

    __slots__ = ("_spec",)
    _spec: Spec

    def __init__(self, children: Mapping[str, Any], spec: Spec) -> None:
        super().__init__(children)
        object.__setattr__(self, "_spec", spec)

    @property
    def spec(self) -> Spec:
        """Everything about the network that is not an array."""
        return self._spec

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._children, self._spec)

    def __repr__(self) -> str:
        return f"Params({self.spec.name!r}, {len(self.flatten())} tensors)"

    def flatten(self) -> dict[str, Array]:
        """Dotted name ("s3.0.attn.q.w") -> array, in the order of the network."""
        return dict(flatten(self))

    def replace(self, changes: Mapping[str, Array]) -> Params:
        """These parameters with other arrays under some dotted names.

        Raises:
            WeightsError: a name is not in the tree, or what should replace an array is none or has another shape.
            InputError: `changes` is no mapping.
        """
        if not isinstance(changes, Mapping):
            raise InputError(f"replace takes a mapping of dotted names to arrays, got {type(changes).__name__}.")
        for name, value in changes.items():
            try:
                library_of(value)
            except LibraryError as error:
                raise WeightsError(f"Parameter {name} cannot be replaced: {error}") from None
        return from_flat(self.spec, self.flatten() | dict(changes))

    def to(self, *, xp: Any = None, dtype: Any = None, device: Any = None) -> Params:
        """These parameters in another array library, data type or on another device; arrays are copied.

        Args:
            xp: a module (`numpy`, `torch`, `jax.numpy`, `cupy`) or its name; None keeps the library.
            dtype: a name such as "float32" or a type of the library; None keeps each array's.
            device: as the library takes it; None keeps it, or takes the default device of another library.

        Raises:
            InputError: the library, data type or device is not known or cannot be had just now, or an array has no
                values (a "meta" tensor).
            MissingDependencyError: the library is not installed.
        """
        first = next(iter(self.flatten().values()))
        source = library_of(first)
        target = source if xp is None else resolve_library(xp)
        wanted = None if dtype is None else resolve_dtype(target, dtype)

        def move(name: str, array: Array) -> Array:
            if target is source:
                if device is not None:
                    array = move_to_device(target, array, device)
                kind = wanted if wanted is not None else array.dtype
                return sealed(target.namespace().astype(array, kind, copy=True))
            host = to_host(name, array)
            kind = wanted if wanted is not None else resolve_dtype(target, str(host.dtype))
            return sealed(place(target, host.copy(), kind, device))

        return Params(map_named(move, self), self.spec)

    def resize(self, height: int, width: int) -> Params:
        """These parameters for images of another size: every relative-bias table is interpolated (App. A.1).

        The sampling grid is the spec's `RelativeBias.resize`. Biases from an MLP, and specs without any, change nothing
        but the spec's image size.

        Raises:
            SizeError: the size has no meaning under the spec.
        """
        spec = self.spec.replace(image_size=(height, width))
        shapes = {name: tensor.shape for name, tensor in flatten(tensor_tree(spec))}
        sampling = {
            f"{block.name}.attn.relative_bias.table": block.run.attention.relative_bias.resize
            for block in spec.blocks()
            if block.run.kind == "transformer" and block.run.attention.relative_bias is not None
        }

        def fit(name: str, array: Array) -> Array:
            if tuple(array.shape) == shapes[name]:
                return array
            rows, columns = shapes[name][1:]
            return sealed(resize_table(array, rows, columns, sampling[name]))

        return Params(map_named(fit, self), spec)


def move_to_device(library: Library, array: Array, device: Any) -> Array:
    """The array on another device of its library.

    Raises:
        InputError: there is no such device.
    """
    from array_api_compat import to_device

    try:
        return to_device(array, device)
    except Exception as error:  # each library has its own
        raise InputError(
            f"Device {device!r:.80} was asked of {library.name}, which cannot move an array there "
            f"({type(error).__name__}: {str(error)[:200]}); `coatref info` lists its devices."
        ) from error


def to_host(name: str, array: Array) -> Any:
    """The array as a NumPy array.

    Raises:
        InputError: it has no values that could be read.
    """
    library = library_of(array)
    try:
        return library.to_numpy(array)
    except Exception as error:  # each library has its own
        raise InputError(
            f"Parameter {name}, a {library.name} array on {library.device(array)}, cannot be read "
            f"({type(error).__name__}: {str(error)[:200]}); only arrays with values can go to another library."
        ) from error


def tensor_tree(spec: Spec) -> dict[str, Any]:
    """The parameter tree of a spec with shapes and roles in place of arrays."""
    grid = grids(spec, *spec.image_size)
    tree: dict[str, Any] = {"s0": stem_tensors(spec.stem, spec.channels)}
    for block in spec.blocks():
        stage = block.name.partition(".")[0]
        if isinstance(block.run, MBConv):
            tensors = mbconv_tensors(block)
        elif isinstance(block.run, ConvNeXt):
            tensors = convnext_tensors(block)
        else:
            tensors = transformer_tensors(block, grid[block.name])
        tree[stage] = (*tree.get(stage, ()), tensors)
    tree["head"] = head_tensors(spec.head, spec.width)
    return tree


def from_flat(spec: Spec, arrays: Mapping[str, Array]) -> Params:
    """Parameters from dotted names, checked against the spec.

    Raises:
        WeightsError: tensors are missing, surplus or have another shape; all of them are listed.
    """
    tree = tensor_tree(spec)
    expected: dict[str, Tensor] = dict(flatten(tree))
    refuse_misfits(spec.name, {name: tensor.shape for name, tensor in expected.items()}, arrays)
    return Params(map_named(lambda name, tensor: arrays[name], tree), spec)


def refuse_misfits(what: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any], most: int = 8) -> None:
    """Refuse named tensors that are not exactly the expected ones.

    Raises:
        WeightsError: lists missing and surplus names and wrong shapes, at most `most` of each.
    """

    def listed(entries: list[str]) -> str:
        return ", ".join(entries[:most]) + (f" and {len(entries) - most} more" if len(entries) > most else "")

    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in found]
    surplus = [f"{name} {tuple(array.shape)}" for name, array in found.items() if name not in expected]
    misshapen = [
        f"{name} (expected {shape}, found {tuple(found[name].shape)})"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    problems = [
        f"{kind}: {listed(entries)}"
        for kind, entries in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if entries
    ]
    if problems:
        raise WeightsError(
            f"The tensors given do not fit the spec {what!r}; {'; '.join(problems)}. "
            "Give exactly the tensors of that spec, or name the spec that they belong to."
        )


def refuse_non_finite(arrays: Mapping[str, Array]) -> None:
    """Refuse NaN and infinite values.

    Raises:
        WeightsError: names the tensors that hold some.
    """
    bad = []
    for name, array in arrays.items():
        xp = library_of(array).namespace()
        if not bool(xp.all(xp.isfinite(array))):
            bad.append(name)
    if bad:
        raise WeightsError(
            f"{len(bad)} tensors hold NaN or infinite values: {', '.join(bad[:8])}; the weights are damaged, or pass "
            "allow_non_finite=True to load them all the same."
        )


def first_array(params: Params) -> Array:
    """One array of the tree, to ask for its library.

    Raises:
        InputError: the tree has none.
    """
    for _, array in flatten(params):
        return array
    raise InputError("The parameters hold no array.")


def _flatten_params(params: Params) -> tuple[list[Any], Any]:
    return list(params.values()), (params.spec, tuple(params))


def _unflatten_params(aux: Any, children: Any) -> Params:
    return Params(dict(zip(aux[1], children, strict=True)), aux[0])


register_node(Params, _flatten_params, _unflatten_params)

"""What a sparse model looks like, layer by layer."""

from dataclasses import dataclass

from aswl.structure import PrunedWeight


@dataclass(frozen=True)
class LayerSummary:
    """One pruned weight. ``flops``: multiplications and additions per sample with the kept weights; ``dense_flops``:
    with all of them; None until the layer has seen an input (outside ``torch.compile``). ``products``: how that input was
    multiplied, "dense", "sparse" or "fused"; ``break_even``: the density below which "auto" takes sparse ones, where it was
    measured.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    size: int
    attention: float
    threshold: float
    flops: int | None
    dense_flops: int | None
    products: str | None = None
    break_even: float | None = None

    @property
    def density(self) -> float:
        return self.kept / self.size


@dataclass(frozen=True)
class Summary:
    """All pruned weights; ``str()`` is a table."""

    layers: tuple[LayerSummary, ...]

    @property
    def kept(self) -> int:
        return sum(layer.kept for layer in self.layers)

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    @property
    def density(self) -> float:
        return self.kept / self.size

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells, header first and total last."""
        header = ("layer", "shape", "kept", "of", "density", "attention", "threshold", "MFLOPs", "dense", "products")
        cells = [
            (
                layer.name,
                "x".join(map(str, layer.shape)),
                f"{layer.kept:,}",
                f"{layer.size:,}",
                f"{layer.density:.4f}",
                f"{layer.attention:.4f}",
                f"{layer.threshold:.3g}",
                _millions(layer.flops),
                _millions(layer.dense_flops),
                _products(layer),
            )
            for layer in self.layers
        ]
        flops = [layer.flops for layer in self.layers]
        dense = [layer.dense_flops for layer in self.layers]
        sums = [None if None in column else sum(column) for column in (flops, dense)]
        total = (
            "total",
            "",
            f"{self.kept:,}",
            f"{self.size:,}",
            f"{self.density:.4f}",
            "",
            "",
            *map(_millions, sums),
            "",
        )
        return [header, *cells, total]

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = (
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
            for row in rows
        )
        return "\n".join(lines)


def summarize(entries: list[PrunedWeight]) -> Summary:
    """The summary of the entries as they are now; a tied weight's FLOPs are those of all its uses."""
    layers = []
    for entry in entries:
        kept, size = entry.layers[0].kept, entry.weight.numel()
        seen = [layer.positions for layer in entry.layers]
        positions = None if None in seen else sum(seen)
        layers.append(
            LayerSummary(
                entry.name,
                tuple(entry.weight.shape),
                kept,
                size,
                entry.attention.item(),
                entry.threshold.item(),
                None if positions is None else 2 * kept * positions,
                None if positions is None else 2 * size * positions,
                entry.layers[0].last_products,
                entry.layers[0].break_even,
            )
        )
    return Summary(tuple(layers))


def _millions(flops: int | None) -> str:
    return "-" if flops is None else f"{flops / 1e6:.3f}"


def _products(layer: LayerSummary) -> str:
    limit = "" if layer.break_even is None else f", sparse below {layer.break_even:.3f}"
    return "-" if layer.products is None else layer.products + limit

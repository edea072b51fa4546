"""Speed: whole training steps, products on a CPU beside their peers', and what a GPU was asked for."""

from typing import Any

from bench import rows
from bench.gpu.goals import verdicts

PEERS = ("dense", "torch CSR", "SparseProp")
OPERATORS = ("sparse_linear", "sparse_conv2d")
SHOWN = 0.05  # the density of the README's lines


def newest_steps() -> list[dict[str, Any]]:
    """The newest row of each setting of ``bench.step``."""
    setting = ("model", "batch", "density", "products", "backward_density", "threads", "form")
    return list({tuple(row[key] for key in setting): row for row in rows.read("step")}.values())


def newest_products() -> list[dict[str, Any]]:
    """The newest row of each product and sparsity of ``bench.cpu``."""
    measured = [row for row in rows.read("cpu") if row["op"] in OPERATORS]
    return list({(_product(row), row["sparsity"]): row for row in measured}.values())


def headlines(measured: list[dict[str, Any]], products: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the README: training steps and products at one density, each from worst to best shape."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in measured):
        here = [row for row in measured if (row["model"], row["density"], row["products"]) == (model, SHOWN, "auto")]
        cells = [_fastest(here, "sparse_ms"), "", _fastest(here, "dense_ms")]
        lines += [[f"{model}, a training step, CPU, ms", f"{SHOWN:.1%}", *cells]] if here else []
    for (name, sparsity), (dense, *peers) in _gathered(products).items():
        if sparsity == 1 - SHOWN:
            beside = [f"{ratio} {peer}" for peer, ratio in zip(PEERS[1:], peers) if ratio != "-"]
            lines.append([f"{name}, CPU, time", f"{SHOWN:.1%}", "1", ", ".join(beside), dense])
    return lines


def gpu_headlines(measured: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the README: what a GPU gave in its worst case, goal by goal."""
    if not measured:
        return [["everything on a GPU", "", "not measured", "", ""]]
    found = list(verdicts(measured))[1:]
    return [[f"{what}, GPU; asked for {floor}", "", got, baseline, ""] for what, baseline, floor, _, got, _, _ in found]


def steps(measured: list[dict[str, Any]]) -> list[str]:
    """The cost of a training step."""
    lines = [
        "| time of a whole training step (`bench.step`), CPU | form | dense | sparse | ratio (median of paired turns) |",
        "|---|---|---|---|---|",
    ]
    for row in measured:
        superset = "" if row["backward_density"] is None else f", backward density {row['backward_density']}"
        products = "measured" if row["products"] == "auto" else row["products"]
        what = f"{row['model']}, batch {row['batch']}, density {row['density']}{superset}, {products} products"
        times = f"{row['dense_ms']} ms | {row['sparse_ms']} ms | {row['ratio']:.2f}"
        lines.append(f"| {what}, {row['threads']} threads | {row['form']} | {times} |")
    return lines if measured else []


def kernels(measured: list[dict[str, Any]]) -> list[str]:
    """The products on a CPU, a line per shape and a column per sparsity; below 1 we lose."""
    cells = {(_product(row), row["sparsity"]): _ratios([row]) for row in measured}
    sparsities = sorted({sparsity for _, sparsity in cells})
    head = [
        f"CPU kernels, times faster than {' / '.join(PEERS)} (-: not measured)",
        *(f"{sparsity:.0%} zeros" for sparsity in sparsities),
    ]
    lines = [head, ["---"] * len(head)]
    for name in dict.fromkeys(name for name, _ in cells):
        lines.append([name, *(" / ".join(cells.get((name, sparsity), "-")) for sparsity in sparsities)])
    return [f"| {' | '.join(line)} |" for line in lines] if cells else []


def gpu(measured: list[dict[str, Any]]) -> list[str]:
    """What a GPU is asked for and what it gave (``bash bench/gpu.sh``, whose rows.jsonl is kept in results/gpu.jsonl)."""
    head = "| GPU | against | floor | goal | got, at worst | |"
    lines = [
        f"| {what} | {baseline} | {floor} | {goal} | {got} | {verdict} |"
        for what, baseline, floor, goal, got, _, verdict in list(verdicts(measured))[1:]
    ]
    return [
        head,
        "|---|---|---|---|---|---|",
        *(lines if measured else ["| everything | - | - | - | - | not measured |"]),
    ]


def _product(row: dict[str, Any]) -> str:
    """What a row of ``bench.cpu`` multiplies."""
    if row["op"] == "sparse_linear":
        what = f"`sparse_linear` {row['outputs']}x{row['inputs']}, batch {row['batch']}"
    else:
        kernel, size = row["kernel"], row["size"]
        what = f"`sparse_conv2d` {kernel}x{kernel}, {row['inputs']} to {row['outputs']}, {size}x{size}, batch {row['batch']}"
    return what + _passes(row)


def _passes(row: dict[str, Any]) -> str:
    return ", forward and backward" * row["backward"] + f", {row['threads']} threads"


def _gathered(measured: list[dict[str, Any]]) -> dict[tuple[str, float], list[str]]:
    """Ratios by operator and sparsity, over all shapes."""
    members: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in measured:
        members.setdefault((f"`{row['op']}`{_passes(row)}", row["sparsity"]), []).append(row)
    return {place: _ratios(found) for place, found in members.items()}


def _ratios(measured: list[dict[str, Any]]) -> list[str]:
    """How many times faster ours is than each peer, all in their best layouts, from the worst row to the best one."""
    parts = []
    for peer in PEERS:
        found = [ratio for row in measured if (ratio := _faster(row, peer)) is not None]
        ends = [f"{end:.1f}" for end in (min(found), max(found))] if found else ["-"]
        parts.append(" to ".join(dict.fromkeys(ends)))
    return parts


def _faster(row: dict[str, Any], peer: str) -> float | None:
    """The peer's time over ours, each in its best layout; None where the peer was not measured."""

    def times(kind: str) -> list[float]:
        return [ratio for name, ratio in row["ratio"].items() if name.partition(",")[0] == kind]

    return min(times(peer)) / min([1.0, *times("ours")]) if times(peer) else None


def _fastest(measured: list[dict[str, Any]], which: str) -> str:
    """The shortest time of a step in fp32, and in bf16 where that was measured."""
    parts = []
    for precision in ("fp32", "bf16"):
        if found := [row[which] for row in measured if row["form"].startswith(precision)]:
            parts.append(f"{min(found):.0f} ({precision})")
    return ", ".join(parts)

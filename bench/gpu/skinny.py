"""Products of a few rows with a compressed weight, against cuBLAS: bytes of the weight are all that counts."""

from bench.gpu.run import Missing, Run


def measure(run: Run) -> None:
    with run.case("28672x8192", *(f"skinny {percent}" for percent in (50, 70, 90))):
        raise Missing("no compressed products on a GPU")

"""The gated experiments of ``bench.experiments``: each module's ``measure(run)``."""

import importlib
import pkgutil

from bench.gpu.run import Missing, Run


def measure(run: Run) -> None:
    with run.case("experiments"):
        try:
            experiments = importlib.import_module("bench.experiments")
        except ModuleNotFoundError as error:
            raise Missing("none") from error
        for found in pkgutil.iter_modules(experiments.__path__):
            module = importlib.import_module(f"bench.experiments.{found.name}")
            if hasattr(module, "measure"):
                module.measure(run)
        run.note("experiments", "done")

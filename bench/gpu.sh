#!/usr/bin/env bash
# Everything that a machine with a GPU can say, within nine minutes: bash bench/gpu.sh [--smoke] OUTDIR [SECTION ...]
# Needs torch and triton in the environment's python3 (or $PYTHON), and no network. See `bash bench/gpu.sh --help`.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m bench.gpu "$@"

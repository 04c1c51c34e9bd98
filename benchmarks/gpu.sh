#!/usr/bin/env bash
# What an erasure costs on this machine's GPU: SD 1.5, SDXL and Flux.1 dev in bfloat16 at 512 and 1024 pixels, random weights.
# Keeps nothing, ends within 8 minutes, and prints one JSON: what was measured, and what was not and why.
# With arguments it measures that alone: benchmarks/gpu.sh --shape tiny
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
last=$((SECONDS + ${LIMIT:-460}))
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

measure() { # measure NAME ARGUMENTS...
    local name=$1 left=$((last - SECONDS))
    shift
    echo "$name, $left s left" >&2
    if [ "$left" -le 5 ]; then
        echo "no time was left" >"$folder/$name.failed"
    elif ! timeout "$left" "$python" -m semu_diffusion.pipelines.cli.main benchmark-cost --json "$@" \
        >"$folder/$name.out" 2>"$folder/$name.err"; then
        tail -n 1 "$folder/$name.err" >"$folder/$name.failed"
        [ -s "$folder/$name.failed" ] || echo "ended after $left s" >"$folder/$name.failed"
    fi
}

if [ $# -gt 0 ]; then
    measure given "$@"
else
    common=(--weights bf16 --gradient-checkpointing --memory 2GB --batch-size 4 --steps 3 --seconds 15)
    measure 1-sd15-512 --shape sd15 --size 512 "${common[@]}"
    measure 2-sdxl-1024 --shape sdxl --size 1024 "${common[@]}"
    measure 3-flux-dev-1024 --shape flux-dev --size 1024 "${common[@]}" --batch-size 1
    measure 4-sd15-1024 --shape sd15 --size 1024 "${common[@]}" --phase collect,moments,train
    measure 5-sdxl-512 --shape sdxl --size 512 "${common[@]}" --phase collect,moments,train
    measure 6-flux-dev-512 --shape flux-dev --size 512 "${common[@]}" --phase collect,moments,train
fi

"$python" - "$folder" <<'PYTHON'
import json
import pathlib
import sys

files = sorted(pathlib.Path(sys.argv[1]).iterdir())
failed = {file.stem: file.read_text().strip() for file in files if file.suffix == ".failed"}
done = [file for file in files if file.suffix == ".out" and file.stem not in failed]
records = [record for file in done for record in json.loads(file.read_text())["measured"]]
print(json.dumps({"measured": records, "failed": failed}, indent=1))
sys.exit(bool(failed))
PYTHON

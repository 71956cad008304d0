#!/usr/bin/env bash
# Runs tools/gpu.py with the Python that is there: $PYTHON, this project's environment, or python3.
cd "$(dirname "$0")/.." || exit 1
for python in ${PYTHON:+"$PYTHON"} .venv/bin/python python3; do
    if "$python" -c "import torch" 2>/dev/null; then
        exec "$python" tools/gpu.py "$@"
    fi
done
echo "make gpu: no Python with torch found; set PYTHON to one, such as PYTHON=/path/to/python3 make gpu"
exit 2

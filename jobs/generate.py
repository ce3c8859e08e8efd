"""Entry point for a cluster: `python -m jobs.generate JOB.yaml [--output DIR] [--set KEY=VALUE]...`.

The same function as `batchgen run`, with a last line for scripts.
"""

from pipeline.cli import run
from pipeline.submitted import told

if __name__ == "__main__":
    told(run)

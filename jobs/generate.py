"""Entry point for a cluster: `python -m jobs.generate JOB.yaml [--output DIR] [--set KEY=VALUE]...`.

The same function as `batchgen run`.
"""

from pipeline.cli import run

if __name__ == "__main__":
    run()

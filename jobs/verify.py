"""Entry point for a cluster: `python -m jobs.verify OUT [--rescore N] [--json]`.

The same function as `batchgen verify`, with a last line for scripts.
"""

from pipeline.cli import verify
from pipeline.submitted import told

if __name__ == "__main__":
    told(verify)

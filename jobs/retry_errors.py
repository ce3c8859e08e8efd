"""Entry point for a cluster: `python -m jobs.retry_errors OUT [--error-type TYPE]...`.

The same function as `batchgen retry-errors`, with a last line for scripts.
"""

from pipeline.cli import retry_errors
from pipeline.submitted import told

if __name__ == "__main__":
    told(retry_errors)

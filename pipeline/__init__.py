"""batchgen: prompts in as Parquet, completions out as Parquet, on Ray."""

__version__ = "0.1.0"

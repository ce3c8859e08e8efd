# The image of every node: Ray's own, with batchgen and the versions that the tests are run with.
#   docker build -t your-team/batchgen:0.1.0 .
#   docker build -t your-team/batchgen:0.1.0-cpu --build-arg BASE=2.60.0-py311 .
ARG BASE=2.60.0-py311-gpu
FROM rayproject/ray:${BASE}

ENV RAY_USAGE_STATS_ENABLED=0
COPY --chown=ray:users constraints.txt pyproject.toml README.md LICENSE /home/ray/batchgen/
COPY --chown=ray:users pipeline /home/ray/batchgen/pipeline
COPY --chown=ray:users jobs /home/ray/batchgen/jobs
RUN pip install --no-cache-dir --constraint /home/ray/batchgen/constraints.txt /home/ray/batchgen \
    && mkdir --mode=700 /home/ray/.ray

"""The pages for people, run: every block of README.md and docs/*.md, and what it shows.

    blocks    a page as its blocks, each with the output shown for it
    run       a working folder of a page, in which its blocks are done one after another
    compare   what is shown against what came out

Four comments, each on the line above a block, say what the block itself does not:

    <!-- not run: why -->       it cannot be run here
    <!-- first: command -->     done before it, not shown
    <!-- file: job.yaml -->     the reader saves it under this name
    <!-- exit code: 5 -->       of its last command

`python -m tests.handbook [PAGE...]` puts what came out in the place of what is shown where they differ.
"""

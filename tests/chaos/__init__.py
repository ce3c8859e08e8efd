"""The chaos suite: the same job is started again and again while its processes are killed, and must come out the same.

`scenarios` says what is killed when, from a seed. `driver` is what one start of the job does in a process of its own,
`world` has the processes, nodes and stores that can be killed, and `play` goes through a scenario and compares what is
left with the undisturbed run. `python -m tests.chaos` plays many and counts.
"""

import os
import secrets

# a process keeps what it imports Ray with
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # nodes and drivers on loopback
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

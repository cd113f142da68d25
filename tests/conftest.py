"""One setting for every test that starts Ray in this process."""

import os

# Ray's C++ part keeps a process's first authentication mode: a second session with another loses messages and
# waits for ever.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

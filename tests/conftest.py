"""One setting for every test that starts Ray in this process."""

import os

# Ray's C++ part keeps the first authentication mode of a process: a second session with another one loses messages and waits for ever.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

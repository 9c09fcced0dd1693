"""A supervisor for tests that tries once: `babysit.py --tries N -- COMMAND...`; SIGTERM goes to the command."""

import signal
import subprocess
import sys

child = subprocess.Popen(sys.argv[sys.argv.index('--') + 1 :])
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
sys.exit(child.wait())

"""What a run will need of devices that need not be there: the real train step, compiled and never run."""

"""The one train step, the state it moves, and the loop that never loses a run."""

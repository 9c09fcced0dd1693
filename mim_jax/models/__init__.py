"""Linen modules: pure init/apply. They know tokens and plans; never losses, teachers or recipes."""

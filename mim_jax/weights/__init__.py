"""Weights of other libraries: files, layouts, and the frozen teachers made of them. Nothing here knows a recipe."""

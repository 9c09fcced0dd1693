"""A study: recipes x seeds, each pre-trained and tested, and claims that were fixed before. `python -m mim_jax.study`."""

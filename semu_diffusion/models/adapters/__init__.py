"""One adapter for each family of models: what the rest of the package knows of it."""

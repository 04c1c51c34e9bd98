"""What users compare with: other ways to take a class out, each one short file, each ending in an `Edit`."""

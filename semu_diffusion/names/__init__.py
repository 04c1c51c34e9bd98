"""Names as people write them, in any script: which letters are the same, plurals and articles."""

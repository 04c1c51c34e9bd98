"""Numbers: extractors take images, metrics take feature matrices. Nothing here knows a command line."""

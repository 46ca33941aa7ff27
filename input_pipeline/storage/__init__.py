"""Storage of data: prepared sets, caches and arrays on disk."""

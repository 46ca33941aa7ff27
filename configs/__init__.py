"""One experiment a file: `get_config()`, and a docstring with the command, the result, the time."""

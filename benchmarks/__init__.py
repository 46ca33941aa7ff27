"""Speed and memory of a learning step, compared with a baseline in the same process."""

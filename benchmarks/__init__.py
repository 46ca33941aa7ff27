"""Speed and memory of a learning step, side by side with a baseline in the same process."""

"""Text: files, tokenizers, tasks and preferences."""

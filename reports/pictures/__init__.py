"""Pictures of a report, one kind per module."""

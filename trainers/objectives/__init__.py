"""Objectives: rewards per example, and the metrics to report."""

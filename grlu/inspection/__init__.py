"""Inspection of networks and estimates: sites, checks and alignment."""

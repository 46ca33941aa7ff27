"""Learning rules: estimators of a gradient from rewards."""

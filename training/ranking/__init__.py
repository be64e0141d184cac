"""What every ranker shares: features, labelled examples, the metrics of predictions, and calibration."""

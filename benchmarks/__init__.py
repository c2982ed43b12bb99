"""Speed, as ratios that are measured side by side: ``python -m benchmarks.run``."""

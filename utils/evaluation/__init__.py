"""Models and a test manifest to a report."""

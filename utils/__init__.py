"""What one does with models: files, loops, scores, reports."""

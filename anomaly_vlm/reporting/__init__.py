"""What a run shows and leaves: progress, tables, heat maps, records."""
